"""What every codec is: its base class, and the statistics by which latents are normalised."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from bbdm.codec.tiles import Tiling
from bbdm.networks.restore import state_hash

if TYPE_CHECKING:
    from typing_extensions import Self

Role = Literal["source", "target"]
Network = Callable[[torch.Tensor], torch.Tensor]
State = dict[str, torch.Tensor]
Make = Callable[..., Any]  # :func:`~bbdm.networks.restore.restore`, or its ``fitting``, which builds without weights


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
    """A frozen autoencoder between image space and the space of the bridge.

    A subclass gives :attr:`kind`, :meth:`_encode`, :meth:`_decode` and :meth:`_settings`.

    Args:
        module: the autoencoder, with all its weights. It is frozen and not copied.
        image_channels: the channels of an image.
        channels: the channels of a latent.
        stride: image pixels along one side of a latent pixel.

    Attributes: the arguments; ``statistics`` that normalise latents, or None; ``encoder``, a function of a
    batch of images in ``dtype`` to float32 latents, not normalised; ``decoder``, a function of these latents
    to float32 images; ``tiling``, how much these two are given at once, which may be set.
    """

    kind: str  # its name in files
    tiling: Tiling = Tiling()
    encoder: Network
    decoder: Network

    def __init__(self, module: nn.Module, image_channels: int, channels: int, stride: int) -> None:
        self.module = module.eval().requires_grad_(False)
        self.image_channels = image_channels
        self.channels = channels
        self.stride = stride
        self.statistics: LatentStatistics | None = None
        self._rows: dict[Any, torch.Tensor] = {}  # of statistics, on devices
        self.encoder, self.decoder = self._encode, self._decode

    @abstractmethod
    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        """Images in ``dtype`` to float32 latents, not normalised."""

    @abstractmethod
    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Float32 latents, not normalised, to float32 images."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The autoencoder's settings as plain values."""

    def config(self) -> dict[str, Any]:
        """Plain values, from which with :meth:`state_dict` :func:`from_config` builds the codec."""
        statistics = None if self.statistics is None else asdict(self.statistics)
        return {"kind": self.kind, "config": self._settings(), "statistics": statistics}

    @property
    def device(self) -> torch.device:
        """Where the autoencoder is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which images are encoded."""
        return next(self.module.parameters()).dtype

    @torch.no_grad()
    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """(B, image_channels, H, W) in [-1, 1] to (B, channels, H / stride, W / stride), not normalised.

        Raises:
            ValueError: the image has other channels, or a size that is not a multiple of ``stride``; or the
                encoder gives other channels or another size than the codec's.
        """
        _check(image, "an image", self.image_channels, self.stride)
        image = image.to(self.device, self.dtype, memory_format=torch.channels_last)
        return _with_channels(self.tiling.map(self.encoder, image, 1, self.stride), "latents", self.channels)

    @torch.no_grad()
    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents that are not normalised to their image, about [-1, 1], float32.

        Raises:
            ValueError: the latents have other channels; or the decoder gives other channels or another size
                than the codec's.
        """
        _check(latents, "latents", self.channels, 1)
        latents = latents.to(self.device, torch.float32, memory_format=torch.channels_last)
        return _with_channels(self.tiling.map(self.decoder, latents, self.stride, 1), "images", self.image_channels)

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

    def with_statistics(self, statistics: LatentStatistics) -> Self:
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
        """(1, C, 1, 1) of the statistics, copied to a device once: a GPU's host waits for a copy."""

        def row() -> torch.Tensor:
            values = getattr(self.statistics, name)
            return torch.tensor(values, dtype=like.dtype, device=like.device)[None, :, None, None]

        if torch.compiler.is_compiling():  # where tensors hold no numbers
            return row()
        key = self.statistics, name, like.dtype, like.device
        if key not in self._rows:
            with torch.inference_mode(False):  # else no gradient could flow past it later
                self._rows[key] = row()
        return self._rows[key]

    def placed(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The codec on a device, in a dtype: itself where it is there already, a copy otherwise."""
        if (self.device, self.dtype) == (device, dtype):
            return self
        codec = copy.copy(self)
        codec.module = copy.deepcopy(self.module).to(device)
        codec._cast(dtype)
        codec.encoder, codec.decoder = codec._encode, codec._decode
        return codec

    def _cast(self, dtype: torch.dtype) -> None:
        """Convert the weights."""
        self.module.to(dtype)

    def compiled(self, compile: Callable[[Network], Network]) -> Self:
        """A copy whose encoder and decoder are compiled by ``compile``."""
        codec = copy.copy(self)
        codec.encoder, codec.decoder = compile(codec._encode), compile(codec._decode)
        return codec

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its weights."""
        return self.module.state_dict()

    def description(self) -> dict[str, Any]:
        """What latents before normalisation depend on: the settings, and a hash of the weights."""
        return {**self.config(), "statistics": None, "weights": self.digest()}

    def digest(self) -> str:
        """SHA-256 of its weights."""
        return state_hash(self.state_dict())


def _check(given: torch.Tensor, what: str, channels: int, multiple: int) -> None:
    """Raise ValueError where a batch is not (B, channels, H, W) with sides that are multiples of a number."""
    shape = tuple(given.shape)
    if len(shape) != 4 or shape[1] != channels or any(side < 1 or side % multiple for side in shape[2:]):
        sides = f", with height and width multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{what} must be (B, {channels}, H, W){sides}, got {shape}")


def _with_channels(made: torch.Tensor, what: str, channels: int) -> torch.Tensor:
    """What an autoencoder made; ValueError where it has other channels."""
    if made.shape[1] != channels:
        raise ValueError(f"{what} must have {channels} channels, got {made.shape[1]} from the autoencoder")
    return made
