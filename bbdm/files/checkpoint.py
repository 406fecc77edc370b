"""The checkpoint file: a network, its bridge, its codec and, during training, the state to resume from.

It is a ``.pt`` or, without training state, a ``.safetensors``, as :mod:`bbdm.files.weights` writes them; a
VQGAN alone is a file of the same two kinds. :mod:`bbdm.files.importers` reads the files of other programs.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bbdm import bridges
from bbdm import codec as codecs
from bbdm.base.images import Size, as_size
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.files import importers, weights
from bbdm.files.content import FORMAT, Checkpoint, CodecState, UNetState, check_arguments, check_codec
from bbdm.files.weights import State
from bbdm.networks.restore import fitting, restore, state_hash
from bbdm.networks.unet import UNet, UNetConfig
from bbdm.networks.vqgan import VQGAN, VQGANConfig

VQGAN_FORMAT = "bbdm vqgan"


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
        bridge: the bridge that the network was trained on.
        ema: a network with the moving average of the weights.
        codec: the codec of the space that it was trained in; None for image space. The file holds its
            weights, but a file with training state only their SHA-256.
        image_size: side of the square pictures that it was trained on, or their (height, width).
        training: state to resume from, of plain containers and tensors; only in a ``.pt``.

    Raises:
        ValueError: another suffix, or training state for a ``.safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and training is not None:
        raise ValueError(f"training state needs a .pt file, got {path}")
    states = {"weights": unet.state_dict()}
    states |= {} if ema is None else {"ema": ema.state_dict()}
    coded = None if codec is None else codec.config()
    if codec is not None and training is None:
        states["codec"] = codec.state_dict()
    elif codec is not None:
        coded = {**codec.config(), "sha256": state_hash(codec.state_dict(), torch.float32)}
    settings = {
        "unet": {"config": asdict(unet.config)},
        "bridge": bridge.config(),
        "codec": coded,
        "image_size": image_size,
    }
    weights.write(path, FORMAT, settings, states, _placed, training=training)


def _placed(settings: dict[str, Any], states: dict[str, State]) -> dict[str, Any]:
    """The content of a checkpoint, with each state dict beside the settings of its network."""
    unet = {**settings["unet"], "weights": states.get("weights"), "ema": states.get("ema")}
    codec = settings["codec"]
    if codec is not None and "sha256" not in codec:
        codec = {**codec, "weights": states["codec"]}
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
    """Read a checkpoint, our own or one that :mod:`bbdm.files.importers` knows, with tensors on the CPU.

    Args:
        path: the file.
        num_steps: T,
        c_lambda: the noise scale, and
        codec: the autoencoder, for files that leave them out. An argument must agree with the file, since a
            network works only with the bridge and the codec that it was trained on.
        config: the YAML file of a network of the original BBDM.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, is of a newer version, disagrees with an argument, or
            leaves out a value that no argument gives.
    """
    with weights.opened(path, FORMAT, "checkpoint", _placed) as (content, own):
        if not own:
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
        coded = _codec_state(content["codec"], codec)
        image_size = content.get("image_size")
        image_size = None if image_size is None else as_size(image_size)
        about = {"format": content["format"], "version": content["version"]}
        return Checkpoint(state, bridge, coded, image_size, content.get("training"), **about)


def _codec_state(content: dict[str, Any] | None, given: Codec | None) -> CodecState | None:
    """The codec of a checkpoint's content; where it is a reference, with the weights of the given codec."""
    if content is None:
        check_codec(None, given)
        return None
    config = {k: v for k, v in content.items() if k not in ("weights", "sha256")}
    if "sha256" in content:
        stored = CodecState(config, None, content["sha256"])
        if not isinstance(stored.sha256, str) or not stored.sha256:
            raise ValueError(f"the codec's sha256 must be text, got {stored.sha256!r}")
    else:
        stored = CodecState(config, content["weights"])
        codecs.check(config, content["weights"])
    check_codec(stored, given)
    if given is not None and stored.weights is None:
        return replace(stored, weights=CodecState.of(given).weights)
    return stored


def load_vqgan(path: str | os.PathLike[str]) -> VQGAN:
    """Read a VQGAN, our own or one that :mod:`bbdm.files.importers` knows, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no VQGAN, is damaged, or is of a newer version.
    """
    with weights.opened(path, VQGAN_FORMAT, "VQGAN") as (content, own):
        if own:
            return restore(VQGAN.from_config, VQGANConfig(**content["config"]), content["weights"])
        return importers.read_vqgan(content)
