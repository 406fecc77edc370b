"""GroupNorm, an affine map for each image, and SiLU: the input of most convolutions of the UNet.

Eager, in ONNX and compiled for a GPU it is PyTorch's own norm, which inductor fuses with its surroundings.
Compiled for a CPU it has a form of our own. The caller folds nn.GroupNorm's weight and bias and the time
embedding's into one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    activation: bool = True,
) -> Tensor:
    """silu(group_norm(x) * weight + bias), or the same without the SiLU.

    GroupNorm's gamma and beta, followed by a scale and a shift, are weight = gamma (1 + scale) and
    bias = beta (1 + scale) + shift.

    Args:
        x: (B, C, H, W), or (B, C, D, H, W).
        num_groups: G, a divisor of C.
        weight: (B, C) or (1, C), any floating dtype.
        bias: (B, C) or (1, C), any floating dtype.
        eps: added to the biased variance.
        activation: whether there is a SiLU.

    Returns:
        x's shape and dtype, on a CPU channels_last where x is. Compiled for a CPU, arithmetic is in float32
        (float64 where ``x`` is), with errors below 2^-23 (8 + |mean| / std) times the largest output.
        PyTorch's own float32 on the CPU loses digits where |mean| is much larger than std.
    """
    in_onnx = torch.onnx.is_in_onnx_export()  # which has an operator for it
    if x.ndim == 5 and not in_onnx:  # of a volume, planes are rows: both are (B, HW, C)
        planes = group_norm_silu(x.flatten(2, 3), num_groups, weight, bias, eps, activation)
        return planes.unflatten(2, x.shape[2:4])
    if torch.compiler.is_compiling() and x.device.type == "cpu" and not in_onnx:
        return decomposed(x, num_groups, weight, bias, eps, activation)
    return reference(x, num_groups, weight, bias, eps, activation)


def reference(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool
) -> Tensor:
    """The op by PyTorch's group_norm, in the dtype of ``x``; float16 in float32, as its squares overflow."""
    if x.dtype == torch.float16:
        return reference(x.float(), num_groups, weight, bias, eps, activation).half()
    weight = weight.to(x.dtype)
    bias = bias.to(x.dtype)
    if weight.shape[0] == bias.shape[0] == 1:
        z = F.group_norm(x, num_groups, weight[0], bias[0], eps)
    else:
        everywhere = (..., *[None] * (x.ndim - 2))  # for each channel, whatever the position
        z = torch.addcmul(
            bias[everywhere], F.group_norm(x, num_groups, eps=eps), weight[everywhere]
        )
    if activation:
        z = F.silu(z)
    return z


def decomposed(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool
) -> Tensor:
    """The op as two loops of a compiler: sums of each channel, then z = slope x + offset.

    Channels are adjacent in memory, so their sums come first, relative to one of their pixels:
    E[d^2] - E[d]^2 cancels only where the mean is large compared with the spread. The result does not depend
    on which pixel, so no gradient flows to it.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    origin = wide[:, :, :1, :1].detach()
    d = wide - origin
    offsets = d.mean(3).mean(2)
    squares = d.square().mean(3).mean(2)
    variances = (squares - offsets.square()).unflatten(1, (num_groups, -1))
    means = (offsets + origin[:, :, 0, 0]).unflatten(1, (num_groups, -1))
    mean = means.mean(2, keepdim=True)
    rstd = torch.rsqrt((variances + (means - mean).square()).mean(2, keepdim=True) + eps)
    mean = mean.expand_as(means).flatten(1)[:, :, None, None]  # of each channel its group's
    rstd = rstd.expand_as(means).flatten(1)[:, :, None, None]
    slope = rstd * weight[:, :, None, None]
    # Stacked, they are stored; otherwise the compiler would recompute them for each pixel.
    slope, offset = torch.stack([slope, bias[:, :, None, None] - mean * slope]).unbind()
    z = x * slope + offset
    if activation:
        z = F.silu(z)
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last)
