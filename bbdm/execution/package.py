"""A compiled network in one file, which a new process loads without a compiler.

The code is an AOTInductor archive without constants. The constants are beside it, byte for byte as the
compiler laid them out for this machine, so that they are read into aligned memory. (In the archive they are
not aligned, and matrix units are a third slower.)
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from bbdm.base.atomic import short, write_atomically
from bbdm.execution.device import best_dtype
from bbdm.files.weights import described, intact
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Conditions, Network
from bbdm.networks.restore import find_dtype, state_hash

FORMAT = "bbdm compiled network"
VERSION = 2
TESTED = ("2.13", "2.15")  # versions of torch; packages use its private interfaces
CODE = "code"  # the AOTInductor archive
CONSTANT = "constant."  # before the name of a constant


class PackagedNetwork:
    """A network from a package; see :class:`bbdm.networks.base.Body`.

    Loading runs machine code from the file: load only packages of your own.

    Args:
        path: a file that :func:`save_package` wrote.
        network: the one that it was made of, in a floating-point dtype at least as wide as the package's.
        device: where the network runs.

    Threads take turns. Attributes: ``shape`` is the only shape of x that it takes, ``dtype`` its dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a package, is damaged, or is of other weights, another device, machine, number
            of threads or version; or packages were not tested with this torch.
    """

    def __init__(self, path: str | os.PathLike[str], network: Network, device: torch.device) -> None:
        _check_torch()
        content, tensors = _read(path)
        self.path = path
        self.shape = torch.Size(content["shape"])
        self.dtype: torch.dtype = getattr(torch, content["dtype"])
        _check_fingerprint(path, content["fingerprint"], fingerprint(network, self.dtype, device))
        from bbdm.execution import aoti

        layouts = content["constants"]
        # Copied to memory of its own, which is aligned: the file's is not. The loader does not keep it
        self._memory = {name: tensors[CONSTANT + name].to(device, copy=True) for name in layouts}
        self._constants = {name: aoti.constant_on(self._memory[name], **layouts[name]) for name in layouts}
        self._loader = aoti.load(tensors[CODE].numpy().tobytes(), self._constants, device)
        self._lock = threading.Lock()
        self._names = list(network.conditions)

    def __call__(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, /) -> torch.Tensor:
        """See :class:`bbdm.networks.base.Body`.

        Raises:
            ValueError: another shape than the package's.
        """
        if x.shape != self.shape:
            raise ValueError(f"{self.path} was saved for shape {tuple(self.shape)}, got {tuple(x.shape)}")
        with self._lock:  # on CUDA the code is built for one thread at a time
            return self._loader.boxed_run([x, embedding, *(conditions[name] for name in self._names)])[0]


def choose_dtype(
    wanted: str | torch.dtype | None,
    own: torch.dtype,
    device: torch.device,
    compile: bool,
    package: PackagedNetwork | None,
) -> torch.dtype:
    """The package's dtype, the one given, the fastest of the device, or the network's own.

    Raises:
        ValueError: the one given is none, or not the package's.
    """
    dtype = None if wanted is None else find_dtype(wanted)
    if package is not None:
        if dtype not in (None, package.dtype):
            raise ValueError(f"dtype must be that of {package.path}, {package.dtype}, got {dtype}")
        return package.dtype
    if dtype is not None:
        return dtype
    return best_dtype(device) if compile and own == torch.float32 else own


def save_package(path: str | os.PathLike[str], network: Network, shape: Iterable[int], conditions: Conditions) -> None:
    """Compile a network's body in its dtype, on its device, for one shape of x, and write it atomically.

    ``conditions`` are such as the body takes.

    Raises:
        ValueError: packages were not tested with this torch, or the network is told tokens.
    """
    _check_torch()
    if network.tokens:
        raise ValueError(f"a package is of one shape, and {', '.join(network.tokens)} are tokens of any length")
    from bbdm.execution import aoti

    shape = tuple(shape)
    code, constants = aoti.compile_body(network, _example(network, shape, conditions))
    tensors = {CODE: torch.frombuffer(bytearray(code), dtype=torch.uint8)}
    tensors |= {CONSTANT + name: aoti.memory_of(constant) for name, constant in constants.items()}
    weight = next(network.parameters())
    content = {
        "version": VERSION,
        "shape": shape,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(network, weight.dtype, weight.device),
        "constants": {name: aoti.layout_of(constant) for name, constant in constants.items()},
    }
    metadata = described(FORMAT, content, tensors)
    write_atomically(Path(path), lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata))


def fingerprint(network: Network, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What a package depends on besides its shape: format, torch, machine, threads, network and weights."""
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
        "network": json.loads(json.dumps(network.description())),
        "weights": state_hash(network.state_dict(), dtype),
    }


def _check_torch() -> None:
    """Raise ValueError for a version of torch that packages were not tested with."""
    if ".".join(torch.__version__.split(".")[:2]) not in TESTED:
        raise ValueError(
            f"packages of compiled networks were tested with torch {', '.join(TESTED)} only, and this is "
            f"{torch.__version__}; the rest of bbdm works with it, compile=True included"
        )


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the tensors of a package, checked against its hashes."""
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
    return json.loads(metadata[FORMAT]), tensors


def _check_fingerprint(path: str | os.PathLike[str], saved: dict[str, Any], here: dict[str, Any]) -> None:
    for name, value in saved.items():
        if value != here.get(name):
            message = f"{path} was saved for {name} {short(value)}, here it is {short(here.get(name))}: save it anew"
            if name == "threads":
                message += f", or set OMP_NUM_THREADS={value} or call torch.set_num_threads({value})"
            raise ValueError(message)


def _example(network: Network, shape: tuple[int, ...], conditions: Conditions) -> tuple[torch.Tensor, ...]:
    """Arguments of a network's body, for an x of a shape; conditions are in their order."""
    weight = next(network.parameters())
    x = torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(memory_format=layout(len(shape)))
    others = [conditions[name] for name in network.conditions]
    with torch.no_grad():
        embedding = network.embed(torch.ones(1, device=weight.device)).to(
            torch.promote_types(weight.dtype, torch.float32)
        )
    return x, embedding, *others
