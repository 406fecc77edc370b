"""What kernels share that go through images one element at a time: Triton, memory formats, launch, addresses.

They run on CUDA and ROCm devices, and on the CPU where TRITON_INTERPRET=1 is set before bbdm is imported.
A program takes ``BLOCK`` elements of one image, in the order of memory; its place in the grid is (block,
image).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

jit: Any  # a kernel, or a function that kernels call
constexpr: Any  # a module's number that its kernels read
try:
    import triton
    import triton.language as tl

    AVAILABLE = True
    jit = triton.jit
    constexpr = tl.constexpr
except ImportError:  # on macOS and Windows; kernels can be imported there too
    if TYPE_CHECKING:
        raise
    triton = tl = None
    AVAILABLE = False
    jit = constexpr = lambda value: value

BLOCK = 512  # elements of a program
# by axes: of images, and of volumes
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
WARPS = 2 if torch.version.hip else 4  # so 4 elements a thread: 128 bits of float32


def layout(axes: int) -> torch.memory_format:
    """The memory format of tensors with a number of axes: of images channels_last, of others contiguous."""
    return CHANNELS_LAST.get(axes, torch.contiguous_format)


def memory_format_of(images: Tensor) -> torch.memory_format:
    """That of :data:`CHANNELS_LAST` where it alone fits, contiguous for everything else."""
    last = CHANNELS_LAST.get(images.ndim)
    if last is None or images.is_contiguous() or not images.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def launch(kernel: Any, images: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on images, in whose shape and memory format it works.

    The kernel takes the arguments, ``size`` (C H W), ``pixels`` (H W), ``constants``, ``CHANNELS`` and
    ``BLOCK``. A tensor among the arguments is copied where its memory format does not fit.
    """
    memory_format = memory_format_of(images)

    def fitting(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape != images.shape:
            return value.contiguous()
        return value.contiguous(memory_format=memory_format)

    size = math.prod(images.shape[1:])
    pixels = math.prod(images.shape[2:])
    channels = 0 if memory_format == torch.contiguous_format else images.shape[1]
    constants |= {"CHANNELS": channels, "BLOCK": BLOCK, "num_warps": WARPS}
    with torch.cuda.device_of(images):
        kernel[-(-size // BLOCK), len(images)](*map(fitting, arguments), size, pixels, **constants)


@jit
def addresses(size, BLOCK: tl.constexpr):
    """The program's image and first place in it, and the offsets and mask of its (BLOCK,) elements."""
    image = tl.program_id(1)
    start = tl.program_id(0) * BLOCK
    offset = start + tl.arange(0, BLOCK)
    return image, start, image.to(tl.int64) * size + offset, offset < size
