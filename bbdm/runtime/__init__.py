"""The sampler on ONNX Runtime: numpy, pillow and onnxruntime, without PyTorch."""

from __future__ import annotations

from bbdm.base.optional import public

__getattr__, __dir__, __all__ = public(__name__, __file__)
