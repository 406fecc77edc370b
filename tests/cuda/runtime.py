"""Streams, events and graphs of the card that isn't there, and the names of torch.cuda in their place."""

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # which makes a table of torch's functions when it is imported: of the real ones
from torch import Tensor
from torch.cuda import _sanitizer
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.cuda.card import DEVICE, CaptureError, Card, CardTensor, place, plain_of, storage_of, written_by

NAME = "a card that isn't there"
CUDA, LAZY, DEVICES = 1, 17, 22  # c10::DeviceType


class Capture:
    """What a graph records: operators on memory of its own, and on memory that others must keep."""

    def __init__(self, card: Card) -> None:
        self.card, self.stream = card, card.stream
        self.kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: dict[int, Tensor] = {}  # allocated by the graph, by address
        self.others: dict[int, StorageWeakRef] = {}
        self.allocations: list[str] = []  # the functions that allocated
        self.written: set[int] = set()

    def record(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Record an operator, which does not run; returns what it would make, and that on the card."""
        if func not in self.card.launches and "empty" not in func._opname:
            raise CaptureError(f"{place()}: {func} runs for the first time in a capture: warm up before it")
        dry = tree_map_only(Tensor, _copy, (plain_of(args), plain_of(kwargs)))
        made = func(*dry[0], **dry[1])
        given = {id(d): p for d, p in zip(tree_leaves(dry), tree_leaves((args, kwargs)), strict=True)}
        returned = tree_map_only(Tensor, lambda t: given[id(t)] if id(t) in given else CardTensor(t), made)
        fresh = [t for t in tree_leaves(made) if isinstance(t, Tensor) and id(t) not in given]
        self.own |= {storage_of(tensor): tensor for tensor in fresh}
        self.allocations += [place()] * len(fresh)
        kept = tree_map_only(Tensor, self._kept, (plain_of(args), plain_of(kwargs)))
        self.written |= {storage_of(t) for t in written_by(func, args, kwargs)}
        self.kernels.append((func, *kept, fresh))
        return fresh, returned

    def end(self) -> None:
        """Nothing ran: what would be written is not there yet."""
        self.card.capture = None
        for tensor in self.own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    def _kept(self, tensor: Tensor) -> Any:
        """A tensor of the graph's own, or how to find that of others while it lives."""
        address = storage_of(tensor)
        if address in self.own or address == 0:
            return lambda: tensor
        layout = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
        self.others[address] = reference = StorageWeakRef(tensor.untyped_storage())
        return lambda: _found(reference, *layout)

    def replay(self) -> None:
        """Run all kernels, as one of the current stream."""
        self.card.touch("a graph", {*self.others} - self.written, {*self.others} & self.written)
        for func, args, kwargs, outputs in self.kernels:
            args, kwargs = tree_map_only(FunctionType, lambda find: find(), (args, kwargs))
            made = func(*args, **kwargs)
            for output, tensor in zip(outputs, tree_leaves(made) if outputs else (), strict=True):
                output.copy_(tensor)


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def _found(reference: StorageWeakRef, dtype: torch.dtype, *layout: Any) -> Tensor:
    storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)  # pyright: ignore[reportAttributeAccessIssue]
    if storage is None:
        raise CaptureError("a graph is replayed on memory that was freed: keep what it reads")
    size, stride, offset = layout
    return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


def streams_of(card: Card) -> dict[str, Any]:
    """Stream, Event and CUDAGraph of a card."""

    class Stream:
        def __init__(self, *_: Any, number: int | None = None, **__: Any) -> None:
            self.number = next(numbers) if number is None else number
            if number is None:
                card.sanitizer._handle_stream_creation(self.number)

        def wait_event(self, event: Any) -> None:
            event.wait(self)

        def wait_stream(self, other: Any) -> None:
            self.wait_event(other.record_event())

        def record_event(self, event: Any = None) -> Any:
            event = Event() if event is None else event
            event.record(self)
            return event

        def is_capturing(self) -> bool:
            return card.capture is not None and card.capture.stream == self.number

        def synchronize(self) -> None:
            card.wait("Stream.synchronize")
            card.sanitizer._handle_stream_synchronization(self.number)

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.of: int | None = None  # the stream that it was recorded in
            self.number = next(numbers)  # an address would come again
            card.sanitizer._handle_event_creation(self.number)

        def record(self, stream: Any = None) -> None:
            self.of = card.stream if stream is None else stream.number
            card.sanitizer._handle_event_record(self.number, self.of or 0)

        def wait(self, stream: Any = None) -> None:
            number = card.stream if stream is None else stream.number
            if self.of is not None:  # else there is nothing to wait for
                card.log.append(f"stream {number} waits for stream {self.of}")
                card.sanitizer._handle_event_wait(self.number, number)

        def synchronize(self) -> None:
            card.wait("Event.synchronize")
            card.sanitizer._handle_event_synchronization(self.number)

    class CUDAGraph:
        def __init__(self, keep_graph: bool = False) -> None:
            self.capture: Capture | None = None

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
            if card.stream == 0:
                raise CaptureError("a capture needs another stream than the default")
            card.log.append(f"stream {card.stream} is captured, other threads {capture_error_mode}")
            self.capture = card.capture = Capture(card)
            card.graphs.append(self.capture)

        def capture_end(self) -> None:
            assert self.capture is not None
            self.capture.end()

        def replay(self) -> None:
            assert self.capture is not None
            card.log.append(f"stream {card.stream} replays")
            self.capture.replay()

    numbers = itertools.count(1)
    return {"Stream": Stream, "Event": Event, "CUDAGraph": CUDAGraph}


def patch_torch(card: Card, patch: pytest.MonkeyPatch) -> None:
    """Put a card's names in the place of torch's."""
    streams = streams_of(card)

    @contextmanager
    def stream(chosen: Any) -> Iterator[None]:
        before, card.stream = card.stream, chosen.number
        try:
            yield
        finally:
            card.stream = before

    def current_stream(*_: Any) -> Any:
        return streams["Stream"](number=card.stream)

    def synchronize(*_: Any) -> None:
        card.wait("synchronize")
        card.sanitizer._handle_device_synchronization()

    def pin_memory(tensor: Tensor, *_: Any) -> Tensor:
        pinned = tensor.clone()
        card.pinned[storage_of(pinned)] = StorageWeakRef(pinned.untyped_storage())
        return pinned

    names: dict[str, Any] = {
        **streams,
        **{"stream": stream, "current_stream": current_stream, "synchronize": synchronize},
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_: True),
        **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), lambda *_: 0),
        **dict.fromkeys(("_lazy_init", "empty_cache", "manual_seed_all"), lambda *_: None),
        "device_count": lambda: 1,
        "get_device_name": lambda *_: NAME,
        "graph_pool_handle": lambda: (0, 1),
    }
    for name, value in names.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    patch.setattr(torch.accelerator, "is_available", lambda: True)
    patch.setattr(torch.accelerator, "current_stream", current_stream)
    patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    patch.setattr(Tensor, "pin_memory", pin_memory)
    to = Tensor.to
    patch.setattr(Tensor, "to", lambda tensor, *given, **more: to(tensor, *_places(given), **more))
    patch.setattr(Tensor, "cuda", lambda tensor, *_, **__: tensor.to("cuda"))
    untraced = SimpleNamespace(extract=lambda *_, **__: [])  # traces of the stack would take most of the time
    patch.setattr(_sanitizer, "traceback", SimpleNamespace(StackSummary=untraced, walk_stack=lambda _: ()))
    autocast = torch.autocast  # which takes the CPU's lists of operators
    patch.setattr(torch, "autocast", lambda _, *given, **more: autocast("cpu", *given, **more))
    group = torch._C._group_tensors_by_device_and_dtype
    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", lambda *given: _regrouped(group(*given)))


def _places(given: Any) -> list[Any]:
    """Arguments of Tensor.to, where a tensor of the card stands for its device and dtype."""
    return [part for value in given for part in ((DEVICE, value.dtype) if isinstance(value, CardTensor) else (value,))]


def _regrouped(groups: dict[Any, Any]) -> dict[Any, Any]:
    """Groups of tensors by device and dtype, with the device that Python sees."""
    return {(lists[0][0].device, dtype): (lists, i) for (_, dtype), (lists, i) in groups.items()}


def register_guard() -> None:
    """Give C++ a device guard for CUDA, which a build without CUDA lacks: PyTorch's own that does nothing.

    ``_ensureCUDADeviceGuardSet`` registers it in place of a guard with no devices: that of lazy tensors.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * DEVICES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if guards[CUDA] is None:
        guards[CUDA] = guards[LAZY]
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def a_card() -> Iterator[Card]:
    """A card, in place until the end of the block."""
    register_guard()
    card = Card()
    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        patch_torch(card, patch)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is then a copy that is seen
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot change its class
        try:
            with card:
                yield card
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
