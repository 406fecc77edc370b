"""One step of any solver: an affine map whose weights are one row of a step table.

The step works in place on a sampler's buffers and finds its row on the device, so that a loop allocates
nothing and a captured CUDA graph serves every step. CUDA and ROCm run the Triton kernel, every other device
the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bbdm.kernels.elementwise import CHANNELS_LAST, addresses, check_devices, launch, memory_format_of
from bbdm.kernels.jit import AVAILABLE, constexpr, jit, tl
from bbdm.kernels.philox import SAMPLING, draw_normals, normal

COLUMNS = 10  # of a row: p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y


def bridge_step(
    x: Tensor,
    x0hat: Tensor,
    inputs: Tensor,
    pred: Tensor,
    y: Tensor,
    rows: Tensor,
    step: Tensor,
    seeds: Tensor | None = None,
    noise: Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    mask: Tensor | None = None,
) -> None:
    """Replace the state, the estimate of the clean image and the network's input by those of the next step.

    x0hat_next = p_x x + p_y y + p_pred pred, clamped if asked, then
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
        rows: (K, 10) the weights p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y of every step, in the
            dtype of ``x``.
        step: (1,) integer in [0, K), the row to use and the step of the noise.
        seeds: (B,) int64, from which z is drawn. Where c_z is 0, neither these nor noise are needed. Where it
            is not and both are missing, the CPU raises, and a GPU gives NaN: the host does not wait for it.
        noise: (B, C, H, W) z itself, in any floating dtype, in place of seeds.
        clamp: (low, high) for x0hat, or None.
        mask: (B, 1, H, W) in the dtype of ``x``, or None: x0hat becomes mask x0hat + (1 - mask) y.

    Raises:
        ValueError: an argument has the wrong shape, dtype, device or memory format, shares memory with a
            buffer, or there are both seeds and noise.
    """
    low, high = (None, None) if clamp is None else clamp
    images = {"x": x, "x0hat": x0hat, "inputs": inputs, "y": y, "pred": pred, "noise": noise}
    _check(x, {name: image for name, image in images.items() if image is not None}, rows, step, seeds, mask)
    unchecked(x, x0hat, inputs, pred, y, rows, step, seeds, noise, mask, low, high)


def unchecked(x: Tensor, *others: Any) -> None:
    """:func:`bridge_step` of arguments in its op's order, which are known to be right."""
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    (_reference if eager else _bridge_step)(x, *others)


def _check(
    x: Tensor, images: Mapping[str, Tensor], rows: Tensor, step: Tensor, seeds: Tensor | None, mask: Tensor | None
) -> None:
    """Checks shapes, dtypes, devices and memory; reads no value, so the device is not synchronised."""
    if x.ndim not in CHANNELS_LAST or x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be a float32 or float64 (B, C, H, W) tensor, got {tuple(x.shape)} of {x.dtype}")
    if seeds is not None and "noise" in images:
        raise ValueError("bridge_step takes seeds or noise, got both")
    check_devices({**images, "rows": rows, "step": step, "seeds": seeds, "mask": mask}, "x")
    if mask is not None and (mask.shape != (len(x), 1, *x.shape[2:]) or mask.dtype != x.dtype):
        wanted = (len(x), 1, *x.shape[2:])
        raise ValueError(f"mask must be {wanted} of {x.dtype}, got {tuple(mask.shape)} of {mask.dtype}")
    memory_format = memory_format_of(x)
    wanted = str(memory_format).removeprefix("torch.").removesuffix("_format")
    for name, image in images.items():
        if image.shape != x.shape:
            raise ValueError(f"{name} must have shape {tuple(x.shape)} like x, got {tuple(image.shape)}")
        if name in ("x0hat", "y") and image.dtype != x.dtype:
            raise ValueError(f"{name} must be {x.dtype} like x, got {image.dtype}")
        if not image.is_floating_point():
            raise ValueError(f"{name} must be a float tensor, got {image.dtype}")
        if name not in ("pred", "noise") and not image.is_contiguous(memory_format=memory_format):
            rule = "contiguous or channels_last" if name == "x" else f"{wanted} like x"
            raise ValueError(f"{name} must be {rule}, got strides {image.stride()}")
    if rows.ndim != 2 or rows.shape[1] != COLUMNS or rows.dtype != x.dtype:
        raise ValueError(f"rows must be (K, {COLUMNS}) of {x.dtype}, got {tuple(rows.shape)} of {rows.dtype}")
    if step.shape != (1,) or step.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"step must be (1,) of int32 or int64, got {tuple(step.shape)} of {step.dtype}")
    if not torch.compiler.is_compiling():  # where there are no addresses
        outputs = {images[name].data_ptr() for name in ("x", "x0hat", "inputs")}
        if len(outputs) < 3 or outputs & {images[name].data_ptr() for name in ("y", "pred")}:
            raise ValueError("x, x0hat and inputs must be tensors of their own, got two that share their memory")


def _reference(
    x: Tensor,
    x0hat: Tensor,
    inputs: Tensor,
    pred: Tensor,
    y: Tensor,
    rows: Tensor,
    step: Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
    mask: Tensor | None,
    low: float | None,
    high: float | None,
) -> None:
    """The reference. It reads the row on the host, which costs nothing on a CPU."""
    index = int(step)
    p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y = rows[index].tolist()
    z = noise
    if c_z != 0.0 and z is None:
        if seeds is None:
            raise ValueError(f"step {index} has noise of weight {c_z}, got neither seeds nor noise")
        z = normal(seeds, index, tuple(x.shape[1:]), SAMPLING)
    estimate = _weighted((p_x, x), (p_y, y), (p_pred, pred))
    if low is not None or high is not None:
        estimate.clamp_(low, high)
    if mask is not None:
        estimate = mask * estimate + (1 - mask) * y
    x.copy_(_weighted((c_x, x), (c_y, y), (c_0, estimate), (c_h, x0hat), (c_z, z)))
    x0hat.copy_(estimate)
    inputs.copy_(x if (i_x, i_y) == (1.0, 0.0) else _weighted((i_x, x), (i_y, y)))


def _weighted(*terms: tuple[float, Tensor | None]) -> Tensor:
    """Sum of weight * tensor over the terms of weight not 0, in the shape and dtype of the first tensor."""
    like = terms[0][1]
    assert like is not None
    total = torch.zeros_like(like)
    for weight, tensor in terms:
        if weight != 0.0 and tensor is not None:
            total.add_(tensor.to(total.dtype), alpha=weight)
    return total


_bridge_step = torch.library.custom_op("bbdm::bridge_step", _reference, mutates_args=("x", "x0hat", "inputs"))


@_bridge_step.register_fake
def _fake(*_: object) -> None:
    """Nothing to return."""


_SAMPLING = constexpr(SAMPLING)
_COLUMNS = constexpr(COLUMNS)


@jit
def _bridge_step_kernel(
    x_ptr,  # (B, C, H, W) float32 or float64: the dtype of all arithmetic
    x0hat_ptr,  # (B, C, H, W) as x
    inputs_ptr,  # (B, C, H, W) any floating dtype
    pred_ptr,  # (B, C, H, W) any floating dtype
    y_ptr,  # (B, C, H, W) as x
    rows_ptr,  # (K, 10) as x
    step_ptr,  # (1,) integer
    seeds_ptr,  # (B,) int64, or None
    noise_ptr,  # (B, C, H, W) any floating dtype, or None
    mask_ptr,  # (B, 1, H, W) as x, or None
    size,  # C H W
    pixels,  # H W
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CHANNELS: tl.constexpr,  # C where memory is channels_last, 0 where it is contiguous
    BLOCK: tl.constexpr,
):
    image, start, at, inside = addresses(size, BLOCK)
    step = tl.load(step_ptr)
    row = rows_ptr + step * _COLUMNS
    p_x, p_y, p_pred = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    c_x, c_y, c_0 = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    c_h, c_z = tl.load(row + 6), tl.load(row + 7)
    i_x, i_y = tl.load(row + 8), tl.load(row + 9)

    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    pred = tl.load(pred_ptr + at, mask=inside).to(x.dtype)
    x0hat = _term(p_x, x) + _term(p_y, y) + _term(p_pred, pred)
    if LOW is not None:
        x0hat = tl.clamp(x0hat, LOW, HIGH, propagate_nan=tl.PropagateNan.ALL)
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
            x_next += c_z * draw_normals(seed, start, step, pixels, _SAMPLING, CHANNELS, BLOCK).to(x.dtype)
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
    *tensors, low, high = others
    launch(_bridge_step_kernel, x, x, *tensors, LOW=low, HIGH=high)


if AVAILABLE:
    _bridge_step.register_kernel("cuda")(_launch)
