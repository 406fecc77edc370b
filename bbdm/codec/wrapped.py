"""Any autoencoder as a codec."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bbdm.codec.base import Codec, Make, State
from bbdm.networks.checks import check_integers
from bbdm.networks.restore import fitting

Transform = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WrappedCodecConfig:
    """What a file says of an autoencoder that its user has to give; see :func:`wrap_codec`.

    Raises:
        ValueError: a number is no integer, or below 1.
    """

    module: str  # the name of its class
    channels: int  # channels of a latent
    stride: int  # pixels along a side of a latent's cell
    image_channels: int  # channels of an image

    def __post_init__(self) -> None:
        check_integers(self, "channels", "stride", "image_channels")


class WrappedCodec(Codec):
    """Any module as a codec; see :func:`wrap_codec`."""

    kind = "wrapped"

    def __init__(self, module: nn.Module, settings: WrappedCodecConfig, encode: Transform, decode: Transform) -> None:
        super().__init__(module, settings.image_channels, settings.channels, settings.stride)
        self.settings = settings
        self.functions = encode, decode

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.functions[0](self.module, image).float()

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.functions[1](self.module, latents.to(self.dtype)).float()

    def _settings(self) -> dict[str, Any]:
        return asdict(self.settings)


def wrap_codec(
    module: nn.Module, encode: Transform, decode: Transform, channels: int, stride: int, image_channels: int = 3
) -> WrappedCodec:
    """Any autoencoder as a codec, for training, sampling, compiling, exporting and files.

    A file holds its weights and the numbers below, not its code: whoever loads one gives the codec too,
    ``load_checkpoint(path, codec=...)``, whose weights the file's replace.

    Args:
        module: the autoencoder. It is frozen and used, not copied.
        encode: encode(module, image) gives the latents, (B, channels, H / stride, W / stride), of images
            (B, image_channels, H, W) in [-1, 1], without noise.
        decode: decode(module, latents) gives the images.
        channels: the channels of a latent.
        stride: image pixels along one side of a latent pixel.
        image_channels: the channels of an image.

    Raises:
        ValueError: ``module`` is no module or has no weights, or a number is no integer or below 1.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if next(module.parameters(), None) is None:
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without any")
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return WrappedCodec(module, WrappedCodecConfig(name, channels, stride, image_channels), encode, decode)


def build(config: dict[str, Any], weights: State, make: Make, given: Codec | None) -> WrappedCodec:
    """See :data:`~bbdm.codec.registry.Build`. The given codec is copied; its weights become the file's."""
    try:
        settings = WrappedCodecConfig(**config["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's settings are none of a wrapped codec's: {error}") from error
    if given is None:
        raise ValueError(f"the codec is a wrapped {settings.module}, whose code no file holds: codec must be given")
    if not isinstance(given, WrappedCodec) or given.settings != settings:
        raise ValueError(f"codec must be wrapped with {asdict(settings)}, got {given.config()['config']}")
    module = fitting(lambda _: copy.deepcopy(given.module), None, weights, "the codec's")
    module.load_state_dict(weights)
    codec = WrappedCodec(module.float(), settings, *given.functions)
    codec.tiling = given.tiling
    return codec
