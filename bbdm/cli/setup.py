"""The parts of a training run from plain settings: bridge, network, codec."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from bbdm.bridges import Bridge, Density, from_config
from bbdm.cli.presets import PRESETS, VARIANTS, SourceAs
from bbdm.codec import Codec
from bbdm.files.checkpoint import load_codec
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.dit import DiT, DiTConfig
from bbdm.networks.unet import UNet


def build_bridge(
    name: str,
    num_steps: int | None = None,
    c_lambda: float = 2.0,
    objective: str | None = None,
    density: Density = "uniform",
) -> Bridge:
    """A bridge by its name; what is None, and a uniform density, is the bridge's own default.

    ``c_lambda`` is of the A-Bridge. ``bbdm`` is the original BBDM's bridge, and ``flow`` a Brownian bridge
    without noise. Other names are those of :data:`bbdm.bridges.BRIDGES`.

    Raises:
        ValueError: a value is out of range, or the bridge does not take it, such as ``num_steps`` of a bridge
            with real times.
    """
    if name.startswith(("ddbm", "ecsi")) and num_steps is not None:
        raise ValueError(f"num_steps must be None for {name}, whose times are real; got {num_steps}")
    kind, usual = VARIANTS.get(name, (name, {}))
    settings: dict[str, Any] = {"num_steps": num_steps, "objective": objective}
    settings |= {"c_lambda": c_lambda} if name == "abridge" else {}
    settings |= {} if density == "uniform" else {"density": density}
    return from_config({"kind": kind, **usual, **{key: each for key, each in settings.items() if each is not None}})


def build_network(
    preset: str,
    channels: int,
    source_as: SourceAs | None = None,
    source_channels: int | None = None,
    endpoint: tuple[int, ...] | None = None,
    further: ConditionsConfig | None = None,
) -> UNet | DiT:
    """The network of a preset for targets of a number of channels, and sources of as many unless given.

    ``source_as`` None is the preset's choice, and a network always sees a source of other channels.
    ``endpoint`` are the source channels that the bridge ends in, and ``further`` the other conditions.

    Raises:
        ValueError: ``source_as`` is not of this preset's network.
    """
    config = PRESETS[preset]
    source_channels = source_channels or channels
    if source_channels != channels and source_as == "none":
        raise ValueError(f"source_as 'none' needs sources of {channels} channels as targets, got {source_channels}")
    shown = config.condition_channels if source_as is None else source_as != "none"
    seen: dict[str, Any] = {"endpoint": endpoint} | ({} if further is None else further.settings())
    seen |= {"condition_channels": source_channels if shown or source_channels != channels else 0}
    if isinstance(config, DiTConfig):
        how = {"tokens": "tokens", "concat": "channels"}.get(source_as or "", config.condition)
        return DiT.from_config(replace(config, channels=channels, condition=how, **seen))
    if source_as == "tokens":
        raise ValueError(f"source_as 'tokens' is of transformers, and {preset} is none: use 'concat'")
    return UNet.from_config(replace(config, in_channels=channels, out_channels=channels, **seen))


def codec_for(path: str | os.PathLike[str], preset: str, device: torch.device) -> Codec:
    """The codec of a file that :func:`~bbdm.files.checkpoint.load_codec` reads, on a device in float32.

    Raises:
        ValueError: the preset is of latents with another number of channels. Presets of pictures fit any.
    """
    codec = load_codec(path).placed(device, torch.float32)
    channels = {name: config.channels for name, config in PRESETS.items()}
    fitting = [name for name in PRESETS if channels[name] == codec.channels or not name.startswith("lbbdm")]
    if preset not in fitting:
        raise ValueError(
            f"preset {preset} takes {channels[preset]} channels, and this autoencoder's latents have "
            f"{codec.channels}; preset must be one of {', '.join(fitting)}"
        )
    return codec
