"""The exporter: a checkpoint as ONNX graphs."""
