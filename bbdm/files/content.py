"""What a checkpoint holds, whoever wrote the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from bbdm import codec as codecs
from bbdm.base.images import Size
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.files import weights
from bbdm.files.weights import State
from bbdm.networks.restore import restore
from bbdm.networks.unet import UNet, UNetConfig

FORMAT = "bbdm"


@dataclass(frozen=True)
class UNetState:
    """A network in a file: its shape, and its weights, their moving average, or both."""

    config: UNetConfig
    weights: State | None
    ema: State | None


@dataclass(frozen=True)
class CodecState:
    """A codec in a file: see :meth:`bbdm.codec.Codec.config` and :meth:`~bbdm.codec.Codec.state_dict`."""

    config: dict[str, Any]
    weights: State

    @classmethod
    def of(cls, codec: Codec) -> CodecState:
        """The state of a codec, on the CPU."""
        return cls(codec.config(), {k: v.detach().cpu().clone() for k, v in codec.state_dict().items()})


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load_checkpoint` read."""

    unet: UNetState
    bridge: Bridge
    codec: CodecState | None = None  # of the space that the network works in; None for image space
    image_size: Size | None = None  # side or (height, width) of the pictures it was trained on, where known
    training: dict[str, Any] | None = None
    format: str = FORMAT
    version: int = weights.VERSION

    def build_unet(self, ema: bool = True) -> UNet:
        """The network in float32, in evaluation mode; ``ema`` picks where the file has both kinds of weights."""
        first, second = (self.unet.ema, self.unet.weights) if ema else (self.unet.weights, self.unet.ema)
        state = second if first is None else first
        assert state is not None  # checked when the file was read
        return restore(UNet.from_config, self.unet.config, state, "the checkpoint's")

    def build_codec(self) -> Codec | None:
        """The codec in float32, or None for a network of image space."""
        return None if self.codec is None else codecs.from_config(self.codec.config, self.codec.weights)


def check_arguments(bridge: Bridge, num_steps: int | None, c_lambda: float | None) -> None:
    """Raise ValueError where an argument was given that the bridge in a file does not have."""
    for name, value in {"num_steps": num_steps, "c_lambda": c_lambda}.items():
        stored = getattr(bridge, name, None)
        if value is not None and value != stored:
            raise ValueError(f"{name}={value} was given, but the network was trained with {name}={stored}")


def check_codec(stored: CodecState | None, given: Codec | None) -> None:
    """Raise ValueError where a codec was given to a file that holds another one, or that is of image space."""
    if given is None:
        return
    if stored is None:
        raise ValueError("a codec was given, but the network was trained in image space")
    state = given.state_dict()
    networks = [json.dumps(config["config"], sort_keys=True) for config in (given.config(), stored.config)]
    if (
        networks[0] != networks[1]
        or state.keys() != stored.weights.keys()
        or not all(torch.equal(value.cpu(), stored.weights[key]) for key, value in state.items())
    ):
        raise ValueError("another codec was given than the one that the network was trained with, which the file holds")
