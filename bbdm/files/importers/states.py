"""Another program's file: its values by dotted names, its state dicts, and settings from their shapes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bbdm.files import inert
from bbdm.files.inert import Stub, describe
from bbdm.networks.config import UNETS, VQGANS, UNetConfig, VQGANConfig
from bbdm.networks.restore import fitting

State = Mapping[str, torch.Tensor]
Shaped = Mapping[str, Any]  # tensors, or objects with their ``shape``
Config = UNetConfig | VQGANConfig
FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
NETWORKS = ("state_dict.", "model.")  # entries of files that hold the network, where others are like it


class File:
    """What a file holds: ``values`` by names, of :func:`~bbdm.files.inert.flat`, and its ``tensors``."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.values = inert.flat(content)
        self.tensors = {key: value for key, value in self.values.items() if isinstance(value, torch.Tensor)}

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with ``prefix``, which is removed."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def prefixes(self, *ends: str) -> list[str]:
        """The prefixes of the tensors whose names end in one of ``ends``, sorted."""
        found = ((key, end) for key in self.tensors for end in ends)
        return sorted({key.removesuffix(end) for key, end in found if f".{key}".endswith(f".{end}")})

    def prefix(self, expected: str, things: str, *ends: str) -> str:
        """The prefix of the one tensor whose name ends in one of ``ends``; ValueError of none or several."""
        found = self.prefixes(*ends)
        found = [each for each in found if each.startswith(NETWORKS)] or found
        if len(found) != 1:
            got = f"it is {summary(self.content)} with {len(found) or 'no'} {things} in it"
            raise ValueError(f"{got}; wanted: {expected} with one tensor whose name ends in {' or '.join(ends)}")
        return found[0]

    def around(self, prefix: str) -> tuple[list[Stub], dict[str, Any]]:
        """What holds the tensors of a prefix: its objects, the outermost first, and all their values.

        Values are by the last part of the name, the innermost one where there are several.
        """

        def holds(name: str) -> bool:
            return not name or prefix.startswith(f"{name}.")

        objects = [value for key, value in self.values.items() if isinstance(value, Stub) and holds(key)]
        inside = sorted((key for key in self.values if holds(key.rpartition(".")[0])), key=lambda k: k.count("."))
        return objects, {key.rpartition(".")[2]: self.values[key] for key in inside}


def summary(content: Any) -> str:
    """A few words on a file's content, for an error."""
    if not isinstance(content, dict):
        return describe(content)
    names = ", ".join(repr(key[:50]) for key in list(content)[:8] if isinstance(key, str))
    return f"a dict of {len(content)} entries ({names}{', ...' if len(content) > 8 else ''})"


def renamed(state: State, rows: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> dict[str, torch.Tensor]:
    """A state dict with other keys, by rows of a regular expression and its replacement, in turn.

    Raises:
        ValueError: two keys become the same.
    """
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in rows:
            key = re.sub(pattern, replacement, key)
        if key in found:
            raise ValueError(f"several of its keys name the same weight of the network, {key}")
        found[key] = value
    return found


def tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The state dict; ValueError where a value is not a tensor."""
    if wrong := [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{str(wrong[0])[:100]} is {describe(state[wrong[0]])}, not a tensor")
    return dict(state)


def load(build: Callable[[Any], nn.Module], config: Any, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Copies of the weights of a network, which may be mapped; ValueError where they do not fit."""
    found = tensors(state)
    fitting(build, config, found)
    inert.check_sharing(found.values())
    return {key: value.detach().clone() for key, value in found.items()}


def _count(state: Shaped, prefix: str) -> int:
    """The number of ``prefix``0, ``prefix``1, ... without a gap."""
    found = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return next(i for i in range(len(found) + 1) if str(i) not in found)


def dim(state: Shaped, key: str, axis: int) -> int:
    """A dimension, at least 1; KeyError where there is no such key."""
    shape = state[key].shape
    if axis >= len(shape) or shape[axis] < 1:
        raise ValueError(f"{key} has the impossible shape {tuple(shape)}")
    return shape[axis]


def _levels(state: Shaped, first: str, blocks: int, widths: Sequence[str], attention: Sequence[str]) -> dict[str, Any]:
    """Settings of levels: keys of the first convolution, and of a block and of attention at each level."""
    width = dim(state, first, 0)
    return {
        "model_channels": width,
        "channel_mult": tuple(dim(state, key, 0) // width for key in widths),
        "num_res_blocks": blocks,
        "attention_resolutions": tuple(2**level for level, key in enumerate(attention) if key in state),
    }


def unet_config(state: Shaped, **known: Any) -> UNetConfig:
    """The settings of a UNet with the keys of guided diffusion, sde-bbdm and BBDM.

    The width of an attention head, the groups of a GroupNorm and the dropout leave no trace in the shapes.
    The first two are those of a preset of these shapes, else the paper's, with a warning; ``known`` settings,
    which the file states, take precedence. A patch shows in the channels alone, and is a preset's too.
    """
    channels = dim(state, "out.2.weight", 0)
    condition = dim(state, FIRST, 1) - channels
    if condition not in (0, channels):
        raise ValueError(
            f"its UNet takes {channels + condition} channels for {channels} that it gives; "
            f"wanted {channels}, or {2 * channels} with the source as condition"
        )
    stages = _count(state, "output_blocks.")
    # The last stage of a level has a second residual block, which doubles the size.
    second = r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight"
    ends = [int(found[1]) for found in (re.fullmatch(second, key) for key in state) if found]
    blocks = min(ends) + 1 if ends else stages
    if blocks < 2 or stages % blocks:
        raise ValueError(f"its UNet has {stages} stages on the way up and levels of {blocks}, which do not divide")
    ups = [f"output_blocks.{i}." for i in range(stages - blocks, -1, -blocks)]  # each level's first stage, from the top
    widths, attention = ([f"{up}{key}" for up in ups] for key in ("0.out_layers.3.weight", "1.qkv.weight"))
    settings = _levels(state, FIRST, blocks - 1, widths, attention)
    fitting = (p for p in UNETS.values() if p.axes == 2 and channels % p.patch**2 == 0 and _same_blocks(settings, p))
    preset = next(fitting, None)
    assumed = _assumed(preset, UNetConfig(), {"head_channels", "num_groups"} - known.keys())
    settings |= {"patch": 1 if preset is None else preset.patch, **assumed, **known}
    counts = {"in_channels": channels, "out_channels": channels, "condition_channels": condition}
    return UNetConfig(**{name: count // settings["patch"] ** 2 for name, count in counts.items()}, **settings)


def vqgan_config(state: Shaped, **known: Any) -> VQGANConfig:
    """The settings of a VQGAN with the keys of latent diffusion; see :func:`unet_config`."""
    first, codes = "encoder.conv_in.weight", "quantize.embedding.weight"
    downs = [f"encoder.down.{level}." for level in range(_count(state, "encoder.down."))]
    widths, attention = ([f"{down}{key}" for down in downs] for key in ("block.0.conv1.weight", "attn.0.q.weight"))
    settings = _levels(state, first, _count(state, "encoder.down.0.block."), widths, attention)
    preset = next((preset for preset in VQGANS.values() if _same_blocks(settings, preset)), None)
    ends = {"image_channels": (first, 1), "latent_channels": (codes, 1), "num_codes": (codes, 0)}
    settings |= {name: dim(state, *key) for name, key in ends.items()}
    return VQGANConfig(**{**settings, **_assumed(preset, VQGANConfig(), {"num_groups"} - known.keys()), **known})


def _assumed(preset: Config | None, default: Config, names: Collection[str]) -> dict[str, Any]:
    """Settings without a trace in shapes: the preset's of these blocks, else the defaults with a warning."""
    found = {name: getattr(preset or default, name) for name in sorted(names)}
    if found and preset is None:
        values = ", ".join(f"{name}={value}" for name, value in found.items())
        warnings.warn(
            f"weights do not determine all settings of their network, which is none of the presets: {values} assumed; "
            "if they were trained with others, results are wrong",
            stacklevel=2,
        )
    return found


def _same_blocks(settings: dict[str, Any], preset: Config) -> bool:
    """Whether a preset has these settings of its inner blocks, with attention only at levels that it has."""
    levels = (2**level for level in range(len(preset.channel_mult)))
    attention = tuple(n for n in levels if n in preset.attention_resolutions)
    return all(value == {**vars(preset), "attention_resolutions": attention}[name] for name, value in settings.items())
