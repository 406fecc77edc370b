"""How far targets lie outside the intervals of a sampler's own samples, picture by picture."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bbdm.sampling.distribution import Distribution

if TYPE_CHECKING:
    from bbdm.data.examples import Example
    from bbdm.data.pairs import Pairs
    from bbdm.sampling.base import Sampler

Array = npt.NDArray[Any]
Levels = tuple[float, float] | None  # the quantiles of the samples; None for mean and standard deviation


def units_of(examples: Pairs) -> list[list[int]]:
    """The examples of each picture: of a data set of slices, those of a volume."""
    ends = examples.ends
    return [list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def ends(distribution: Distribution, levels: Levels) -> tuple[Sequence[Array], Sequence[Array], Sequence[Array]]:
    """Of each image (C, *S), in [-1, 1]: the ends of the interval at lambda 0, and the uncertainty."""
    if levels is None:
        return distribution.scaled_mean, distribution.scaled_mean, distribution.scaled_std
    low, high = map(distribution.scaled_quantile, levels)
    return low, high, [b - a for a, b in zip(low, high, strict=True)]


def compared(distribution: Distribution, levels: Levels, target: Array, name: str = "the target") -> Array:
    """(2, C, *S) of one image: the lambda from which on a value of its target is inside, and the uncertainty.

    Raises:
        ValueError: the target has another shape; ``name`` begins the message.
    """
    (low,), (high,), (uncertainty,) = ends(distribution, levels)
    if low.shape != target.shape:
        raise ValueError(f"{name} must have shape {low.shape}, got {target.shape}")
    excess = np.maximum(np.maximum(low - target, target - high), 0)
    if levels is None:  # in standard deviations
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(excess > 0, excess / uncertainty, 0)
    return np.stack([excess, uncertainty])


@dataclass
class Measure:
    """Compares the samples of pairs with their targets."""

    sampler: Sampler[Any]
    examples: Pairs
    units: list[list[int]]
    samples: int
    levels: Levels
    seed: int
    settings: Mapping[str, Any]
    digest: Any = field(default_factory=hashlib.sha256)
    _sizes: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def size(self) -> tuple[int, ...] | None:
        """The sides of all pictures; None for several sizes."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def all(self, about: dict[str, Any], folder: str | os.PathLike[str] | None) -> Iterator[Array]:
        """(2, values) of each picture: excess and uncertainty; those that a folder has are not made again."""
        if folder is None:
            yield from map(self._unit, range(len(self.units)))
            return
        from bbdm.evaluation.results import Record

        place, names = Path(folder), [f"{number:06d}.npy" for number in range(len(self.units))]
        how = {"samples": self.samples, "levels": self.levels, "seed": self.seed}
        known = Record(place, {**about, **how, "data": self.examples.names_digest()}, names, False)
        for number, name in enumerate(names):
            if name in known.existing:
                for index in self.units[number]:
                    self._read(index)
                yield np.load(place / name)
                continue
            made = self._unit(number)
            np.save(file := io.BytesIO(), made, allow_pickle=False)
            known.place.write(name, file.getvalue())
            yield made

    def _read(self, index: int) -> tuple[Example, Array]:
        """An example, and its target (C, *S) in [-1, 1]."""
        from bbdm.pictures.picture import scale

        example = self.examples.read(index)
        target = scale(example.target).numpy()
        valid = np.isfinite(target) if example.mask is None else np.isfinite(target) | (example.mask.numpy() == 0)
        if not valid.all():
            raise ValueError(f"the target of pair {index} {example.name!r} has NaN or infinity".replace(" ''", ""))
        self._sizes.add(target.shape[1:])
        for side in (example.source, example.target):
            self.digest.update(hashlib.sha256(side.numpy().tobytes()).digest())
        return example, target

    def _unit(self, number: int) -> Array:
        return np.concatenate([self._pair(index) for index in self.units[number]], axis=1)

    def _pair(self, index: int) -> Array:
        from bbdm.pictures.picture import scale

        example, target = self._read(index)
        source = scale(example.source).numpy()[None]
        kinds = self.sampler._shapes.conditions.each
        conditions: dict[str, Any] = dict.fromkeys(name for name in kinds if name not in example.conditions)
        for name, value in example.conditions.items():
            conditions[name] = (scale(value) if value.ndim > 2 else value).numpy()[None]
        seeds = [[self.seed + index + j * len(self.examples) for j in range(self.samples)]]
        made = self.sampler.distribution(
            source, self.samples, seeds, keep=self.levels is not None, conditions=conditions or None, **self.settings
        )
        found = compared(made, self.levels, target, f"the target of pair {index}")
        inside = np.broadcast_to(True if example.mask is None else example.mask.numpy() != 0, target.shape)
        return found[:, inside].astype(np.float32)
