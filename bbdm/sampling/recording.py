"""One step on CUDA, captured once for each shape: a graph that serves every solver, stream and callback.

The rows of the table, the embedded times and the step's number are buffers on the device. A graph looks its
row up by the number, moves the state, and counts the number up: so a run of K steps is K launches.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from bbdm.execution.compiled import Recent, signature
from bbdm.sampling.loop import Inputs, Run

LEAST_ROWS = 1024  # that buffers have; a longer table has buffers of the next power of two
Move = Callable[[Run, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], None]


@dataclass(eq=False)
class Recording:
    """A captured step, with the buffers that it reads and writes."""

    run: Run  # of buffers
    noise: torch.Tensor | None  # of a step, in place of seeds
    rows: torch.Tensor
    embedding: torch.Tensor
    number: torch.Tensor  # of the next step
    graph: torch.cuda.CUDAGraph
    reads: Any = None  # what the graph reads besides, which must live as long
    next: int | None = None  # the value of ``number``, where it is known
    owner: Callable[[], Run | None] = lambda: None  # whose state is in the buffers

    def step(self, move: Move) -> None:
        """What is captured."""
        embedding = self.embedding.index_select(0, self.number)
        row = self.rows.index_select(0, self.number)
        move(self.run, embedding, row[0], self.number, self.noise)
        self.number.add_(1)

    def take(self, run: Run) -> None:
        """Put a run into the buffers; the state of the one before moves to memory of its own."""
        before = self.owner()
        if before is run:
            return
        if before is not None:
            before.state = before.state.clone()
        loaded = run.batch.plan.loaded
        count = len(loaded.rows)
        self.rows[:count].copy_(loaded.rows)
        self.embedding[:count].copy_(loaded.embedding)
        _copy(run.inputs, self.run.inputs)
        buffers = self.run.state
        for field in fields(buffers):
            buffer = getattr(buffers, field.name)
            tensor = getattr(run.state, field.name)
            buffer.copy_(tensor)
            if tensor.is_cuda:  # another thread's stream may have allocated it
                tensor.record_stream(torch.cuda.current_stream())
        run.state = buffers
        self.owner = weakref.ref(run)

    def replay(self, run: Run, index: int) -> None:
        """A step of a run, whose state is in the buffers afterwards."""
        self.take(run)
        if self.next != index:
            self.number.fill_(index)
        if self.noise is not None:
            self.noise.copy_(run.inputs.noise[index])
        self.graph.replay()
        self.next = index + 1


class Recordings:
    """The captured steps of a sampler. Runs of one shape share buffers, and threads take turns.

    Args:
        device: the CUDA device of the buffers.
        move: a step by its tensors; see :meth:`bbdm.sampling.torch_backend.TorchBackend.move`.
        reads: returns what a step reads besides its tensors, such as weights.
    """

    def __init__(self, device: torch.device, move: Move, reads: Callable[[], Any]) -> None:
        self._device = device
        self._move = move
        self._reads = reads
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: Recent[Recording] = Recent(self._record)
        self._turns = threading.RLock()  # of the buffers; a callback may call the sampler again
        self._done = torch.cuda.Event()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inference mode on the device, alone with the buffers; ordered on the caller's stream."""
        with torch.inference_mode(), self._turns, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # another thread's steps may run on another stream
            try:
                yield
            finally:
                self._done.record(stream)

    def of(self, run: Run) -> Recording:
        """The recording that a run replays, which is captured where there is none."""
        return self._recordings.get(_key(run), run)

    def step(self, run: Run, index: int) -> None:
        """A step of a run."""
        run.recorded.replay(run, index)

    def _record(self, run: Run) -> Recording:
        recording = _buffers(run)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile, tune and load kernels before the capture
            recording.step(self._move)
        torch.cuda.current_stream().wait_stream(stream)
        graph = recording.graph
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            recording.step(self._move)
        recording.reads = self._reads()
        return recording


def _capacity(rows: int) -> int:
    """The rows of buffers for a table: a power of two, so that tables of most lengths share a graph."""
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


def _key(run: Run) -> Hashable:
    """What a captured step is of."""
    batch = run.batch
    inputs = run.inputs
    tensors: list[Any] = [inputs.y, inputs.seeds, *inputs.weights, *inputs.conditions]
    if inputs.mask is not None:
        tensors.append(inputs.mask)
    capacity = _capacity(len(batch.plan.times))
    has_noise = inputs.noise is not None
    has_mask = inputs.mask is not None
    return capacity, batch.windows, batch.guidance, has_noise, has_mask, signature(*tensors)


def _buffers(run: Run) -> Recording:
    """Memory for runs as one is, with its values."""
    inputs = run.inputs
    loaded = run.batch.plan.loaded
    capacity = _capacity(len(loaded.rows))
    conditions = [
        {name: value.clone() for name, value in condition.items()}
        for condition in inputs.conditions
    ]
    mask = None if inputs.mask is None else inputs.mask.clone()
    weights = [side.clone() for side in inputs.weights]
    own = Inputs(inputs.y.clone(), conditions, inputs.seeds.clone(), mask=mask, weights=weights)
    # its windows and guidance
    batch = replace(run.batch, source=None, noise=None, mask=None, conditions={})
    rows = loaded.rows.new_zeros(capacity, *loaded.rows.shape[1:])
    rows[: len(loaded.rows)] = loaded.rows
    embedding = loaded.embedding.new_zeros(capacity, *loaded.embedding.shape[1:])
    embedding[: len(loaded.rows)] = loaded.embedding
    return Recording(
        run=Run(batch, own, run.state.clone()),
        noise=None if inputs.noise is None else torch.empty_like(inputs.y).copy_(inputs.noise[0]),
        rows=rows,
        embedding=embedding,
        number=torch.zeros_like(loaded.numbers[:1]),
        graph=torch.cuda.CUDAGraph(),
    )


def _copy(source: Inputs, target: Inputs) -> None:
    """Put the values of inputs into buffers, but for noise, which is of a step."""
    target.y.copy_(source.y)
    target.seeds.copy_(source.seeds)
    if source.mask is not None:
        target.mask.copy_(source.mask)
    for buffer, side in zip(target.weights, source.weights, strict=True):
        buffer.copy_(side)
    for buffers, values in zip(target.conditions, source.conditions, strict=True):
        for name, value in values.items():
            buffers[name].copy_(value)
