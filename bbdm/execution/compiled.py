"""Functions compiled by torch.compile, captured as CUDA graphs, or compiled into a file: a package.

Private interfaces of torch are imported here alone; torch 2.9 to 2.15 have them. The compiler takes two
seconds to import, and is imported where it is used.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch._C._dynamo.eval_frame import reset_code

from bbdm.base.atomic import file_sha256, short, write_atomically
from bbdm.execution.device import machine_of
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Conditions, Network, find_dtype, state_hash

SHAPES_KEPT = 8  # of compiled networks and captured graphs
# PyTorch captures one graph at a time in a process, and its compiler's tables are the process's too. Warm-up
# before a capture may compile.
COMPILING = threading.RLock()
Value = TypeVar("Value")


@dataclass(slots=True)
class Entry(Generic[Value]):
    """A value of :class:`Recent`, and the number of its last use."""

    value: Value
    used: int


class Recent(Generic[Value]):
    """The values used last, at most ``SHAPES_KEPT``, each made once, under the lock :data:`COMPILING`.

    A value that is kept does not wait for another that is made: entries change under the lock alone, and a
    dictionary is read in one piece.
    """

    def __init__(self, make: Callable[..., Value]) -> None:
        self._make = make
        self._entries: dict[Hashable, Entry[Value]] = {}
        self._uses = itertools.count()

    def values(self) -> list[Value]:
        """The values that are kept."""
        with COMPILING:
            return [entry.value for entry in self._entries.values()]

    def get(self, key: Hashable, *args: Any) -> Value:
        """The value of a key, made from ``args`` where the cache lacks it."""
        entry = self._entries.get(key)
        if entry is None:
            with COMPILING:
                entry = self._entries.get(key)  # another thread may have made it meanwhile
                if entry is None:
                    return self._add(key, self._make(*args))
        entry.used = next(self._uses)
        return entry.value

    def _add(self, key: Hashable, value: Value) -> Value:
        while len(self._entries) >= SHAPES_KEPT:
            oldest = min(self._entries, key=lambda known: self._entries[known].used)
            del self._entries[oldest]
        self._entries[key] = Entry(value, next(self._uses))
        return value


def signature(*arguments: torch.Tensor | Conditions) -> Hashable:
    """What compiled code assumes of tensors, and of tensors by name: shapes, dtypes and orders in memory."""
    key: list[Hashable] = []  # flat, as it is made at each call
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            key += argument.shape, argument.dtype, order_in_memory(argument)
        else:
            for name, tensor in argument.items():
                key += name, tensor.shape, tensor.dtype, order_in_memory(tensor)
    return tuple(key)


def order_in_memory(tensor: torch.Tensor) -> Hashable:
    """The memory format, or the strides where it is neither of two. Strides of sides of 1 are never used."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return tuple(
        stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if side > 1
    )


class Compiled:
    """A function compiled by torch.compile, once for each :func:`signature` of its arguments.

    Arguments are tensors, or mappings of names to tensors. Weights are constants to the compiler, which packs
    and folds them. A failure to compile is raised.
    """

    def __init__(self, function: Callable[..., torch.Tensor], device: torch.device) -> None:
        self.function = function
        self.device = device
        self._compiled: Recent[Callable[..., torch.Tensor]] = Recent(self._compile)

    def __call__(self, x: torch.Tensor, /, *others: Any) -> torch.Tensor:
        """The function's result."""
        function = self._compiled.get(signature(x, *others), x, *others)
        return function(x, *others)

    def functions(self) -> list[Callable[..., torch.Tensor]]:
        """What was compiled and is kept; the constants of others are freed."""
        return self._compiled.values()

    def _compile(self, *arguments: Any) -> Callable[..., torch.Tensor]:
        import torch._inductor.config as inductor_config

        function = self.function

        def forward(*arguments: Any) -> torch.Tensor:
            return function(*arguments)

        # The compiler stores its results with the code object and the globals. With a copy of both for each
        # key there are no guards to check and no limit of recompilations, and the results can be deleted.
        # (Freezing leaves some tensors without data behind: torch's own, also after torch.compiler.reset.)
        copy = FunctionType(
            forward.__code__.replace(), dict(globals()), closure=forward.__closure__
        )
        options = {
            "guard_filter_fn": lambda guards: [False for _ in guards],
            **compile_options(self.device),
        }
        compiled = torch.compile(copy, fullgraph=True, dynamic=False, options=options)
        freezing = arguments[0].dtype != torch.float64  # for which oneDNN has no layouts
        # As an option of torch.compile, freezing comes too late
        with inductor_config.patch(freezing=freezing), forgetting_modules(), naming_a_space():
            compiled(*arguments)
        weakref.finalize(compiled, reset_code, copy.__code__)
        return compiled


@contextmanager
def forgetting_modules() -> Iterator[None]:
    """Take the modules that a block compiles out of the compiler's tables: they hold the constants of graphs.

    Meanwhile other threads wait with what they compile by torch.compile themselves, so that it stays.
    """
    from torch._dynamo.convert_frame import compile_lock
    from torch._inductor.codecache import PyCodeCache

    with compile_lock:
        known = len(PyCodeCache.modules)
        yield
        for module in PyCodeCache.modules[known:]:
            sys.modules.pop(module.__name__, None)
        del PyCodeCache.modules[known:]


@contextmanager
def naming_a_space() -> Iterator[None]:
    """Say so where the compiler fails below a path with a space, which it takes for two paths.

    Raises:
        ValueError: it failed there. The message names the environment variable to set.
    """
    try:
        yield
    except RuntimeError as error:
        folders = {"TMPDIR": tempfile.gettempdir()}  # first: the other follows from it
        folders["TORCHINDUCTOR_CACHE_DIR"] = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
        for variable, folder in folders.items():
            if " " in folder:
                message = f"torch.compile does not work below a path with a space, {folder}: set {variable} to another"
                raise ValueError(message) from error
        raise


def compile_options(device: torch.device) -> dict[str, Any]:
    """Inductor's settings for a device, besides freezing."""
    if device.type == "cpu":
        return {}
    return {"max_autotune": True, "triton.cudagraphs": False}


class PackagedNetwork:
    """A network from a package; see :meth:`bbdm.networks.base.Network.body`.

    Loading runs machine code from the file: load only packages of your own.

    Args:
        path: a ``.pt2`` file that :func:`save_package` wrote.
        network: the one it was compiled from, in a floating-point dtype at least as wide as the package's.
        device: where the network runs.

    Threads take turns. Attributes: ``shape``, the only one that x may have, and ``dtype``.

    Raises:
        FileNotFoundError: the package, or the JSON file beside it, is missing.
        ValueError: the JSON file cannot be read, or the package is damaged or fits something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], network: Network, device: torch.device
    ) -> None:
        self.path = path
        self._names = list(network.inputs)
        self._lock = threading.Lock()
        try:
            saved = json.loads(Path(f"{path}.json").read_text())
            origin = dict(saved["fits"])
            digest = saved["sha256"]
            self.shape = torch.Size(saved["shape"])
            self.dtype = find_dtype(origin["dtype"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read {path}.json: {type(error).__name__} {error}") from error
        here = fingerprint(network, self.dtype, device)
        for name in {**here, **origin}:
            if origin.get(name) != here.get(name):
                values = f"{short(origin.get(name))}, here it is {short(here.get(name))}"
                raise ValueError(f"{path} was saved for {name} {values}: save it anew")
        if file_sha256(Path(path)) != digest:
            raise ValueError(f"{path} has changed since it was saved: save it anew")
        from torch._inductor import aoti_load_package  # it takes two seconds

        # Single-threaded code does not wait for other threads' events, so that CUDA can capture it
        single_threaded = device.type == "cuda"
        index = -1 if device.index is None else device.index
        self._body = aoti_load_package(str(path), single_threaded, index)

    def __call__(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, /
    ) -> torch.Tensor:
        """See :meth:`bbdm.networks.base.Network.body`; ValueError for another shape than the package's."""
        if x.shape != self.shape:
            expected = " x ".join(map(str, self.shape))
            got = " x ".join(map(str, x.shape))
            raise ValueError(
                f"{self.path} was saved for states of {expected}, got {got}: give another size or window"
            )
        with self._lock:  # on CUDA the code is built for one thread at a time
            return self._body(x, embedding, *(conditions[name] for name in self._names))


class _Body(torch.nn.Module):
    """A network's body as a module, with conditions in their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: torch.Tensor, embedding: torch.Tensor, *conditions: torch.Tensor
    ) -> torch.Tensor:
        return self.network.body(
            x, embedding, dict(zip(self.network.inputs, conditions, strict=True))
        )


@torch.no_grad()
def save_package(
    path: str | os.PathLike[str], network: Network, shape: Iterable[int], conditions: Conditions
) -> None:
    """Compile a network's body in its dtype, on its device, for one shape of x, and write it atomically.

    ``conditions`` are such as the body takes. ValueError where the path has another suffix than ``.pt2``, or
    the network takes tokens.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"the name of a package ends in .pt2, got {path}")
    if network.tokens:
        raise ValueError(
            f"a package is of one shape, and {', '.join(network.tokens)} are tokens of any length"
        )
    from torch._inductor import aoti_compile_and_package

    weight = next(network.parameters())
    shape = tuple(shape)
    x = torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(
        memory_format=layout(len(shape))
    )
    embedding = network.embed(torch.ones(1, device=weight.device)).to(
        torch.promote_types(weight.dtype, torch.float32)
    )
    others = [conditions[name] for name in network.inputs]
    options = {"freezing": x.dtype != torch.float64, **compile_options(x.device)}

    def write(temporary: Path) -> None:
        with COMPILING, naming_a_space():
            program = torch.export.export(_Body(network), (x, embedding, *others))
            aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)
        content = {
            "shape": shape,
            "fits": fingerprint(network, x.dtype, x.device),
            "sha256": file_sha256(temporary),
        }
        Path(f"{temporary}.json").write_text(json.dumps(content, indent=1) + "\n")

    write_atomically(Path(path), write)


def fingerprint(network: Network, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """What a package depends on besides its shape."""
    return {
        "torch": torch.__version__,
        "device": device.type,
        **machine_of(device),
        "dtype": str(dtype).removeprefix("torch."),
        "network": json.loads(json.dumps(network.description())),
        "weights": state_hash(network.state_dict(), dtype),
    }
