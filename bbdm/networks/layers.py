"""The parts that several networks have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from bbdm.kernels.group_norm_silu import group_norm_silu
from bbdm.kernels.upsample_conv import upsample_conv3x3

Conv = TypeVar("Conv", bound=nn.Module)
CONVOLUTIONS: dict[int, type[Any]] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial axes


def frequencies(channels: int, device: torch.device | None = None) -> torch.Tensor:
    """(channels / 2,) angular frequencies from 1 down to 1 / 10000, float32."""
    steps = torch.arange(channels // 2, dtype=torch.float32, device=device) / (channels // 2)
    return torch.exp(-math.log(10000) * steps)


def sinusoids(t: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """(B, 2 F) cosines, then sines, of (B,) times at (F,) frequencies, float32.

    Float32 whatever the network's dtype: at t = 999 a bfloat16 angle is off by more than a radian.
    """
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def norm_silu(
    norm: nn.Module, x: torch.Tensor, modulation: torch.Tensor | None = None, activation: bool = True
) -> torch.Tensor:
    """GroupNorm and SiLU, with the (B, 2 C) weight and bias of a modulation instead of the norm's own."""
    norm = cast(nn.GroupNorm, norm)
    weight, bias = (norm.weight[None], norm.bias[None]) if modulation is None else modulation.chunk(2, dim=1)
    return group_norm_silu(x, norm.num_groups, weight, bias, norm.eps, activation)


def conv3x3(channels: int, out_channels: int, stride: int | Sequence[int] = 1, axes: int = 2) -> Any:
    """A convolution with a kernel of 3 along each axis that keeps the size, or divides it by ``stride``."""
    return CONVOLUTIONS[axes](channels, out_channels, 3, stride, padding=1)


def pooled(x: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """The means of x (B, C, *S) over cells of ``strides``.

    Of volumes, first within planes, then over planes: in 3-D, PyTorch has no such op in bfloat16 on a CPU,
    and none that keeps channels_last.
    """
    if x.ndim == 4:
        return F.avg_pool2d(x, tuple(strides))
    depth, *within = strides
    planes = F.avg_pool2d(x.movedim(2, 1).flatten(0, 1), within).unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)
    return planes if depth == 1 else F.avg_pool2d(planes.flatten(3), (depth, 1)).unflatten(3, planes.shape[3:])


def zeroed(module: Conv) -> Conv:
    """The convolution, all of whose weights become 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Downsample(nn.Module):
    """Halve the size by a convolution, or divide each side by its stride."""

    def __init__(self, channels: int, strides: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        self.op = conv3x3(channels, channels, strides, len(strides))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the size by nearest neighbours, or multiply each side by its stride, then convolve."""

    def __init__(self, channels: int, strides: Sequence[int] = (2, 2)) -> None:
        super().__init__()
        self.strides = strides
        self.conv = conv3x3(channels, channels, axes=len(strides))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return upsample_conv3x3(x, self.conv.weight, self.conv.bias, self.strides)


def unshuffled(x: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, *S) with each cell of ``patch`` positions along an axis as channels of one."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch)
    b, c, *sides = x.shape
    cells = x.reshape(b, c, *(n for side in sides for n in (side // patch, patch)))
    axes = range(len(sides))
    cells = cells.permute(0, 1, *(3 + 2 * axis for axis in axes), *(2 + 2 * axis for axis in axes))
    return cells.flatten(1, 1 + len(sides))


def shuffled(x: torch.Tensor, patch: int) -> torch.Tensor:
    """The inverse of :func:`unshuffled`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, patch)
    b, _, *sides = x.shape
    cells = x.reshape(b, -1, *[patch] * len(sides), *sides)
    order = [n for axis in range(len(sides)) for n in (2 + len(sides) + axis, 2 + axis)]
    return cells.permute(0, 1, *order).reshape(b, cells.shape[1], *(side * patch for side in sides))
