"""The sampler on ONNX Runtime: numpy, pillow and onnxruntime, without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbdm.base.lazy import public

if TYPE_CHECKING:
    from bbdm.runtime.sampler import OnnxBridgeSampler as OnnxBridgeSampler

_HOMES = {"OnnxBridgeSampler": "bbdm.runtime.sampler"}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public(__name__, _HOMES)
