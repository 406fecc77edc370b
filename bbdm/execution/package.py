"""A compiled network in one file, for a new process to start from without its compiler.

The code is an AOTInductor package without constants. They stand beside it, byte for byte as the compiler laid
them out for this machine, so that the network runs on memory that is aligned as the compiler's own (in a
package they are not, and matrix units are a third slower then).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch._inductor
from safetensors import SafetensorError, safe_open
from torch import nn
from torch._C._aoti import AOTIModelPackageLoader, alloc_tensor_by_stealing_from_void_ptr
from torch._inductor.custom_graph_pass import CustomGraphPass

from bbdm.base.atomic import short, write_atomically
from bbdm.execution.compiled import compile_options, freezes
from bbdm.execution.loop import state_dtype
from bbdm.files.weights import described, intact
from bbdm.networks.restore import state_hash
from bbdm.networks.unet import UNet

FORMAT = "bbdm compiled network"
VERSION = 2
CODE = "code"  # the AOTInductor package
CONSTANT = "constant."  # before the name of a constant
mkldnn: Any = torch.ops.mkldnn


class PackagedNetwork:
    """A network from a package; see :class:`bbdm.network.Network`.

    Loading runs machine code from the file: load only packages of your own.

    Args:
        path: a file that :func:`save_package` wrote.
        unet: the network that it was made of, in any floating-point dtype that is no narrower than the
            package's.
        device: where to run.

    Threads take turns. Attributes: ``shape`` is the only shape of x that it takes, ``dtype`` its dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a package, is damaged, or is of other weights, another device, machine, number
            of threads or version.
    """

    def __init__(self, path: str | os.PathLike[str], unet: UNet, device: torch.device) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no package {path}")
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a package that save_compiled wrote: {error}") from error
        with file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"{path} is not a package that save_compiled wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if not intact(metadata, FORMAT, tensors):
                raise ValueError(f"{path} has changed since save_compiled wrote it: save it anew")
            content = json.loads(metadata[FORMAT])
            self.path = path
            self._lock = threading.Lock()
            self.shape = torch.Size(content["shape"])
            self.dtype: torch.dtype = getattr(torch, content["dtype"])
            here = fingerprint(unet, self.dtype, device)
            for name, saved in content["fingerprint"].items():
                if saved != here.get(name):
                    told = (
                        f"{path} was saved for {name} {short(saved)}, here it is {short(here.get(name))}: save it anew"
                    )
                    if name == "threads":
                        told += f", or set OMP_NUM_THREADS={saved} or call torch.set_num_threads({saved})"
                    raise ValueError(told)
            # Copied to memory of their own, which is aligned: the file's is not
            bytes_of = {n: tensors[CONSTANT + n].to(device, copy=True) for n in content["constants"]}
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "code.pt2"
            package.write_bytes(tensors[CODE].numpy().tobytes())
            single = device.type == "cuda"  # no waiting for other threads' events, so that it can be captured
            index = -1 if device.index is None else device.index
            self._loader = AOTIModelPackageLoader(str(package), "model", single, 1, index)
        self._bytes = bytes_of  # the loader does not keep them
        self._constants = {n: _constant(bytes_of[n], **layout) for n, layout in content["constants"].items()}
        self._loader.load_constants(self._constants, False, True, user_managed=True)

    def __call__(
        self, x: torch.Tensor, modulation: torch.Tensor, condition: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """See :class:`bbdm.network.Network`.

        Raises:
            ValueError: another shape than the package's.
        """
        if x.shape != self.shape:
            raise ValueError(f"{self.path} was saved for shape {tuple(self.shape)}, got {tuple(x.shape)}")
        with self._lock:  # on CUDA the code is built for one thread at a time
            return self._loader.boxed_run([x, modulation] if condition is None else [x, modulation, condition])[0]


def save_package(path: str | os.PathLike[str], unet: UNet, shape: Iterable[int]) -> None:
    """Compile a network's trunk in its dtype, on its device, for one shape of x, and write it, atomically."""
    weight = next(unet.parameters())
    device = weight.device
    shape = tuple(shape)
    inputs = torch.zeros(shape, dtype=weight.dtype, device=device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        modulation = unet.modulation(torch.ones(1, device=device)).to(state_dtype(weight.dtype))
    channels = unet.config.condition_channels
    condition = inputs[:, :1].expand(-1, channels, -1, -1).clone(memory_format=torch.channels_last)
    arguments = (inputs, modulation, condition) if channels else (inputs, modulation)
    frozen = _FrozenConstants()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        trunk = _Trunk(unet)
        torch._inductor.aoti_compile_and_package(
            torch.export.export(trunk, arguments),
            package_path=f"{folder}/code.pt2",
            inductor_configs={
                "freezing": freezes(inputs),
                "aot_inductor.package_constants_in_so": False,
                "post_grad_custom_post_pass": frozen,
                **compile_options(device),
            },
        )
        code = Path(folder, "code.pt2").read_bytes()
        names = AOTIModelPackageLoader(f"{folder}/code.pt2", "model", False, 1, -1).get_constant_fqns()
    constants = {**trunk.state_dict(), **frozen.constants}
    tensors = {CODE: torch.frombuffer(bytearray(code), dtype=torch.uint8)}
    tensors |= {CONSTANT + name: _bytes(constants[name]) for name in names}
    content = {
        "version": VERSION,
        "shape": shape,
        "dtype": _name(weight.dtype),
        "fingerprint": fingerprint(unet, weight.dtype, device),
        "constants": {name: _layout(constants[name]) for name in names},
    }
    metadata = described(FORMAT, content, tensors)
    write_atomically(Path(path), lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def fingerprint(unet: UNet, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """All that a package depends on besides its shape: format, torch, machine, threads, network and weights."""
    if device.type == "cuda":
        machine: dict[str, Any] = {"GPU": torch.cuda.get_device_name(device)}
    else:
        abilities = torch.cpu.get_capabilities()
        machine = {
            "processor": abilities.get("cpu_name", platform.processor()),
            "instruction sets": ", ".join(sorted(name for name, value in abilities.items() if value is True)),
            "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA"),
            "threads": torch.get_num_threads(),
        }
    return {
        "package version": VERSION,
        "torch": torch.__version__,
        "device": device.type,
        **machine,
        "network": json.loads(json.dumps(asdict(unet.config))),
        "weights": state_hash(unet.state_dict(), dtype),
    }


class _Trunk(nn.Module):
    """What is exported."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
        """The trunk."""
        return self.unet.trunk(x, modulation, *condition)


class _FrozenConstants(CustomGraphPass):
    """A look at the graph after all of inductor's passes, for the constants that freezing made."""

    def __init__(self) -> None:
        self.constants: dict[str, torch.Tensor] = {}

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Keep what the graph refers to; those with a dot are parameters of the module itself."""
        names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        self.constants |= {name: getattr(graph.owning_module, name) for name in names if "." not in name}

    def __deepcopy__(self, memo: dict[int, Any]) -> _FrozenConstants:
        """Itself: the compiler copies its settings."""
        return self

    def uuid(self) -> None:
        """Keep inductor's cache out: a graph from there would not pass here."""
        return


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(constant: torch.Tensor) -> torch.Tensor:
    """(N,) uint8 on the CPU, the memory of a constant."""
    if constant.is_mkldnn:
        data = ctypes.string_at(mkldnn.data_ptr(constant), mkldnn._nbytes(constant))
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)
    memory = torch.empty(0, dtype=torch.uint8, device=constant.device).set_(constant.detach().untyped_storage())
    return memory.cpu().clone()


def _layout(constant: torch.Tensor) -> dict[str, Any]:
    """What :func:`_constant` needs besides the memory."""
    shape, dtype = list(constant.shape), _name(constant.dtype)
    if constant.is_mkldnn:
        packing = bytes(mkldnn._get_mkldnn_serialized_md(constant).tolist())
        return {"shape": shape, "dtype": dtype, "packing": packing.hex()}
    return {"shape": shape, "dtype": dtype, "stride": constant.stride(), "offset": constant.storage_offset()}


def _constant(
    memory: torch.Tensor,
    shape: list[int],
    dtype: str,
    stride: list[int] | None = None,
    offset: int = 0,
    packing: str | None = None,
) -> torch.Tensor:
    """A tensor on given memory, strided or, where packing tells how, in oneDNN's own layout."""
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
