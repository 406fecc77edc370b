"""Paired pictures: files, batches, and caches of pictures and latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbdm.base.lazy import public

if TYPE_CHECKING:
    from bbdm.data.image_cache import ImageCache as ImageCache
    from bbdm.data.latents import LatentDataset as LatentDataset
    from bbdm.data.pairs import Pair as Pair
    from bbdm.data.pairs import PairedDataset as PairedDataset
    from bbdm.data.pairs import load_dataset as load_dataset

_HOMES = {
    "ImageCache": "bbdm.data.image_cache",
    "LatentDataset": "bbdm.data.latents",
    "Pair": "bbdm.data.pairs",
    "PairedDataset": "bbdm.data.pairs",
    "load_dataset": "bbdm.data.pairs",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public(__name__, _HOMES)
