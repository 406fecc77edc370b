"""Ways to run the loop over a step table: eager, compiled, and on CUDA as one captured graph.

A :class:`Loop` has all that is the same in every run: the network, the table on the device, and what the network makes
of the table's times, computed once. A :class:`State` has the buffers of one run, which every step overwrites in place.
"""

from __future__ import annotations

import copy
import ctypes
import platform
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch._inductor.config as inductor_config
import torch.nn.functional as F
from torch._C._dynamo.eval_frame import reset_code
from torch._inductor.codecache import PyCodeCache

from bbdm.kernels.bridge_step import bridge_step
from bbdm.networks.unet import UNet
from bbdm.solvers import StepTable

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
SHAPES_KEPT = 8  # compiled networks and captured graphs of so many shapes, the least recently used is dropped
BFLOAT16_PAYS = 1.2  # so much faster has a bfloat16 convolution to be


class Network(Protocol):
    """A UNet after its modulation: see :meth:`bbdm.networks.unet.UNet.trunk`."""

    def __call__(
        self, x: torch.Tensor, modulation: torch.Tensor, condition: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """(B, C, H, W) in the dtype of x."""
        ...


@dataclass
class State:
    """The buffers of one run; images are (B, C, H, W), channels_last."""

    y: torch.Tensor  # the source, in the state's dtype
    x: torch.Tensor  # the state
    x0hat: torch.Tensor  # the estimate of the target
    inputs: torch.Tensor  # the state in the network's dtype
    condition: torch.Tensor | None  # the source in the network's dtype, where the network is conditioned on it
    seeds: torch.Tensor  # (B,) int64
    noise: torch.Tensor | None  # (K, B, C, H, W), in place of seeds
    step: torch.Tensor  # (1,) int64, the row of the table

    def restart(self) -> None:
        """Put the state at the source, where every table begins."""
        self.x.copy_(self.y)
        self.inputs.copy_(self.y)
        if self.condition is not None:
            self.condition.copy_(self.y)


class Loop:
    """A step table, ready to be run with a network.

    Args:
        unet: the network as it was given, for what it makes of the table's times before weights are rounded.
        network: what runs its trunk, in ``dtype`` on ``device``.
        table: what to run.
        clamp: (low, high) for every estimate of the target, or None.
        device: where to run.
        dtype: what the network computes in. The state is float32, or float64 with a float64 network.
    """

    def __init__(
        self,
        unet: UNet,
        network: Network,
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
        self._conditioned = unet.config.condition_channels > 0
        rows = torch.from_numpy(table.rows)
        self.rows = rows.to(device, self.state_dtype)
        with torch.no_grad():
            times = torch.tensor(table.timesteps, device=next(unet.parameters()).device)
            self.modulation = unet.modulation(times).to(device, self.state_dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def start(self, y: torch.Tensor, seeds: torch.Tensor, noise: torch.Tensor | None = None) -> State:
        """New buffers for a source, seeds and explicit noise that stand on the device."""
        inputs = torch.empty_like(y, dtype=self.dtype)
        condition = torch.empty_like(inputs) if self._conditioned else None
        step = torch.zeros(1, dtype=torch.int64, device=self.device)
        state = State(y, torch.empty_like(y), torch.empty_like(y), inputs, condition, seeds, noise, step)
        state.restart()
        return state

    def advance(self, state: State, index: int) -> None:
        """One step: one network evaluation and one row of the table, into the state's buffers."""
        pred = self.network(state.inputs, self.modulation[index : index + 1], state.condition)
        state.step.fill_(index)
        seeds, noise = (state.seeds, None) if state.noise is None else (None, state.noise[index])
        bridge_step(
            state.x, state.x0hat, state.inputs, pred, state.y, self.rows, state.step, seeds, noise, clamp=self.clamp
        )

    def run(self, state: State) -> None:
        """All steps."""
        for index in range(len(self)):
            self.advance(state, index)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the loop computes in beside a network of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, with its index: ``cuda`` is the current one.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(name)!r} cannot be used here: {reason}") from error


def placed(unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """The network for sampling on a device in a dtype: itself where it is that already, a copy otherwise."""
    weight = next(unet.parameters())
    if (weight.device, weight.dtype) == (device, dtype) and not unet.training:
        return unet
    return copy.deepcopy(unet).to(device, dtype).eval().requires_grad_(False)


@cache
def bfloat16_pays(threads: int) -> bool:
    """Whether a convolution on this processor is faster in bfloat16, timed once for a number of threads.

    Timed, since processors, and settings such as ONEDNN_MAX_CPU_ISA, support bfloat16 at any speed.
    """
    del threads  # the cache's key

    def probe(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        x = torch.ones(1, 256, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, weight, padding=1)

    calls = (probe(torch.float32), probe(torch.bfloat16))
    rounds = [[_seconds(call) for call in calls] for _ in range(10)]  # in turns: whatever else runs slows both
    float32, bfloat16 = (min(seconds) for seconds in zip(*rounds, strict=True))
    return float32 > BFLOAT16_PAYS * bfloat16


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def best_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype that networks are compiled in on a device: bfloat16 where it pays, float32 otherwise."""
    if device.type == "cpu":
        return torch.bfloat16 if bfloat16_pays(torch.get_num_threads()) else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


Value = TypeVar("Value")


class _Recent(Generic[Value]):
    """The values of the keys used last, each made once, under a lock."""

    def __init__(self, make: Callable[..., Value]) -> None:
        self._make = make
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self.lock = threading.RLock()

    def get(self, key: Any, *args: Any) -> Value:
        with self.lock:
            if key not in self._values:
                self._values[key] = self._make(*args)
            self._values.move_to_end(key)
            while len(self._values) > SHAPES_KEPT:
                self._values.popitem(last=False)
            return self._values[key]


class Compiled:
    """A function compiled by torch.compile, once for each shape of its first argument.

    Weights that it refers to are constants to the compiler: it packs and folds them. A failure to compile is raised,
    never passed over.
    """

    def __init__(self, function: Callable[..., torch.Tensor], device: torch.device) -> None:
        self.function = function
        self.device = device
        self._compiled: _Recent[Callable[..., torch.Tensor]] = _Recent(self._compile)

    def __call__(self, x: torch.Tensor, /, *others: torch.Tensor | None) -> torch.Tensor:
        """The function's result."""
        return self.at(x, *others)(x, *others)

    def at(self, x: torch.Tensor, /, *others: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        """The function compiled for the shape of x."""
        return self._compiled.get(x.shape, x, *others)

    def _compile(self, *arguments: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        function = self.function

        def forward(*arguments: torch.Tensor | None) -> torch.Tensor:
            return function(*arguments)

        # The compiler keeps its results with the code object and the globals. Of its own for each shape, they have no
        # guards to look through, no limit of recompilations, and can be forgotten.
        own = FunctionType(forward.__code__.replace(), dict(globals()), closure=forward.__closure__)
        options = {"guard_filter_fn": lambda guards: [False for _ in guards], **compile_options(self.device)}
        compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        modules = PyCodeCache.modules  # each holds the constants of one compiled graph
        known = len(modules)
        with inductor_config.patch(freezing=freezes(arguments[0])):  # options reach the compiler too late for this one
            compiled(*arguments)
        for module in modules[known:]:
            sys.modules.pop(module.__name__, None)
        del modules[known:]
        weakref.finalize(compiled, reset_code, own.__code__)
        return compiled


def freezes(x: torch.Tensor | None) -> bool:
    """Whether weights are made constants for an input: not in float64, which oneDNN's layouts do not know."""
    return x is not None and x.dtype != torch.float64


def compile_options(device: torch.device) -> dict[str, Any]:
    """Inductor's settings for a device, besides freezing."""
    return {} if device.type == "cpu" else {"max_autotune": True, "triton.cudagraphs": False}


class GraphedLoop:
    """A loop captured as one CUDA graph for each shape: all steps in one launch.

    Threads take turns; outputs are copies, in the order of the caller's stream.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: _Recent[tuple[torch.cuda.CUDAGraph, State, Network]] = _Recent(self._capture)
        self._done = torch.cuda.Event()

    def __call__(self, y: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """The last state for a source and its seeds, both on the device."""
        with self._captured.lock, torch.cuda.device(y.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # another thread's replay may run on another stream
            graph, state, _ = self._captured.get(y.shape, y, seeds)
            state.y.copy_(y)
            state.seeds.copy_(seeds)
            graph.replay()
            result = state.x.clone()
            self._done.record(stream)
            return result

    def _capture(self, y: torch.Tensor, seeds: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, State, Network]:
        """The graph, its buffers, and the network whose weights it reads, which must not be dropped before it."""
        state = self._loop.start(y.clone(), seeds.clone())
        stream = torch.cuda.Stream()  # of its own, so that samplers may capture at the same time
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile, tune and load kernels before the capture
            self._loop.advance(state, 0)
        torch.cuda.current_stream().wait_stream(stream)
        network = self._loop.network
        if isinstance(network, Compiled):
            network = network.at(state.inputs, self._loop.modulation[:1], state.condition)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            state.restart()
            self._loop.run(state)
        return graph, state, network


def keep_freed_memory() -> None:
    """Have this process reuse the memory that it frees, where the C library is glibc.

    By default glibc gives large blocks back to the system at once, so that each step's activations and gradients come
    as fresh pages, which the system first has to clear: a third of the time of a large network's step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
