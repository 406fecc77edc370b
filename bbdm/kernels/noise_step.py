"""Forward diffusion: the network's input and its target at time t, in one pass over the data."""

from __future__ import annotations

import torch


def noise_step(
    x0: torch.Tensor, y: torch.Tensor, t: torch.Tensor, table: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t and the training target, each a weighted sum of x0, y and noise.

    Args:
        x0: (B, C, H, W) target images.
        y: (B, C, H, W) source images.
        t: (B,) integers, rows of ``table``.
        table: (T + 1, 6) weights of x0, y, noise in x_t, then in the target, float32 or float64; the sums are made in
            that dtype.
        noise: (B, C, H, W) standard normals.

    Returns:
        x_t and target, each (B, C, H, W) in the dtype of ``x0``.
    """
    w = table[t.long()].view(-1, 6, *[1] * (x0.ndim - 1)).unbind(1)
    x_t = w[0] * x0 + w[1] * y + w[2] * noise
    target = w[3] * x0 + w[4] * y + w[5] * noise
    return x_t.to(x0.dtype), target.to(x0.dtype)
