"""A CUDA device that isn't there: tensors that claim to be on it, and a record of what happened.

A :class:`CardTensor` says ``device="cuda:0"`` and has CPU memory, so that the code for CUDA runs with real
values. Each operator passes through :class:`Card`, which checks and records what a card would do:

- A tensor on the CPU among tensors on the card is a :class:`WrongDeviceError`.
- Where the host waits for the card, ``waits`` gets the function of bbdm that waits, and why.
- Each kernel has a stream. PyTorch's own CUDA sanitizer finds memory that two streams use without an order:
  a :class:`MissingWaitError`.
- During a capture nothing runs: what kernels would have written is NaN. A replay runs what was captured, on
  the same memory. Waiting, or an operator that was not warmed up, is a :class:`CaptureError` then.

Streams, events and graphs are in ``runtime.py``. What is not shown: kernels' own code, speed, memory use,
rounding, threads, and races within a stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.cuda import _sanitizer
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

if TYPE_CHECKING:
    from tests.cuda.runtime import Capture

aten: Any = torch.ops.aten
DEVICE = torch.device("cuda", 0)
HOST = torch.device("cpu", 0)  # where someone asks for the CPU; C++ asks for "cpu" where it means the same device
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
PACKAGE = str(Path(__file__).parents[2] / "bbdm")
VIEW = aten._unsafe_view.default  # one whose schema does not say so
COPIES = (aten._to_copy.default, aten.copy_.default)
WAITS = {  # operators whose result the host must see, by the name in ``waits``
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.bincount.default: "bincount",  # for the largest number
}
BETWEEN = (str(Path(__file__)), "torch/_compile.py", "_dynamo/eval_frame.py")  # a caller and an operator
OF_TORCH = ("autograd/graph.py", "nn/parallel/distributed.py")  # whose C++ makes tensors
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class CardError(AssertionError):
    """What would be an error, or a bug without one, on a card."""


class WrongDeviceError(CardError):
    """An operator got tensors of the card and of the CPU."""


class MissingWaitError(CardError):
    """Two streams use the same memory, and neither waited for the other."""


class CaptureError(CardError):
    """What a capture cannot record, or a replay on memory that is gone."""


class CardTensor(Tensor):
    """A tensor that claims to be on the card; ``plain`` is the tensor on the CPU whose memory it has.

    PyTorch's C++ sees a tensor on the CPU, so that the engine of autograd needs no device.
    """

    plain: Tensor
    device = property(lambda _: DEVICE)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda _: True)  # pyright: ignore[reportAssignmentType]
    is_cpu = property(lambda _: False)  # pyright: ignore[reportAssignmentType]

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, plain: Tensor) -> CardTensor:
        self = Tensor._make_subclass(cls, plain, False)
        self.plain = plain
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise CardError(f"{func} on a tensor of a card that is gone")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone()
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if _is_parameter(self) else made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"CardTensor({self.plain})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Tensor.to. C++ would take the card for the CPU."""
        for value in args:
            if isinstance(value, Tensor):
                kwargs |= {"device": value.device, "dtype": value.dtype}
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
            elif isinstance(value, bool):
                kwargs["non_blocking"] = value
            elif value is not None:
                kwargs["device"] = value
        copy, device = kwargs.pop("copy", False), kwargs.pop("device", None)
        if device is not None and torch.device(device).type == "cpu":
            return aten._to_copy(self, **kwargs, device=HOST)
        form = kwargs.get("memory_format") or torch.preserve_format
        fits = form == torch.preserve_format or self.is_contiguous(memory_format=form)
        if fits and not copy and kwargs.get("dtype") in (None, self.dtype):
            return self
        return aten._to_copy(self, **kwargs)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.to("cpu", memory_format=memory_format)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def new_tensor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, data: Any, dtype: torch.dtype | None = None, **_: Any
    ) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def get_device(self) -> int:
        return 0


off_the_card = _disable_current_modes  # a context in which tensors are the CPU's


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's memory as a whole; 0 where it has none."""
    return tensor.untyped_storage().data_ptr()


def place() -> str:
    """The innermost function of bbdm that runs, or of the test."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "test" if frame is None else f"{frame.f_globals['__name__'].removeprefix('bbdm.')}.{frame.f_code.co_name}"


def _of_torch() -> bool:
    """Whether C++ itself runs an operator: autograd's zeros for a result without a gradient, buckets of DDP.

    They are where it sees the card's tensors, on the CPU, and count as on the card.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.endswith(BETWEEN):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.endswith(OF_TORCH)


class Card(TorchDispatchMode):
    """The card. Attributes, in order of time, where a place is a function of bbdm as :func:`place` names it:

    ``waits``, each a place and why the host waits; ``launches``, the operators; ``allocations``, places;
    ``log``, what streams and graphs did; ``graphs``, what was captured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches: list[Any] = []
        self.allocations: list[str] = []
        self.log: list[str] = []
        self.graphs: list[Capture] = []
        self.stream = 0  # the current one; 0 is the default stream
        self.capture: Capture | None = None
        self.sanitizer = _sanitizer.EventHandler()
        self.pinned: dict[int, StorageWeakRef] = {}

    @property
    def capturing(self) -> bool:
        """Whether the current stream's kernels are captured."""
        return self.capture is not None and self.capture.stream == self.stream

    def wait(self, why: str) -> None:
        """The host waits for the card."""
        if self.capturing:
            raise CaptureError(f"{place()} waits during a capture: {why}")
        self.waits.append(f"{place()}: {why}")

    def watched(self, task: Any) -> tuple[Any, list[list[str]]]:
        """A training task's class, and a list that gets the waits of each of its steps."""
        seen: list[list[str]] = []

        class Watched(task):
            def __call__(self, *arguments: Any) -> float:
                card.waits.clear()
                loss = super().__call__(*arguments)
                seen.append([*card.waits])
                return loss

        card = self
        return Watched, seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE.name):
            with self:  # in inference mode such operators come whole
                return func._op_dk(COMPOSITE, *args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        mine = [tensor for tensor in tensors if isinstance(tensor, CardTensor)]
        target = kwargs.get("device")
        if mine:
            to_card = target != HOST
        else:
            to_card = target is not None and (torch.device(target).type == "cuda" or (target != HOST and _of_torch()))
        if not mine and not to_card:
            return func(*args, **kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if func in COPIES:
            from_card = isinstance(args[0 if func is COPIES[0] else 1], CardTensor)
            into_card = isinstance(args[0], CardTensor) if func is COPIES[1] else to_card
            if from_card != into_card and not _of_torch():
                self._check_transfer(func, args, kwargs, into_card)
            if not into_card:
                return func(*plain_of(args), **plain_of(kwargs))
        elif (
            func in INDEXED and all(not isinstance(i, CardTensor) for i in args[1]) and isinstance(args[0], CardTensor)
        ):
            self.wait("an index on the CPU")  # which PyTorch copies
        else:
            self._check_devices(func, args, kwargs, tensors)
        if func in WAITS:
            self.wait(WAITS[func])
            return _on_card(func(*plain_of(args), **plain_of(kwargs)))
        if func in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.wait("boolean index")
        return self._launch(func, args, kwargs, tensors)

    def _check_transfer(self, func: Any, args: Any, kwargs: Any, into_card: bool) -> None:
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if not non_blocking:
            self.wait("to the card" if into_card else "to the CPU")
        elif not into_card:
            raise CardError(f"{place()} copies to the CPU without waiting: the result may be read before it is there")
        elif not self.is_pinned(args[0] if func is COPIES[0] else args[1]):
            self.wait("to the card from memory that is not pinned")

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor on the CPU is in memory that :func:`torch.Tensor.pin_memory` gave."""
        known = self.pinned.get(storage_of(tensor))
        return known is not None and not known.expired()

    def _check_devices(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """As PyTorch: all on the card, except single numbers as arguments of their own."""
        alone = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and not value.ndim]
        allowed = [] if func.namespace != "aten" else [id(value) for value in alone]
        for tensor in tensors:
            if isinstance(tensor, CardTensor) or _of_torch():
                continue
            if id(tensor) not in allowed or len(tensors) == 1:
                got = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in tensors)
                raise WrongDeviceError(f"{place()}: {func} on the card got tensors of {got}")

    def _launch(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """Run an operator as a kernel of the current stream, or record it in a capture."""
        known = {storage_of(tensor) for tensor in tensors}
        inside = None if func.is_view or func is VIEW or not self.capturing else self.capture
        if inside is not None:
            made, returned = inside.record(func, args, kwargs)
        else:
            made = func(*plain_of(args), **plain_of(kwargs))
            returned = returned_of(func, args, kwargs, made)
        fresh = [t for t in tree_leaves(made) if isinstance(t, Tensor) and storage_of(t) not in known | {0}]
        self.allocations += [place()] * len({storage_of(t) for t in fresh})
        written = {storage_of(t) for t in written_by(func, args, kwargs)} - {0}
        if "empty" in func._opname or not (fresh or written):
            self._remember(fresh)
            return returned
        self.launches.append(func)
        if inside is None:
            self._remember(fresh)
            read = {storage_of(t) for t in tensors if isinstance(t, CardTensor)}  # memory of the CPU has no stream
            self.touch(str(func), read - written - {0}, written | {storage_of(t) for t in fresh})
        return returned

    def _remember(self, fresh: list[Tensor]) -> None:
        """New memory has no history, though the CPU's may have been used before."""
        for address in {storage_of(tensor) for tensor in fresh}:
            self.sanitizer.tensors_accessed.accesses.pop(address, None)

    def touch(self, name: str, read: set[int], written: set[int]) -> None:
        """A kernel of the current stream reads and writes memory."""
        aliases = {address: [""] for address in read | written}
        errors: list[Any] = self.sanitizer._handle_kernel_launch(self.stream, read, written, set(), name, aliases)
        for error in errors:
            other = error.previous_access
            raise MissingWaitError(
                f"{place()}: {name} on stream {self.stream} is {error.current_access.type} memory that stream "
                f"{other.stream} was {other.type} in {other.operator}, and does not wait for it"
            )


def plain_of(value: Any) -> Any:
    return tree_map_only(CardTensor, lambda t: t.plain, value)


def _on_card(value: Any) -> Any:
    return tree_map_only(Tensor, CardTensor, value)


def arguments_of(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """The schema's arguments that are given, with their values."""
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def written_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator changes."""
    changed = [v for a, v in arguments_of(func, args, kwargs) if a.alias_info is not None and a.alias_info.is_write]
    return [tensor for tensor in tree_leaves(changed) if isinstance(tensor, Tensor)]


def returned_of(func: Any, args: Any, kwargs: Any, made: Any) -> Any:
    """An operator's results on the card; an argument that it changed is itself."""
    own = {id(t.plain): t for t in tree_leaves((args, kwargs)) if isinstance(t, CardTensor)}
    return tree_map_only(Tensor, lambda t: own[id(t)] if id(t) in own else CardTensor(t), made)
