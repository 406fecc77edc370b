"""The settings of the autoencoders, and their presets, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from bbdm.networks.checks import check_integers


@dataclass(frozen=True)
class VQGANConfig:
    """The settings of a network, which decide its shapes and what it computes.

    Raises:
        ValueError: no network can be built from a value.
    """

    image_channels: int = 3  # channels of an image
    latent_channels: int = 3  # also the length of a code
    num_codes: int = 8192  # 0: no codebook, a KL autoencoder
    model_channels: int = 128  # width of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4)  # width of each level, in model_channels; each level halves the size
    num_res_blocks: int = 2  # residual blocks a level of the encoder, one more in the decoder
    attention_resolutions: tuple[int, ...] = ()  # downsampling factors of levels with attention, besides the middle
    num_groups: int = 32  # groups of every GroupNorm
    eps: float = 1e-6  # of every GroupNorm
    projects_attention: bool = True  # False: no projection after attention, as in the A-Bridge scripts

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        counts = ("image_channels", "latent_channels", "model_channels", "num_res_blocks", "num_groups")
        check_integers(self, *counts, "channel_mult", "attention_resolutions")
        check_integers(self, "num_codes", least=0)
        if not self.channel_mult:
            raise ValueError("channel_mult must have a number for each level, got none")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must be in (0, 1), got {self.eps}")
        for width in (self.model_channels, *(self.model_channels * mult for mult in self.channel_mult)):
            if width % self.num_groups:
                raise ValueError(f"a level is {width} channels wide, not a multiple of num_groups={self.num_groups}")

    @property
    def stride(self) -> int:
        """Image pixels along one side of a latent pixel; sides of images must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def encoded_channels(self) -> int:
        """What the encoder gives: latents, or mean and log variance."""
        return self.latent_channels * (1 if self.num_codes else 2)


PRESETS: dict[str, VQGANConfig] = {
    "vq-f4": VQGANConfig(),
    "vq-f8": VQGANConfig(latent_channels=4, num_codes=16384, channel_mult=(1, 2, 2, 4), attention_resolutions=(8,)),
    "vq-f16": VQGANConfig(
        latent_channels=8, num_codes=16384, channel_mult=(1, 1, 2, 2, 4), attention_resolutions=(16,)
    ),
    "demo": VQGANConfig(num_codes=512, model_channels=32, num_res_blocks=1, num_groups=8),
}
