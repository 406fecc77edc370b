"""Data sets whose examples are computed once and stored on a disk: resized pictures, and latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bbdm.base.atomic import locked
from bbdm.codec import Codec, LatentStatistics
from bbdm.data.cache import Cache, Tensors
from bbdm.data.examples import CONDITION, Example, trimmed
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from bbdm.pictures.picture import scale

PAIRS_IN_STATISTICS = 16  # in a batch
ENCODED_AT_ONCE = 8  # pairs


class CachedExamples(Pairs):
    """Another data set whose examples are stored: the same tensors, bit for bit.

    Args:
        dataset: the examples that are stored.
        folder: of the cache, made where it does not exist. An interrupted one is completed.
        workers: processes that read examples while the cache is filled.
        progress: show a progress bar.
        **settings: what decides the tensors besides the examples.

    Attributes:
        dataset: the examples that it is of.
        folder: that the cache is in.

    Raises:
        ValueError: the folder holds others, or a file that has changed; examples are crops; or a picture
            cannot be read.
        OSError: the disk is full.
    """

    WHAT: ClassVar[str] = "pictures"  # for messages
    BLOCK: ClassVar[int] = 64  # examples in an entry

    def __init__(self, dataset: Pairs, folder: Path, workers: int = 0, progress: bool = False, **settings: Any) -> None:
        if dataset.spec.crop is not None:
            raise ValueError(f"crops are others in each epoch, and a cache of {self.WHAT} would keep the first")
        if not dataset.paired:
            raise ValueError(f"two sets have other pairs in each epoch, and a cache of {self.WHAT} would keep some")
        vars(self).update(vars(dataset))
        self.stream = None  # stored examples are read by index
        self.dataset, self.folder, block = dataset, folder, self.BLOCK
        about = {"count": len(self), "block": block, "image_size": self.image_size, "direction": self.spec.direction}
        self._cache = Cache(folder, self.WHAT, {**about, **dataset.settings(), "files": dataset.digest(), **settings})
        entries = {f"{i // block:05d}": range(len(self))[i : i + block] for i in range(0, len(self), block)}
        with locked(folder):
            missing = {key: entries[key] for key in self._cache.missing(entries)}
            with closing(Batches(dataset, block, torch.device("cpu"), workers)) as batches:
                stored = batches.stored([index for entry in missing.values() for index in entry])
                how: Any = {"unit": "pair", "unit_scale": block, "disable": not (progress and missing)}
                for key, batch in zip(missing, tqdm(stored, self.WHAT, len(missing), **how), strict=True):
                    self._cache.write(key, self.make(batch))

    def make(self, batch: Example) -> Tensors:
        """The tensors that are stored of a batch."""
        return batch.tensors()

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        """Example ``index`` as it is stored."""
        entry, at = divmod(range(len(self))[index], self.BLOCK)
        stored = self._cache(f"{entry:05d}", lambda: {})
        parts = {name: tensor[at].clone() for name, tensor in stored.items()}
        seen = {name.removeprefix(CONDITION): v for name, v in parts.items() if name.startswith(CONDITION)}
        seen = {name: trimmed(v) if v.ndim == 2 else v for name, v in seen.items()}
        return Example(parts["source"], parts["target"], seen, parts.get("mask"))


class LatentDataset(CachedExamples):
    """Pairs as latents, not normalised. Encoding costs more than a latent training step.

    Item i is (source, target), each (C, H, W) float32; with ``flip``, each is (2, C, H, W): plain, mirrored.

    Args:
        dataset: the pairs of pictures.
        codec: encodes pictures as latents.
        folder: of the cache, made where it does not exist. An interrupted one is completed.
        flip: store the latents of mirrored pairs too, which differ from mirrored latents.
        progress: show a progress bar.

    Attributes:
        flip: whether there are latents of mirrored pairs.
        codec: the :meth:`~bbdm.codec.base.Codec.description` of the codec.

    Raises:
        ValueError: the folder holds other latents, or a file that has changed.
        OSError: the disk is full.
    """

    WHAT = "latents"

    def __init__(self, dataset: Pairs, codec: Codec, folder: Path, flip: bool = False, progress: bool = False) -> None:
        self.flip, self.codec, self._encode = flip, codec.description(), codec.latents
        super().__init__(dataset, folder, progress=progress, flip=flip, codec=self.codec)
        del self._encode  # workers need no codec

    def make(self, batch: Example) -> Tensors:
        """The latents of a batch, and its other tensors."""
        sides, stored = (batch.source, batch.target), batch.tensors()
        if self.flip:
            seen = {name: v for name, v in stored.items() if name.startswith(CONDITION) and v.ndim >= 4}
            stored |= {name: torch.stack([v, v.flip(-1)], dim=1) for name, v in seen.items()}
        latents: list[torch.Tensor] = []
        for start in range(0, len(batch.source), ENCODED_AT_ONCE):
            pictures = torch.stack([scale(side[start : start + ENCODED_AT_ONCE]) for side in sides], dim=1)[:, :, None]
            if self.flip:
                pictures = torch.cat([pictures, pictures.flip(-1)], dim=2)
            latents.append(self._encode(pictures.flatten(0, 2)).cpu().unflatten(0, pictures.shape[:3]))
        source, target = torch.cat(latents).unbind(1)
        return {**stored, "source": source, "target": target}

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        """The latents of example ``index``."""
        stored = super().read(index)
        return stored if self.flip else stored._replace(source=stored.source[0], target=stored.target[0])


def measure(dataset: Pairs, codec: Codec, flip: bool = False, progress: bool = False) -> LatentStatistics:
    """Mean and spread of latents. ``flip`` adds mirrored pictures, unless the data set is of latents."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in tqdm(DataLoader(dataset, PAIRS_IN_STATISTICS), desc="statistics", disable=not progress):
            if isinstance(dataset, LatentDataset):
                source, target = (v.flatten(0, 1) if dataset.flip else v for v in pair)
            else:
                source, target = (codec.latents(torch.cat([v, v.flip(-1)]) if flip else v) for v in pair)
            if dataset.spec.direction == "both":  # either is encoded and decoded, by the same statistics
                source = target = torch.cat([source, target])
            yield source, target

    return LatentStatistics.of(batches())
