"""The pairs that calibrate intervals: that training has not seen them, and how far their targets lie outside.

They are compared picture by picture with the intervals of a sampler's own samples.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bbdm.base.atomic import file_sha256, write_atomically
from bbdm.data.rows import Row, paths_of, shown
from bbdm.networks.conditions import DIRECTION, read_direction
from bbdm.pictures import files
from bbdm.sampling.distribution import Distribution

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.files.content import Origin
    from bbdm.sampling.base import Sampler

Array = npt.NDArray[Any]
By = Literal["quantiles", "std"]


class SeenPairsError(ValueError):
    """Pairs that are to calibrate were in training."""


def check_unseen(pairs: Pairs, origin: Origin | None) -> None:
    """Raise SeenPairsError where pairs are those that a network was trained on, by the records of its run.

    A checkpoint that training resumes from has digests of its pairs, and so has the folder of a run,
    ``OUT.run`` of ``OUT.pt`` or the one that the file is in: of names, and of files with sizes and times.
    """
    if origin is None:
        return
    known = [("their names", origin.pairs)]
    for folder in (origin.path.with_suffix(".run"), origin.path.parent):
        with suppress(OSError, ValueError, LookupError, TypeError):  # it may be of another program
            known.append((str(folder / "config.json"), json.loads((folder / "config.json").read_text())["pairs"]))
    own = {"names": pairs.names_digest(), "stamps": pairs.stamps_digest()}
    for where, record in known:
        if isinstance(record, Mapping) and any(value and record.get(name) == value for name, value in own.items()):
            raise SeenPairsError(
                f"these {len(pairs)} pairs were in training, by {where}: calibrate on others, or give other pictures "
                "other names"
            )


def check_copies(pairs: Pairs, trained: Sequence[Row]) -> None:
    """Raise SeenPairsError where a row's files have the content of those of a training row."""
    own = {paths_of(row): row for row in pairs.rows}
    others = {paths_of(row): row for row in trained}
    if () in own or () in others or own.keys() & others.keys():
        return  # pictures inside tables, or the parts are the same folder

    def sizes(paths: Sequence[Path]) -> tuple[int, ...]:
        return tuple(file.stat().st_size for path in paths for file in files.files_of(path))

    def content(paths: Sequence[Path]) -> tuple[str, ...]:
        return tuple(file_sha256(file) for path in paths for file in files.files_of(path))

    alike = {sizes(paths) for paths in own}  # only files of one size are compared
    known = {content(paths): row for paths, row in others.items() if sizes(paths) in alike}
    for paths, row in own.items() if known else ():
        if (other := known.get(content(paths))) is not None:
            raise SeenPairsError(
                f"{shown(row)} has the content of {shown(other)}, a training pair: calibrate on others"
            )


def ends(distribution: Distribution, by: By, alpha: float) -> Iterator[tuple[Array, Array, Array]]:
    """Of each image (C, *S), in [-1, 1]: the ends of the interval at lambda 0, and the uncertainty.

    By quantiles of alpha/2 and 1 - alpha/2 it is their distance, by standard deviation it is that one.
    """
    if by == "std":
        yield from zip(distribution.scaled_mean, distribution.scaled_mean, distribution.scaled_std, strict=True)
    else:
        levels = (alpha / 2, 1 - alpha / 2)
        for low, high in zip(*map(distribution.scaled_quantile, levels), strict=True):
            yield low, high, high - low


def compared(distribution: Distribution, by: By, alpha: float, target: Array, name: str = "the target") -> Array:
    """(2, C, *S) of one image: the lambda from which on a value of its target is inside, and the uncertainty.

    Raises:
        ValueError: the target has another shape; ``name`` begins the message.
    """
    ((low, high, uncertainty),) = ends(distribution, by, alpha)
    if low.shape != target.shape:
        raise ValueError(f"{name} must have shape {low.shape}, got {target.shape}")
    excess = np.maximum(np.maximum(low - target, target - high), 0)
    if by == "std":
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(excess > 0, excess / uncertainty, 0)
    return np.stack([excess, uncertainty])


@dataclass
class Measure:
    """Compares the samples of pairs with their targets.

    Attributes:
        units: the examples of each picture: of slices, those of a volume.
        digest: SHA-256 of the pairs so far.
    """

    sampler: Sampler[Any]
    pairs: Pairs
    samples: int
    by: By
    alpha: float
    seed: int
    options: Mapping[str, Any]
    digest: Any = field(default_factory=hashlib.sha256)
    _sizes: set[tuple[int, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        last = self.pairs.ends
        self.units = [range(start, end) for start, end in zip([0, *last[:-1]], last, strict=True)]

    @property
    def size(self) -> tuple[int, ...] | None:
        """The sides of the pictures so far; None for several sizes."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def all(self, about: Mapping[str, Any], folder: str | os.PathLike[str] | None) -> Iterator[Array]:
        """(2, values) of each picture: excess and uncertainty; those that a folder has are not made again."""
        if folder is None:
            yield from map(self._unit, self.units)
            return
        from bbdm.translation.results import Record

        names = [f"{number:06d}.npy" for number in range(len(self.units))]
        levels = None if self.by == "std" else (self.alpha / 2, 1 - self.alpha / 2)
        how = {"samples": self.samples, "levels": levels, "seed": self.seed, "data": self.pairs.names_digest()}
        known = Record(Path(folder), {**about, **how}, names, False)
        for unit, name in zip(self.units, names, strict=True):
            if name in known.existing:
                for index in unit:
                    self._read(index)
                yield np.load(known.path.with_name(name))
                continue
            measured = self._unit(unit)
            save = partial(np.save, arr=measured, allow_pickle=False)
            write_atomically(known.path.with_name(name), save)
            yield measured

    def _unit(self, unit: Sequence[int]) -> Array:
        return np.concatenate([self._pair(index) for index in unit], axis=1)

    def _read(self, index: int) -> tuple[Any, Array, Array]:
        """An example, its target (C, *S) in [-1, 1], and which of its values count."""
        from bbdm.pictures.picture import scale

        example = self.pairs.read(index)
        target = scale(example.target).numpy()
        counts = np.broadcast_to(True if example.mask is None else example.mask.numpy() != 0, target.shape)
        if not np.isfinite(target[counts]).all():
            raise ValueError(f"the target of pair {index} {example.name!r} has NaN or infinity".replace(" ''", ""))
        self._sizes.add(target.shape[1:])
        for side in (example.source, example.target):
            self.digest.update(hashlib.sha256(side.numpy().tobytes()).digest())
        return example, target, counts

    def _pair(self, index: int) -> Array:
        """(2, values) of those that count; where none does, nothing is sampled."""
        from bbdm.pictures.picture import scale

        example, target, counts = self._read(index)
        if not counts.any():
            return np.zeros((2, 0), np.float32)
        conditions: dict[str, Any] = dict.fromkeys(self.sampler._shapes.conditions.each)
        for name, value in example.conditions.items():
            conditions[name] = (scale(value) if value.ndim > 2 else value).numpy()[None]
        if (way := self.sampler.direction) is not None:
            own = way if conditions[DIRECTION] is None else read_direction(conditions[DIRECTION])
            if own != way:
                raise ValueError(f"pair {index} is of direction {own}, and must be of the sampler's, {way}")
            conditions[DIRECTION] = way
        seeds = [[self.seed + index + j * len(self.pairs) for j in range(self.samples)]]
        options = {**self.options, "keep": self.by == "quantiles", "conditions": conditions or None}
        drawn = self.sampler.distribution(scale(example.source).numpy()[None], self.samples, seeds, **options)
        return compared(drawn, self.by, self.alpha, target, f"the target of pair {index}")[:, counts].astype(np.float32)
