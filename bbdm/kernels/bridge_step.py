"""One step of any solver: an affine map whose weights are one row of a step table.

The step works in place on a sampler's buffers and reads its row on the device, so that a loop allocates
nothing and a captured CUDA graph serves every step. CUDA and ROCm run the Triton kernel, every other device
the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bbdm.kernels.elementwise import AVAILABLE, addresses, constexpr, jit, launch, tl
from bbdm.kernels.philox import SAMPLING, draw_normals, normal

COLUMNS = 10  # of a row: p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y


def bridge_step(
    x: Tensor,
    x0hat: Tensor,
    inputs: Tensor,
    pred: Tensor,
    y: Tensor,
    row: Tensor,
    step: Tensor,
    seeds: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Replace the state, the estimate of the clean image and the network's input by those of the next step.

    x0hat_next = p_x x + p_y y + p_pred pred, then
    x_next = c_x x + c_y y + c_0 x0hat_next + c_h x0hat + c_z z, and the network is shown i_x x_next + i_y y.
    An argument of weight 0 has no influence: it may be NaN or uninitialised memory.

    Args:
        x: (B, C, H, W) the state, float32 or float64, contiguous or channels_last; overwritten with x_next.
            For volumes, here and below, H, W is D, H, W.
        x0hat: (B, C, H, W) like ``x``, the previous step's estimate; overwritten with this step's.
        inputs: (B, C, H, W) of any floating dtype; overwritten with what the network is shown next.
        pred: (B, C, H, W) the network's output, in any floating dtype. It is copied where its memory format
            is not that of ``x``, as is the noise.
        y: (B, C, H, W) like ``x``, the source.
        row: (10,) the weights p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y, in the dtype of ``x``: one
            of :attr:`bbdm.bridges.timesteps.StepTable.rows`.
        step: (1,) integer of at least 0, the number of the noise.
        seeds: (B,) int64, from which z is drawn. Where c_z is 0, neither these nor noise are needed. Where it
            is not and both are missing, the CPU raises, and a GPU gives NaN: the host does not wait for it.
        noise: (B, C, H, W) z itself, in any floating dtype, in place of seeds.
        mask: (B, 1, H, W) in the dtype of ``x``, or None: x0hat becomes mask x0hat + (1 - mask) y.

    Raises:
        ValueError: a tensor has another shape than it must; or on a CPU, the row has noise, and there are
            neither seeds nor noise.
    """
    # A CPU would broadcast what is smaller, and a kernel would read what lies behind it
    shape = x.shape
    if pred.shape != shape:
        raise ValueError(f"the network must predict {tuple(shape)}, got {tuple(pred.shape)}")
    wanted = {
        "row": (row, (COLUMNS,)),
        "x0hat": (x0hat, shape),
        "inputs": (inputs, shape),
        "y": (y, shape),
    }
    if noise is not None:
        wanted["noise"] = (noise, shape)
    if seeds is not None:
        wanted["seeds"] = (seeds, shape[:1])
    if mask is not None:
        wanted["mask"] = (mask, (shape[0], 1, *shape[2:]))
    for name, (tensor, expected) in wanted.items():
        if tensor.shape != expected:
            raise ValueError(f"{name} must be {tuple(expected)}, got {tuple(tensor.shape)}")
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    op = _reference if eager else _bridge_step
    op(x, x0hat, inputs, pred, y, row, step, seeds, noise, mask)


def _reference(
    x: Tensor,
    x0hat: Tensor,
    inputs: Tensor,
    pred: Tensor,
    y: Tensor,
    row: Tensor,
    step: Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
    mask: Tensor | None,
) -> None:
    """The reference. It reads the row on the host, which costs nothing on a CPU."""
    p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y = row.tolist()
    z = noise
    if c_z != 0.0 and z is None:
        number = int(step)
        if seeds is None:
            raise ValueError(
                f"step {number} has noise of weight {c_z}, got neither seeds nor noise"
            )
        z = normal(seeds, number, tuple(x.shape[1:]), SAMPLING)
    estimate = _weighted((p_x, x), (p_y, y), (p_pred, pred))
    if mask is not None:
        estimate = mask * estimate + (1 - mask) * y
    x.copy_(_weighted((c_x, x), (c_y, y), (c_0, estimate), (c_h, x0hat), (c_z, z)))
    x0hat.copy_(estimate)
    if i_x == 1.0 and i_y == 0.0:
        inputs.copy_(x)
    else:
        inputs.copy_(_weighted((i_x, x), (i_y, y)))


def _weighted(*terms: tuple[float, Tensor | None]) -> Tensor:
    """Sum of weight * tensor over the terms of weight not 0, in the shape and dtype of the first tensor."""
    like = terms[0][1]
    assert like is not None
    total: Tensor | None = None
    for weight, tensor in terms:
        if weight == 0.0 or tensor is None:
            continue
        if tensor.dtype != like.dtype:
            tensor = tensor.to(like.dtype)
        if total is None:
            total = tensor * weight
        else:
            total.add_(tensor, alpha=weight)
    if total is None:
        return torch.zeros_like(like)
    return total


_bridge_step = torch.library.custom_op(
    "bbdm::bridge_step", _reference, mutates_args=("x", "x0hat", "inputs")
)


@_bridge_step.register_fake
def _fake(*_: object) -> None:
    """Nothing to return."""


_SAMPLING = constexpr(SAMPLING)


@jit
def _bridge_step_kernel(
    x_ptr,  # (B, C, H, W) float32 or float64: the dtype of all arithmetic
    x0hat_ptr,  # (B, C, H, W) as x
    inputs_ptr,  # (B, C, H, W) any floating dtype
    pred_ptr,  # (B, C, H, W) any floating dtype
    y_ptr,  # (B, C, H, W) as x
    row_ptr,  # (10,) as x
    step_ptr,  # (1,) integer
    seeds_ptr,  # (B,) int64, or None
    noise_ptr,  # (B, C, H, W) any floating dtype, or None
    mask_ptr,  # (B, 1, H, W) as x, or None
    size,  # C H W
    pixels,  # H W
    CHANNELS: tl.constexpr,  # C where memory is channels_last, 0 where it is contiguous
    BLOCK: tl.constexpr,
):
    image, start, at, inside = addresses(size, BLOCK)
    step = tl.load(step_ptr)
    p_x = tl.load(row_ptr)
    p_y = tl.load(row_ptr + 1)
    p_pred = tl.load(row_ptr + 2)
    c_x = tl.load(row_ptr + 3)
    c_y = tl.load(row_ptr + 4)
    c_0 = tl.load(row_ptr + 5)
    c_h = tl.load(row_ptr + 6)
    c_z = tl.load(row_ptr + 7)
    i_x = tl.load(row_ptr + 8)
    i_y = tl.load(row_ptr + 9)

    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    pred = tl.load(pred_ptr + at, mask=inside).to(x.dtype)
    x0hat = _term(p_x, x) + _term(p_y, y) + _term(p_pred, pred)
    if mask_ptr is not None:
        offset = start + tl.arange(0, BLOCK)
        pixel = offset % pixels if CHANNELS == 0 else offset // CHANNELS
        mask = tl.load(mask_ptr + image.to(tl.int64) * pixels + pixel, mask=inside)
        x0hat = mask * x0hat + (1 - mask) * y
    x_next = _term(c_x, x) + _term(c_y, y) + _term(c_0, x0hat)
    if c_h != 0.0:
        x_next += c_h * tl.load(x0hat_ptr + at, mask=inside)
    if c_z != 0.0:
        if seeds_ptr is not None:
            seed = tl.load(seeds_ptr + image)
            x_next += c_z * draw_normals(seed, start, step, pixels, _SAMPLING, CHANNELS, BLOCK).to(
                x.dtype
            )
        elif noise_ptr is not None:
            x_next += c_z * tl.load(noise_ptr + at, mask=inside).to(x.dtype)
        else:
            x_next += float("nan")  # no noise: shown in the result, as a kernel cannot raise
    tl.store(x_ptr + at, x_next, mask=inside)
    tl.store(x0hat_ptr + at, x0hat, mask=inside)
    shown = _term(i_x, x_next) + _term(i_y, y)
    tl.store(inputs_ptr + at, shown.to(inputs_ptr.dtype.element_ty), mask=inside)


@jit
def _term(weight, value):
    """Weight times value, and 0 where the weight is 0 even if the value is not finite."""
    return weight * tl.where(weight != 0.0, value, 0.0)


def _launch(x: Tensor, *others: Any) -> None:
    """The kernel, on arguments that were checked."""
    launch(_bridge_step_kernel, x, x, *others)


if AVAILABLE:
    _bridge_step.register_kernel("cuda")(_launch)
