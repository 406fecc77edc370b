"""Solvers that are ready to run: a sampler's own, and those of its last calls. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from bbdm.base.recent import Recent
from bbdm.sampling.batch import Batch
from bbdm.sampling.call import Timesteps
from bbdm.solvers import StepTable

KEPT = 4  # solvers with their times: tables, and what a network computes of the time alone


@dataclass(frozen=True)
class SolverPlan:
    """A solver with its table, ready to run."""

    solver: str
    table: StepTable

    @cached_property
    def times(self) -> list[float]:
        """The times that the network is called at."""
        return self.table.timesteps.tolist()

    def calls(self, batch: Batch, grid: Sequence[int]) -> int:
        """The network calls of all steps, for a batch of states of a size (height, width)."""
        if batch.windows is None:
            return len(self.times)
        inputs, guidance, count = self.table.inputs.tolist(), batch.guidance, batch.source.shape[0]
        guided = [False] * len(inputs) if guidance is None else guidance.guides(self.times, inputs)
        images = [count * guidance.evaluations if each and guidance else count for each in guided]
        return sum(batch.windows.calls(each, grid) for each in images)


AnyPlan = TypeVar("AnyPlan", bound=SolverPlan)


class Plans(Generic[AnyPlan]):
    """The plans of a sampler.

    Args:
        make: the plan of a solver, steps and timesteps.
        solver: the solver of calls that give none.
        steps: the number of steps of calls that give none.
        timesteps: the times of calls that give none.
    """

    def __init__(
        self, make: Callable[..., AnyPlan], solver: str | None, steps: int | None, timesteps: Timesteps
    ) -> None:
        self.settings = solver, steps, _hashable(timesteps)
        self._recent = Recent(make, KEPT)
        self.own = make(*self.settings)

    def of(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> AnyPlan:
        """The plan of a call's arguments; what the call leaves out is the sampler's own."""
        if solver is steps is timesteps is None:
            return self.own
        own_solver, own_steps, own_timesteps = self.settings
        if steps is None and timesteps is None and solver != "mean":  # which has one step, whatever others have
            steps, timesteps = own_steps, own_timesteps
        key: Any = solver or own_solver, steps, _hashable(timesteps)
        return self.own if key == self.settings else self._recent.get(key, *key)


def _hashable(timesteps: Timesteps) -> str | tuple[float, ...] | None:
    return tuple(timesteps) if isinstance(timesteps, Iterable) and not isinstance(timesteps, str) else timesteps
