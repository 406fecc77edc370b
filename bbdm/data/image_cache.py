"""A data set's resized pictures, decoded once and stored on disk as uint8."""

from __future__ import annotations

from pathlib import Path

from bbdm.data.cache import Sides, TensorCache
from bbdm.data.collection import Example
from bbdm.data.pairs import PairedDataset


class ImageCache(TensorCache):
    """Pairs from a cache: the same tensors as the data set's, bit for bit.

    Args:
        dataset: the pairs.
        folder: the cache, which is made if it does not exist. An interrupted one is completed.
        split: the beginning of the names of its files.
        workers: processes that read pictures while it is made.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds other pictures under this name, or a file that has changed; or a picture
            cannot be read.
        OSError: the disk is full.
    """

    what = "pictures"
    in_block = TensorCache.at_once

    def __init__(
        self, dataset: PairedDataset, folder: Path, split: str = "train", workers: int = 0, progress: bool = False
    ) -> None:
        def stored(batch: Example) -> Sides:
            return batch.source, batch.target

        settings = {"channels": dataset.channels}
        super().__init__(dataset, folder / f"{split}.json", stored, settings, f"{split}-", workers, progress)
