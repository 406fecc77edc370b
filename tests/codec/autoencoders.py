"""Tiny autoencoders of diffusers, and of a user."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from bbdm.codec import Codec, wrap_codec


def tiny_kl(seed: int = 0, **settings: Any) -> AutoencoderKL:
    """Stride 2, 4 channels."""
    torch.manual_seed(seed)
    default: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return AutoencoderKL(**{**default, **settings})


class Own(nn.Module):
    """An autoencoder of a user, of stride 2 and 5 channels, with a buffer that a state dict leaves out."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.down = nn.Conv2d(3, 5, 2, stride=2)
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)
        self.gain = nn.Buffer(torch.tensor(2.0), persistent=False)

    def to_code(self, image: Tensor) -> tuple[Tensor, str]:
        return self.gain * self.down(image), "no tensor"


def own_codec(seed: int = 0, **settings: Any) -> Codec:
    """Its codec."""
    return wrap_codec(
        Own(seed),
        lambda module, image: module.to_code(image)[0],
        lambda module, latents: module.up(latents),
        **{"channels": 5, "stride": 2, **settings},
    )
