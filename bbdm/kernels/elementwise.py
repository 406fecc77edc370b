"""Parts of the kernels that go through images one element at a time: argument checks, launch, addresses.

A program takes ``BLOCK`` elements of one image, in the order of memory; its place in the grid is
(block, image).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bbdm.kernels.jit import jit, tl

BLOCK = 512  # elements of a program
WARPS = 2 if torch.version.hip else 4  # so 4 elements a thread: 128 bits of float32


def check_devices(tensors: Mapping[str, Tensor | None], like: str) -> None:
    """Raise ValueError where a tensor is on another device than the one named ``like``."""
    for name, tensor in tensors.items():
        wanted = tensors[like]
        if tensor is not None and wanted is not None and tensor.device != wanted.device:
            raise ValueError(f"{name} must be on {wanted.device} like {like}, got {tensor.device}")


def check_seeds(seeds: Tensor | None, batch: int) -> None:
    """Raise ValueError where seeds are given and are not (B,) int64."""
    if seeds is not None and (seeds.shape != (batch,) or seeds.dtype != torch.int64):
        raise ValueError(f"seeds must be ({batch},) of int64, got {tuple(seeds.shape)} of {seeds.dtype}")


def memory_format_of(images: Tensor) -> torch.memory_format:
    """channels_last where that alone fits, contiguous for everything else."""
    alone = images.ndim == 4 and not images.is_contiguous()
    fits = alone and images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if fits else torch.contiguous_format


def launch(kernel: Any, images: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on images, in whose shape and memory format it works.

    The kernel takes the arguments, ``size`` (C H W), ``pixels`` (H W), ``constants``, ``CHANNELS`` and
    ``BLOCK``. A tensor among the arguments is copied where its memory format does not fit.
    """
    memory_format = memory_format_of(images)

    def fitting(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        alike = value.shape == images.shape
        return value.contiguous(memory_format=memory_format if alike else torch.contiguous_format)

    size, pixels = math.prod(images.shape[1:]), math.prod(images.shape[2:])
    channels = images.shape[1] if memory_format == torch.channels_last else 0
    constants |= {"CHANNELS": channels, "BLOCK": BLOCK, "num_warps": WARPS}
    with torch.cuda.device_of(images):
        kernel[-(-size // BLOCK), len(images)](*map(fitting, arguments), size, pixels, **constants)


@jit
def addresses(size, BLOCK: tl.constexpr):
    """The program's image and first place in it, and the offsets and mask of its (BLOCK,) elements."""
    image = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    place = start + tl.arange(0, BLOCK)
    return image, start, image.to(tl.int64) * size + place, place < size
