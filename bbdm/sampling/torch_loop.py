"""The loop on PyTorch: its arrays are tensors on a device, a step is one op, and runs may be captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bbdm.base.recent import Recent
from bbdm.codec import Codec
from bbdm.execution.compiled import Graphs
from bbdm.kernels.bridge_step import unchecked
from bbdm.kernels.elementwise import CHANNELS_LAST, layout
from bbdm.networks.base import Body, Network
from bbdm.networks.windows import WindowGrid
from bbdm.sampling.batch import Batch, Inputs
from bbdm.sampling.loop import Loop, Plan, State
from bbdm.solvers import StepTable


@dataclass(frozen=True)
class Rows:
    """A step table on the device."""

    rows: torch.Tensor  # (K, 10)
    opening: torch.Tensor  # (K, 10), of which the last row makes the first state
    embedding: torch.Tensor  # (K, M) what the network computes of the times alone


@dataclass
class Buffers(State):
    """The buffers of one run, which each step overwrites; images are (B, C, H, W), channels_last."""

    index: torch.Tensor  # (1,) int64, the row of the table


class TorchLoop(Loop):
    """The loop on PyTorch; see :class:`bbdm.sampling.loop.Loop` for what its methods give.

    Attributes:
        unet: the network, on the device in ``dtype``.
        codec: of pictures, or None.
        device: where the loop runs.
        dtype: of the network's computation.
        clamp: (low, high) for every estimate of the target, or None.
    """

    array, noun, _inference = torch.Tensor, "a tensor", torch.inference_mode
    unet: Network
    codec: Codec | None
    device: torch.device
    dtype: torch.dtype
    clamp: tuple[float, float] | None
    _state_dtype: torch.dtype
    _body: Body  # the network's, eager, compiled or from a package
    _embedder: Callable[[torch.Tensor], torch.Tensor]  # of times, with weights that are not rounded to dtype
    _graphs: Graphs | None
    _kept_weights: Recent[list[torch.Tensor]]  # of windows: a captured graph cannot copy them

    def _load(self, table: StepTable) -> Rows:
        with torch.no_grad():
            seen = torch.tensor(table.network_times, dtype=torch.float32)
            values = torch.from_numpy(table.rows), torch.from_numpy(table.opening), self._embedder(seen)
            return Rows(*(value.to(self.device, self._state_dtype) for value in values))

    def _array(self, array: Any) -> torch.Tensor:
        tensor = torch.as_tensor(array)
        return tensor.to(self.device, self._state_dtype if tensor.is_floating_point() else tensor.dtype)

    def _seeds(self, seeds: Sequence[int]) -> torch.Tensor:
        return torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def _encode(self, source: torch.Tensor) -> torch.Tensor:
        y = source if self.codec is None else self.codec.encode(source.float(), "source").to(self._state_dtype)
        return y.contiguous(memory_format=CHANNELS_LAST[y.ndim])

    def _decode(self, state: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return state if self.codec is None else self.codec.decode(state)

    def _prepared(self, conditions: Mapping[str, torch.Tensor], size: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: self._put(value) for name, value in self.unet.prepared(conditions, size).items()}

    def _put(self, array: torch.Tensor) -> torch.Tensor:
        array = array.to(self.dtype) if array.is_floating_point() else array
        return array.contiguous(memory_format=layout(array.ndim))

    def _get(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._state_dtype)

    def _weights(self, windows: WindowGrid, size: Sequence[int]) -> list[torch.Tensor]:
        return self._kept_weights.get((windows, tuple(size)), windows, size)

    def _network(self, plan: Plan, x: torch.Tensor, index: int, conditions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._body(x, plan.loaded.embedding[index : index + 1], conditions)

    def _start(self, plan: Plan, inputs: Inputs) -> State:
        y = inputs.y
        x, x0hat, shown = (torch.empty_like(y, dtype=dtype) for dtype in (y.dtype, y.dtype, self.dtype))
        state = Buffers(x, x0hat, shown, torch.zeros(1, dtype=torch.int64, device=self.device))
        self._step(plan, inputs, state, y, -1)
        return state

    def _step(self, plan: Plan, inputs: Inputs, state: Any, prediction: torch.Tensor, index: int) -> None:
        rows, index = (plan.loaded.rows, index) if index >= 0 else (plan.loaded.opening, len(plan.times) - 1)
        state.index.fill_(index)
        seeds, noise = (inputs.seeds, None) if inputs.noise is None else (None, inputs.noise[index])
        images = state.x, state.x0hat, state.inputs, prediction, inputs.y
        unchecked(*images, rows, state.index, seeds, noise, inputs.mask, *(self.clamp or (None, None)))

    def _replayed(self, plan: Plan, batch: Batch, inputs: Inputs) -> torch.Tensor:
        names = [list(each) for each in inputs.conditions]

        def run(tensors: list[torch.Tensor]) -> torch.Tensor:
            y, seeds, *rest = tensors
            values = iter(rest)
            again = Inputs(y, [{name: next(values) for name in each} for each in names], seeds)
            *_, last = self._states(plan, batch, again, lambda _: None)
            return last.x

        assert self._graphs is not None
        tensors = [inputs.y, inputs.seeds, *(value for each in inputs.conditions for value in each.values())]
        key = plan, batch.windows, batch.guidance, tuple(map(tuple, names))
        reads = getattr(self._body, "functions", list), self._kept_weights.values
        return self._graphs(key, run, tensors, lambda: [read() for read in reads])
