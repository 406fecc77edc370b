"""VQGANs, and KL autoencoders of our own, as codecs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch

from bbdm.codec.base import Codec, Make, State
from bbdm.networks.vqgan import VQGAN, VQGANConfig


class VQGANCodec(Codec):
    """Latents of a VQGAN before quantisation, which decoding quantises; or means of a KL autoencoder.

    Args:
        vqgan: the autoencoder. It is frozen and not copied.
        before_quant_conv: take latents before ``quant_conv``, like the original BBDM's setting
            ``latent_before_quant_conv``.

    Raises:
        ValueError: ``before_quant_conv`` of a KL autoencoder, which gives no mean before it.
    """

    kind = "vqgan"

    def __init__(self, vqgan: VQGAN, before_quant_conv: bool = False) -> None:
        config = vqgan.config
        if before_quant_conv and not config.num_codes:
            raise ValueError("before_quant_conv must be False for a KL autoencoder, got True")
        super().__init__(vqgan, config.image_channels, config.latent_channels, config.stride)
        self.before_quant_conv = before_quant_conv

    @property
    def vqgan(self) -> VQGAN:
        """The autoencoder."""
        return cast(VQGAN, self.module)

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        latents = self.vqgan.encoder(image) if self.before_quant_conv else self.vqgan.encode(image)
        return latents.float()

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        codes = self.vqgan.quantize(self.vqgan.quant_conv(latents) if self.before_quant_conv else latents)
        return self.vqgan.decode_codes(codes.to(self.dtype)).float()

    def _cast(self, dtype: torch.dtype) -> None:
        """Codes stay in float32: rounded, they would change which is nearest."""
        for part in (self.vqgan.encoder, self.vqgan.decoder, self.vqgan.post_quant_conv):
            part.to(dtype)
        if not self.before_quant_conv:
            self.vqgan.quant_conv.to(dtype)

    def _settings(self) -> dict[str, Any]:
        return asdict(self.vqgan.config)

    def config(self) -> dict[str, Any]:
        """See :meth:`Codec.config`."""
        return {**super().config(), "before_quant_conv": self.before_quant_conv}


def build(config: dict[str, Any], weights: State, make: Make, given: Codec | None) -> VQGANCodec:
    """See :data:`~bbdm.codec.registry.Build`."""
    try:
        settings, before = VQGANConfig(**config["config"]), config["before_quant_conv"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's settings are none of a VQGAN's: {error}") from error
    if not isinstance(before, bool):
        raise ValueError(f"the codec's before_quant_conv must be true or false, got {before!r}")
    return VQGANCodec(make(VQGAN.from_config, settings, weights, "the codec's"), before)
