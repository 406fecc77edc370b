"""GroupNorm, an affine map of each image's own, and SiLU in one op: what stands before most convolutions of
the UNet.

Channels_last memory is (B, HW, C). On a GPU two kernels read it, cut into blocks of whole groups by chunks of
rows: the first leaves each chunk's mean and sum of squared deviations, the second merges them and writes the
result. Chunks depend on an image's shape alone and nothing is added atomically: an image's result is the same
in every run and whatever the batch around it. Nothing here knows of embeddings or nn.GroupNorm: the caller
folds both into weight, bias.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.kernels.jit import AVAILABLE, jit, tl, triton


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, activation: bool = True
) -> Tensor:
    """silu(group_norm(x) * weight + bias), or the same without the SiLU.

    A GroupNorm's own gamma and beta with a scale and a shift after it: weight = gamma (1 + scale),
    bias = beta (1 + scale) + shift.

    Args:
        x: (B, C, H, W); channels_last for the GPU kernels, other layouts take plain PyTorch.
        num_groups: G, a divisor of C.
        weight: (B, C) or (1, C), any floating dtype.
        bias: (B, C) or (1, C), any floating dtype.
        eps: added to the biased variance.
        activation: whether there is a SiLU.

    Returns:
        (B, C, H, W) in the dtype of ``x``, channels_last. In the GPU kernels and where it is compiled,
        arithmetic is in
        float32, float64 where ``x`` is, and errors of float32 stay under 2^-23 (8 + |mean| / std) times the
        largest
        output. In eager mode elsewhere this is PyTorch's own group_norm, faster there, but float32 on the CPU
        loses
        digits where |mean| is much larger than std.

    Raises:
        ValueError: shapes that don't fit.
    """
    batch, channels, _, _ = x.shape
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"channels must be a multiple of num_groups={num_groups}, got {channels}")
    for name, rows in (("weight", weight), ("bias", bias)):
        if rows.ndim != 2 or rows.shape[1] != channels or rows.shape[0] not in (1, batch):
            raise ValueError(f"{name} must be ({batch} or 1, {channels}), got {tuple(rows.shape)}")
    fits = x.is_contiguous(memory_format=torch.channels_last) and channels // num_groups <= WIDTHS[-1]
    if x.is_cuda and AVAILABLE and fits and x.dtype != torch.float64:
        return torch.ops.bbdm.group_norm_silu(x, num_groups, weight, bias, eps, activation)[0]
    whole = torch.onnx.is_in_onnx_export() or not torch.compiler.is_compiling()  # ONNX has an operator for it
    form = reference if whole else decomposed
    return form(x, num_groups, weight, bias, eps, activation)


def reference(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    """The op in PyTorch's own words, in the dtype of ``x``, but not in float16, whose range sums of squares leave."""
    if x.dtype == torch.float16:
        return reference(x.float(), num_groups, weight, bias, eps, activation).half()
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if len(weight) == len(bias) == 1:
        z = F.group_norm(x, num_groups, weight[0], bias[0], eps)
    else:
        z = torch.addcmul(bias[:, :, None, None], F.group_norm(x, num_groups, eps=eps), weight[:, :, None, None])
    return F.silu(z) if activation else z


def decomposed(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    """The op in plain operators, which a compiler fuses, autograd differentiates and ONNX knows.

    Two loops when compiled: sums of each channel, then z = slope x + offset. Stacking the two makes the
    compiler keep them, where it would work them out again for each pixel.
    """
    mean, rstd = (_per_channel(s, x.shape[1]) for s in _statistics(x, num_groups, eps))
    slope = rstd * weight[:, :, None, None]
    slope, offset = torch.stack([slope, bias[:, :, None, None] - mean * slope]).unbind()
    z = x * slope + offset
    return (F.silu(z) if activation else z).to(x.dtype).contiguous(memory_format=torch.channels_last)


def _statistics(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each group, (B, G), in one pass over the pixels.

    Each channel first, since channels lie side by side, and relative to one of its pixels: E[d^2] - E[d]^2
    cancels only where the mean is large against the spread. The results do not depend on which pixel: no
    gradient goes there.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    origin = x[:, :, :1, :1].detach()
    d = x - origin
    means, squares = (s.mean(3).mean(2) for s in (d, d.square()))
    variances = squares - means.square()
    means, variances = (s.unflatten(1, (num_groups, -1)) for s in (means + origin[:, :, 0, 0], variances))
    mean = means.mean(2)
    return mean, torch.rsqrt((variances + (means - mean[:, :, None]).square()).mean(2) + eps)


def _per_channel(of_groups: Tensor, channels: int) -> Tensor:
    """(B, G) to (B, C, 1, 1): each channel gets its group's number."""
    return of_groups[:, :, None].expand(-1, -1, channels // of_groups.shape[1]).flatten(1)[:, :, None, None]


# The kernels. A program has one block of GROUPS whole groups, in BLOCK_C lanes, and one chunk of SPAN rows of
# an image, ROWS at a time; its place in the grid is (block, chunk, image). HW is the number of rows, *_step a
# stride along B.


@jit
def _block(C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block's channels and groups, which of them exist, and (BLOCK_G, BLOCK_C) which channel is whose member."""
    lane, group = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_G)
    c, g = tl.program_id(0) * (GROUPS * GROUP) + lane, tl.program_id(0) * GROUPS + group
    c_ok, g_ok = (lane < GROUPS * GROUP) & (c < C), (group < GROUPS) & (g < C // GROUP)
    return c, c_ok, g, g_ok, (lane // GROUP)[None, :] == group[:, None]  # one-hot, as GROUP is any number


@jit
def _tile(row, c, c_ok, HW, C: tl.constexpr, ROWS: tl.constexpr):
    """Offsets and mask of ROWS rows from ``row`` on. Only within an image are 32 bits enough."""
    rows = tl.arange(0, ROWS)[:, None]
    start = (tl.program_id(2).to(tl.int64) * HW + row) * C
    return start + (rows * C + c[None, :]), (row + rows < HW) & c_ok[None, :]


@jit
def _statistics_kernel(
    x_ptr,  # (B, HW, C)
    mean_ptr, m2_ptr,  # (B, chunks, G), out: of a chunk's numbers, m2 the sum of squared deviations
    HW,
    C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    c, c_ok, g, g_ok, members = _block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk = tl.program_id(2), tl.num_programs(1), tl.program_id(1)
    seen = 0.0
    mean, m2 = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = _tile(row, c, c_ok, HW, C, ROWS)
        x = tl.load(x_ptr + offsets, mask=ok, other=0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(HW - row, 0), ROWS).to(tl.float32)
        tile_mean = tl.sum(x, 0) / tl.maximum(count, 1.0)
        deviation = tl.where(ok, x - tile_mean[None, :], 0.0)
        # Two passes over a tile in registers, tiles merged as by Chan et al. 1983: nothing large cancels.
        share = count / tl.maximum(seen + count, 1.0)
        delta = tile_mean - mean
        m2 += tl.sum(deviation * deviation, 0) + delta * delta * (seen * share)
        mean += delta * share
        seen += count
    group_mean = tl.sum(tl.where(members, mean[None, :], 0.0), 1) / GROUP
    delta = tl.where(members, mean[None, :] - group_mean[:, None], 0.0)
    group_m2 = tl.sum(tl.where(members, m2[None, :], 0.0) + delta * delta * seen, 1)
    out = (image * chunks + chunk) * (C // GROUP) + g
    tl.store(mean_ptr + out, group_mean, mask=g_ok)
    tl.store(m2_ptr + out, group_m2, mask=g_ok)


@jit
def _apply_kernel(
    x_ptr, weight_ptr, bias_ptr,  # (B, HW, C), (B or 1, C), (B or 1, C)
    chunk_mean_ptr, chunk_m2_ptr,  # (B, chunks, G)
    y_ptr, mean_ptr, rstd_ptr,  # (B, HW, C), (B, G), (B, G), out
    weight_step, weight_stride, bias_step, bias_stride, HW, eps,
    C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    c, c_ok, g, g_ok, members = _block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk, k = tl.program_id(2), tl.num_programs(1), tl.program_id(1), tl.arange(0, BLOCK_K)
    parts, found = (image * chunks + k)[:, None] * (C // GROUP) + g[None, :], (k < chunks)[:, None] & g_ok[None, :]
    chunk_mean = tl.load(chunk_mean_ptr + parts, mask=found, other=0.0)
    chunk_m2 = tl.load(chunk_m2_ptr + parts, mask=found, other=0.0)
    count = tl.minimum(tl.maximum(HW - k * SPAN, 0), SPAN).to(tl.float32)[:, None]  # rows of a chunk
    pivot = tl.load(chunk_mean_ptr + image * chunks * (C // GROUP) + g, mask=g_ok, other=0.0)  # keeps the sum small
    mean = pivot + tl.sum((chunk_mean - pivot[None, :]) * count, 0) / HW
    delta = chunk_mean - mean[None, :]
    rstd = tl.rsqrt(tl.sum(chunk_m2 / GROUP + delta * delta * count, 0) / HW + eps)
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + image * (C // GROUP) + g, mean, mask=g_ok)
        tl.store(rstd_ptr + image * (C // GROUP) + g, rstd, mask=g_ok)

    weight = tl.load(weight_ptr + image * weight_step + c * weight_stride, mask=c_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + image * bias_step + c * bias_stride, mask=c_ok, other=0.0).to(tl.float32)
    center = tl.sum(tl.where(members, mean[:, None], 0.0), 0, keep_dims=True)  # (1, BLOCK_C)
    scale = tl.sum(tl.where(members, rstd[:, None], 0.0), 0, keep_dims=True) * weight[None, :]
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = _tile(row, c, c_ok, HW, C, ROWS)
        x = tl.load(x_ptr + offsets, mask=ok, other=0.0).to(tl.float32)
        y = (x - center) * scale + bias[None, :]  # x scale + (bias - center scale) would cancel
        if ACTIVATION:
            y *= tl.sigmoid(y)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=ok)


@jit
def _backward_kernel(
    dy_ptr, x_ptr,  # (B, HW, C)
    weight_ptr, bias_ptr, mean_ptr, rstd_ptr,  # (B or 1, C), (B or 1, C), (B, G), (B, G)
    chunk_dweight_ptr, chunk_dbias_ptr,  # (B, chunks, C), sums over a chunk's rows: out at first, in when MERGE
    dx_ptr, dweight_ptr, dbias_ptr,  # (B, HW, C), (B, C), (B, C), out when MERGE
    weight_step, weight_stride, bias_step, bias_stride, HW,
    C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    c, c_ok, _, _, members = _block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk = tl.program_id(2), tl.num_programs(1), tl.program_id(1)
    weight = tl.load(weight_ptr + image * weight_step + c * weight_stride, mask=c_ok, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + image * bias_step + c * bias_stride, mask=c_ok, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + image * (C // GROUP) + c // GROUP, mask=c_ok, other=0.0)
    rstd = tl.load(rstd_ptr + image * (C // GROUP) + c // GROUP, mask=c_ok, other=0.0)
    dweight, dbias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    along_mean, along_xhat = dbias[None, :], dweight[None, :]
    if MERGE:
        k = tl.arange(0, BLOCK_K)
        parts, found = (image * chunks + k)[:, None] * C + c[None, :], (k < chunks)[:, None] & c_ok[None, :]
        dweight = tl.sum(tl.load(chunk_dweight_ptr + parts, mask=found, other=0.0), 0)
        dbias = tl.sum(tl.load(chunk_dbias_ptr + parts, mask=found, other=0.0), 0)
        if tl.program_id(1) == 0:
            tl.store(dweight_ptr + image * C + c, dweight, mask=c_ok)
            tl.store(dbias_ptr + image * C + c, dbias, mask=c_ok)
        # What dx must lose: the part of weight dz along its group's mean, and the part along xhat.
        group_mean = tl.sum(tl.where(members, (weight * dbias)[None, :], 0.0), 1) / (HW * GROUP)
        group_xhat = tl.sum(tl.where(members, (weight * dweight)[None, :], 0.0), 1) / (HW * GROUP)
        along_mean = tl.sum(tl.where(members, group_mean[:, None], 0.0), 0, keep_dims=True)
        along_xhat = tl.sum(tl.where(members, group_xhat[:, None], 0.0), 0, keep_dims=True)
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = _tile(row, c, c_ok, HW, C, ROWS)
        dz = tl.load(dy_ptr + offsets, mask=ok, other=0.0).to(tl.float32)
        xhat = (tl.load(x_ptr + offsets, mask=ok, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
        if ACTIVATION:
            z = xhat * weight[None, :] + bias[None, :]
            s = tl.sigmoid(z)
            dz *= s * (1.0 + z * (1.0 - s))
        if MERGE:
            dx = (dz * weight[None, :] - along_mean - xhat * along_xhat) * rstd[None, :]
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=ok)
        else:
            dweight += tl.sum(dz * xhat, 0)
            dbias += tl.sum(dz, 0)
    if not MERGE:
        out = (image * chunks + chunk) * C + c
        tl.store(chunk_dweight_ptr + out, dweight, mask=c_ok)
        tl.store(chunk_dbias_ptr + out, dbias, mask=c_ok)


TILE, BACKWARD_TILE = 4096, 2048  # numbers of a tensor that a program holds at a time: 32 or 16 in a thread of 4 warps
WIDTHS = (64, 128, 256)  # of a block, in channels: a row of the narrowest is a cache line, and more blocks fill a GPU
MIN_SPAN, MAX_CHUNKS = 32, 32  # more chunks fill a GPU at batch 1, but each program of the second pass reads them all


@cache
def _plan(channels: int, num_groups: int, pixels: int, tile: int, **more: bool) -> tuple[int, int, dict[str, Any]]:
    """How many blocks and chunks an image has, and the kernels' constants. The batch has no say in it."""
    group = channels // num_groups
    aligned = 8 // math.gcd(8, group)  # so many groups are a multiple of 8 channels, 128 bits of bfloat16

    def split(width: int) -> tuple[int, int, int]:
        lanes = max(triton.next_power_of_2(group), min(width, triton.next_power_of_2(channels)))
        groups = min(lanes // group, num_groups)
        groups -= groups % aligned if groups > aligned else 0
        return -(-num_groups // groups) * lanes, lanes, groups

    all_lanes, lanes, groups = min(split(width) for width in WIDTHS)  # few idle lanes, then narrow blocks
    span = triton.next_power_of_2(max(MIN_SPAN, -(-pixels // MAX_CHUNKS)))
    blocks, chunks, rows = all_lanes // lanes, -(-pixels // span), min(span, max(1, tile // lanes))
    block_g, block_k = triton.next_power_of_2(groups), triton.next_power_of_2(chunks)
    constants = {"C": channels, "GROUP": group, "GROUPS": groups, "BLOCK_G": block_g, "BLOCK_C": lanes}
    return blocks, chunks, constants | {"SPAN": span, "ROWS": rows, "BLOCK_K": block_k, **more}


def _forward_triton(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    blocks, chunks, constants = _plan(channels, num_groups, pixels, TILE, ACTIVATION=activation)
    x, weight, bias = x.contiguous(memory_format=torch.channels_last), weight.expand(batch, -1), bias.expand(batch, -1)
    y, mean, rstd = _forward_fake(x, num_groups)
    chunk_mean = x.new_empty((batch, chunks, num_groups), dtype=torch.float32)
    partial = chunk_mean, torch.empty_like(chunk_mean)
    scalars = weight.stride(0), weight.stride(1), bias.stride(0), bias.stride(1), pixels
    with torch.cuda.device_of(x):
        _statistics_kernel[blocks, chunks, batch](x, *partial, pixels, **constants)
        _apply_kernel[blocks, chunks, batch](x, weight, bias, *partial, y, mean, rstd, *scalars, eps, **constants)
    return y, mean, rstd


def _backward_triton(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    blocks, chunks, constants = _plan(channels, mean.shape[1], pixels, BACKWARD_TILE, ACTIVATION=activation)
    dy, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (dy, x))
    weight, bias = weight.expand(batch, -1), bias.expand(batch, -1)
    dx, dweight, dbias = _backward_fake(dy, x)
    chunk_dweight = x.new_empty((batch, chunks, channels), dtype=torch.float32)
    tensors = dy, x, weight, bias, mean, rstd, chunk_dweight, torch.empty_like(chunk_dweight), dx, dweight, dbias
    scalars = weight.stride(0), weight.stride(1), bias.stride(0), bias.stride(1), pixels
    with torch.cuda.device_of(x):
        for merge in (False, True):
            _backward_kernel[blocks, chunks, batch](*tensors, *scalars, **(constants | {"MERGE": merge}))
    return dx, dweight, dbias


@torch.library.custom_op(
    "bbdm::group_norm_silu",
    mutates_args=(),
    schema="(Tensor x, int num_groups, Tensor weight, Tensor bias, float eps, bool activation)"
    " -> (Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The op where there are no kernels: output (B, C, H, W), and mean and rstd of each group, (B, G)."""
    return decomposed(x, num_groups, weight, bias, eps, activation), *_statistics(x, num_groups, eps)


@_forward.register_fake
def _forward_fake(x: Tensor, num_groups: int, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, torch.empty_like(mean)


@torch.library.custom_op(
    "bbdm::group_norm_silu_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, bool activation)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of each image's weight and bias, (B, C), from y's."""
    channels, num_groups = x.shape[1], mean.shape[1]
    weight, bias = weight[:, :, None, None], bias[:, :, None, None]
    mean, rstd = _per_channel(mean, channels), _per_channel(rstd, channels)
    xhat, dz = (x - mean) * rstd, dy.to(mean.dtype)
    if activation:
        z = xhat * weight + bias
        s = z.sigmoid()
        dz = dz * (s * (1 + z * (1 - s)))
    sums = dz * weight, dz * weight * xhat
    along = (_per_channel(t.unflatten(1, (num_groups, -1)).mean((2, 3, 4)), channels) for t in sums)
    dx = (dz * weight - next(along) - xhat * next(along)) * rstd
    return dx.to(x.dtype).contiguous(memory_format=torch.channels_last), (dz * xhat).sum((2, 3)), dz.sum((2, 3))


@_backward.register_fake
def _backward_fake(dy: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    dweight = x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.channels_last), dweight, torch.empty_like(dweight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, weight, bias, _, ctx.activation = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _differentiate(ctx: Any, dy: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    _, weight, bias, _, _ = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.bbdm.group_norm_silu_backward(dy, *ctx.saved_tensors, ctx.activation)
    dweight, dbias = (d.sum_to_size(rows.shape).to(rows.dtype) for d, rows in ((dweight, weight), (dbias, bias)))
    return dx, None, dweight, dbias, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
if AVAILABLE:
    _forward.register_kernel("cuda")(_forward_triton)
    _backward.register_kernel("cuda")(_backward_triton)
