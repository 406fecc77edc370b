"""A compiled network in a file, an archive of AOTInductor, which a new process loads without a compiler.

A JSON file beside it says what it fits.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import torch

from bbdm.base.atomic import file_sha256, short, write_atomically
from bbdm.execution.compiled import compile_options, freezes
from bbdm.execution.device import machine_of
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Conditions, Network
from bbdm.networks.restore import find_dtype, state_hash


class PackagedNetwork:
    """A network from a package; see :meth:`bbdm.networks.base.Network.body`.

    Loading runs machine code from the file: load only packages of your own.

    Args:
        path: a ``.pt2`` file that :func:`save_package` wrote.
        network: the one it was compiled from, in a floating-point dtype at least as wide as the package's.
        device: where the network runs.

    Threads take turns. Attributes: ``shape`` is the only shape of x that it takes, ``dtype`` its dtype.

    Raises:
        FileNotFoundError: the package, or the JSON file beside it, is missing.
        ValueError: the JSON file cannot be read, or the package is damaged or fits something else.
    """

    def __init__(self, path: str | os.PathLike[str], network: Network, device: torch.device) -> None:
        self.path, self._names, self._lock = path, list(network.inputs), threading.Lock()
        try:
            saved = json.loads(Path(f"{path}.json").read_text())
            fits, digest, self.shape = dict(saved["fits"]), saved["sha256"], torch.Size(saved["shape"])
            self.dtype = find_dtype(fits["dtype"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read {path}.json: {type(error).__name__} {error}") from error
        here = fingerprint(network, self.dtype, device)
        for name in {**here, **fits}:
            if fits.get(name) != here.get(name):
                hint = f", or set OMP_NUM_THREADS={fits.get(name)}" if name == "threads" else ""
                values = f"{short(fits.get(name))}, here it is {short(here.get(name))}"
                raise ValueError(f"{path} was saved for {name} {values}: save it anew{hint}")
        if file_sha256(Path(path)) != digest:
            raise ValueError(f"{path} has changed since it was saved: save it anew")
        from torch._inductor import aoti_load_package  # it takes two seconds

        # Single-threaded code does not wait for other threads' events, so that CUDA can capture it
        self._body = aoti_load_package(str(path), device.type == "cuda", -1 if device.index is None else device.index)

    def __call__(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, /) -> torch.Tensor:
        """See :meth:`bbdm.networks.base.Network.body`; ValueError for another shape than the package's."""
        if x.shape != self.shape:
            raise ValueError(f"{self.path} was saved for shape {tuple(self.shape)}, got {tuple(x.shape)}")
        with self._lock:  # on CUDA the code is built for one thread at a time
            return self._body(x, embedding, *(conditions[name] for name in self._names))


class _Body(torch.nn.Module):
    """A network's body as a module, with conditions in their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        return self.network.body(x, embedding, dict(zip(self.network.inputs, conditions, strict=True)))


@torch.no_grad()
def save_package(path: str | os.PathLike[str], network: Network, shape: Iterable[int], conditions: Conditions) -> None:
    """Compile a network's body in its dtype, on its device, for one shape of x, and write it atomically.

    ``conditions`` are such as the body takes. ValueError where the path has another suffix than ``.pt2``, or
    the network takes tokens.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"the name of a package ends in .pt2, got {path}")
    if network.tokens:
        raise ValueError(f"a package is of one shape, and {', '.join(network.tokens)} are tokens of any length")
    from torch._inductor import aoti_compile_and_package

    weight, shape = next(network.parameters()), tuple(shape)
    x = torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(memory_format=layout(len(shape)))
    embedding = network.embed(torch.ones(1, device=weight.device)).to(torch.promote_types(weight.dtype, torch.float32))
    others = [conditions[name] for name in network.inputs]
    program = torch.export.export(_Body(network), (x, embedding, *others))
    options = {"freezing": freezes(x), **compile_options(x.device)}

    def write(temporary: Path) -> None:
        aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)
        content = {"shape": shape, "fits": fingerprint(network, x.dtype, x.device), "sha256": file_sha256(temporary)}
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
