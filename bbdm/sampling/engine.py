"""What a sampler's arrays and network must do for it; torch and ONNX Runtime have one each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from bbdm.sampling.batch import Batch
from bbdm.sampling.call import Timesteps
from bbdm.sampling.plans import AnyPlan
from bbdm.sampling.sources import ArrayBackend

Advance = Callable[[int], Any]  # reports a number of network calls as done
Given = tuple[Any, list[dict[str, Any]]]  # see Engine._given
Array = TypeVar("Array")


class Engine(ABC, Generic[Array, AnyPlan]):
    """Runs batches of ``Array`` by the steps of a plan."""

    backend: ArrayBackend

    @abstractmethod
    def _make_plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> AnyPlan:
        """The plan of a solver; see :func:`bbdm.solvers.build`."""

    @abstractmethod
    def _progress(self, total: int) -> AbstractContextManager[Advance]:
        """A display of a number of network calls, and the function that advances it."""

    def _prepare(self, plan: AnyPlan, batch: Batch, progress: bool) -> None:
        """Do what is due once for batches of a shape, such as compiling."""

    @abstractmethod
    def _states(self, plan: AnyPlan, batch: Batch, advance: Advance) -> Iterator[tuple[Any, Any]]:
        """State and estimate after each step, padded, which the next step may overwrite; reports calls."""

    @abstractmethod
    def _given(self, batch: Batch) -> Given:
        """The source in the target's channels, and what the network is told, in the space of the bridge.

        It is told all conditions; where the batch is guided, also what each further evaluation is told.
        """

    @abstractmethod
    def _repeated(self, given: Given, places: list[int]) -> Given:
        """What :meth:`_given` returned, of the images at some places."""

    @abstractmethod
    def _copied(self, state: Any) -> Any:
        """A state or an estimate as an array of its own."""

    @abstractmethod
    def _decoded(self, state: Any) -> Array:
        """The pictures of a state, a copied state or an estimate, about [-1, 1]."""
