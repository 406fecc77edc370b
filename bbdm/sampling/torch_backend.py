"""Steps on PyTorch: the network, eager, compiled or of a package, then one launch of the step's kernel.

On CUDA, a compiled network and the kernel are one captured step: see :mod:`bbdm.sampling.recording`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled, PackagedNetwork
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.elementwise import CHANNELS_LAST, layout
from bbdm.networks.base import Body, Network, placed
from bbdm.sampling.loop import Batch, Inputs, Run, State, predict, wrong_prediction
from bbdm.sampling.recording import Recordings
from bbdm.solvers import StepTable

Turn = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A table on the device."""

    rows: torch.Tensor  # (K, 10) in the dtype of the state
    opening: torch.Tensor  # (10,) the row that makes the first state
    numbers: torch.Tensor  # (K,) of the rows, int64
    embedding: torch.Tensor  # (K, M) what the network computes of the times alone
    # of each, its embedding (1, M), row, number (1,)
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class TorchBackend:
    """Steps on PyTorch; a :class:`bbdm.sampling.loop.Backend`.

    Args:
        network: it is used directly where it is on ``device`` in ``dtype``, and copied otherwise.
        codec: between pictures and latents, used or copied as the network is; None of image space.
        device: where the network and its codec are.
        dtype: of the network's computation; the state has at least 32 bits.
        compile: compile network and codec at the first call with each shape.
        package: what takes the place of the network's body, or None.

    Attributes: ``network``, ``codec``, ``device``, ``dtype``; ``body``, how the network is called.
    """

    array = torch.Tensor
    noun = "a tensor"

    def __init__(
        self,
        network: Network,
        codec: Codec | None,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
        package: PackagedNetwork | None = None,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.compile = compile
        # of the weights as given, before they are rounded to dtype
        self._embedder = network.embedder()
        self._place(network, codec, package)

    def _place(
        self, network: Network, codec: Codec | None, package: PackagedNetwork | None
    ) -> None:
        """Put network and codec on the device, and compile them where it was asked for."""
        self.like = torch.zeros(
            (), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device
        )
        self.network = placed(network, self.device, self.dtype)
        self.body: Body = self.network.body
        if package is not None:
            self.body = package
        elif self.compile:
            self.body = Compiled(self.network.body, self.device)
        if codec is not None:
            codec = codec.placed(
                self.device, torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
            )
        self._placed_codec = codec
        if codec is not None and self.compile:
            codec = codec.compiled(partial(Compiled, device=self.device))
        self.codec = codec
        self.recordings: Recordings | None = None
        self.turn: Turn = torch.inference_mode
        if self.device.type == "cuda" and (self.compile or package is not None):
            self.record()

    def record(self) -> None:
        """Capture steps from now on."""
        self.recordings = Recordings(self.device, self.move, self.compiled_code)
        self.turn = self.recordings.turn

    def to(self, device: torch.device) -> None:
        """Move to a device; what was loaded must be loaded again."""
        self.device = device
        self._place(self.network, self._placed_codec, None)

    def load(self, table: StepTable) -> Loaded:
        """The table on the device, with what the network computes of the times, once."""
        with torch.no_grad():
            times = torch.tensor(table.network_times, dtype=torch.float32)
            embedding = self._embedder(times).to(self.like)
        rows = torch.from_numpy(table.rows).to(self.like)
        opening = torch.from_numpy(table.opening).to(self.like)
        numbers = torch.arange(len(table), device=self.device)
        steps = [*zip(embedding.split(1), rows, numbers.split(1), strict=True)]  # views, made once
        return Loaded(rows, opening, numbers, embedding, steps)

    def encode(self, source: torch.Tensor) -> torch.Tensor:
        """Padded sources in the space of the bridge, channels_last."""
        if self.codec is not None:
            source = self.codec.encode(source.float(), "source").to(self.like.dtype)
        return source.contiguous(memory_format=CHANNELS_LAST[source.ndim])

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        """The pictures of a state, in memory that no later step writes."""
        if self.codec is not None:
            return self.codec.decode(state)
        if self.recordings is not None:  # whose buffers it is in
            return state.clone()
        return state

    def prepare(
        self, conditions: Mapping[str, torch.Tensor], sides: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """What conditions alone decide, in the network's dtype and memory format."""
        prepared = self.network.prepared(conditions, sides)
        return {name: self.cast(value) for name, value in prepared.items()}

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state, in memory of its own."""
        y = inputs.y
        state = State(
            torch.empty_like(y), torch.empty_like(y), torch.empty_like(y, dtype=self.dtype)
        )
        run = Run(batch, inputs, state)
        loaded: Loaded = batch.plan.loaded
        noise = None if inputs.noise is None else inputs.noise[-1]
        seeds = inputs.seeds if noise is None else None
        number = loaded.numbers[-1:]
        bridge_step(
            state.x,
            state.x0hat,
            state.inputs,
            y,
            y,
            loaded.opening,
            number,
            seeds,
            noise,
            inputs.mask,
        )
        if self.recordings is not None:
            run.recorded = self.recordings.of(run)
        return run

    def step(self, run: Run, index: int) -> None:
        """One call of the network, then one row of the table, which overwrites the state's tensors."""
        if self.recordings is not None:
            self.recordings.step(run, index)
            return
        embedding, row, number = run.batch.plan.loaded.steps[index]
        noise = None if run.inputs.noise is None else run.inputs.noise[index]
        self.move(run, embedding, row, number, noise)

    def move(
        self,
        run: Run,
        embedding: torch.Tensor,
        row: torch.Tensor,
        number: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> None:
        """A step by its tensors.

        Args:
            run: the run whose state moves.
            embedding: (1, M) of the step's time.
            row: (10,) of the table.
            number: (1,) of the row, int64; that of its noise.
            noise: (B, C, H, W) in place of seeds.
        """
        batch = run.batch
        inputs = run.inputs
        state = run.state
        if batch.windows is None and batch.guidance is None:
            prediction = self.call(embedding, state.inputs, inputs.conditions[0])
        else:
            prediction = predict(partial(self.call_part, embedding), batch, inputs, state.inputs)
        seeds = inputs.seeds if noise is None else None
        bridge_step(
            state.x,
            state.x0hat,
            state.inputs,
            prediction,
            inputs.y,
            row,
            number,
            seeds,
            noise,
            inputs.mask,
        )

    def call(
        self, embedding: torch.Tensor, x: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The network's prediction of what it is shown, in its dtype and memory format."""
        prediction = self.body(x, embedding, conditions)
        if prediction.shape != x.shape or not prediction.is_floating_point():
            raise wrong_prediction(prediction, x)
        return prediction

    def call_part(
        self, embedding: torch.Tensor, x: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        """A prediction that is added up with others, of tensors in any dtype and order in memory."""
        parts = {name: self.cast(value) for name, value in conditions.items()}
        return self.call(embedding, self.cast(x), parts).to(self.like.dtype)

    def cast(self, array: torch.Tensor) -> torch.Tensor:
        """A tensor in the network's dtype, where it is of floats, and memory format."""
        if array.is_floating_point():
            array = array.to(self.dtype)
        return array.contiguous(memory_format=layout(array.ndim))

    def copy(self, array: torch.Tensor) -> torch.Tensor:
        """A state or an estimate of at least 32 bits, a normal tensor."""
        with torch.inference_mode(False):
            return array.to(self.like.dtype, copy=True)

    def compiled_code(self) -> Any:
        """What a captured step reads besides its buffers: compiled code, with the constants in it."""
        if isinstance(self.body, Compiled):
            return self.body.functions()
        return None
