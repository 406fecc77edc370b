"""The loop over a step table: each step is one network call and one row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bbdm.execution.guided import Guided
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Body, Conditions
from bbdm.networks.guidance import Guidance
from bbdm.networks.windowed import Windowed
from bbdm.networks.windows import Windowing
from bbdm.solvers import StepTable

Shape = tuple[int, ...]


@dataclass
class State:
    """The buffers of one run, which each step overwrites; images are (B, C, H, W), channels_last."""

    y: torch.Tensor  # the source in the target's channels, in the state's dtype
    x: torch.Tensor  # the state
    x0hat: torch.Tensor  # the estimate of the target
    inputs: torch.Tensor  # the state in the network's dtype
    unread: torch.Tensor  # in place of a prediction when the first state is made
    conditions: dict[str, torch.Tensor]  # what the network is told, in its dtype; (N B, ...) of N evaluations
    seeds: torch.Tensor  # (B,) int64
    noise: torch.Tensor | None  # (K, B, C, H, W) normals in place of seeds
    mask: torch.Tensor | None  # (B, 1, H, W), 1 where the target is made, 0 where y stays
    step: torch.Tensor  # (1,) int64, the row of the table


class Loop:
    """A step table, ready to be run with a network.

    Args:
        network: runs a network's body, in ``dtype`` on ``device``.
        embedder: the network's, with weights that are not rounded to ``dtype``.
        table: the rows of all steps.
        clamp: (low, high) for every estimate of the target, or None.
        device: where the loop runs.
        dtype: of the network's computation. The state is float32, or float64 with a float64 network.
    """

    def __init__(
        self,
        network: Body,
        embedder: Callable[[torch.Tensor], torch.Tensor],
        table: StepTable,
        clamp: tuple[float, float] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.network = network
        self.guided: Guided | None = None
        self.dtype = dtype
        self.table = table
        self.state_dtype = state_dtype(dtype)
        self.device = device
        self.clamp = clamp
        self.rows = torch.from_numpy(table.rows).to(device, self.state_dtype)
        with torch.no_grad():
            seen = torch.tensor(table.network_times, dtype=torch.float32)
            self.embedding = embedder(seen).to(device, self.state_dtype)
        self.opening = torch.from_numpy(table.opening).to(device, self.state_dtype)

    def over(
        self,
        windows: Windowing | None = None,
        guidance: Guidance | None = None,
        report: Callable[[int], Any] = lambda _: None,
        together: bool = True,
    ) -> Loop:
        """The loop with its network on windows, and guided; itself where it is neither.

        ``report`` is called after each call of the network on windows with 1. ``together`` is whether a
        guided step evaluates all in one batch.
        """
        if windows is guidance is None:
            return self
        loop = copy.copy(self)
        if windows is not None:
            loop.network = Windowed(self.network, windows, report)
        if guidance is not None:
            loop.guided = Guided(guidance, self.table, together)
        return loop

    def told(self, conditions: Conditions | Sequence[Conditions] | None) -> dict[str, torch.Tensor]:
        """The network's conditions, or those of several evaluations one after the other, in its dtype."""
        parts = conditions if isinstance(conditions, Sequence) else [conditions or {}]
        made = {name: [as_told(each[name], self.dtype) for each in parts] for name in parts[0]}
        return {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in made.items()}

    @property
    def evaluations(self) -> list[int]:
        """The numbers of evaluations of an image in one network call, each once, over all steps."""
        return [1] if self.guided is None else self.guided.evaluations

    def calls(self, state: State) -> list[tuple[torch.Tensor, torch.Tensor, Conditions]]:
        """What the network itself is called with, an example for each shape."""
        made: list[tuple[torch.Tensor, torch.Tensor, Conditions]] = []
        for count in self.evaluations:
            told = {name: value[: count * len(state.x)] for name, value in state.conditions.items()}
            given = torch.cat([state.inputs] * count), self.embedding[:1], told
            made.append(self.network.first(*given) if isinstance(self.network, Windowed) else given)
        return made

    def start(
        self,
        y: torch.Tensor,
        seeds: torch.Tensor,
        noise: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        conditions: Conditions | Sequence[Conditions] | None = None,
    ) -> State:
        """New buffers for y, seeds, explicit noise, a mask and the network's conditions on the device.

        Of a guided loop, conditions are those of each evaluation.
        """
        x, x0hat, inputs, unread = (torch.empty_like(y, dtype=d) for d in (y.dtype, y.dtype, self.dtype, self.dtype))
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        state = State(y, x, x0hat, inputs, unread, self.told(conditions), seeds, noise, mask, step)
        self.restart(state)
        return state

    def restart(self, state: State) -> None:
        """Make the first state, in the same buffers."""
        self._step(state, state.unread, self.opening, len(self.rows) - 1)

    def advance(self, state: State, index: int) -> None:
        """One step: one network call and one row of the table, into the state's buffers."""
        given = state.inputs, self.embedding[index : index + 1], state.conditions
        guided = self.guided
        pred = self.network(*given) if guided is None else guided(self.network, *given, index, state.seeds)
        self._step(state, pred, self.rows, index)

    def _step(self, state: State, pred: torch.Tensor, rows: torch.Tensor, index: int) -> None:
        state.step.fill_(index)
        seeds, noise = (state.seeds, None) if state.noise is None else (None, state.noise[index])
        images = state.x, state.x0hat, state.inputs, pred, state.y
        bridge_step(*images, rows, state.step, seeds, noise, clamp=self.clamp, mask=state.mask)

    @torch.inference_mode()
    def warm_up(self, shape: Shape, conditions: Conditions) -> None:
        """Call the network once for y of a shape (B, C, H, W) and conditions such as it takes."""
        y = torch.zeros(*shape, dtype=self.state_dtype, device=self.device).to(memory_format=layout(len(shape)))
        seeds = torch.zeros(len(y), dtype=torch.int64, device=self.device)
        state = self.start(y, seeds, conditions=conditions)
        self.network(state.inputs, self.embedding[:1], state.conditions)

    def run(self, state: State) -> None:
        """All steps."""
        for index in range(len(self.rows)):
            self.advance(state, index)


def as_told(condition: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A condition in a network's dtype, in the memory format of its axes. Classes stay integers."""
    made = condition.to(dtype) if condition.is_floating_point() else condition
    return made.contiguous(memory_format=layout(made.ndim))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state for a network of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
