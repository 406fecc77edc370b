"""The checkpoint file: one file that holds a network, its bridge, its codec and, in training, what to go on from.

It is a ``.pt`` or, without training state, a ``.safetensors``, as :mod:`bbdm.weights` writes them; a VQGAN alone is a
file of the same two kinds. What other people's programs wrote is read by :mod:`bbdm.importers`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bbdm import bridges, weights
from bbdm import codec as codecs
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.images import Size, as_size
from bbdm.networks.restore import fitting, restore
from bbdm.networks.unet import UNet, UNetConfig
from bbdm.networks.vqgan import VQGAN, VQGANConfig
from bbdm.weights import State

FORMAT = "bbdm"
VQGAN_FORMAT = "bbdm vqgan"


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


def save_checkpoint(
    path: str | os.PathLike[str],
    unet: UNet,
    bridge: Bridge,
    *,
    ema: UNet | None = None,
    codec: Codec | None = None,
    image_size: Size | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, atomically: a reader sees the old file or the whole new one.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        unet: the network; its weights are stored in the dtype that they have.
        bridge: what the network was trained on.
        ema: a network with the moving average of the weights.
        codec: of the space that it was trained in, None for image space; the file holds its weights too.
        image_size: side of the square pictures that it was trained on, or their (height, width).
        training: state to go on from, of plain containers and tensors; only in a ``.pt``.

    Raises:
        ValueError: another suffix, or training state for a ``.safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and training is not None:
        raise ValueError(f"training state needs a .pt file, got {path}")
    states = {"weights": unet.state_dict()}
    states |= {} if ema is None else {"ema": ema.state_dict()}
    states |= {} if codec is None else {"codec": codec.state_dict()}
    settings = {
        "unet": {"config": asdict(unet.config)},
        "bridge": bridge.config(),
        "codec": None if codec is None else codec.config(),
        "image_size": image_size,
    }
    weights.write(path, FORMAT, settings, states, _placed, training=training)


def _placed(settings: dict[str, Any], states: dict[str, State]) -> dict[str, Any]:
    """The content of a checkpoint, where state dicts stand beside what they are of."""
    unet = {**settings["unet"], "weights": states.get("weights"), "ema": states.get("ema")}
    codec = settings["codec"]
    codec = None if codec is None else {**codec, "weights": states["codec"]}
    return {**settings, "unet": unet, "codec": codec}


def save_vqgan(path: str | os.PathLike[str], vqgan: VQGAN) -> None:
    """Write a VQGAN alone, atomically.

    Raises:
        ValueError: the name does not end in ``.pt`` or ``.safetensors``.
    """
    weights.write(path, VQGAN_FORMAT, {"config": asdict(vqgan.config)}, {"weights": vqgan.state_dict()})


def load_checkpoint(
    path: str | os.PathLike[str],
    num_steps: int | None = None,
    c_lambda: float | None = None,
    codec: Codec | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Read a checkpoint: our own, or one that :mod:`bbdm.importers` knows. Tensors come to the CPU.

    Args:
        path: the file.
        num_steps: T,
        c_lambda: the noise scale, and
        codec: the autoencoder, for files that leave them out. What a file holds itself must not differ, since a network
            works only with what it was trained on.
        config: the YAML file of a network of the original BBDM.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, is of a newer version, disagrees with an argument, or leaves out
            what no argument gives.
    """
    with weights.opened(path, FORMAT, "checkpoint", _placed) as (content, own):
        if not own:
            from bbdm import importers  # which build on this module

            return importers.read_checkpoint(content, num_steps, c_lambda, codec, config)
        if config is not None:
            raise ValueError(f"config={config} was given, but the file describes its network itself")
        unet = content["unet"]
        state = UNetState(UNetConfig(**unet["config"]), unet["weights"], unet["ema"])
        found = [each for each in (state.weights, state.ema) if each is not None]
        if not found:
            raise ValueError("it holds neither weights nor their moving average")
        for each in found:
            fitting(UNet.from_config, state.config, each)
        bridge = bridges.from_config(content["bridge"])
        check_arguments(bridge, num_steps, c_lambda)
        coded = content["codec"]
        if coded is not None:
            coded = CodecState({k: v for k, v in coded.items() if k != "weights"}, coded["weights"])
            codecs.check(coded.config, coded.weights)
        check_codec(coded, codec)
        image_size = content.get("image_size")
        image_size = None if image_size is None else as_size(image_size)
        about = {"format": content["format"], "version": content["version"]}
        return Checkpoint(state, bridge, coded, image_size, content.get("training"), **about)


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


def load_vqgan(path: str | os.PathLike[str]) -> VQGAN:
    """Read a VQGAN, our own or one that :mod:`bbdm.importers` knows, in float32, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no VQGAN, is damaged, or is of a newer version.
    """
    with weights.opened(path, VQGAN_FORMAT, "VQGAN") as (content, own):
        if own:
            return restore(VQGAN.from_config, VQGANConfig(**content["config"]), content["weights"])
        from bbdm import importers  # which build on this module

        return importers.read_vqgan(content)
