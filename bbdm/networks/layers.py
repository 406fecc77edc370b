"""The parts that several networks have in common."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from torch import nn

from bbdm.kernels.group_norm_silu import group_norm_silu
from bbdm.kernels.upsample_conv import upsample_conv3x3

Conv = TypeVar("Conv", nn.Conv1d, nn.Conv2d)


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


def conv3x3(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with a kernel of 3 x 3 that keeps the size, or divides it by ``stride``."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1)


def zeroed(module: Conv) -> Conv:
    """The convolution, all of whose weights become 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Downsample(nn.Module):
    """Halve the size by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the size by nearest neighbours, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return upsample_conv3x3(x, self.conv.weight, self.conv.bias)
