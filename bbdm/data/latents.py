"""Pairs as latents, which are computed once and stored on a disk, and the statistics of latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from bbdm.base.atomic import locked
from bbdm.base.progress import Meter, Shown, counted
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
        progress: show how far it is, by a bar on a terminal, else by a line each minute.

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

    def __init__(
        self,
        dataset: Pairs,
        codec: Codec,
        folder: Path,
        flip: bool = False,
        progress: Shown = False,
    ) -> None:
        if dataset.spec.crop is not None or not dataset.paired:
            others = "crops" if dataset.paired else "the pairs of two sets"
            raise ValueError(
                f"{others} are others in each epoch, and a cache of latents would keep the first"
            )
        vars(self).update(vars(dataset))  # all but the examples, without a look at the rows
        self.dataset = dataset
        self.folder = folder
        self.flip = flip
        self.codec = codec.description()
        self.stream = None  # latents are read by index
        decisive = {
            "count": len(self),
            "block": BLOCK,
            "image_size": self.image_size,
            "direction": self.spec.direction,
        }
        decisive |= {
            **dataset.settings(),
            "files": dataset.digest(),
            "flip": flip,
            "codec": self.codec,
        }
        self._latents = Cache(folder, "latents", decisive)
        self._block = BLOCK
        with locked(folder), closing(Batches(dataset, BLOCK, CPU)) as batches:
            missing: list[str] = []  # entries
            examples: list[int] = []  # those of missing entries
            for start in range(0, len(self), BLOCK):
                key = f"{start // BLOCK:05d}"
                if not self._latents.path(key).exists():
                    missing.append(key)
                    examples += range(len(self))[start : start + BLOCK]
            with Meter("encoding", len(examples), "pairs", progress if missing else False) as meter:
                for key, batch in zip(missing, batches.stored(examples), strict=True):
                    self._latents.write(key, self._encoded(batch, codec))
                    meter.advance(len(batch.source))

    def _encoded(self, batch: Example, codec: Codec) -> Tensors:
        """The latents of a batch, and its other tensors."""
        stored: Tensors = {}
        for name, value in batch.conditions.items():
            if self.flip and value.ndim >= 4:  # an image
                value = torch.stack([value, value.flip(-1)], dim=1)
            stored[f"{CONDITION}{name}"] = value
        if batch.mask is not None:
            stored["mask"] = batch.mask
        latents: list[torch.Tensor] = []
        for start in range(0, len(batch.source), ENCODED_AT_ONCE):
            source = scale(batch.source[start : start + ENCODED_AT_ONCE])
            target = scale(batch.target[start : start + ENCODED_AT_ONCE])
            pictures = torch.stack([source, target], dim=1)[:, :, None]  # (B, 2, 1, C, H, W)
            if self.flip:
                pictures = torch.cat([pictures, pictures.flip(-1)], dim=2)
            latents.append(
                codec.latents(pictures.flatten(0, 2)).cpu().unflatten(0, pictures.shape[:3])
            )
        stored["source"], stored["target"] = torch.cat(latents).unbind(1)
        return stored

    def read(
        self, index: int, seed: int = 0, row: Row | None = None, stored: bool = False
    ) -> Example:
        """The latents of example ``index``, which has no stored values."""
        number, position = divmod(range(len(self))[index], self._block)
        entry = self._latents(f"{number:05d}", dict[str, torch.Tensor])
        tensors = {name: value[position].clone() for name, value in entry.items()}
        conditions: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            if name.startswith(CONDITION):
                conditions[name.removeprefix(CONDITION)] = (
                    trimmed(value) if value.ndim == 2 else value
                )
        source = tensors["source"]
        target = tensors["target"]
        if not self.flip:
            source = source[0]
            target = target[0]
        return Example(source, target, conditions, tensors.get("mask"))


def measure(
    dataset: Pairs, codec: Codec, flip: bool = False, progress: Shown = False
) -> LatentStatistics:
    """Mean and spread of latents. ``flip`` adds mirrored pictures, unless the data set is of latents."""

    def latents(side: torch.Tensor) -> torch.Tensor:
        if isinstance(dataset, LatentDataset):
            return side.flatten(0, 1) if dataset.flip else side
        pictures = scale(side)
        if flip:
            pictures = torch.cat([pictures, pictures.flip(-1)])
        return codec.latents(pictures)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        stored = Batches(dataset, PAIRS_IN_STATISTICS, CPU).stored()
        count = -(-len(dataset) // PAIRS_IN_STATISTICS)
        for batch in counted(stored, "statistics of latents", count, "batches", progress):
            source = latents(batch.source)
            target = latents(batch.target)
            # either is encoded and decoded, by the same statistics
            if dataset.spec.direction == "both":
                source = target = torch.cat([source, target])
            yield source, target

    return LatentStatistics.of(batches())
