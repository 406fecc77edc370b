"""Another program's file: its values by dotted names, state dicts, settings from their shapes, and VQGANs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bbdm.files import inert
from bbdm.files.inert import Stub, describe
from bbdm.networks.base import fitting
from bbdm.networks.config import UNetConfig, VQGANConfig

State = Mapping[str, torch.Tensor]
Shaped = Mapping[str, Any]  # tensors, or objects with their ``shape``
FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
# entries of files that hold the network, where others are like it
NETWORKS = ("state_dict.", "model.")
CODES = "quantize.embedding.weight"  # a key that every VQGAN has


class File:
    """What a file holds: ``values`` by names, of :func:`~bbdm.files.inert.flat`, and its ``tensors``."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.values = inert.flat(content)
        self.tensors = {
            key: value for key, value in self.values.items() if isinstance(value, torch.Tensor)
        }

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with ``prefix``, which is removed."""
        tensors: dict[str, torch.Tensor] = {}
        for key, value in self.tensors.items():
            if key.startswith(prefix):
                tensors[key.removeprefix(prefix)] = value
        return tensors

    def prefixes(self, end: str) -> list[str]:
        """The prefixes of the tensors whose names end in ``end``, sorted."""
        return sorted(
            key.removesuffix(end) for key in self.tensors if f".{key}".endswith(f".{end}")
        )

    def prefix(self, expected: str, things: str, end: str) -> str:
        """The prefix of the one tensor whose name ends in ``end``; ValueError of none or several."""
        prefixes = self.prefixes(end)
        of_networks = [prefix for prefix in prefixes if prefix.startswith(NETWORKS)]
        if of_networks:
            prefixes = of_networks
        if len(prefixes) != 1:
            got = f"it is {summary(self.content)} with {len(prefixes) or 'no'} {things} in it"
            raise ValueError(f"{got}; wanted: {expected} with one tensor whose name ends in {end}")
        return prefixes[0]

    def around(self, prefix: str) -> tuple[list[Stub], dict[str, Any]]:
        """What holds the tensors of a prefix: its objects, the outermost first, and all their values.

        Values are by the last part of the name, the innermost one where there are several.
        """

        def holds(name: str) -> bool:
            return not name or prefix.startswith(f"{name}.")

        objects: list[Stub] = []
        for name, value in self.values.items():
            if isinstance(value, Stub) and holds(name):
                objects.append(value)
        values: dict[str, Any] = {}
        for name in sorted(self.values, key=lambda name: name.count(".")):
            holder, _, attribute = name.rpartition(".")
            if holds(holder):
                values[attribute] = self.values[name]
        return objects, values


def summary(content: object) -> str:
    """A few words on a file's content, for an error."""
    if not isinstance(content, dict):
        return describe(content)
    names = [repr(key[:50]) for key in list(content)[:8] if isinstance(key, str)]
    if len(content) > 8:
        names.append("...")
    return f"a dict of {len(content)} entries ({', '.join(names)})"


def tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The state dict; ValueError where a value is not a tensor."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{str(key)[:100]} is {describe(value)}, not a tensor")
    return dict(state)


def load(
    build: Callable[[Any], nn.Module], config: Any, state: Mapping[Any, Any]
) -> dict[str, torch.Tensor]:
    """Copies of the weights of a network, which may be mapped; ValueError where they do not fit."""
    named = tensors(state)
    fitting(build, config, named)
    inert.check_sharing(named.values())
    return {key: value.detach().clone() for key, value in named.items()}


def _count(state: Shaped, prefix: str) -> int:
    """The number of ``prefix``0, ``prefix``1, ... without a gap."""
    indices = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    count = 0
    while str(count) in indices:
        count += 1
    return count


def dim(state: Shaped, key: str, axis: int) -> int:
    """A dimension, at least 1; KeyError where there is no such key."""
    shape = state[key].shape
    if axis >= len(shape) or shape[axis] < 1:
        raise ValueError(f"{key} has the impossible shape {tuple(shape)}")
    return shape[axis]


def _levels(
    state: Shaped, first: str, blocks: int, widths: Sequence[str], attention: Sequence[str]
) -> dict[str, Any]:
    """Settings of levels: keys of the first convolution, and of a block and of attention at each level."""
    width = dim(state, first, 0)
    with_attention = [2**level for level, key in enumerate(attention) if key in state]
    return {
        "model_channels": width,
        "channel_mult": tuple(dim(state, key, 0) // width for key in widths),
        "num_res_blocks": blocks,
        "attention_resolutions": tuple(with_attention),
    }


def unet_config(state: Shaped, head_channels: int | None = None) -> UNetConfig:
    """The settings of a UNet with the keys of guided diffusion, sde-bbdm and BBDM, which have 32 groups.

    The width of an attention head leaves no trace in the shapes. Where it is not known it is 64, as in the
    papers, with a warning where the levels are others than the paper's.
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
    blocks = stages
    for key in state:
        second = re.fullmatch(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight", key)
        if second is not None:
            blocks = min(blocks, int(second[1]) + 1)
    if blocks < 2 or stages % blocks:
        raise ValueError(
            f"its UNet has {stages} stages on the way up and levels of {blocks}, which do not divide"
        )
    # each level's first stage, from the top
    ups = [f"output_blocks.{i}." for i in range(stages - blocks, -1, -blocks)]
    widths = [f"{up}0.out_layers.3.weight" for up in ups]
    attention = [f"{up}1.qkv.weight" for up in ups]
    levels = _levels(state, FIRST, blocks - 1, widths, attention)
    usual = UNetConfig()
    same_width = levels["model_channels"] == usual.model_channels
    same_levels = levels["channel_mult"] == usual.channel_mult
    if head_channels is None and not (same_width and same_levels):
        warnings.warn(
            "weights do not say how wide the attention heads of their network are, and its levels are not the "
            f"paper's: {usual.head_channels} channels assumed; if they were trained with others, results are wrong",
            stacklevel=2,
        )
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        condition_channels=condition,
        head_channels=head_channels or usual.head_channels,
        **levels,
    )


def vqgan_config(state: Shaped) -> VQGANConfig:
    """The settings of a VQGAN with the keys of latent diffusion, which has 32 groups."""
    downs = [f"encoder.down.{level}." for level in range(_count(state, "encoder.down."))]
    widths = [f"{down}block.0.conv1.weight" for down in downs]
    attention = [f"{down}attn.0.q.weight" for down in downs]
    first = "encoder.conv_in.weight"
    levels = _levels(state, first, _count(state, "encoder.down.0.block."), widths, attention)
    return VQGANConfig(
        image_channels=dim(state, first, 1),
        latent_channels=dim(state, CODES, 1),
        num_codes=dim(state, CODES, 0),
        **levels,
    )
