"""The content of a checkpoint, the same for every file format that is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from bbdm import codec as codecs
from bbdm.base.images import Size
from bbdm.bridges import Bridge
from bbdm.codec import Codec, LatentStatistics
from bbdm.files import weights
from bbdm.files.weights import IncompleteFileError, State
from bbdm.networks.restore import restore, state_hash
from bbdm.networks.unet import UNet, UNetConfig

FORMAT = "bbdm"


@dataclass(frozen=True)
class UNetState:
    """A network in a file: its settings, and its weights, their moving average, or both."""

    config: UNetConfig
    weights: State | None
    ema: State | None


@dataclass(frozen=True)
class CodecState:
    """A codec in a file: its :meth:`~bbdm.codec.VQGANCodec.config`, and its weights or their hash."""

    config: dict[str, Any]
    weights: State | None
    sha256: str | None = None

    @classmethod
    def of(cls, codec: Codec) -> CodecState:
        """The state of a codec, on the CPU."""
        return cls(codec.config(), {k: v.detach().cpu().clone() for k, v in codec.state_dict().items()})

    @property
    def statistics(self) -> LatentStatistics | None:
        """The statistics that latents are normalised by, or None."""
        statistics = self.config["statistics"]
        return None if statistics is None else LatentStatistics(**statistics)

    def digest(self) -> str:
        """SHA-256 of the weights in float32."""
        if self.sha256 is not None:
            return self.sha256
        assert self.weights is not None
        return state_hash(self.weights, torch.float32)

    def same_latents(self, codec: Codec) -> bool:
        """Whether a codec has the same settings and weights, and so the same latents before normalisation."""
        stored, given = ({**config, "statistics": None} for config in (self.config, codec.config()))
        return _plain(stored) == _plain(given) and self._same_weights(codec)

    def same_network(self, codec: Codec) -> bool:
        """Whether a codec has the same autoencoder, though perhaps other latents of it."""
        return _plain(self.config["config"]) == _plain(codec.config()["config"]) and self._same_weights(codec)

    def _same_weights(self, codec: Codec) -> bool:
        return self.digest() == state_hash(codec.state_dict(), torch.float32)


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`~bbdm.files.checkpoint.load_checkpoint` returns."""

    unet: UNetState
    bridge: Bridge
    codec: CodecState | None = None  # of the space of the bridge; None for image space
    image_size: Size | None = None  # side or (height, width) of the pictures of training, where known
    training: dict[str, Any] | None = None
    format: str = FORMAT
    version: int = weights.VERSION

    def build_unet(self, ema: bool = True) -> UNet:
        """The network in float32 and evaluation mode; ``ema`` picks if the file has both kinds of weights."""
        first, second = (self.unet.ema, self.unet.weights) if ema else (self.unet.weights, self.unet.ema)
        state = second if first is None else first
        assert state is not None  # checked when the file was read
        return restore(UNet.from_config, self.unet.config, state, "the checkpoint's")

    def build_codec(self) -> Codec | None:
        """The codec in float32, or None for a network of image space.

        Raises:
            IncompleteFileError: the file is a training checkpoint, which refers to the codec by a hash, and
                :func:`~bbdm.files.checkpoint.load_checkpoint` was not given the codec.
        """
        if self.codec is None:
            return None
        if self.codec.weights is None:
            raise IncompleteFileError(
                f"a training checkpoint holds only the SHA-256 of its codec's weights, {self.codec.digest()[:8]}...: "
                "pass the codec, load_checkpoint(path, codec=...), or take the run's final weights"
            )
        return codecs.from_config(self.codec.config, self.codec.weights)


def _plain(config: dict[str, Any]) -> str:
    """Settings as text, the same for tuples and lists."""
    return json.dumps(config, sort_keys=True)
