"""The choice of solver, steps and times: what a network's file says, and what others put over it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bbdm import solvers
from bbdm.base.scripts import warn
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import StepTable
from bbdm.solvers import AnySolver


@dataclass(frozen=True, eq=False)
class Defaults:
    """Solver, steps and times that were chosen: by the maker of a network's file, and by others over them.

    Attributes:
        solver: of :func:`bbdm.solvers.build`. If None, it is ``dpm2m``, or ``consistency`` with ``calls``.
        steps: of that solver; another solver takes its own default.
        timesteps: of that solver, in place of ``steps``.
        calls: those that the network was distilled for: ``consistency`` takes as many. None for any network.

    Raises:
        ValueError: steps and timesteps, or one of them without a solver; or a value of another kind.
    """

    solver: AnySolver | None = None
    steps: int | None = None
    timesteps: str | Sequence[float] | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        _check_count("calls", self.calls)
        if self.solver is not None:
            solvers.check_choice(self.solver, self.timesteps, self.steps)
        elif self.steps is not None or self.timesteps is not None:
            raise ValueError(
                "steps and timesteps of a network are those of its solver: give the solver too"
            )

    @property
    def _values(self) -> Hashable:
        """The values to compare; a solver that cannot be hashed is the same as itself alone."""
        solver: Any = self.solver
        try:
            hash(solver)
        except TypeError:
            solver = id(solver)
        times = self.timesteps
        if times is not None and not isinstance(times, str):
            times = tuple(times)
        return solver, self.steps, times, self.calls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Defaults) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def chosen(self) -> AnySolver:
        """The solver, also where none was chosen."""
        if self.solver is not None:
            return self.solver
        return solvers.DEFAULT if self.calls is None else solvers.DISTILLED

    def over(
        self,
        solver: AnySolver | None = None,
        steps: int | None = None,
        timesteps: str | Iterable[float] | None = None,
    ) -> Defaults:
        """What is chosen over these, as plain values.

        Another solver takes its own default steps where neither ``steps`` nor ``timesteps`` are given.
        """
        if solver is None and steps is None and timesteps is None:
            return self
        if solver is None:
            solver = self.chosen
        if steps is None and timesteps is None and _is_same(solver, self.chosen):
            return (
                self if self.solver is not None else replace(self, solver=solver, steps=self._steps)
            )
        if steps is not None:
            steps = np.asarray(steps).item()
        times: str | list[float] | None = None
        if isinstance(timesteps, str):
            times = timesteps
        elif timesteps is not None:
            times = np.asarray([*timesteps]).tolist()
        chosen = Defaults(solver, steps, times, self.calls)
        return replace(chosen, steps=chosen._steps)

    @property
    def _steps(self) -> int | None:
        """The steps, which of a distilled network are its calls where none were chosen."""
        if (
            self.steps is None
            and self.timesteps is None
            and _is_same(self.chosen, solvers.DISTILLED)
        ):
            return self.calls
        return self.steps

    def table(self, bridge: Bridge) -> StepTable:
        """The steps of a bridge; ValueError where it cannot take them."""
        return solvers.build(bridge, self.chosen, self.timesteps, self._steps)

    def config(self) -> dict[str, Any]:
        """The settings in a file: those that were chosen."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in settings.items() if value is not None}

    @classmethod
    def from_config(cls, content: Mapping[str, Any]) -> Defaults:
        """Those of a file's content; of a solver that is not registered here, with a warning, none."""
        solver = content.get("solver")
        if isinstance(solver, str) and solver not in solvers.SOLVERS:
            warn(
                f"the file names the solver {solver!r}, which no module has registered: the default takes its place"
            )
            return cls(calls=content.get("calls"))
        _check_count("steps", content.get("steps"))
        return cls(**{field.name: content.get(field.name) for field in fields(cls)})


def _check_count(name: str, count: Any) -> None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"{name} must be a positive integer, got {count!r}")


def _is_same(solver: AnySolver, other: AnySolver) -> bool:
    """Whether both are one name or one object: solvers that hold arrays have no equality."""
    if isinstance(solver, str) and isinstance(other, str):
        return solver == other
    return solver is other


NO_DEFAULTS = Defaults()  # of networks whose maker chose nothing
