"""One step of any solver: an affine map whose weights are one row of a step table."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def bridge_step(
    pred: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    x0_prev: torch.Tensor | None,
    noise: torch.Tensor | None,
    prediction: Sequence[float],
    coefficients: Sequence[float],
    clamp: tuple[float, float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next state and the estimate of the clean image.

    x0hat = p_x x + p_y y + p_p pred, clamped if asked, then
    x_next = c_x x + c_y y + c_0 x0hat + c_h x0_prev + c_z noise.

    Args:
        pred: (B, C, H, W) what the network said, in any floating dtype.
        x: (B, C, H, W) the state.
        y: (B, C, H, W) the source.
        x0_prev: the x0hat of the step before; read only where c_h is not 0.
        noise: standard normals; read only where c_z is not 0.
        prediction: the 3 weights p_x, p_y, p_p.
        coefficients: the 5 weights c_x, c_y, c_0, c_h, c_z.
        clamp: (low, high) for x0hat, or None.

    Returns:
        x_next and x0hat, each (B, C, H, W) in the dtype of ``x``.
    """
    p_x, p_y, p_pred = prediction
    c_x, c_y, c_0, c_h, c_z = coefficients
    x0hat = _weighted((p_x, x), (p_y, y), (p_pred, pred.to(x.dtype)))
    if clamp is not None:
        x0hat = x0hat.clamp(*clamp)
    return _weighted((c_x, x), (c_y, y), (c_0, x0hat), (c_h, x0_prev), (c_z, noise)), x0hat


def _weighted(*terms: tuple[float, torch.Tensor | None]) -> torch.Tensor:
    """Sum of weight * tensor over the terms whose weight is not 0."""
    total: torch.Tensor | None = None
    for weight, tensor in terms:
        if weight == 0.0:
            continue
        if tensor is None:
            raise ValueError(f"a tensor with weight {weight} is missing from this step")
        term = weight * tensor
        total = term if total is None else total + term
    if total is None:
        raise ValueError("every weight of this step is 0")
    return total
