"""Devices: their names, their fastest dtype, and the reuse of freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib.util import find_spec
from typing import Any

import torch

from bbdm.base.machine import cpuinfo, processor
from bbdm.networks.base import find_dtype

M_TRIM_THRESHOLD = -1  # of glibc's mallopt, as is the next
M_MMAP_MAX = -4
# how flags of such instructions begin
VECTORS = ("avx", "amx", "fma", "f16c", "asimd", "sve", "bf16", "i8mm")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of products in bfloat16, of x86 and Arm


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, with its index; ``cuda`` is the current one.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # which one depends on torch's build
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(name)!r} cannot be used here: {reason}") from error


def cpu_flags() -> set[str]:
    """The instruction sets of the processor, by the names of Linux; empty on other systems."""
    return {*(cpuinfo("flags") or cpuinfo("Features")).split()}


def best_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype for compiled networks: bfloat16 where the device multiplies in it, float32 otherwise.

    A device that has no such instructions computes in bfloat16 too, more slowly than in float32: CPUs without
    those of :data:`BFLOAT16`, and NVIDIA's cards before Ampere, such as T4 and V100.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        multiplies = not BFLOAT16.isdisjoint(cpu_flags())
    if multiplies:
        return torch.bfloat16
    return torch.float32


def machine_of(device: torch.device) -> dict[str, Any]:
    """What compiled code depends on: a GPU, or a processor with its instruction sets and threads."""
    if device.type != "cpu":
        return {"GPU": processor(device)}
    return {
        "processor": processor(device),
        "instruction sets": " ".join(
            sorted(flag for flag in cpu_flags() if flag.startswith(VECTORS))
        ),
        "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "threads": torch.get_num_threads(),
    }


def choose_dtype(
    asked: str | torch.dtype | None,
    own: torch.dtype,
    device: torch.device,
    compile: bool,
    package: Any = None,
) -> torch.dtype:
    """The dtype asked for, a package's, the fastest of a compiled network, or the network's own."""
    if asked is not None:
        dtype = find_dtype(asked)
    elif package is not None:
        dtype = package.dtype
    elif compile and own == torch.float32:
        dtype = best_dtype(device)
    else:
        dtype = find_dtype(own)
    if package is not None and dtype != package.dtype:
        raise ValueError(f"dtype must be that of {package.path}, {package.dtype}, got {dtype}")
    return dtype


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has had on a GPU or, of a CPU, in all; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type != "cpu" or find_spec("resource") is None:
        return None
    import resource  # not of Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def keep_freed_memory() -> None:
    """Make this process reuse the memory that it frees, where the C library is glibc.

    By default glibc returns large blocks to the system at once. Each step's activations and gradients are
    then new pages, which the system clears first: a third of a large network's step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
