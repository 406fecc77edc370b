"""AOTInductor: a network's body as machine code and constants, compiled and run.

All of torch's private interfaces that packages need are here, so this module imports only with the versions
in :data:`bbdm.execution.package.TESTED`.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import nn
from torch._C._aoti import AOTIModelPackageLoader, alloc_tensor_by_stealing_from_void_ptr
from torch._inductor.custom_graph_pass import CustomGraphPass

from bbdm.execution.compiled import compile_options, freezes
from bbdm.networks.base import Network

mkldnn: Any = torch.ops.mkldnn
Constants = dict[str, torch.Tensor]


def compile_body(network: Network, arguments: tuple[torch.Tensor, ...]) -> tuple[bytes, Constants]:
    """An AOTInductor archive without constants, and the constants that it needs, by name."""
    frozen = _FrozenConstants()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        body = _Body(network)
        torch._inductor.aoti_compile_and_package(
            torch.export.export(body, arguments),
            package_path=f"{folder}/code.pt2",
            inductor_configs={
                "freezing": freezes(arguments[0]),
                "aot_inductor.package_constants_in_so": False,
                "post_grad_custom_post_pass": frozen,
                **compile_options(arguments[0].device),
            },
        )
        code = Path(folder, "code.pt2").read_bytes()
        names = AOTIModelPackageLoader(f"{folder}/code.pt2", "model", False, 1, -1).get_constant_fqns()
    constants = {**body.state_dict(), **frozen.constants}
    return code, {name: constants[name] for name in names}


def load(code: bytes, constants: Constants, device: torch.device) -> AOTIModelPackageLoader:
    """The compiled body of an archive, with its constants; ``boxed_run`` calls it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "code.pt2"
        package.write_bytes(code)
        single = device.type == "cuda"  # no waiting for other threads' events, so that it can be captured
        index = -1 if device.index is None else device.index
        loader = AOTIModelPackageLoader(str(package), "model", single, 1, index)
    loader.load_constants(constants, False, True, user_managed=True)
    return loader


class _Body(nn.Module):
    """A network's body as a module, which is what torch.export takes. Conditions are given in their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        return self.network.body(x, embedding, dict(zip(self.network.conditions, conditions, strict=True)))


class _FrozenConstants(CustomGraphPass):
    """Collects the constants that freezing made, from the graph after all of inductor's passes."""

    def __init__(self) -> None:
        self.constants: Constants = {}

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Collect what the graph refers to; names with a dot are parameters of the module itself."""
        names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        self.constants |= {name: getattr(graph.owning_module, name) for name in names if "." not in name}

    def __deepcopy__(self, memo: dict[int, Any]) -> _FrozenConstants:
        """Itself: the compiler copies its settings."""
        return self

    def uuid(self) -> None:
        """Disable inductor's cache: a cached graph would not pass here."""
        return


def memory_of(constant: torch.Tensor) -> torch.Tensor:
    """(N,) uint8 on the CPU, the memory of a constant."""
    if constant.is_mkldnn:
        data = ctypes.string_at(mkldnn.data_ptr(constant), mkldnn._nbytes(constant))
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    memory = torch.empty(0, dtype=torch.uint8, device=constant.device).set_(constant.detach().untyped_storage())
    return memory.cpu().clone()


def layout_of(constant: torch.Tensor) -> dict[str, Any]:
    """The arguments that :func:`constant_on` needs besides the memory; plain values."""
    shape, dtype = list(constant.shape), str(constant.dtype).removeprefix("torch.")
    if constant.is_mkldnn:
        packing = bytes(mkldnn._get_mkldnn_serialized_md(constant).tolist())
        return {"shape": shape, "dtype": dtype, "packing": packing.hex()}
    return {"shape": shape, "dtype": dtype, "stride": constant.stride(), "offset": constant.storage_offset()}


def constant_on(
    memory: torch.Tensor,
    shape: list[int],
    dtype: str,
    stride: list[int] | None = None,
    offset: int = 0,
    packing: str | None = None,
) -> torch.Tensor:
    """A tensor on given memory, which it does not own: strided, or with ``packing`` in oneDNN's layout."""
    if packing is None:
        assert stride is not None
        return memory.view(getattr(torch, dtype)).as_strided(shape, stride, offset)
    # Only the C interface that compiled packages use themselves makes such a tensor
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    description = bytes.fromhex(packing)
    handle = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(len(shape)),
        (ctypes.c_int64 * len(shape))(*shape),
        (ctypes.c_int64 * len(shape))(*(math.prod(shape[i + 1 :]) for i in range(len(shape)))),
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(library, f"aoti_torch_dtype_{dtype}")()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        ctypes.c_char_p(description),
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise RuntimeError(f"torch {torch.__version__} made no packed tensor of shape {shape}")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return alloc_tensor_by_stealing_from_void_ptr(capsule(handle, None, None))
