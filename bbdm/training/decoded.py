"""A loss on decoded crops, of bridges in latents: errors of latents count as they show in pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.kernels import philox
from bbdm.training.augmentation import taken_along

CROP = 128  # pixels along a side, of pictures that are larger


class DecodedLoss:
    """LPIPS (Zhang et al. 2018) between what the estimate of a target and the target decode to, on a crop.

    Args:
        codec: what decodes latents, in float32.
        bridge: that which predictions are of.
        perceptual: (B, 3, H, W) twice, in [-1, 1], to distances (B, 1, 1, 1); with a gradient.

    Raises:
        ValueError: no gradient passes the codec's decoder.
    """

    def __init__(
        self, codec: Codec, bridge: Bridge, perceptual: Callable[..., torch.Tensor]
    ) -> None:
        self.codec = codec
        self.bridge = bridge
        self.perceptual = perceptual
        latents = torch.zeros(1, codec.channels, 8, 8, device=codec.device, requires_grad=True)
        if not codec.decoder(latents).requires_grad:
            raise ValueError(
                "decoded_loss needs an autoencoder whose decoder has a gradient, and a codebook has none"
            )

    def __call__(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        x0: torch.Tensor,
        t: torch.Tensor,
        seeds: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Distances (B,), with a gradient for the prediction.

        Args:
            prediction: (B, C, H, W) of the network.
            target: (B, C, H, W) that it should predict.
            x0: (B, C, H, W) the target's latents.
            t: (B,) times of the bridge.
            seeds: (B,) int64, one for each example, which crops are drawn from.
            step: the number of the optimizer step.
        """
        zeros = torch.zeros_like(target)
        estimate = x0 + self.bridge.estimate(zeros, zeros, prediction.to(target.dtype) - target, t)
        side = max(1, CROP // self.codec.stride)
        with torch.no_grad():
            true = self._decoded(cropped(x0, side, seeds, step))
        return self.perceptual(self._decoded(cropped(estimate, side, seeds, step)), true).flatten()

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) of latents in the space of the bridge."""
        device = latents.device.type
        autocast = (
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.float16
        )
        with torch.autocast(device, enabled=autocast):  # decoders leave the range of float16
            pictures: Any = self.codec.decoder(self.codec.denormalize(latents))
        return pictures.expand(-1, 3, -1, -1)


def cropped(images: torch.Tensor, side: int, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """Crops of images (B, C, H, W), ``side`` or the whole along an axis, at places drawn from seeds (B,)."""
    drawn = philox.uniforms(seeds, step, 2, philox.CROP_LANE)
    for axis in (2, 3):
        length = images.shape[axis]
        kept = min(side, length)
        first = (drawn[:, axis - 2] * (length - kept + 1)).long()
        index = first[:, None] + torch.arange(kept, device=images.device)
        images = taken_along(images, axis, index)
    return images
