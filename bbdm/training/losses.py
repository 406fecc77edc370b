"""The loss that bridges are trained with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bbdm.bridges import Bridge
from bbdm.networks.base import Conditions
from bbdm.training.config import Loss

Errors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
HUBER_DELTA = 0.1  # errors below it are squared; predictions are on the scale of pictures in [-1, 1]


def bridge_loss(
    network: Callable[..., torch.Tensor],
    bridge: Bridge,
    x0: torch.Tensor,
    y: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor | None = None,
    loss: Loss | Errors = "l1",
    conditions: Conditions | None = None,
    *,
    seeds: torch.Tensor | None = None,
    step: int | None = None,
    mask: torch.Tensor | None = None,
    per_image: bool = False,
) -> torch.Tensor:
    """Distance between the network's prediction and the bridge's target, the mean over a batch.

    Args:
        network: called with what the bridge shows of x_t and t, and the conditions.
        bridge: defines x_t, what is shown of it, and the target.
        x0: (B, C, H, W) target images; for volumes, here and below, H, W is D, H, W.
        y: (B, C, H, W) source images in the target's channels: ``network.endpoint(source)``.
        t: (B,) times: integers or, of a continuous bridge, reals.
        noise: (B, C, H, W) standard normals, in place of ``seeds`` and ``step``.
        loss: ``l1`` (the papers'), ``l2`` or ``huber``, which is l2 for small errors and l1 for large ones;
            or a function of (prediction, target) that returns errors of their shape.
        conditions: tensors by name that the network sees, such as ``{"source": source}``; None for none.
        seeds: (B,) int64, one for each image; noise is a function of the seed and of ``step``.
        step: the number of the optimizer step.
        mask: (B, 1, H, W), 1 where pixels count, 0 where they do not; None where all do.
        per_image: return the mean over each image, (B,), in place of a scalar.

    Raises:
        ValueError: ``loss`` returned another shape; or see :meth:`~bbdm.bridges.base.Bridge.add_noise`.
    """
    shown, target = bridge.add_noise(x0, y, t, noise, seeds=seeds, step=step)
    prediction = network(shown, bridge.seen(t), conditions).to(target.dtype)
    if not isinstance(loss, str):
        errors = loss(prediction, target)
        if errors.shape != target.shape:
            shape = tuple(target.shape)
            raise ValueError(f"loss must return errors of the target's shape, {shape}, got {tuple(errors.shape)}")
    elif loss == "huber":
        errors = F.huber_loss(prediction, target, reduction="none", delta=HUBER_DELTA)
    else:
        errors = (F.l1_loss if loss == "l1" else F.mse_loss)(prediction, target, reduction="none")
    image = tuple(range(1, errors.ndim))  # all axes of an image
    if mask is not None:
        counted = mask.sum(dim=image).clamp(min=1) * errors.shape[1]
        losses = (errors * mask).sum(dim=image) / counted
        return losses if per_image else losses.mean()
    return errors.mean(dim=image) if per_image else errors.mean()
