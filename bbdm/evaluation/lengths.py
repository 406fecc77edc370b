"""Whether long intervals are where a network is wrong: the error of results against their length.

Intervals that are longer where results are worse say which values to trust; intervals of one length say
nothing of it, however often they hold the truth.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.evaluation.intervals import inside_intervals
from bbdm.execution.processes import Processes
from bbdm.pictures.values import Values

MAPS = ("mean", "low", "high")  # the maps of results that are compared, in this order
PARTS = 10  # of all values, in the order of their intervals' lengths
SHORT = 1e-6  # of the range: the length below which mapped ones are not told apart
BINS = 1024  # in which lengths are counted, of the range of values
Array = npt.NDArray[Any]


class Lengths:
    """Errors of the mean of results against the lengths of their intervals, over a data set.

    Coverage and length are means over sources, which count alike. The parts by length are of all values
    together. Values outside of masks do not count.

    Args:
        values: the range of results, whose ends are open; see :mod:`bbdm.evaluation.intervals`.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._range = float((np.atleast_1d(values.high) - np.atleast_1d(values.low)).max())
        # by length: how many values, and sums of length, error and being inside
        self._sums = np.zeros((4, BINS))
        self._coverage: list[float] = []  # of each source, as the two below
        self._length: list[float] = []
        self._correlation: list[float] = []  # of the sources that have one

    def update(
        self, maps: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None = None
    ) -> None:
        """Add pictures or volumes.

        Args:
            maps: (B, 3, C, *S), the maps :data:`MAPS` of each source, in stored values.
            targets: (B, C, *S) in stored values.
            masks: (B, 1, *S), not 0 where values count; None where all do.
        """
        for index, target in enumerate(targets.numpy()):
            mean, low, high = maps[index].numpy()
            counts = np.ones(target.shape, bool)
            if masks is not None:
                counts &= masks[index].numpy() != 0
            if counts.any():
                inside = inside_intervals(target, low, high, self._values)
                errors = np.abs(mean.astype(float) - target)
                lengths = high.astype(float) - low
                self._add(lengths[counts], errors[counts], inside[counts])

    def _add(self, lengths: Array, errors: Array, inside: Array) -> None:
        """Add the values (V,) of a source."""
        places = (self._share(lengths) * BINS).astype(int).clip(0, BINS - 1)
        for row, weights in enumerate((np.ones(len(lengths)), lengths, errors, inside)):
            self._sums[row] += np.bincount(places, weights, BINS)
        self._coverage.append(float(inside.mean()))
        self._length.append(float(lengths.mean()))
        correlation = rank_correlation(lengths, errors)
        if correlation is not None:
            self._correlation.append(correlation)

    def _share(self, lengths: Array) -> Array:
        """Where lengths lie among all that there can be, in [0, 1]; of mapped values by their logarithm."""
        shares = lengths / self._range
        if not self._values.mapping:
            return shares
        return np.log1p(shares / SHORT) / math.log1p(1 / SHORT)

    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        _, *others = processes.gather((self._sums, self._coverage, self._length, self._correlation))
        if not processes.first:
            return
        for sums, coverage, length, correlation in others:
            self._sums += sums
            self._coverage += coverage
            self._length += length
            self._correlation += correlation

    def compute(self) -> dict[str, Any]:
        """What scores.json says of intervals, in the unit of the values.

        Returns:
            ``coverage``, the share of values inside; ``length``, the mean; ``rank_correlation`` of length
            and error, the mean over the sources that have one, None where none has; and ``by_length``, at
            most ten parts of all values from short to long intervals, with ``share``, ``length``, ``error``
            and ``coverage`` of each. Values whose lengths are nearly equal are in one part.

        Raises:
            ValueError: there is no value that counts.
        """
        if not self._coverage:
            raise ValueError("intervals need values within masks, and there are none")
        return {
            "coverage": _mean(self._coverage),
            "length": _mean(self._length),
            "rank_correlation": _mean(self._correlation) if self._correlation else None,
            "by_length": self._by_length(),
        }

    def _by_length(self) -> list[dict[str, float]]:
        """The parts of all values, from short to long."""
        numbers = self._sums[0]
        total = numbers.sum()
        middles = (numbers.cumsum() - numbers / 2) / total  # of each bin, among all values
        part_of_bin = (middles * PARTS).astype(int).clip(0, PARTS - 1)
        parts: list[dict[str, float]] = []
        for part in range(PARTS):
            count, length, error, inside = self._sums[:, part_of_bin == part].sum(1).tolist()
            if count:
                means = {
                    "length": length / count,
                    "error": error / count,
                    "coverage": inside / count,
                }
                parts.append({"share": count / total, **means})
        return parts


def rank_correlation(first: Array, second: Array) -> float | None:
    """Spearman's correlation of values (V,), where equal ones share a rank; None if all of one are equal."""
    ranks = np.stack([_ranks(first), _ranks(second)])
    if np.ptp(ranks, 1).min() == 0:
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Array) -> Array:
    """The rank of each value; of equal ones the mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = counts.cumsum() - counts / 2
    return middles[places]


def _mean(values: list[float]) -> float:
    """The mean, the same in any order."""
    return math.fsum(values) / len(values)
