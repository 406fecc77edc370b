"""Inductor's code for an H100, written without one, and the least time that a step of sampling takes there.

    python -m benchmarks.floor --size 256 --batch 1

The network is traced on fake tensors of a card whose properties are those of an H100. cuDNN is taken to run
convolutions in channels_last, and flash attention to run attention, as they do there. Nothing is timed: the
floor of a kind of kernels is their bytes, each number read and written once by each, over the memory's
bandwidth, or their products and sums over the peak of bfloat16, whichever takes longer.
"""

import argparse
import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes import fuse_attention, pad_mm
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _triton
from torch.utils.flop_counter import FlopCounterMode

from bbdm.networks.base import Network
from bbdm.networks.unet import UNet

BANDWIDTH, PEAK = 3.35e12, 990e12  # bytes and bfloat16 operations a second of an H100 SXM, by its data sheet
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
)
CUDA, LAZY, DEVICES = 1, 17, 22  # c10::DeviceType
LAUNCH = re.compile(r"^\s+(?:\S+ = )?(triton_\w+\.run|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE)


@dataclass
class Code:
    """What inductor wrote for a network."""

    source: str
    launches: Counter[str] = field(default_factory=Counter)  # by kind
    bytes: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def seconds(self, kind: str) -> float:
        """The floor of a kind's kernels."""
        return max(self.bytes[kind] / BANDWIDTH, self.operations[kind] / PEAK)


class _WrittenError(Exception):
    """Carries the code out of the compiler, before anything would be loaded."""


@contextmanager
def _triton_asked_anew() -> Iterator[None]:
    """PyTorch asks again, now and afterwards, whether Triton works: it keeps a process's first answer."""
    answers = [function for function in vars(_triton).values() if hasattr(function, "cache_clear")]
    try:
        for function in answers:
            function.cache_clear()
        yield
    finally:
        for function in answers:
            function.cache_clear()


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
def an_h100() -> Iterator[None]:
    """torch.cuda and Triton's driver say that there is one."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    register_guard()
    names: dict[str, Any] = {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_, **__: True),
        **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), lambda *_: 0),
        **dict.fromkeys(("_lazy_init", "synchronize", "set_rng_state"), lambda *_: None),
        "device_count": lambda: 1,
        "get_device_properties": lambda *_: H100,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: H100.name,
        "get_rng_state": lambda *_: torch.zeros(1, dtype=torch.uint8),
    }
    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
    )
    with _triton_asked_anew(), pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setattr(torch.cuda, name, value)
            if hasattr(device_interface.CudaInterface, name):
                patch.setattr(device_interface.CudaInterface, name, staticmethod(value))
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(driver, "_active", target)
        # Patterns of attention and of padded products are tried on tensors that this build cannot make
        patch.setattr(fuse_attention, "_sfdp_init", lambda *_, **__: None)
        patch.setattr(pad_mm, "_pad_mm_init", lambda *_, **__: None)
        backend = torch._C._ConvBackend  # pyright: ignore[reportAttributeAccessIssue]
        patch.setattr(torch._C, "_select_conv_backend", lambda *_, **__: backend.Cudnn)
        patch.setattr(torch._C, "_conv_determine_backend_memory_format", lambda *_: torch.channels_last)
        patch.setattr(F, "scaled_dot_product_attention", _flash)
        yield


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


class _Body(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.network.body(x, embedding, {})


def code_of(network: Network, batch: int, size: int) -> Code:
    """The code for the body of a network on the ``meta`` device, in its dtype, without a condition."""
    with an_h100(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in network.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    like = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="cuda")
                    module._parameters[name] = nn.Parameter(like, requires_grad=False)
        weight = next(network.parameters())
        x = torch.empty(batch, network.channels, size, size, dtype=weight.dtype, device="cuda")
        x = x.to(memory_format=torch.channels_last)
        embedding = network.embed(torch.ones(1, device="cuda")).float()
        exported = torch.export.export(_Body(network), (x, embedding), strict=False).module()
        with FlopCounterMode(display=False) as counter:
            exported(x, embedding)
        operations = {_short(str(name)): count for name, count in counter.get_flop_counts()["Global"].items()}

    def write(graph: GraphLowering) -> None:
        source, _ = graph.codegen()
        raise _WrittenError(_counted(graph, source.value, operations))

    settings = {"fx_graph_cache": False, "joint_graph_constant_folding": False, "triton.cudagraphs": False}
    with an_h100(), torch.no_grad(), pytest.MonkeyPatch.context() as patch, config.patch(settings):
        patch.setattr(GraphLowering, "compile_to_module", write)
        try:
            compile_fx(exported, [x, embedding])  # pyright: ignore[reportArgumentType]
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, _WrittenError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            return cause.args[0]
    raise AssertionError("inductor wrote no code")


def _counted(graph: Any, source: str, operations: dict[str, int]) -> Code:
    code = Code(source, operations=Counter(operations))
    for node in graph.scheduler.nodes:
        name = getattr(node.node, "python_kernel_name", None)
        kind = "fused by inductor" if name is None else _short(name)
        if moved := node.get_read_write_buffers_sizes():
            code.bytes[kind] += moved
    for call in LAUNCH.findall(source):
        code.launches["fused by inductor" if call.startswith("triton_") else call] += 1
    return code


def _short(name: str) -> str:
    for prefix in ("torch.ops.", "extern_kernels.", "aten."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".default")


def paper_network() -> UNet:
    """The paper's network without weights, in bfloat16."""
    with torch.device("meta"):
        return UNet().to(torch.bfloat16).eval()


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args(argv)
    code = code_of(paper_network(), options.batch, options.size)
    row = "{:40} {:9.1f} MB {:9.1f} GFLOP {:7.2f} ms"
    for kind, moved in code.bytes.most_common():
        print(row.format(kind, moved / 1e6, code.operations[kind] / 1e9, 1e3 * code.seconds(kind)))
    total, operations = sum(code.bytes.values()), sum(code.operations.values())
    seconds = sum(map(code.seconds, code.bytes))
    print(row.format("a network call", total / 1e6, operations / 1e9, 1e3 * seconds))
    print(*(f"{count} x {kind}" for kind, count in code.launches.most_common()), sep="\n")


if __name__ == "__main__":
    main()
