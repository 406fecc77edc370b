"""Many results of each source: their mean, spread and quantiles, computed while the results are made.

Nothing here needs torch. Sums are in float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import AXES
from bbdm.networks.arrays import as_numpy, converted
from bbdm.pictures.picture import Picture
from bbdm.sampling.sources import Sources

Array = npt.NDArray[Any]


class Distribution:
    """The results of several seeds for each source, as :meth:`bbdm.BridgeSampler.distribution` returns them.

    Mean, quantiles and samples have the type and the values that a call returns for the sources; of 8-bit
    pictures and integers they are rounded.

    Attributes:
        count: the number of samples of each source.
        seeds: (sources, count) the seed of each sample.
    """

    def __init__(self, sources: Sources, seeds: list[list[int]], keep: bool) -> None:
        self.seeds = tuple(map(tuple, seeds))
        self.count = len(seeds[0])
        self._sources = sources
        # of each image, count, mean and squares
        self._sums: list[Any] = [(0, 0.0, 0.0)] * len(sources.owners)
        self._kept: list[list[Array]] | None = [[] for _ in sources.owners] if keep else None

    def add(self, images: Sequence[int], results: Any) -> None:
        """Count a result (C, *S) for each of some images; mean and spread are those of Welford 1962."""
        for image, result in zip(images, as_numpy(results), strict=True):
            count, mean, squares = self._sums[image]
            value = result.astype(np.float64)
            step = value - mean
            mean = mean + step / (count + 1)
            self._sums[image] = count + 1, mean, squares + step * (value - mean)
            if self._kept is not None:
                self._kept[image].append(result)

    @cached_property
    def mean(self) -> Any:
        """The mean of the samples: of few samples a noisier picture than that of the solver ``mean``."""
        return self.restored(self.scaled_mean)

    @cached_property
    def std(self) -> Any:
        """The standard deviation of the samples, with Bessel's correction, in the unit of the results.

        Of 8-bit pictures it is in levels of 255, rounded; of floats, in the unit of their range. Of pictures
        with a stored value that says "none", which could be 0, it is float32 with NaN in its place. Where
        values have a mapping, it is half the way from one deviation below the mean to one above.
        """
        deviations = self.scaled_std
        low = self.restored([np.full_like(deviation, -1) for deviation in deviations])
        if self._sources.scale.spec.target_values.mapping:
            above = [a + b for a, b in zip(self.scaled_mean, deviations, strict=True)]
            below = [a - b for a, b in zip(self.scaled_mean, deviations, strict=True)]
            results = _half_between(self.restored(below), self.restored(above))
        else:
            high = self.restored([np.full_like(deviation, 1) for deviation in deviations])
            lengths = self.restored([deviation - 1 for deviation in deviations])
            results = _less(lengths, low, high)
        if not isinstance(results, list):
            return results
        return [self._with_nan(i, result, low[i]) for i, result in enumerate(results)]

    def _with_nan(self, source: int, spread: Any, low: Any) -> Any:
        """The deviation of a source, in float32 with NaN where its pictures have a value that says none."""
        if not isinstance(spread, Picture) or spread.nodata is None:
            return spread
        kind = self._sources.scale.spec
        scaled = self._of_source(source, self.scaled_std)
        mean = self._of_source(source, self.scaled_mean)
        floats = replace(kind.target_values, dtype="float32")
        axes = scaled.ndim - 1
        if floats.mapping:
            values = (floats.stored(mean + scaled, axes) - floats.stored(mean - scaled, axes)) / 2
        else:
            values = floats.stored(scaled - 1, axes) - floats.stored(np.full_like(scaled, -1), axes)
        absent = low.absent()
        values[:, absent] = np.nan
        return Picture(values, replace(spread.geometry, nodata=np.nan), spread.unit, spread.name)

    def _of_source(self, source: int, images: Sequence[Array]) -> Array:
        """The images of a source as one array (C, *S): the slices of a volume follow each other."""
        planes = [
            images[number] for number, owner in enumerate(self._sources.owners) if owner == source
        ]
        slices = self._sources.scale.spec.slices
        return planes[0] if slices is None else np.stack(planes, 1 + AXES[slices])

    @property
    def samples(self) -> list[Any]:
        """The samples: number j is what a call returns with the seeds ``[each[j] for each in seeds]``.

        Raises:
            ValueError: they were not kept.
        """
        kept = self._all()
        return [self.restored([results[j] for results in kept]) for j in range(self.count)]

    def quantile(self, q: float) -> Any:
        """The quantile of each value over the samples, linear between two of them.

        Args:
            q: in [0, 1]; 0.5 is the median.

        Raises:
            ValueError: ``q`` is out of range, or the samples were not kept.
        """
        return self.restored(self.scaled_quantile(q))

    @property
    def scaled_mean(self) -> list[Array]:
        """The mean of each image (C, *S), of values in [-1, 1]."""
        return [mean for _, mean, _ in self._sums]

    @property
    def scaled_std(self) -> list[Array]:
        """The standard deviation of each image (C, *S), of values in [-1, 1]."""
        return [np.sqrt(squares / (self.count - 1)) for *_, squares in self._sums]

    def scaled_quantile(self, q: float) -> list[Array]:
        """A quantile of each image (C, *S), of values in [-1, 1]; see :meth:`quantile`."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be in [0, 1], got {q!r}")
        return [np.quantile(np.stack(results), q, axis=0) for results in self._all()]

    def _all(self) -> list[list[Array]]:
        if self._kept is None:
            raise ValueError("quantiles and samples need the samples: leave out keep=False")
        return self._kept

    def restored(self, images: Sequence[Array], down: bool = False) -> Any:
        """One (C, *S) of values in [-1, 1] for each image of the sources, as a call returns results.

        Stored values that would say that there is none become higher ones, or with ``down`` lower ones.
        """
        batches: list[tuple[list[int], Any]] = []
        for indices, source in self._sources.groups:
            stacked = np.stack([images[index] for index in indices])
            batches.append((indices, converted(stacked, source)))
        return self._sources.restore(batches, down)


def _less(value: Any, low: Any, high: Any) -> Any:
    """What values are above those of the lowest results; a pixel without a value stays so."""
    if isinstance(value, list):
        return [_less(*bounds) for bounds in zip(value, low, high, strict=True)]
    if isinstance(value, Image.Image):  # whose lowest value is 0
        return value
    if isinstance(value, Picture):
        difference = np.where(low == high, low, value - low)
        return Picture(difference, value.geometry, value.unit, value.name)
    return value - low


def _half_between(low: Any, high: Any) -> Any:
    """Half the way between results, in their types; a pixel without a value stays so."""
    if isinstance(high, list):
        return [_half_between(*bounds) for bounds in zip(low, high, strict=True)]
    if not isinstance(high, Picture):
        return (high - low) / 2
    half = (np.asarray(high, np.float64) - np.asarray(low)) / 2
    if high.dtype.kind != "f":
        half = np.rint(half)
    half = np.where(high.absent(), np.asarray(high), half)
    return Picture(half.astype(high.dtype), high.geometry, high.unit, high.name)


def sample_seeds(
    seed: int | Sequence[Sequence[int]] | None, sources: int, samples: int
) -> list[list[int]]:
    """(sources, samples) the seed of each sample."""
    if not isinstance(seed, Iterable):
        seeds = resolve_seeds(seed, sources * samples)
        return [seeds[i::sources] for i in range(sources)]
    rows = list(seed)
    if len(rows) != sources or not all(hasattr(row, "__iter__") for row in rows):
        raise ValueError(
            f"seed must be an integer, or for each of {sources} sources a list of {samples} seeds, got {seed!r}"
        )
    return [resolve_seeds(row, samples) for row in rows]
