"""Many results of each source: their mean, spread and quantiles, computed while the results are made.

Nothing here needs torch. Sums are in float64, on the CPU.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.seeds import resolve_seeds
from bbdm.pictures.picture import Picture
from bbdm.sampling.batch import Batch
from bbdm.sampling.scale import UNIT
from bbdm.sampling.shapes import PIXELS_AT_ONCE, WINDOWS_AT_ONCE
from bbdm.sampling.sources import ArrayBackend, Given

Array = npt.NDArray[Any]
Sampler = Any  # a BaseSampler, whose module imports this one


class Moments:
    """Mean and spread of arrays that are known one at a time (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, value: Array) -> None:
        """Count one more array; all have one shape."""
        self.count += 1
        step = value - self.mean
        self.mean = self.mean + step / self.count
        self._squares = self._squares + step * (value - self.mean)

    @property
    def std(self) -> Any:
        """The standard deviation, with Bessel's correction."""
        return np.sqrt(self._squares / (self.count - 1))


class Distribution:
    """The results of several seeds for each source, as :meth:`bbdm.BridgeSampler.distribution` returns them.

    Mean, quantiles and samples have the type and the values that a call returns for the sources; of 8-bit
    pictures and integers they are rounded.

    Attributes:
        count: the number of samples of each source.
        seeds: (sources, count) the seed of each sample.
    """

    def __init__(self, given: Given, backend: ArrayBackend, seeds: list[list[int]], keep: bool) -> None:
        self.seeds = tuple(map(tuple, seeds))
        self.count = len(seeds[0])
        self._given, self._backend = given, backend
        self._moments = [Moments() for _ in given.owners]
        self._kept: list[list[Array]] | None = [[] for _ in given.owners] if keep else None

    def _add(self, image: int, result: Array) -> None:
        self._moments[image].add(result.astype(np.float64))
        if self._kept is not None:
            self._kept[image].append(result)

    @cached_property
    def mean(self) -> Any:
        """The mean of the samples: of few samples a noisier picture than that of the solver ``mean``."""
        return self.restored(self.scaled_mean)

    @cached_property
    def std(self) -> Any:
        """The standard deviation of the samples, with Bessel's correction, in the unit of the results.

        Of 8-bit pictures it is in levels of 255, rounded; of floats, in the unit of their range.
        """
        return self.spread(self.scaled_std)

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
        return [each.mean for each in self._moments]

    @property
    def scaled_std(self) -> list[Array]:
        """The standard deviation of each image (C, *S), of values in [-1, 1]."""
        return [each.std for each in self._moments]

    def scaled_quantile(self, q: float) -> list[Array]:
        """A quantile of each image (C, *S), of values in [-1, 1]; see :meth:`quantile`."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be in [0, 1], got {q!r}")
        return [np.quantile(np.stack(results), q, axis=0) for results in self._all()]

    def _all(self) -> list[list[Array]]:
        if self._kept is None:
            raise ValueError("quantiles and samples need the samples: leave out keep=False")
        return self._kept

    def restored(self, images: Sequence[Array]) -> Any:
        """One (C, *S) of values in [-1, 1] for each image of the sources, as a call returns results."""
        like, from_numpy = self._backend.like, self._backend.from_numpy
        parts = [
            (indices, like(from_numpy(np.stack([images[i] for i in indices])), source))
            for indices, source in self._given.groups
        ]
        return self._given.restore(parts)

    def spread(self, images: Sequence[Array]) -> Any:
        """Differences of values in [-1, 1], from 0 to 2, in the unit of the results."""
        ends = [[np.full_like(each, end) for each in images] for end in (-1, 1)]
        low, high = (self.restored(end) for end in ends)
        return _less(self.restored([each - 1 for each in images]), low, high)


def _less(value: Any, low: Any, high: Any) -> Any:
    """What values are above those of the lowest results; a pixel without a value stays so."""
    if isinstance(value, list):
        return [_less(*each) for each in zip(value, low, high, strict=True)]
    if isinstance(value, Image.Image):  # whose lowest value is 0
        return value
    if isinstance(value, Picture):
        made = np.where(low == high, low, value - low)
        return Picture(made, value.geometry, value.unit, value.name)
    return value - low


class _Chunk(NamedTuple):
    """Images that are encoded together, and the batches of their results."""

    images: Batch
    parts: list[list[tuple[int, int]]]  # of each result of a batch, the number of its image here and of its sample
    size: int  # of a batch that is filled up

    def places(self, part: list[tuple[int, int]]) -> list[int]:
        """The images of a batch's results; the last is repeated where the batch is filled up."""
        places = [i for i, _ in part]
        return places + places[-1:] * (self.size - len(places))


def draw(
    sampler: Sampler,
    source: Any,
    samples: int,
    seed: int | Sequence[Sequence[int]] | None,
    keep: bool,
    *,
    batch_size: int | None = None,
    progress: bool | Callable[[int, int], Any] = False,
    solver: str | None = None,
    steps: int | None = None,
    timesteps: Any = None,
    range: tuple[float, float] = UNIT,
    source_values: Any = None,
    target_values: Any = None,
    mask: Any = None,
    conditions: Any = None,
    window: Any = "auto",
    overlap: float = 0.25,
    margin: int = 0,
    **others: Any,
) -> Distribution:
    """See :meth:`bbdm.BridgeSampler.distribution`."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples must be an integer of at least 2, got {samples!r}")
    sampler._shapes.check_batch_size(batch_size)
    plan = sampler._plans.of(solver, steps, timesteps)
    values = range, source_values, target_values
    given, groups = sampler._batches(plan, source, 0, None, values, mask, conditions, others)
    seeds = _seeds(seed, given.owners[-1] + 1, samples)
    sampler._thread.seeds = tuple(each[0] for each in seeds)
    chunks: list[_Chunk] = []
    for group in groups:
        size = group.source.shape[2:]
        windows = sampler.windowing(window, overlap, margin, batch_size, size)
        chunks += _chunks(sampler, group._replace(windows=windows), samples, batch_size)
    found = Distribution(given, sampler.backend, seeds, keep)
    outlines: list[Batch] = []  # of which progress and compiling need the shape
    for chunk in chunks:
        for part in chunk.parts:
            shape = len(chunk.places(part)), *chunk.images.source.shape[1:]
            outlines.append(chunk.images._replace(source=np.broadcast_to(np.float32(0), shape)))
    with sampler._progress_of(plan, outlines, progress) as advance:
        for chunk in chunks:
            for batch in _results(sampler, chunk, given.owners, seeds):
                made = sampler.backend.to_numpy(sampler._made(plan, batch, advance, None))
                for image, result in zip(batch.indices, made, strict=True):
                    found._add(image, result)
    return found


def _chunks(sampler: Sampler, group: Batch, samples: int, batch_size: int | None) -> Iterator[_Chunk]:
    """The images of one size, as many at once as have a batch of results."""
    shapes = sampler._shapes
    most = min(WINDOWS_AT_ONCE, max(1, PIXELS_AT_ONCE // math.prod(group.source.shape[2:])))
    whole = group.windows is None
    only = shapes.batch if whole else None
    size = only or batch_size or most
    for images in group.split(only or max(1, size // samples), shapes.fill and whole):
        results = [(i, j) for i, _ in enumerate(images.indices) for j in range(samples)]
        parts = [results[start : start + size] for start in range(0, len(results), size)]
        yield _Chunk(images, parts, size if shapes.fill and whole else 0)


def _results(sampler: Sampler, chunk: _Chunk, owners: list[int], seeds: list[list[int]]) -> Iterator[Batch]:
    """The batches of a chunk, whose images are encoded once."""
    images = chunk.images
    encoded = sampler._given(images)
    for part in chunk.parts:
        places = chunk.places(part)
        numbers = [images.indices[i] for i, _ in part]
        drawn = [seeds[owners[image]][j] for image, (_, j) in zip(numbers, part, strict=True)]
        drawn += drawn[-1:] * (len(places) - len(drawn))
        mask = None if images.mask is None else images.mask[places]
        again = sampler._repeated(encoded, places)
        kind = images.windows, images.guidance
        yield Batch(numbers, images.source[places], drawn, None, mask, {}, *kind, again)


def _seeds(seed: int | Sequence[Sequence[int]] | None, sources: int, samples: int) -> list[list[int]]:
    """(sources, samples) the seed of each sample."""
    given: Any = secrets.randbelow(2**32) if seed is None else seed
    if not hasattr(given, "__iter__"):
        flat = resolve_seeds(given, sources * samples)
        return [flat[i::sources] for i in range(sources)]
    rows = list(given)
    if len(rows) != sources or not all(hasattr(row, "__iter__") for row in rows):
        raise ValueError(
            f"seed must be an integer, or for each of {sources} sources a list of {samples} seeds, got {seed!r}"
        )
    return [resolve_seeds(row, samples) for row in rows]
