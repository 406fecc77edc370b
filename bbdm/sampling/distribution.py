"""Many results of each source: their mean, spread and quantiles, computed while the results are made.

Nothing here needs torch. Sums are in float64, on the CPU.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.seeds import resolve_seeds
from bbdm.networks.arrays import as_numpy, converted
from bbdm.pictures.picture import Picture
from bbdm.sampling.batch import Batch, Shapes
from bbdm.sampling.loop import Advance, Loop, Plan
from bbdm.sampling.sources import Sources

Array = npt.NDArray[Any]


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

    def __init__(self, sources: Sources, seeds: list[list[int]], keep: bool) -> None:
        self.seeds = tuple(map(tuple, seeds))
        self.count = len(seeds[0])
        self._sources = sources
        self._moments = [Moments() for _ in sources.owners]
        self._kept: list[list[Array]] | None = [[] for _ in sources.owners] if keep else None

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
        groups = self._sources.groups
        return self._sources.restore(
            [(indices, converted(np.stack([images[i] for i in indices]), source)) for indices, source in groups]
        )

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


def draw(
    loop: Loop,
    plan: Plan,
    sources: Sources,
    batches: Sequence[Batch],
    seeds: list[list[int]],
    keep: bool,
    batch_size: int | None,
    progress: Callable[[list[Batch]], AbstractContextManager[Advance]],
) -> Distribution:
    """Several results of each source; see :meth:`bbdm.BridgeSampler.distribution`.

    Args:
        loop: the sampler, which runs the steps.
        plan: a solver with its table.
        sources: the images of the call.
        batches: their images, one for each size.
        seeds: (sources, samples) the seed of each sample.
        keep: whether the samples stay in memory.
        batch_size: the largest number of results at once, or None.
        progress: a context that reports the network calls of batches.
    """
    found = Distribution(sources, seeds, keep)
    runs = [run for batch in batches for run in _runs(loop._shapes, batch, len(seeds[0]), batch_size)]
    outlines = [_outline(images, size or len(part)) for images, parts, size in runs for part in parts]
    with progress(outlines) as advance:
        for images, parts, size in runs:
            with loop._inference():
                encoded = loop._inputs(images)
            for part in parts:
                full = part + part[-1:] * (size - len(part))  # the last is repeated where a batch is filled up
                drawn = [seeds[sources.owners[images.indices[i]]][j] for i, j in full]
                batch = _results(images, part, size)
                inputs = encoded.rows([i for i, _ in full], loop._seeds(drawn))
                results = as_numpy(loop._translate(plan, batch, advance, inputs))
                for image, result in zip(batch.indices, results, strict=True):
                    found._add(image, result)
    return found


Part = list[tuple[int, int]]  # of each result of a batch, the number of its image and of its sample


def _runs(
    shapes: Shapes, group: Batch, samples: int, batch_size: int | None
) -> Iterator[tuple[Batch, list[Part], int]]:
    """Images that are encoded together, the batches of their results, and the size of full ones, or 0."""
    whole = group.windows is None
    only = shapes.only[0] if whole and shapes.only else None
    fill = shapes.fill and whole
    size = only or group.most(batch_size)
    for images in group.split(only or max(1, size // samples), fill):
        results = [(i, j) for i, _ in enumerate(images.indices) for j in range(samples)]
        yield images, [results[start : start + size] for start in range(0, len(results), size)], size if fill else 0


def _outline(images: Batch, count: int) -> Batch:
    """A batch of a number of results, whose source takes no memory: what progress and compiling need."""
    return replace(images, source=np.broadcast_to(np.float32(0), (count, *images.source.shape[1:])))


def _results(images: Batch, part: Part, size: int) -> Batch:
    """A batch of results of some images."""
    index = [i for i, _ in part]
    rows = index + index[-1:] * (size - len(index))
    mask = None if images.mask is None else images.mask[rows]
    return replace(images, indices=[images.indices[i] for i in index], source=images.source[rows], mask=mask)


def sample_seeds(seed: int | Sequence[Sequence[int]] | None, sources: int, samples: int) -> list[list[int]]:
    """(sources, samples) the seed of each sample."""
    first: Any = secrets.randbelow(2**32) if seed is None else seed
    if not hasattr(first, "__iter__"):
        flat = resolve_seeds(first, sources * samples)
        return [flat[i::sources] for i in range(sources)]
    rows = list(first)
    if len(rows) != sources or not all(hasattr(row, "__iter__") for row in rows):
        raise ValueError(
            f"seed must be an integer, or for each of {sources} sources a list of {samples} seeds, got {seed!r}"
        )
    return [resolve_seeds(row, samples) for row in rows]
