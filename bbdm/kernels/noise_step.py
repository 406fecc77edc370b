"""Forward diffusion: the network's input and its target at time t, in one pass over the data.

CUDA and ROCm run the Triton kernel, every other device the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bbdm.kernels.elementwise import (
    AVAILABLE,
    addresses,
    constexpr,
    jit,
    launch,
    memory_format_of,
    tl,
)
from bbdm.kernels.philox import TRAINING, draw_normals, normal

COLUMNS = 6  # of a row of the table: weights of x0, y, noise in x_t, then in the target


def noise_step(
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    step: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x_t and the training target, each a weighted sum of x0, y and noise. No gradient flows through them.

    Args:
        x0: (B, C, H, W) target images.
        y: (B, C, H, W) source images.
        t: (B,) integers, rows of ``table``. One outside it raises on the CPU and gives NaN on a GPU.
        table: (T + 1, 6) weights of x0, y, noise in x_t, then in the target, float32 or float64; the sums are
            made in that dtype.
        noise: (B, C, H, W) standard normals; None where there are seeds.
        seeds: (B,) int64, one an image, from which noise is drawn in its place.
        step: the optimizer step of noise from seeds, an integer or a (1,) tensor of one.

    Returns:
        x_t and target, each (B, C, H, W) in the dtype and memory format of ``x0``.

    Raises:
        ValueError: a tensor has the wrong shape, images or seeds have the wrong dtype, or there is not
            exactly one of noise and seeds.
    """
    if (noise is None) == (seeds is None):
        raise ValueError(
            f"noise_step takes one of noise and seeds, got {'neither' if noise is None else 'both'}"
        )
    if seeds is not None and step is None:
        raise ValueError("seeds need the optimizer step, got step=None")
    if step is not None and not isinstance(step, Tensor):
        step = torch.full((1,), step, device=x0.device)
    # No value is read from here on, so the device is not synchronised.
    for name, image in {"x0": x0, "y": y, "noise": noise}.items():
        if image is not None and (image.shape != x0.shape or not image.is_floating_point()):
            got = f"{tuple(image.shape)} of {image.dtype}"
            raise ValueError(f"{name} must be a float tensor of shape {tuple(x0.shape)}, got {got}")
    shapes = {"t": (t, (len(x0),)), "table": (table, (len(table), COLUMNS))}
    if step is not None:
        shapes["step"] = (step, (1,))
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    if seeds is not None and (seeds.shape != x0.shape[:1] or seeds.dtype != torch.int64):
        raise ValueError(
            f"seeds must be ({len(x0)},) of int64, got {tuple(seeds.shape)} of {seeds.dtype}"
        )
    return _noise_step(x0, y, t, table, noise, seeds, step)


@torch.library.custom_op("bbdm::noise_step", mutates_args=())
def _noise_step(
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    seeds: Tensor | None,
    step: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The reference."""
    if noise is None:
        assert seeds is not None
        assert step is not None
        noise = normal(seeds, step, tuple(x0.shape[1:]), TRAINING)
    w = table[t.long()].view(-1, COLUMNS, *[1] * (x0.ndim - 1)).unbind(1)
    terms = [tensor.to(table.dtype) for tensor in (x0, y, noise)]
    x_t, target = _outputs(x0)
    x_t.copy_(w[0] * terms[0] + w[1] * terms[1] + w[2] * terms[2])
    target.copy_(w[3] * terms[0] + w[4] * terms[1] + w[5] * terms[2])
    return x_t, target


@_noise_step.register_fake
def _outputs(x0: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Empty x_t and target."""
    memory_format = memory_format_of(x0)
    x_t = torch.empty_like(x0, memory_format=memory_format)
    target = torch.empty_like(x0, memory_format=memory_format)
    return x_t, target


_TRAINING = constexpr(TRAINING)
_COLUMNS = constexpr(COLUMNS)


@jit
def _noise_step_kernel(
    x_t_ptr,  # (B, C, H, W) as x0, written
    target_ptr,  # (B, C, H, W) as x0, written
    x0_ptr,  # (B, C, H, W) any floating dtype
    y_ptr,  # (B, C, H, W) any floating dtype
    t_ptr,  # (B,) integer
    table_ptr,  # (rows, 6) float32 or float64: the dtype of all arithmetic
    noise_ptr,  # (B, C, H, W) any floating dtype, or None and then
    seeds_ptr,  # (B,) int64
    step_ptr,  # (1,) integer
    rows,  # T + 1
    size,  # C H W
    pixels,  # H W
    CHANNELS: tl.constexpr,  # C where memory is channels_last, 0 where it is contiguous
    BLOCK: tl.constexpr,
):
    image, start, at, inside = addresses(size, BLOCK)
    dtype = table_ptr.dtype.element_ty

    t = tl.load(t_ptr + image).to(tl.int64)
    row = table_ptr + t * _COLUMNS
    # else NaN, as a kernel cannot raise; nothing outside the table is read
    known = (t >= 0) & (t < rows)
    a_x0 = tl.load(row, known, float("nan"))
    a_y = tl.load(row + 1, known, float("nan"))
    a_z = tl.load(row + 2, known, float("nan"))
    b_x0 = tl.load(row + 3, known, float("nan"))
    b_y = tl.load(row + 4, known, float("nan"))
    b_z = tl.load(row + 5, known, float("nan"))

    x0 = tl.load(x0_ptr + at, mask=inside).to(dtype)
    y = tl.load(y_ptr + at, mask=inside).to(dtype)
    if noise_ptr is not None:
        z = tl.load(noise_ptr + at, mask=inside).to(dtype)
    else:
        seed = tl.load(seeds_ptr + image)
        step = tl.load(step_ptr)
        z = draw_normals(seed, start, step, pixels, _TRAINING, CHANNELS, BLOCK).to(dtype)
    x_t = a_x0 * x0 + a_y * y + a_z * z
    target = b_x0 * x0 + b_y * y + b_z * z
    tl.store(x_t_ptr + at, x_t.to(x_t_ptr.dtype.element_ty), mask=inside)
    tl.store(target_ptr + at, target.to(target_ptr.dtype.element_ty), mask=inside)


def _launch(
    x0: Tensor, y: Tensor, t: Tensor, table: Tensor, *others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The kernel, on arguments that were checked."""
    x_t, target = _outputs(x0)
    launch(_noise_step_kernel, x0, x_t, target, x0, y, t, table, *others, len(table))
    return x_t, target


if AVAILABLE:
    _noise_step.register_kernel("cuda")(_launch)
