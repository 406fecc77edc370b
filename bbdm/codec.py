"""Codecs: frozen autoencoders between image space and the space of the bridge.

Without a codec, the bridge's space is image space. Images are in [-1, 1]. Latents are taken before
quantisation, and normalised where the codec has statistics.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from bbdm.networks.restore import fitting, restore, state_hash
from bbdm.networks.vqgan import VQGAN, VQGANConfig

Role = Literal["source", "target"]
Network = Callable[[torch.Tensor], torch.Tensor]
IMAGES_AT_ONCE = 16  # encoded or decoded together: activations are many times larger than latents


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel, over a data set's sources and its targets."""

    source_mean: tuple[float, ...]
    source_std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            object.__setattr__(self, name, tuple(float(value) for value in values))
            if len(values) != len(self.source_mean):
                raise ValueError(f"{name} must have {len(self.source_mean)} numbers, got {len(values)}")
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
            if name.endswith("_std") and not all(value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def of(cls, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LatentStatistics:
        """The statistics of batches of source and target latents, (B, C, H, W).

        Raises:
            ValueError: there is no batch, or a channel is constant.
        """
        count = 0
        sums, squares = (torch.zeros(2, 1, dtype=torch.float64) for _ in range(2))
        for pair in pairs:
            count += pair[0].numel() // pair[0].shape[1]
            both = torch.stack(pair).double().cpu()
            sums, squares = sums + both.sum((1, 3, 4)), squares + both.square().sum((1, 3, 4))
        if not count:
            raise ValueError("statistics need at least one batch of latents")
        means = sums / count
        stds = (squares / count - means.square()).clamp(min=0).sqrt()
        return cls(*(tuple(row.tolist()) for i in range(2) for row in (means[i], stds[i])))


class Codec(ABC):
    """An autoencoder between image space and the space of the bridge.

    Attributes: ``image_channels``; ``channels`` of a latent; ``stride``, image pixels along one side of a
    latent pixel; ``statistics`` that normalise latents, or None; ``encoder``, a function of a batch of images
    in ``dtype`` to float32 latents, not normalised; ``decoder``, a function of these latents to float32
    images.
    """

    image_channels: int
    channels: int
    stride: int
    statistics: LatentStatistics | None
    encoder: Network
    decoder: Network

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The autoencoder, with all its weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype in which images are encoded."""

    @abstractmethod
    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, H, W) in [-1, 1] to (B, channels, H / stride, W / stride), not normalised."""

    @abstractmethod
    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents that are not normalised to their image, about [-1, 1], float32."""

    def encode(self, image: torch.Tensor, role: Role) -> torch.Tensor:
        """An image in the space of the bridge, (B, channels, H / stride, W / stride) float32."""
        return self.normalize(self.latents(image), role)

    def normalize(self, latents: torch.Tensor, role: Role) -> torch.Tensor:
        """Latents in the space of the bridge."""
        if self.statistics is None:
            return latents
        return (latents - self._row(f"{role}_mean", latents)) / self._row(f"{role}_std", latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """A target in the space of the bridge, (B, channels, H, W), to its image, about [-1, 1], float32."""
        return self.image(self.denormalize(latents))

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents of a target in the space of the bridge."""
        if self.statistics is None:
            return latents
        return latents * self._row("target_std", latents) + self._row("target_mean", latents)

    def with_statistics(self, statistics: LatentStatistics) -> Codec:
        """A copy that normalises latents by these statistics.

        Raises:
            ValueError: they are of another number of channels.
        """
        if len(statistics.source_mean) != self.channels:
            raise ValueError(f"statistics must be of {self.channels} channels, got {len(statistics.source_mean)}")
        codec = copy.copy(self)
        codec.statistics = statistics
        return codec

    def _row(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """(1, C, 1, 1) of the statistics."""
        return torch.tensor(getattr(self.statistics, name), dtype=like.dtype, device=like.device)[None, :, None, None]

    @abstractmethod
    def placed(self, device: torch.device, dtype: torch.dtype) -> Codec:
        """The codec on a device, in a dtype: itself where it is there already, a copy otherwise."""

    @abstractmethod
    def compiled(self, compile: Callable[[Network], Network]) -> Codec:
        """A copy whose encoder and decoder are compiled by ``compile``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values, from which with :meth:`state_dict` :func:`from_config` builds the codec."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its weights."""
        return self.module.state_dict()

    def description(self) -> dict[str, Any]:
        """What latents before normalisation depend on: the settings, and a hash of the weights."""
        return {**self.config(), "statistics": None, "weights": self.digest()}

    def digest(self) -> str:
        """SHA-256 of its weights."""
        return state_hash(self.state_dict())


class VQGANCodec(Codec):
    """Latents of a VQGAN before quantisation; decoding quantises them.

    Args:
        vqgan: the autoencoder. It is frozen and not copied.
        before_quant_conv: take latents before ``quant_conv``, like the original BBDM's setting
            ``latent_before_quant_conv``.
    """

    def __init__(self, vqgan: VQGAN, before_quant_conv: bool = False) -> None:
        self.vqgan = vqgan.eval().requires_grad_(False)
        self.before_quant_conv = before_quant_conv
        self.image_channels = vqgan.config.image_channels
        self.channels = vqgan.config.latent_channels
        self.stride = vqgan.config.stride
        self.statistics = None
        self.encoder = self._encode
        self.decoder = self._decode

    @property
    def module(self) -> VQGAN:
        """See :attr:`Codec.module`."""
        return self.vqgan

    @property
    def dtype(self) -> torch.dtype:
        """See :attr:`Codec.dtype`."""
        return self.vqgan.encoder.conv_in.weight.dtype

    @torch.no_grad()
    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """See :meth:`Codec.latents`.

        Raises:
            ValueError: the image has other channels, or a size that is not a multiple of ``stride``.
        """
        _check(image, "an image", self.image_channels, self.stride)
        device = self.vqgan.encoder.conv_in.weight.device
        image = image.to(device, self.dtype, memory_format=torch.channels_last)
        return torch.cat([self.encoder(part) for part in image.split(IMAGES_AT_ONCE)])

    @torch.no_grad()
    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """See :meth:`Codec.image`.

        Raises:
            ValueError: the latents have other channels.
        """
        _check(latents, "latents", self.channels, 1)
        device = self.vqgan.decoder.conv_in.weight.device
        latents = latents.to(device, torch.float32, memory_format=torch.channels_last)
        return torch.cat([self.decoder(part) for part in latents.split(IMAGES_AT_ONCE)])

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        latents = self.vqgan.encoder(image) if self.before_quant_conv else self.vqgan.encode(image)
        return latents.float()

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        codes = self.vqgan.quantize(self.vqgan.quant_conv(latents) if self.before_quant_conv else latents)
        return self.vqgan.decode_codes(codes.to(self.vqgan.decoder.conv_in.weight.dtype)).float()

    def placed(self, device: torch.device, dtype: torch.dtype) -> VQGANCodec:
        """See :meth:`Codec.placed`. Codes stay in float32: rounded, they would change which is nearest."""
        weight = self.vqgan.encoder.conv_in.weight
        if (weight.device, weight.dtype) == (device, dtype):
            return self
        vqgan = copy.deepcopy(self.vqgan).to(device)
        for part in (vqgan.encoder, vqgan.decoder, vqgan.post_quant_conv):
            part.to(dtype)
        if not self.before_quant_conv:
            vqgan.quant_conv.to(dtype)
        codec = VQGANCodec(vqgan, self.before_quant_conv)
        codec.statistics = self.statistics
        return codec

    def compiled(self, compile: Callable[[Network], Network]) -> VQGANCodec:
        """See :meth:`Codec.compiled`."""
        codec = copy.copy(self)
        codec.encoder, codec.decoder = compile(self._encode), compile(self._decode)
        return codec

    def config(self) -> dict[str, Any]:
        """See :meth:`Codec.config`."""
        return {
            "kind": "vqgan",
            "config": asdict(self.vqgan.config),
            "statistics": None if self.statistics is None else asdict(self.statistics),
            "before_quant_conv": self.before_quant_conv,
        }


def from_config(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Codec:
    """The codec of a :meth:`Codec.config` and a :meth:`Codec.state_dict`.

    Raises:
        ValueError: the kind is unknown, a setting is wrong, or the weights do not fit.
    """
    return _build(config, weights, restore)


def check(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Raise the ValueError that :func:`from_config` would, without building the codec."""
    _build(config, weights, fitting)


def _build(config: dict[str, Any], weights: dict[str, torch.Tensor], make: Callable[..., VQGAN]) -> Codec:
    if config.get("kind") != "vqgan":
        raise ValueError(f"the codec's kind must be 'vqgan', got {config.get('kind')!r}")
    try:
        settings, before = VQGANConfig(**config["config"]), config["before_quant_conv"]
        statistics = None if config["statistics"] is None else LatentStatistics(**config["statistics"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's settings are none of a VQGAN's: {error}") from error
    if not isinstance(before, bool):
        raise ValueError(f"the codec's before_quant_conv must be true or false, got {before!r}")
    codec = VQGANCodec(make(VQGAN.from_config, settings, weights, "the codec's"), before)
    return codec if statistics is None else codec.with_statistics(statistics)


def part_shapes(shape: Sequence[int]) -> list[torch.Size]:
    """The shapes of the parts in which a batch of a shape is encoded or decoded."""
    return [part.shape for part in torch.empty(*shape, device="meta").split(IMAGES_AT_ONCE)]


def _check(given: torch.Tensor, what: str, channels: int, multiple: int) -> None:
    """Raise ValueError where a batch is not (B, channels, H, W) with sides that are multiples of a number."""
    shape = tuple(given.shape)
    if len(shape) != 4 or shape[1] != channels or any(side < 1 or side % multiple for side in shape[2:]):
        sides = f", with height and width multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{what} must be (B, {channels}, H, W){sides}, got {shape}")
