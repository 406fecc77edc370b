"""The exporter: a checkpoint as ONNX graphs."""

OPSETS = range(21, 24)  # versions of ONNX's operators; the first has GroupNorm with a weight for each channel
IR_VERSIONS = {21: 10, 22: 10, 23: 11}  # the oldest for each opset, which the most runtimes read
