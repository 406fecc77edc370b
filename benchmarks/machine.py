"""The machine of the benchmarks: what its speed depends on, and its measured peak rates."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from bbdm.base import machine
from benchmarks.timing import best_seconds

PACKAGES = ("torch", "triton", "sde-bbdm", "torchmanager-diffusion", "onnxruntime", "openvino")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


@dataclass(frozen=True)
class Peaks:
    """Measured peak rates, the best of several sizes and rounds."""

    bfloat16: float  # FLOP/s of a matrix product
    # the same. Convolutions can beat it by Winograd's algorithm on a CPU, by TF32 on a GPU
    float32: float
    copy: float  # bytes/s read and written by a copy too large for caches

    def flops(self, dtype: torch.dtype) -> float:
        """The matrix rate in a dtype, FLOP/s."""
        return self.bfloat16 if dtype == torch.bfloat16 else self.float32

    def rates(self, gflop: float, seconds: float, dtype: torch.dtype) -> dict[str, float]:
        """A row's rates from its work, in 10^9 multiplications and additions."""
        rate = 1e9 * gflop / seconds
        return {"gflop": gflop, "tflops": rate / 1e12, "share_of_peak": rate / self.flops(dtype)}


def measure_peaks(device: torch.device, quick: bool) -> Peaks:
    """Measure the peaks, in a few seconds."""
    sizes = (1024, 2048) if quick else (1024, 2048, 4096)
    if device.type == "cuda":
        sizes = (4096, 8192)
    rates: list[float] = []
    for dtype in (torch.bfloat16, torch.float32):
        best = 0.0
        for size in sizes:
            a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
            best = max(best, 2 * size**3 / best_seconds(lambda a=a, b=b: a @ b, 5))
        rates.append(best)
    source = torch.ones(2**26 if quick else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(*rates, copy=2 * source.numel() / best_seconds(lambda: target.copy_(source), 10))


def hardware(device: torch.device) -> dict[str, Any]:
    """What speed depends on: processor and its vector units, memory, card, versions, threads."""
    flags = set(machine.cpuinfo("flags").split())
    return {
        **machine.describe(device, PACKAGES),
        "flags": [flag for flag in FLAGS if flag in flags],
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
