"""Export to ONNX: ``to_onnx.py`` is the script, the other files are its parts."""
