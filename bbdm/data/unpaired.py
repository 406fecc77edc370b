"""The rows of two sets of pictures without pairs: each epoch draws an order of each.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt


class UnpairedRows(Sequence[Mapping[str, Any]]):
    """Rows with a source of one set and a target of another, which have nothing to do with each other.

    There are as many rows as pictures in the larger set; the smaller one begins anew where it ends. The rows
    of an epoch are a function of its seed, and the rows by index are those of seed 0.

    Args:
        sources: cells of the set A by name.
        targets: cells of the set B by name.
    """

    def __init__(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        self._sets = [list(each.items()) for each in (sources, targets)]
        self._count = max(map(len, self._sets))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        found = range(self._count)[index]
        return next(self.rows([found], 0)) if isinstance(found, int) else [*self.rows(found, 0)]

    def order(self, crops: int = 1) -> Callable[[int, int], list[int]]:
        """The examples at the positions start to end of an epoch, whose rows are drawn already."""
        return lambda start, end: [*range(start, end)]

    def rows(self, order: Iterable[int], seed: int) -> Iterator[Mapping[str, Any]]:
        """The rows at indices of the epoch of a seed."""
        drawn = [_drawn(seed, side, len(cells), self._count) for side, cells in enumerate(self._sets)]
        for index in order:
            (a, source), (b, target) = (cells[each[index]] for cells, each in zip(self._sets, drawn, strict=True))
            yield {"name": f"{a}+{b}", "source": source, "target": target}

    def shared(self, rank: int, processes: int) -> UnpairedRows:
        """The rows of one of several processes, which take shares of the same order."""
        return self


@lru_cache(maxsize=8)
def _drawn(seed: int, side: int, size: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` indices of a set of ``size`` pictures: all of them in random order, again and again."""
    generator = np.random.default_rng([seed, side])
    return np.concatenate([generator.permutation(size) for _ in range(-(-count // size))])[:count]
