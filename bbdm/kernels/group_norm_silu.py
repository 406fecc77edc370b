"""GroupNorm, an affine map for each image, and SiLU in one op: the input of most convolutions of the UNet.

Channels_last memory is (B, HW, C). On a GPU two kernels read it, cut into blocks of whole groups by chunks of
rows: the first writes each chunk's mean and sum of squared deviations, the second merges them and writes the
result. Chunks depend on an image's shape alone and no sum is atomic, so an image's result is the same in
every run and in every batch. The op takes plain weights and biases: the caller folds nn.GroupNorm's and the
time embedding's into them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.kernels.group_norm_tiling import BACKWARD_TILE, TILE, WIDTHS, channels_of_block, plan, rows_of_tile
from bbdm.kernels.jit import AVAILABLE, jit, tl


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, activation: bool = True
) -> Tensor:
    """silu(group_norm(x) * weight + bias), or the same without the SiLU.

    GroupNorm's gamma and beta, followed by a scale and a shift, are weight = gamma (1 + scale) and
    bias = beta (1 + scale) + shift.

    Args:
        x: (B, C, H, W), or (B, C, D, H, W); channels_last for the GPU kernels, other layouts take plain
            PyTorch.
        num_groups: G, a divisor of C.
        weight: (B, C) or (1, C), any floating dtype.
        bias: (B, C) or (1, C), any floating dtype.
        eps: added to the biased variance.
        activation: whether there is a SiLU.

    Returns:
        x's shape in the dtype of ``x``, channels_last. The GPU kernels and compiled code compute in
        float32 (float64 where ``x`` is), with errors below 2^-23 (8 + |mean| / std) times the largest output.
        Eager mode elsewhere is PyTorch's group_norm: faster there, but float32 on the CPU loses digits where
        |mean| is much larger than std.

    Raises:
        ValueError: a shape does not fit.
    """
    batch, channels, *sides = x.shape
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"channels must be a multiple of num_groups={num_groups}, got {channels}")
    for name, rows in (("weight", weight), ("bias", bias)):
        if rows.ndim != 2 or rows.shape[1] != channels or rows.shape[0] not in (1, batch):
            raise ValueError(f"{name} must be ({batch} or 1, {channels}), got {tuple(rows.shape)}")
    if len(sides) == 3 and not torch.onnx.is_in_onnx_export():  # of a volume, planes are rows: both are (B, HW, C)
        planes = group_norm_silu(x.flatten(2, 3), num_groups, weight, bias, eps, activation)
        return planes.unflatten(2, sides[:2])
    fits = x.is_contiguous(memory_format=torch.channels_last) and channels // num_groups <= WIDTHS[-1]
    if x.is_cuda and AVAILABLE and fits and x.dtype != torch.float64:
        return torch.ops.bbdm.group_norm_silu(x, num_groups, weight, bias, eps, activation)[0]
    whole = torch.onnx.is_in_onnx_export() or not torch.compiler.is_compiling()  # ONNX has an operator for it
    form = reference if whole else decomposed
    return form(x, num_groups, weight, bias, eps, activation)


def reference(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    """The op by PyTorch's group_norm, in the dtype of ``x``; float16 in float32, as its squares overflow."""
    if x.dtype == torch.float16:
        return reference(x.float(), num_groups, weight, bias, eps, activation).half()
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if weight.shape[0] == bias.shape[0] == 1:
        z = F.group_norm(x, num_groups, weight[0], bias[0], eps)
    else:
        one = (..., *[None] * (x.ndim - 2))  # for each channel, whatever the position
        z = torch.addcmul(bias[one], F.group_norm(x, num_groups, eps=eps), weight[one])
    return F.silu(z) if activation else z


def decomposed(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    """The op in plain operators, which a compiler fuses, autograd differentiates and ONNX knows.

    Compiled, it is two loops: sums of each channel, then z = slope x + offset. Stacked, slope and offset are
    stored; otherwise the compiler would recompute them for each pixel.
    """
    mean, rstd = (_per_channel(s, x.shape[1]) for s in _statistics(x, num_groups, eps))
    slope = rstd * weight[:, :, None, None]
    slope, offset = torch.stack([slope, bias[:, :, None, None] - mean * slope]).unbind()
    z = x * slope + offset
    return (F.silu(z) if activation else z).to(x.dtype).contiguous(memory_format=torch.channels_last)


def _statistics(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each group, (B, G), in one pass over the pixels.

    Each channel first, since channels are adjacent in memory, and relative to one of its pixels:
    E[d^2] - E[d]^2 cancels only where the mean is large compared with the spread. The result does not depend
    on which pixel, so no gradient flows to it.
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


# The kernels. A program's place in the grid is (block, chunk, image); HW is the number of rows, *_step a
# stride along B. The other constants are those of ``plan``.


@jit
def _load(address, mask):
    """Numbers in float32, 0 where the mask is false."""
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@jit
def _sum_members(of_channels, members):
    """(BLOCK_G,) sums over each group of (BLOCK_C,) numbers."""
    return tl.sum(tl.where(members, of_channels[None, :], 0.0), 1)


@jit
def _to_members(of_groups, members):
    """(1, BLOCK_C) for each channel its group's number, of (BLOCK_G,)."""
    return tl.sum(tl.where(members, of_groups[:, None], 0.0), 0, keep_dims=True)


@jit
def _statistics_kernel(
    x_ptr,  # (B, HW, C)
    mean_ptr, m2_ptr,  # (B, chunks, G), out: of a chunk's numbers, m2 the sum of squared deviations
    HW,
    C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
    SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    c, c_ok, g, g_ok, members = channels_of_block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk = tl.program_id(2), tl.num_programs(1), tl.program_id(1)
    seen = 0.0
    mean, m2 = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = rows_of_tile(row, c, c_ok, HW, C, ROWS)
        x = _load(x_ptr + offsets, ok)
        count = tl.minimum(tl.maximum(HW - row, 0), ROWS).to(tl.float32)
        tile_mean = tl.sum(x, 0) / tl.maximum(count, 1.0)
        deviation = tl.where(ok, x - tile_mean[None, :], 0.0)
        # Two passes over a tile in registers, tiles merged as by Chan et al. 1983: nothing large cancels.
        share = count / tl.maximum(seen + count, 1.0)
        delta = tile_mean - mean
        m2 += tl.sum(deviation * deviation, 0) + delta * delta * (seen * share)
        mean += delta * share
        seen += count
    group_mean = _sum_members(mean, members) / GROUP
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
    c, c_ok, g, g_ok, members = channels_of_block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk, k = tl.program_id(2), tl.num_programs(1), tl.program_id(1), tl.arange(0, BLOCK_K)
    parts, found = (image * chunks + k)[:, None] * (C // GROUP) + g[None, :], (k < chunks)[:, None] & g_ok[None, :]
    chunk_mean, chunk_m2 = _load(chunk_mean_ptr + parts, found), _load(chunk_m2_ptr + parts, found)
    count = tl.minimum(tl.maximum(HW - k * SPAN, 0), SPAN).to(tl.float32)[:, None]  # rows of a chunk
    pivot = _load(chunk_mean_ptr + image * chunks * (C // GROUP) + g, g_ok)  # keeps the sum small
    mean = pivot + tl.sum((chunk_mean - pivot[None, :]) * count, 0) / HW
    delta = chunk_mean - mean[None, :]
    rstd = tl.rsqrt(tl.sum(chunk_m2 / GROUP + delta * delta * count, 0) / HW + eps)
    if tl.program_id(1) == 0:
        tl.store(mean_ptr + image * (C // GROUP) + g, mean, mask=g_ok)
        tl.store(rstd_ptr + image * (C // GROUP) + g, rstd, mask=g_ok)

    weight = _load(weight_ptr + image * weight_step + c * weight_stride, c_ok)
    bias = _load(bias_ptr + image * bias_step + c * bias_stride, c_ok)
    center, scale = _to_members(mean, members), _to_members(rstd, members) * weight[None, :]
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = rows_of_tile(row, c, c_ok, HW, C, ROWS)
        x = _load(x_ptr + offsets, ok)
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
    c, c_ok, _, _, members = channels_of_block(C, GROUP, GROUPS, BLOCK_G, BLOCK_C)
    image, chunks, chunk = tl.program_id(2), tl.num_programs(1), tl.program_id(1)
    weight = _load(weight_ptr + image * weight_step + c * weight_stride, c_ok)
    bias = _load(bias_ptr + image * bias_step + c * bias_stride, c_ok)
    mean = _load(mean_ptr + image * (C // GROUP) + c // GROUP, c_ok)
    rstd = _load(rstd_ptr + image * (C // GROUP) + c // GROUP, c_ok)
    dweight, dbias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    along_mean, along_xhat = dbias[None, :], dweight[None, :]
    if MERGE:
        k = tl.arange(0, BLOCK_K)
        parts, found = (image * chunks + k)[:, None] * C + c[None, :], (k < chunks)[:, None] & c_ok[None, :]
        dweight = tl.sum(_load(chunk_dweight_ptr + parts, found), 0)
        dbias = tl.sum(_load(chunk_dbias_ptr + parts, found), 0)
        if tl.program_id(1) == 0:
            tl.store(dweight_ptr + image * C + c, dweight, mask=c_ok)
            tl.store(dbias_ptr + image * C + c, dbias, mask=c_ok)
        # Subtracted from dx: the part of weight dz along its group's mean, and the part along xhat.
        along_mean = _to_members(_sum_members(weight * dbias, members) / (HW * GROUP), members)
        along_xhat = _to_members(_sum_members(weight * dweight, members) / (HW * GROUP), members)
    for row in range(chunk * SPAN, (chunk + 1) * SPAN, ROWS):
        offsets, ok = rows_of_tile(row, c, c_ok, HW, C, ROWS)
        dz = _load(dy_ptr + offsets, ok)
        xhat = (_load(x_ptr + offsets, ok) - mean[None, :]) * rstd[None, :]
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


def _inputs(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Inputs as kernels take them: x in channels_last, weight and bias (B, C), and four strides and HW."""
    weight, bias = weight.expand(len(x), -1), bias.expand(len(x), -1)
    numbers = *weight.stride(), *bias.stride(), x.shape[2] * x.shape[3]
    return x.contiguous(memory_format=torch.channels_last), weight, bias, numbers


def _forward_triton(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, numbers = _inputs(x, weight, bias)
    blocks, chunks, constants = plan(x.shape[1], num_groups, numbers[-1], TILE, ACTIVATION=activation)
    y, mean, rstd = _forward_fake(x, num_groups)
    chunk_mean = x.new_empty((len(x), chunks, num_groups), dtype=torch.float32)
    partial = chunk_mean, torch.empty_like(chunk_mean)
    grid = blocks, chunks, len(x)
    with torch.cuda.device_of(x):
        _statistics_kernel[grid](x, *partial, numbers[-1], **constants)
        _apply_kernel[grid](x, weight, bias, *partial, y, mean, rstd, *numbers, eps, **constants)
    return y, mean, rstd


def _backward_triton(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, activation: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, numbers = _inputs(x, weight, bias)
    blocks, chunks, constants = plan(x.shape[1], mean.shape[1], numbers[-1], BACKWARD_TILE, ACTIVATION=activation)
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx, dweight, dbias = _backward_fake(dy, x)
    chunk_dweight = x.new_empty((len(x), chunks, x.shape[1]), dtype=torch.float32)
    tensors = dy, x, weight, bias, mean, rstd, chunk_dweight, torch.empty_like(chunk_dweight), dx, dweight, dbias
    with torch.cuda.device_of(x):
        for merge in (False, True):
            _backward_kernel[blocks, chunks, len(x)](*tensors, *numbers, **(constants | {"MERGE": merge}))
    return dx, dweight, dbias


@torch.library.custom_op(
    "bbdm::group_norm_silu",
    mutates_args=(),
    schema="(Tensor x, int num_groups, Tensor weight, Tensor bias, float eps, bool activation)"
    " -> (Tensor, Tensor, Tensor)",  # given, as it would have a SymInt for num_groups
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


@torch.library.custom_op("bbdm::group_norm_silu_backward", mutates_args=())
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
