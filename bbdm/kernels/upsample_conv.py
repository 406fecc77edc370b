"""Nearest-neighbour upsampling followed by a 3 x 3 convolution, for pictures at 4/9 of its multiplications.

The nine pixels of an upsampled image under the kernel have only four different values, two by two. So each
of the four phases (even or odd row and column) of the output is a 2 x 2 convolution of the small image, whose
weights are sums of the nine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def upsample_conv3x3(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factors: Sequence[int] = (2, 2),
) -> torch.Tensor:
    """Enlarge x by nearest neighbours, then convolve with padding 1.

    Compiled for inference, where both sides of a picture double, the four phases replace the two steps:
    weights are constants there, and their sums are computed once. Anywhere else the sums cost as much as they
    save.

    Args:
        x: (B, C, H, W), or (B, C, D, H, W).
        weight: (C', C, 3, 3), or (C', C, 3, 3, 3).
        bias: (C',) numbers, or None.
        factors: a number for each side, by which it grows.

    Returns:
        (B, C', 2 H, 2 W), or each side times its factor, in the memory format of x.
    """
    if not torch.compiler.is_compiling() or torch.is_grad_enabled() or tuple(factors) != (2, 2):
        convolve = F.conv3d if x.ndim == 5 else F.conv2d
        return convolve(upsample(x, factors), weight, bias, padding=1)
    return _phases(x, weight, bias)


def upsample(x: torch.Tensor, factors: Sequence[int] = (2, 2)) -> torch.Tensor:
    """Enlarge x (B, C, *S) by nearest neighbours, each side by its factor."""
    return F.interpolate(x, scale_factor=[float(factor) for factor in factors], mode="nearest")


def _phases(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Upsampling and convolution by four 2 x 2 convolutions."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    outputs: list[torch.Tensor] = []
    for row, rows in enumerate(_pair_sums(wide, 2)):
        for column, kernel in enumerate(_pair_sums(rows, 3)):
            padded = F.pad(x, (1 - column, column, 1 - row, row))
            outputs.append(F.conv2d(padded, kernel.to(weight.dtype), bias))
    b, c, height, width = outputs[0].shape
    interleaved = torch.stack(outputs).view(2, 2, b, c, height, width).permute(2, 4, 0, 5, 1, 3)
    return interleaved.reshape(b, 2 * height, 2 * width, c).permute(0, 3, 1, 2)


def _pair_sums(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two taps along ``dim`` instead of three: at even outputs (w0, w1 + w2), at odd ones (w0 + w1, w2)."""
    w0, w1, w2 = (weight.narrow(dim, tap, 1) for tap in range(3))
    return torch.cat([w0, w1 + w2], dim), torch.cat([w0 + w1, w2], dim)
