"""CUDA graphs without a card: the names of torch.cuda that capture a loop, on tensors of the CPU.

While a graph is captured, each operator is recorded, and at the end what it wrote is NaN, as nothing ran. A
replay runs the record on the same memory. Not shown: kernels' own code, speed, memory that two streams use at
once, and threads. Which device a tensor is on, :class:`tests.cuda.test_graph.OneDevice` checks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from traceback import walk_stack
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten: Any = torch.ops.aten
PACKAGE = str(Path(__file__).parents[2] / "bbdm")
WAITS = {  # operators whose result the host must see
    aten._local_scalar_dense.default: "item",
    aten.item.default: "item",  # in inference mode
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "is_nonzero",
    aten.allclose.default: "allclose",
    aten.bincount.default: "bincount",  # for the largest number
}
INDEXED = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
HOST = (aten.lift_fresh.default, aten.lift_fresh_copy.default)  # of torch.tensor


class CaptureError(AssertionError):
    """What a capture cannot record, or a replay on memory that is gone."""


def wait_of(func: Any, args: Any) -> str | None:
    """Why the host waits for an operator, if it does."""
    if func in INDEXED and any(
        i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    ):
        return "boolean index"
    return WAITS.get(func)


def caller() -> str:
    """The innermost function of bbdm that runs, or torch's Adam, which on a card is one kernel a step."""
    for frame, _ in walk_stack(None):
        if "torch/optim/adam" in frame.f_code.co_filename:
            return "adam"
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_globals['__name__'].removeprefix('bbdm.')}.{frame.f_code.co_name}"
    return "test"


class Waits(TorchDispatchMode):
    """``seen`` has where and why the host would wait for a card; ``only_here`` are checks on a CPU."""

    def __init__(self, *only_here: str) -> None:
        super().__init__()
        self._only_here = only_here
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (why := wait_of(func, args)) is not None and (at := caller()) not in self._only_here:
            self.seen.append(f"{at}: {why}")
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's memory as a whole."""
    return tensor.untyped_storage().data_ptr()


def _found(
    reference: StorageWeakRef, dtype: torch.dtype, size: Any, stride: Any, offset: int
) -> Tensor:
    storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    if storage is None:
        raise CaptureError("a graph is replayed on memory that was freed: keep what it reads")
    return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


class Card(TorchDispatchMode):
    """Records captures: in ``graphs`` those that were captured, in ``log`` what was done in streams."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[Graph] = []
        self.log: list[str] = []
        self.stream = 0  # the current one; 0 is the default stream
        self.capture: Graph | None = None
        self.launched: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.capture is None:
            self.launched.add(func)
            return func(*args, **kwargs)
        if (why := wait_of(func, args)) is not None or func in HOST:
            raise CaptureError(f"a capture waits: {why or 'numbers of the host'}")
        if func not in self.launched and not func.is_view and "empty" not in func._opname:
            raise CaptureError(f"{func} runs for the first time in a capture: warm up before it")
        return self.capture.record(func, args, kwargs)


class Graph:
    """A captured graph: its kernels, which hold its own memory, and find that of others while it lives."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: dict[int, Tensor] = {}  # allocated in the capture, by address

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and keep how to run it again."""
        known = {
            storage_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        again = tree_map_only(Tensor, self._kept, (args, kwargs))
        made = func(*args, **kwargs)
        fresh = [
            t for t in tree_leaves(made) if isinstance(t, Tensor) and storage_of(t) not in known
        ]
        self.own |= {storage_of(each): each for each in fresh}
        if fresh or func._schema.is_mutable:
            self.kernels.append((func, *again, fresh))
        return made

    def _kept(self, tensor: Tensor) -> Any:
        if storage_of(tensor) in self.own:
            return lambda: tensor
        layout = tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
        reference = StorageWeakRef(tensor.untyped_storage())
        return lambda: _found(reference, *layout)

    def end(self) -> None:
        """Nothing ran: what would be written is not there yet."""
        self.card.capture = None
        for tensor in self.own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    def replay(self) -> None:
        """Run all kernels."""
        self.card.log.append(f"stream {self.card.stream} replays")
        for func, args, kwargs, outputs in self.kernels:
            args, kwargs = tree_map_only(FunctionType, lambda find: find(), (args, kwargs))
            made = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)]
            for output, tensor in zip(
                outputs, made[-len(outputs) :] if outputs else (), strict=True
            ):
                output.copy_(tensor)


def patch_cuda(card: Card, patch: pytest.MonkeyPatch) -> None:
    """Put a card's names in the place of those of torch.cuda."""

    class Stream:
        def __init__(self, number: int | None = None) -> None:
            self.number = next(numbers) if number is None else number

        def wait_event(self, event: Any) -> None:
            if event.of is not None:  # else there is nothing to wait for
                card.log.append(f"stream {self.number} waits for stream {event.of}")

        def wait_stream(self, other: Any) -> None:
            card.log.append(f"stream {self.number} waits for stream {other.number}")

    class Event:
        of: int | None = None  # the stream that it was recorded in

        def record(self, stream: Any) -> None:
            self.of = stream.number

    @contextmanager
    def stream(chosen: Any) -> Iterator[None]:
        before, card.stream = card.stream, chosen.number
        try:
            yield
        finally:
            card.stream = before

    @contextmanager
    def graph(made: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        card.log.append(f"stream {stream.number} is captured, other threads {capture_error_mode}")
        with torch.cuda.stream(stream):
            card.capture = made
            card.graphs.append(made)
            try:
                yield
            finally:
                made.end()

    numbers = itertools.count(1)
    names: dict[str, Any] = {"Stream": Stream, "Event": Event, "stream": stream, "graph": graph}
    names |= {"CUDAGraph": lambda: Graph(card), "current_stream": lambda: Stream(card.stream)}
    names |= {"device": lambda _: nullcontext(), "graph_pool_handle": lambda: (0, 1)}
    for name, value in names.items():
        patch.setattr(torch.cuda, name, value)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A card that isn't there."""
    with Card() as made:
        patch_cuda(made, monkeypatch)
        yield made
