"""The loop over a step table: each step is one network call and one row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.base import Body, Conditions
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
    conditions: dict[str, torch.Tensor]  # what the network sees besides, in its dtype
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
        self.dtype = dtype
        self.state_dtype = state_dtype(dtype)
        self.device = device
        self.clamp = clamp
        self.rows = torch.from_numpy(table.rows).to(device, self.state_dtype)
        with torch.no_grad():
            seen = torch.tensor(table.network_times, dtype=torch.float32)
            self.embedding = embedder(seen).to(device, self.state_dtype)
        self.opening = torch.from_numpy(table.opening).to(device, self.state_dtype)

    def over(self, windows: Windowing | None, report: Callable[[int], Any] = lambda _: None) -> Loop:
        """The loop with its network on windows; itself where there are none.

        ``report`` is called after each call of the network with 1.
        """
        if windows is None:
            return self
        loop = copy.copy(self)
        loop.network = Windowed(self.network, windows, report)
        return loop

    def first_call(self, state: State) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """What the network itself is called with first."""
        given = state.inputs, self.embedding[:1], state.conditions
        return self.network.first(*given) if isinstance(self.network, Windowed) else given

    def start(
        self,
        y: torch.Tensor,
        seeds: torch.Tensor,
        noise: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> State:
        """New buffers for y, seeds, explicit noise, a mask and the network's conditions on the device."""
        x, x0hat, inputs, unread = (torch.empty_like(y, dtype=d) for d in (y.dtype, y.dtype, self.dtype, self.dtype))
        seen = {name: value.to(self.dtype) for name, value in (conditions or {}).items()}
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        state = State(y, x, x0hat, inputs, unread, seen, seeds, noise, mask, step)
        self.restart(state)
        return state

    def restart(self, state: State) -> None:
        """Make the first state, in the same buffers."""
        self._step(state, state.unread, self.opening, len(self.rows) - 1)

    def advance(self, state: State, index: int) -> None:
        """One step: one network call and one row of the table, into the state's buffers."""
        pred = self.network(state.inputs, self.embedding[index : index + 1], state.conditions)
        self._step(state, pred, self.rows, index)

    def _step(self, state: State, pred: torch.Tensor, rows: torch.Tensor, index: int) -> None:
        state.step.fill_(index)
        seeds, noise = (state.seeds, None) if state.noise is None else (None, state.noise[index])
        images = state.x, state.x0hat, state.inputs, pred, state.y
        bridge_step(*images, rows, state.step, seeds, noise, clamp=self.clamp, mask=state.mask)

    @torch.inference_mode()
    def warm_up(self, shape: Shape, conditions: Mapping[str, Shape]) -> None:
        """Call the network once for y and conditions of shapes (B, C, H, W)."""
        y, *others = (
            torch.zeros(*each, dtype=self.state_dtype, device=self.device).to(memory_format=CHANNELS_LAST[len(each)])
            for each in (shape, *conditions.values())
        )
        seeds = torch.zeros(len(y), dtype=torch.int64, device=self.device)
        state = self.start(y, seeds, conditions=dict(zip(conditions, others, strict=True)))
        self.network(state.inputs, self.embedding[:1], state.conditions)

    def run(self, state: State) -> None:
        """All steps."""
        for index in range(len(self.rows)):
            self.advance(state, index)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state for a network of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
