"""Tensors of pairs, made once and stored on disk: decoded pictures, or their latents.

A cache is a folder of safetensors blocks, each of some pairs, and a manifest with the SHA-256 of each block.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, file_sha256, locked, remove_all_leftovers, write_atomically
from bbdm.data.collection import Example, Order
from bbdm.data.examples import Examples
from bbdm.data.loading import Batches
from bbdm.data.told import trimmed

VERSION = 1
EARLIER = 256  # pairs in a block of a cache whose manifest does not say it
CONDITION = "condition."  # before the name of a condition in a block
Tensors = dict[str, torch.Tensor]  # of examples, by what they are


def tensors_of(batch: Example) -> Tensors:
    """What is stored of a batch: source, target, conditions, and the mask if there is one."""
    conditions = {f"{CONDITION}{name}": value for name, value in batch.conditions.items()}
    masked = {} if batch.mask is None else {"mask": batch.mask}
    return {"source": batch.source, "target": batch.target, **conditions, **masked}


def _length(block: Path) -> int:
    """The number of pairs in a block."""
    with safe_open(block, framework="pt") as file:
        return file.get_slice("source").get_shape()[0]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Batches as one; tokens (B, L, D) of several lengths get rows of zeros."""
    most = max(part.shape[1] for part in parts) if parts[0].ndim == 3 else 0
    return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[1])) if most else part for part in parts])


class TensorCache(Examples):
    """Examples whose tensors are read from a cache. Attributes: ``dataset``, ``folder``, the data set's."""

    what: str  # is stored, for messages
    in_block = 256  # pairs
    at_once = 64  # pairs that are read and made at a time

    def __init__(
        self,
        dataset: Examples,
        path: Path,  # of the manifest
        make: Callable[[Example], Tensors],  # of a batch of pictures
        settings: dict[str, Any],  # what decides the tensors, besides the pictures
        prefix: str = "",  # of the names of the blocks
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        if dataset.crops is not None:
            raise ValueError(
                f"crops are others in each epoch, and a cache of {self.what} would keep those of the first"
            )
        vars(self).update(vars(dataset))
        self.dataset = dataset
        self.folder = path.parent
        self.in_block = type(self).in_block  # not that of a cache as the data set
        self._prefix, self._whole = prefix, ""
        self._mapped: dict[int, Tensors] = {}
        pictures = {"count": len(self), **self.description()}
        kind = {"version": VERSION, "pictures": pictures, "image_size": self.image_size, "direction": self.direction}
        made_of = manifest.as_json({**kind, **settings})
        with locked(self.folder):
            blocks = self._checked(path, made_of)
            starts = {name: number * self.in_block for number, name in enumerate(self._names) if name not in blocks}
            missing = {name: range(len(self))[first : first + self.in_block] for name, first in starts.items()}
            order = list(chain.from_iterable(missing.values()))
            bar = tqdm(total=len(order), desc=self.what, unit="pair", disable=not progress or not missing)
            with bar, closing(Batches(dataset, self.at_once, torch.device("cpu"), workers)) as batches:
                stored = batches.stored(order)
                for name, indices in missing.items():
                    made: list[Tensors] = []
                    for batch in islice(stored, -(-len(indices) // self.at_once)):
                        made.append(make(batch))
                        bar.update(len(batch.source))
                    self._write(self.folder / name, {key: _joined([part[key] for part in made]) for key in made[0]})
                    blocks[name] = file_sha256(self.folder / name)
                    manifest.write(path, {**made_of, "in_block": self.in_block, "blocks": blocks})

    def __len__(self) -> int:
        return len(self.dataset)

    def digest(self) -> str:
        """The data set's."""
        return self.dataset.digest()

    def names_digest(self, told: bool = True) -> str:
        """The data set's."""
        return self.dataset.names_digest(told)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The data set's."""
        return self.dataset.spacing

    def order(self, seed: int) -> Order:
        """The data set's."""
        return self.dataset.order(seed)

    @property
    def _names(self) -> list[str]:
        """The files of the blocks; an earlier version had one of all pictures."""
        count = -(-len(self) // self.in_block)
        return [self._whole] if self._whole else [f"{self._prefix}{i:05d}.safetensors" for i in range(count)]

    def _checked(self, path: Path, made_of: dict[str, Any]) -> dict[str, str]:
        """SHA-256 of the blocks that exist, by name, all checked; writes the manifest of a new cache."""
        remove_all_leftovers(self.folder)
        if not path.exists():
            for other in self.folder.glob(f"{self._prefix}*"):
                if other.name != LOCK:
                    raise ValueError(f"{other} is of no cache of {self.what}, without {path}: give another folder")
            manifest.write(path, {**made_of, "in_block": self.in_block, "blocks": {}})
            return {}
        with manifest.reading(path, f"delete {self.folder}") as content:
            (key,) = content.keys() & {"blocks", "shards", "sha256"}  # the last two in earlier versions
            known = content.pop(key)
            if key != "sha256":
                self.in_block = int(content.pop("in_block", EARLIER))
                if self.in_block < 1:
                    raise ValueError(f"in_block must be at least 1, got {self.in_block}")
            if key == "sha256":  # one file of all pictures
                whole = path.with_suffix(".npy")
                known = {whole.name: known} if known and whole.exists() else {}
                if known:
                    self._whole, self.in_block = whole.name, len(self)
            blocks = {name: known[name] for name in self._names if name in known and (self.folder / name).exists()}
            differing = manifest.differences(content, made_of)
        if differing:
            raise ValueError(f"{path} is of other {self.what} ({differing}): give another folder, or delete this one")
        for number, name in enumerate(self._names):
            file = self.folder / name
            if name in blocks and file_sha256(file) != blocks[name]:
                raise ValueError(f"{file} has changed since it was written: delete it")
            pairs = len(range(len(self))[number * self.in_block :][: self.in_block])
            if name in blocks and not self._whole and _length(file) != pairs:
                raise ValueError(f"cannot read {path}: {file} has not the {pairs} pairs of it: delete {self.folder}")
        return blocks

    def _write(self, path: Path, tensors: Tensors) -> None:
        content = safetensors.torch.save(tensors)
        try:
            write_atomically(path, lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = f"{len(self) * len(content) / len(tensors['source']) / 2**20:.0f} MiB"
            reason = f"no room for {size} of {self.what}: make some, or give another folder"
            raise OSError(error.errno, reason, str(path)) from error

    def read(self, index: int, seed: int = 0) -> Example:
        """Example ``index`` as it is stored."""
        block, place = divmod(range(len(self))[index], self.in_block)
        if block not in self._mapped:
            path = self.folder / self._names[block]
            if path.suffix == ".npy":
                source, target = torch.from_numpy(np.load(path, mmap_mode="c")).unbind(1)
                self._mapped[block] = {"source": source, "target": target}
            else:
                with safe_open(path, framework="pt") as file:
                    self._mapped[block] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        parts = {key: tensor[place].clone() for key, tensor in self._mapped[block].items()}
        told = {key.removeprefix(CONDITION): v for key, v in parts.items() if key.startswith(CONDITION)}
        conditions = {name: trimmed(value) if value.ndim == 2 else value for name, value in told.items()}
        return Example(parts["source"], parts["target"], conditions, parts.get("mask"))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": {}}  # each process opens the files itself


class ImageCache(TensorCache):
    """Pairs from a cache: the same tensors as the data set's, bit for bit.

    Args:
        dataset: the pairs of pictures.
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
    in_block = 64  # pairs; at 512 x 512 a block has 100 MB, and some are in memory while it is made

    def __init__(
        self, dataset: Examples, folder: Path, split: str = "train", workers: int = 0, progress: bool = False
    ) -> None:
        settings = {"channels": dataset.channels}
        super().__init__(dataset, folder / f"{split}.json", tensors_of, settings, f"{split}-", workers, progress)
