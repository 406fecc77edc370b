"""The nearest code of each vector, without the table of all distances.

|z - e|^2 = |z|^2 + 2 (|e|^2 / 2 - z e), so the code with the least |e|^2 / 2 - z e is the nearest. On a GPU a
program goes through the codes and stores the best so far for each of its vectors; elsewhere a few vectors at
a time are compared with all codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bbdm.kernels.jit import AVAILABLE, jit, tl, triton

CHUNK = 256  # vectors that are compared with all codes at a time: their scores fit a cache
GROUP = 64  # codes whose least score is found first
BLOCK, CODES = 64, 16  # vectors of a program, and codes that it compares at a time


def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """The index of the code nearest to each vector; the lowest index of several.

    Args:
        z: (..., C), any floating dtype.
        codes: (N, C), any floating dtype.

    Returns:
        (...) int64. Arithmetic is in float32, or in float64 where both are; autocast does not change it.

    Raises:
        ValueError: a shape does not fit, or there are no codes.
    """
    if codes.ndim != 2 or not len(codes) or z.shape[-1:] != codes.shape[1:]:
        raise ValueError(f"codes must be (N, {z.shape[-1]}) with N at least 1, got {tuple(codes.shape)}")
    dtype = torch.float64 if z.dtype == codes.dtype == torch.float64 else torch.float32
    flat = z.reshape(-1, z.shape[-1]).to(dtype)
    return torch.ops.bbdm.nearest_code(flat, codes.to(dtype)).view(z.shape[:-1])


@torch.library.custom_op("bbdm::nearest_code", mutates_args=())
def _nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """The reference, on (M, C) and (N, C)."""
    count = len(codes)
    padded = -count % GROUP
    offset = torch.nn.functional.pad(codes.square().sum(1) / 2, (0, padded), value=torch.inf)
    weights = torch.nn.functional.pad(-codes, (0, 0, 0, padded)).T
    out = torch.empty(len(z), dtype=torch.int64, device=z.device)
    with torch.autocast(z.device.type, enabled=False):
        for start in range(0, len(z), CHUNK):
            scores = torch.addmm(offset, z[start : start + CHUNK], weights).unflatten(1, (-1, GROUP))
            group = scores.amin(2).argmin(1)
            within = scores[torch.arange(len(scores), device=z.device), group].argmin(1)
            out[start : start + CHUNK] = group * GROUP + within
    return out


@_nearest_code.register_fake
def _output(z: Tensor, codes: Tensor) -> Tensor:
    return z.new_empty(len(z), dtype=torch.int64)


@jit
def _nearest_code_kernel(
    out_ptr,  # (M,) int64, written
    z_ptr,  # (M, C) float32 or float64: the dtype of all arithmetic
    codes_ptr,  # (N, C) of the same
    vectors,  # M
    count,  # N
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    CODES: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dtype = z_ptr.dtype.element_ty
    best = tl.full((BLOCK,), float("inf"), dtype)
    index = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, count, CODES):
        code = first + tl.arange(0, CODES)
        score = tl.where(code < count, 0.0, float("inf")).to(dtype)[None, :] + tl.zeros((BLOCK, CODES), dtype)
        for c in tl.static_range(C):  # pyright: ignore[reportGeneralTypeIssues]
            value = tl.load(z_ptr + row * C + c, mask=row < vectors, other=0.0)
            e = tl.load(codes_ptr + code * C + c, mask=code < count, other=0.0)
            score += (0.5 * e[None, :] - value[:, None]) * e[None, :]
        least = tl.min(score, 1)
        index = tl.where(least < best, first + tl.argmin(score, 1), index)
        best = tl.minimum(least, best)
    tl.store(out_ptr + row, index.to(tl.int64), mask=row < vectors)


def _launch(z: Tensor, codes: Tensor) -> Tensor:
    """The kernel, on arguments that were checked."""
    out = _output(z, codes)
    with torch.cuda.device_of(z):
        _nearest_code_kernel[(triton.cdiv(len(z), BLOCK),)](
            out, z.contiguous(), codes.contiguous(), len(z), len(codes), C=z.shape[1], BLOCK=BLOCK, CODES=CODES
        )
    return out


if AVAILABLE:
    _nearest_code.register_kernel("cuda")(_launch)
