"""Pairs as latents, which are computed once and stored on a disk, and the statistics of latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from bbdm.base.atomic import locked
from bbdm.codec import Codec, LatentStatistics
from bbdm.data.cache import Cache, Tensors
from bbdm.data.examples import Example, trimmed
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from bbdm.pictures.picture import scale

BLOCK = 64  # examples in an entry of the cache
PAIRS_IN_STATISTICS = 16  # in a batch
ENCODED_AT_ONCE = 8  # pairs
CONDITION = "condition."  # before the name of a condition in an entry
CPU = torch.device("cpu")


class LatentDataset(Pairs):
    """Pairs as latents, not normalised. Encoding costs more than a latent training step.

    Item i is (source, target), each (C, H, W) float32; with ``flip``, each is (2, C, H, W): plain, mirrored.

    Args:
        dataset: the pairs of pictures.
        codec: encodes pictures as latents.
        folder: of the cache, made where it does not exist. An interrupted one is completed.
        flip: store the latents of mirrored pairs too, which differ from mirrored latents.
        progress: show a progress bar.

    Attributes:
        dataset: the pairs of pictures.
        folder: that the cache is in.
        flip: whether there are latents of mirrored pairs.
        codec: the :meth:`~bbdm.codec.base.Codec.description` of the codec.

    Raises:
        ValueError: the folder holds other latents; examples are crops or of two sets, which are others in
            each epoch; or a picture cannot be read.
        OSError: the disk is full.
    """

    def __init__(self, dataset: Pairs, codec: Codec, folder: Path, flip: bool = False, progress: bool = False) -> None:
        if dataset.spec.crop is not None or not dataset.paired:
            others = "crops" if dataset.paired else "the pairs of two sets"
            raise ValueError(f"{others} are others in each epoch, and a cache of latents would keep the first")
        vars(self).update(vars(dataset))
        self.dataset, self.folder, self.flip, self.codec = dataset, folder, flip, codec.description()
        self.stream = None  # latents are read by index
        about = {"count": len(self), "block": BLOCK, "image_size": self.image_size, "direction": self.spec.direction}
        about |= {**dataset.settings(), "files": dataset.digest(), "flip": flip, "codec": self.codec}
        self._latents, self._block = Cache(folder, "latents", about), BLOCK
        entries = {f"{i // BLOCK:05d}": range(len(self))[i : i + BLOCK] for i in range(0, len(self), BLOCK)}
        with locked(folder), closing(Batches(dataset, BLOCK, CPU)) as batches:
            missing = [key for key in entries if not self._latents.path(key).exists()]
            stored = batches.stored([index for key in missing for index in entries[key]])
            how: Any = {"unit": "pair", "unit_scale": BLOCK, "disable": not (progress and missing)}
            for key, batch in zip(missing, tqdm(stored, "latents", len(missing), **how), strict=True):
                self._latents.write(key, self._encoded(batch, codec))

    def _encoded(self, batch: Example, codec: Codec) -> Tensors:
        """The latents of a batch, and its other tensors."""
        stored = {f"{CONDITION}{name}": value for name, value in batch.conditions.items()}
        if self.flip:
            stored |= {name: torch.stack([v, v.flip(-1)], dim=1) for name, v in stored.items() if v.ndim >= 4}
        latents: list[torch.Tensor] = []
        for start in range(0, len(batch.source), ENCODED_AT_ONCE):
            sides = (side[start : start + ENCODED_AT_ONCE] for side in (batch.source, batch.target))
            pictures = torch.stack([*map(scale, sides)], dim=1)[:, :, None]
            if self.flip:
                pictures = torch.cat([pictures, pictures.flip(-1)], dim=2)
            latents.append(codec.latents(pictures.flatten(0, 2)).cpu().unflatten(0, pictures.shape[:3]))
        source, target = torch.cat(latents).unbind(1)
        return {**stored, **({} if batch.mask is None else {"mask": batch.mask}), "source": source, "target": target}

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        """The latents of example ``index``."""
        entry, at = divmod(range(len(self))[index], self._block)
        stored = {name: v[at].clone() for name, v in self._latents(f"{entry:05d}", dict[str, torch.Tensor]).items()}
        seen = {name.removeprefix(CONDITION): v for name, v in stored.items() if name.startswith(CONDITION)}
        seen = {name: trimmed(v) if v.ndim == 2 else v for name, v in seen.items()}
        source, target = (stored[side] if self.flip else stored[side][0] for side in ("source", "target"))
        return Example(source, target, seen, stored.get("mask"))


def measure(dataset: Pairs, codec: Codec, flip: bool = False, progress: bool = False) -> LatentStatistics:
    """Mean and spread of latents. ``flip`` adds mirrored pictures, unless the data set is of latents."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        found, count = Batches(dataset, PAIRS_IN_STATISTICS, CPU).stored(), -(-len(dataset) // PAIRS_IN_STATISTICS)
        for batch in tqdm(found, "statistics", count, disable=not progress):
            pair = scale(batch.source), scale(batch.target)
            if isinstance(dataset, LatentDataset):
                source, target = (v.flatten(0, 1) if dataset.flip else v for v in pair)
            else:
                source, target = (codec.latents(torch.cat([v, v.flip(-1)]) if flip else v) for v in pair)
            if dataset.spec.direction == "both":  # either is encoded and decoded, by the same statistics
                source = target = torch.cat([source, target])
            yield source, target

    return LatentStatistics.of(batches())
