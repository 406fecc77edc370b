"""The PatchGAN discriminator (Isola et al. 2017): real or made, for each overlapping patch of an image.

It normalises each image alone (Wu and He 2018, GroupNorm), where the paper normalises a batch. So its result
for an image is the same in any batch, and several processes compute what one does.
"""

from __future__ import annotations

import torch
from torch import nn

LAYERS = 3  # with a stride of 2, as in Esser et al. 2021; a patch is of 70 x 70 pixels
GROUPS = 8
SLOPE = 0.2  # of LeakyReLU
SPREAD = 0.02  # of initial weights
LEAST = 2**LAYERS * 3  # pixels along a side that leave one patch


class PatchGAN(nn.Module):
    """Convolutions with kernels of 4 x 4: three that halve the size, and two that do not.

    Args:
        image_channels: the channels of an image.
        width: channels of the first layer, a multiple of 4; each of the next three has twice as many.

    Raises:
        ValueError: ``width`` is no such multiple.
    """

    def __init__(self, image_channels: int, width: int = 64) -> None:
        super().__init__()
        if width < 1 or width % (GROUPS // 2):
            raise ValueError(f"the discriminator's width must be a multiple of {GROUPS // 2}, got {width}")
        layers: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for stride in (*[2] * (LAYERS - 1), 1):
            conv = nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False)
            layers += [conv, nn.GroupNorm(GROUPS, 2 * width), nn.LeakyReLU(SLOPE)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=SPREAD)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, H / 8 - 2, W / 8 - 2) of images (B, C, H, W): large where they look real."""
        return self.layers(x)
