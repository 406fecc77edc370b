"""Timing of rows that are compared with each other.

pytest-benchmark times one callable after the other, so a machine that slows down in between changes the
ratio. Here all rows of a comparison are timed in rounds, A B C A B C, and each test then replays the times of
its row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Row = Callable[[], object]


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(row: Row, loops: int = 1) -> float:
    """Seconds for one call, the mean of ``loops`` calls in a row."""
    synchronize()
    started = time.perf_counter()
    for _ in range(loops):
        row()
    synchronize()
    return (time.perf_counter() - started) / loops


def best_seconds(row: Row, rounds: int) -> float:
    """The shortest of some calls, after one that is not timed."""
    row()
    return min(seconds_of(row) for _ in range(rounds))


def interleaved(
    rows: Mapping[str, Row],
    rounds: int,
    *,
    settle: bool = True,
    once: Collection[str] = (),
    least: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each row, timed in turns.

    Args:
        rows: the calls to time; each was called before, so that it is compiled.
        rounds: the number of turns of each row.
        settle: begin a turn by a call that is not timed, after which the caches hold this row's data again
            and the threads of the row before are asleep.
        once: rows that have a single turn, since a call of theirs takes minutes.
        least: seconds of a sample; faster rows are called several times for one.
    """
    loops = {
        name: max(1, math.ceil(least / seconds_of(row))) if least else 1
        for name, row in rows.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds):
        for name, row in rows.items():
            if turn and name in once:
                continue
            if settle:
                row()
            seconds[name].append(seconds_of(row, loops[name]))
    return seconds


@dataclass
class Comparison:
    """Rows that were timed together."""

    case: str  # what was timed, such as "UNet, batch 8"
    baseline: str  # the row that the others are compared with
    seconds: dict[str, list[float]]  # samples of each row
    info: dict[str, dict[str, Any]] = field(default_factory=dict)  # more of a row, for extra_info
    missing: dict[str, str] = field(default_factory=dict)  # rows that could not be timed, and why

    def median(self, row: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[row])

    def times_as_fast(self, row: str) -> float:
        """Median of the baseline by median of the row."""
        return self.median(self.baseline) / self.median(row)


class Replay:
    """A clock for pytest-benchmark that only :meth:`play` advances, by the next sample measured before."""

    def __init__(self) -> None:
        self.now = 0.0
        self._samples: list[float] = []

    def __call__(self) -> float:
        """The time."""
        return self.now

    def load(self, samples: list[float]) -> None:
        """Take samples to play, in seconds."""
        self.now, self._samples = 0.0, samples[::-1]

    def play(self) -> None:
        """Let the next sample pass."""
        self.now += self._samples.pop()


REPLAY = Replay()
