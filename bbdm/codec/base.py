"""What a codec is: an autoencoder, its two functions, and the statistics by which latents are normalised.

A batch goes through it in parts: some images at once, and large images in tiles that overlap.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from bbdm.networks.arrays import check_images
from bbdm.networks.base import state_hash
from bbdm.networks.config import check_integers
from bbdm.networks.windows import Spans, Windows, blend

Role = Literal["source", "target"]
TensorFunction = Callable[[torch.Tensor], torch.Tensor]
Transform = Callable[[Any, torch.Tensor], torch.Tensor]  # of an autoencoder and a batch
AT_ONCE = 16  # images at most


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel, over a data set's sources and its targets."""

    source_mean: tuple[float, ...]
    source_std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            values = tuple(map(float, values))
            object.__setattr__(self, name, values)
            if len(values) != len(self.source_mean):
                raise ValueError(
                    f"{name} must have {len(self.source_mean)} numbers, got {len(values)}"
                )
            if name.endswith("_std"):
                if not all(0 < value < math.inf for value in values):
                    raise ValueError(f"{name} must be finite and positive, got {values}")
            elif not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be finite, got {values}")

    @classmethod
    def of(cls, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LatentStatistics:
        """The statistics of batches of source and target latents, (B, C, H, W).

        Raises:
            ValueError: there is no batch, or a channel is constant.
        """
        count = 0
        sums = torch.zeros(2, 1, dtype=torch.float64)  # of sources and of targets
        squares = torch.zeros(2, 1, dtype=torch.float64)
        for pair in pairs:
            count += pair[0].numel() // pair[0].shape[1]
            both = torch.stack(pair).double().cpu()
            sums = sums + both.sum((1, 3, 4))
            squares = squares + both.square().sum((1, 3, 4))
        if not count:
            raise ValueError("statistics need at least one batch of latents")
        means = sums / count
        stds = (squares / count - means.square()).clamp(min=0).sqrt()
        source_mean, target_mean = means.tolist()
        source_std, target_std = stds.tolist()
        return cls(source_mean, source_std, target_mean, target_std)


@dataclass(frozen=True)
class Tiling:
    """How much an autoencoder takes at once: its activations are many times larger than a picture.

    An image of more pixels than four tiles is cut into equal tiles of at most ``side`` x ``side``, which
    overlap by at least ``overlap``. There, results are blended: where two tiles overlap, the share of each
    falls linearly to 0 at its edge. With the usual numbers, three overlap on sides of 900 to 1,020 pixels.
    Shares add up to 1 everywhere. Each tile is computed alone, so attention and the statistics of GroupNorm
    are of the tile, not of the image. Smaller images are taken together, up to 16.

    Args:
        side: of a tile in pixels, rounded down to a multiple of the codec's stride.
        overlap: of neighbouring tiles in pixels, a multiple of the stride; at most half of ``side`` is taken.
    """

    side: int = 512
    overlap: int = 128

    def map(
        self, function: TensorFunction, batch: torch.Tensor, channels: int, cell: int, stride: int
    ) -> torch.Tensor:
        """The results of a function for a batch, which it gets in parts.

        Args:
            function: (b, C, h, w) to (b, channels, h cell / stride, w cell / stride).
            batch: (B, C, H, W).
            channels: their number in the results.
            cell: pixels along a side of one value of the batch.
            stride: pixels along a side of one value of the result; it divides ``cell``, or the reverse.

        Returns:
            (B, channels, H cell / stride, W cell / stride).

        Raises:
            ValueError: the function gives other channels or another size.
        """
        lengths = [size * cell for size in batch.shape[2:]]
        most = (2 * self.side) ** 2  # pixels at once
        is_tiled = math.prod(lengths) > most
        if is_tiled:
            unit = max(cell, stride)
            overlap = min(self.overlap, self.side // unit // 2 * unit)  # at most half of a tile
            sides = [Windows.spread(length, self.side, overlap, unit) for length in lengths]
        else:
            sides = [Windows(length, length) for length in lengths]
        pixels = math.prod(side.length for side in sides)
        at_once = max(1, min(AT_ONCE, most // max(1, pixels)))
        shape = channels, *(side.length // stride for side in sides)

        def results(images: torch.Tensor) -> torch.Tensor:
            outputs = torch.cat([function(part) for part in images.split(at_once)])
            if outputs.shape[1:] != shape:
                expected = f"{tuple(images.shape[1:])} must become {shape} values"
                raise ValueError(f"{expected}, got {tuple(outputs.shape[1:])}")
            return outputs

        def results_of_tile(spans: list[Spans]) -> torch.Tensor:
            (span,) = spans
            return results(batch[(..., *span)].clone(memory_format=torch.channels_last))

        if not is_tiled:
            return results(batch)
        dtype = torch.promote_types(batch.dtype, torch.float32)
        weights = [torch.from_numpy(side.ramps(stride)).to(batch.device, dtype) for side in sides]
        return blend(results_of_tile, sides, weights, cell=cell, stride=stride)


class Codec:
    """A frozen autoencoder between image space and the space of the bridge.

    :mod:`bbdm.codec.kinds` has what makes one of an autoencoder: :func:`~bbdm.codec.VQGANCodec`,
    :func:`~bbdm.codec.DiffusersCodec`, and :func:`~bbdm.codec.wrap_codec` for any module.

    Args:
        module: the autoencoder, with all its weights. It is frozen and not copied.
        encode: encode(module, image) gives latents, not normalised, of images in ``dtype``.
        decode: decode(module, latents) gives the images of float32 latents, not normalised.
        channels: the channels of a latent.
        stride: image pixels along one side of a latent pixel.
        image_channels: the channels of an image.
        settings: the :meth:`config` but for statistics, ``kind`` and ``config``.
        cast: cast(module, dtype) converts the weights that may be of another dtype.

    Raises:
        ValueError: a number is no integer, or below 1.

    Attributes: the arguments but for the functions; ``kind``, its name in files; ``statistics`` that
    normalise latents, or None; ``tiling``, how much it takes at once, which may be set.
    """

    tiling: Tiling = Tiling()
    module: Any  # an nn.Module, with attributes that its kind knows

    def __init__(
        self,
        module: nn.Module,
        encode: Transform,
        decode: Transform,
        channels: int,
        stride: int,
        image_channels: int,
        settings: dict[str, Any],
        cast: Callable[[Any, torch.dtype], object] = nn.Module.to,
    ) -> None:
        self.channels = channels
        self.stride = stride
        self.image_channels = image_channels
        check_integers(self, "channels", "stride", "image_channels")
        self.module = module.eval().requires_grad_(False)
        self.kind = settings["kind"]
        self.settings = {**settings, "statistics": None}
        self.statistics: LatentStatistics | None = None
        self._encode = encode
        self._decode = decode
        self._cast = cast
        # in place of the module's own encoder and decoder
        self._compiled: tuple[TensorFunction, TensorFunction] | None = None
        # (C, 1, 1) of statistics, where the autoencoder is
        self._rows: dict[str, torch.Tensor] = {}

    def config(self) -> dict[str, Any]:
        """Plain values, of which with the weights :func:`~bbdm.codec.from_config` makes the codec."""
        statistics = None
        if self.statistics is not None:
            statistics = asdict(self.statistics)
        return {**self.settings, "statistics": statistics}

    def digest(self) -> str:
        """SHA-256 of its weights in float32."""
        return state_hash(self.module.state_dict(), torch.float32)

    def description(self) -> dict[str, Any]:
        """What latents before normalisation depend on: the settings, and a hash of the weights."""
        return {**self.settings, "weights": self.digest()}

    @property
    def device(self) -> torch.device:
        """Where the autoencoder is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which images are encoded."""
        return dtype_of(self.module)

    def encoder(self, image: torch.Tensor, /) -> torch.Tensor:
        """A batch of images in ``dtype`` to float32 latents, not normalised, in one call."""
        if self._compiled is not None:
            encoder, _ = self._compiled
            return encoder(image)
        return self._encode(self.module, image).float()

    def decoder(self, latents: torch.Tensor, /) -> torch.Tensor:
        """Float32 latents that are not normalised to float32 images, in one call."""
        if self._compiled is not None:
            _, decoder = self._compiled
            return decoder(latents)
        return self._decode(self.module, latents).float()

    @torch.no_grad()
    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, H, W) in [-1, 1] to (B, channels, H / stride, W / stride), not normalised.

        Raises:
            ValueError: the image has other channels, or a size that is not a multiple of ``stride``; or the
                encoder gives other channels or another size than the codec's.
        """
        check_images(image, self.image_channels, (self.stride,) * 2)
        image = image.to(self.device, self.dtype, memory_format=torch.channels_last)
        return self.tiling.map(self.encoder, image, self.channels, 1, self.stride)

    @torch.no_grad()
    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents that are not normalised to their image, about [-1, 1], float32.

        Raises:
            ValueError: the latents have other channels; or the decoder gives other channels or another size
                than the codec's.
        """
        check_images(latents, self.channels, (1, 1))
        latents = latents.to(self.device, torch.float32, memory_format=torch.channels_last)
        return self.tiling.map(self.decoder, latents, self.image_channels, self.stride, 1)

    def encode(self, image: torch.Tensor, role: Role) -> torch.Tensor:
        """An image in the space of the bridge, (B, channels, H / stride, W / stride) float32."""
        return self.normalize(self.latents(image), role)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """A target in the space of the bridge, (B, channels, H, W), to its image, about [-1, 1], float32."""
        return self.image(self.denormalize(latents))

    def normalize(self, latents: torch.Tensor, role: Role) -> torch.Tensor:
        """Latents in the space of the bridge."""
        if self.statistics is None:
            return latents
        return (latents - self._rows[f"{role}_mean"]) / self._rows[f"{role}_std"]

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents of a target in the space of the bridge."""
        if self.statistics is None:
            return latents
        return latents * self._rows["target_std"] + self._rows["target_mean"]

    def with_statistics(self, statistics: LatentStatistics | None) -> Codec:
        """A copy that normalises latents by these statistics, or not at all.

        Raises:
            ValueError: they are of another number of channels.
        """
        if statistics is not None and len(statistics.source_mean) != self.channels:
            raise ValueError(
                f"statistics must be of {self.channels} channels, got {len(statistics.source_mean)}"
            )
        codec = copy.copy(self)
        codec.statistics = statistics
        codec._rows = {}
        if statistics is not None:
            for name, values in asdict(statistics).items():
                codec._rows[name] = torch.tensor(values, device=self.device)[:, None, None]
        return codec

    def placed(self, device: torch.device, dtype: torch.dtype) -> Codec:
        """The codec on a device, in a dtype: itself where it is there already, a copy otherwise."""
        if (self.device, self.dtype) == (device, dtype):
            return self
        codec = copy.copy(self)
        codec._compiled = None  # which is of the module before
        codec.module = copy.deepcopy(self.module).to(device)
        codec._cast(codec.module, dtype)
        codec._rows = {name: row.to(device) for name, row in self._rows.items()}
        return codec

    def compiled(self, compile: Callable[[TensorFunction], TensorFunction]) -> Codec:
        """A copy whose encoder and decoder are compiled by ``compile``."""
        codec = copy.copy(self)
        codec._compiled = (compile(self.encoder), compile(self.decoder))
        return codec


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a network's first parameter."""
    return next(module.parameters()).dtype
