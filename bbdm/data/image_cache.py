"""A data set's resized pictures, decoded once and stored on disk as one memory-mapped file of uint8.

A cache is two files for each split: ``train.npy``, of shape (pairs, 2, channels, height, width), and its
manifest ``train.json``, with the file's SHA-256.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import file_sha256, locked, remove_all_leftovers, write_atomically
from bbdm.data.loading import with_short_errors
from bbdm.data.pairs import PairedDataset, Pixels
from bbdm.pictures.images import sides

VERSION = 1
PAIRS_AT_ONCE = 64  # pairs in a write


class ImageCache(PairedDataset):
    """Pairs from a cache: the same tensors as the data set's, bit for bit.

    Args:
        dataset: the pairs.
        folder: the cache, which is made if it does not exist. An interrupted one is made again.
        split: the name of its files.
        workers: processes that read pictures while it is made.
        progress: show a progress bar.

    Raises:
        ValueError: the folder holds other pictures under this name, or a file that has changed; or a picture
            cannot be read.
        OSError: the disk is full.
    """

    def __init__(
        self, dataset: PairedDataset, folder: Path, split: str = "train", workers: int = 0, progress: bool = False
    ) -> None:
        kind = dataset.image_size, dataset.direction, dataset.channels
        super().__init__(dataset.pairs, *kind, degradation=dataset.degradation)
        self.left_out = dataset.left_out
        self.path = folder / f"{split}.npy"
        self._manifest = folder / f"{split}.json"
        pictures = {"count": len(self), **self.description()}
        description = {"version": VERSION, "pictures": pictures, "direction": self.direction}
        description = manifest.as_json({**description, "image_size": self.image_size, "channels": self.channels})
        with locked(folder):
            if not self._is_complete(description):
                self._write(dataset, workers, progress)
                manifest.write(self._manifest, {**description, "sha256": file_sha256(self.path)})

    def _is_complete(self, description: dict[str, Any]) -> bool:
        """Whether the whole file exists, checked; writes the manifest of a new cache."""
        remove_all_leftovers(self.path.parent)
        if not self._manifest.exists():
            if self.path.exists():
                raise ValueError(f"{self.path} is no cache of pictures, without {self._manifest}: give another folder")
            manifest.write(self._manifest, {**description, "sha256": None})
            return False
        with manifest.reading(self._manifest, f"delete it and {self.path}") as content:
            digest = content.pop("sha256", None)
            differing = manifest.differences(content, description)
        if differing:
            raise ValueError(f"{self.path} is of other pictures ({differing}): give another folder, or delete it")
        if digest is None or not self.path.exists():
            return False
        if file_sha256(self.path) != digest:
            raise ValueError(f"{self.path} has changed since it was written: delete it")
        return True

    def _write(self, dataset: PairedDataset, workers: int, progress: bool) -> None:
        order = dataset.ahead(range(len(dataset)))
        loader = DataLoader(Pixels(dataset), PAIRS_AT_ONCE, sampler=order, num_workers=workers)  # pyright: ignore[reportArgumentType]

        def write(temporary: Path) -> None:
            # Not through a memory map, where a full disk would kill the process.
            with temporary.open("wb") as file, tqdm(total=len(self), desc="pictures", disable=not progress) as bar:
                for index, (source, target, *reasons) in enumerate(with_short_errors(loader)):
                    dataset.leave_out(*reasons)
                    part = torch.stack([source, target], dim=1)
                    if index == 0:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), *part.shape[1:])}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(part.numpy().data)
                    bar.update(len(part))

        try:
            write_atomically(self.path, write)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            height, width = sides(self.image_size)
            size = f"{len(self) * 2 * self.channels * height * width / 2**20:.0f} MiB"
            reason = f"no room for {size} of pictures: make some, or give another folder"
            raise OSError(error.errno, reason, str(self.path)) from error

    @cached_property
    def _array(self) -> npt.NDArray[np.uint8]:
        return np.load(self.path, mmap_mode="r")

    def ahead(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices: nothing else is needed."""
        return iter(order)

    def read(self, index: int) -> tuple[Any, ...]:
        """Source and target of example ``index``, each (channels, height, width) uint8."""
        source, target = torch.from_numpy(np.array(self._array[index]))
        return source, target

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_array"}  # each process opens its own
