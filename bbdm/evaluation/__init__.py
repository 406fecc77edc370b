"""Translating a data set, and scores of the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbdm.base.lazy import public

if TYPE_CHECKING:
    from bbdm.evaluation.deeplab import DeepLab as DeepLab
    from bbdm.evaluation.deeplab import load_deeplab as load_deeplab
    from bbdm.evaluation.deeplab import save_deeplab as save_deeplab
    from bbdm.evaluation.metrics import Scores as Scores
    from bbdm.evaluation.segmentation import SegmentationScore as SegmentationScore

_HOMES = {
    "DeepLab": "bbdm.evaluation.deeplab",
    "Scores": "bbdm.evaluation.metrics",
    "SegmentationScore": "bbdm.evaluation.segmentation",
    "load_deeplab": "bbdm.evaluation.deeplab",
    "save_deeplab": "bbdm.evaluation.deeplab",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public(__name__, _HOMES)
