"""Export to ONNX: ``to_onnx.py`` is the command, the other files are its parts."""
