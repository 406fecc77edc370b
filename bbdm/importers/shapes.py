"""What key names and shapes tell of a network, for state dicts that come without a description."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch

from bbdm.networks.unet import UNet, UNetConfig
from bbdm.networks.vqgan import PRESETS, VQGAN, VQGANConfig

Network = TypeVar("Network", UNet, VQGAN)
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many of ``prefix``0, ``prefix``1, ... there are, without a gap."""
    found = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    return next(i for i in range(len(found) + 1) if str(i) not in found)


def _dim(shapes: Shapes, key: str, axis: int) -> int:
    """A dimension, at least 1.

    Raises:
        KeyError: there is no such key.
        ValueError: there is no such dimension.
    """
    shape = shapes[key]
    if axis >= len(shape) or shape[axis] < 1:
        raise ValueError(f"{key} has the impossible shape {shape}")
    return shape[axis]


def unet_config(shapes: Shapes, **said: Any) -> UNetConfig:
    """The settings of a UNet with the keys of guided diffusion, sde-bbdm and BBDM.

    Shapes do not tell the width of an attention head, the groups of a GroupNorm or the dropout.

    Args:
        shapes: of every tensor by its key.
        **said: settings that the file itself names, which win.

    Raises:
        KeyError: a key is missing that the settings are read from.
        ValueError: there is no such network.
    """
    width = _dim(shapes, "input_blocks.0.0.weight", 0)
    channels = _dim(shapes, "out.2.weight", 0)
    condition = _dim(shapes, "input_blocks.0.0.weight", 1) - channels
    if condition not in (0, channels):
        raise ValueError(
            f"its UNet takes {channels + condition} channels for {channels} that it gives; "
            f"wanted {channels}, or {2 * channels} with the source as condition"
        )
    stages = _count(shapes, "output_blocks.")
    # A stage that ends a level has a second residual block, which doubles the size.
    second = r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight"
    ends = [int(found[1]) for found in (re.fullmatch(second, key) for key in shapes) if found]
    blocks = min(ends) + 1 if ends else stages
    if blocks < 2 or stages % blocks:
        raise ValueError(f"its UNet has {stages} stages on the way up and levels of {blocks}: not a network of ours")
    firsts = range(stages - blocks, -1, -blocks)  # each level's first stage on the way up, from the first level
    settings = {
        "in_channels": channels,
        "out_channels": channels,
        "condition_channels": condition,
        "model_channels": width,
        "channel_mult": tuple(_dim(shapes, f"output_blocks.{i}.0.out_layers.3.weight", 0) // width for i in firsts),
        "num_res_blocks": blocks - 1,
        "attention_resolutions": tuple(
            2**level for level, i in enumerate(firsts) if f"output_blocks.{i}.1.qkv.weight" in shapes
        ),
    }
    return UNetConfig(**{**settings, **said})


def vqgan_config(shapes: Shapes, **said: Any) -> VQGANConfig:
    """The settings of a VQGAN with the keys of latent diffusion, and those of ``said``, which shapes do not tell.

    Where keys are missing that they are read from, the preset that differs least, so that all its keys can be named.

    Raises:
        ValueError: there is no such network.
    """
    try:
        width = _dim(shapes, "encoder.conv_in.weight", 0)
        levels = range(_count(shapes, "encoder.down."))
        return VQGANConfig(
            image_channels=_dim(shapes, "encoder.conv_in.weight", 1),
            latent_channels=_dim(shapes, "quantize.embedding.weight", 1),
            num_codes=_dim(shapes, "quantize.embedding.weight", 0),
            model_channels=width,
            channel_mult=tuple(
                _dim(shapes, f"encoder.down.{level}.block.0.conv1.weight", 0) // width for level in levels
            ),
            num_res_blocks=_count(shapes, "encoder.down.0.block."),
            attention_resolutions=tuple(
                2**level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in shapes
            ),
            **said,
        )
    except KeyError:
        return min(PRESETS.values(), key=lambda preset: len(expected(VQGAN, preset).keys() ^ shapes.keys()))


def expected(kind: type[Network], config: Any) -> dict[str, Shape]:
    """The shape of every tensor of a network.

    Raises:
        ValueError: there is no such network.
    """
    return {key: tuple(value.shape) for key, value in skeleton(kind, config).state_dict().items()}


def skeleton(kind: type[Network], config: Any) -> Network:
    """A network without values: on the device "meta", where it takes no memory.

    Raises:
        ValueError: there is no such network.
    """
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor has
        raise ValueError(f"its shapes are of no network: {error}") from error


def check(shapes: Shapes, wanted: Shapes) -> None:
    """Compare by name.

    Raises:
        ValueError: with every key that is missing, extra or of another shape.
    """
    both = shapes.keys() & wanted.keys()
    wrong = [f"{key} {shapes[key]} (wanted {wanted[key]})" for key in sorted(both) if shapes[key] != wanted[key]]
    differences = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "extra": sorted(shapes.keys() - wanted.keys()),
        "of another shape": wrong,
    }
    if any(differences.values()):
        found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in differences.items() if keys)
        raise ValueError(f"its keys do not fit the network: {found}")


# The A-Bridge scripts' VQGAN is latent diffusion's under other names: parts of a block, then places in the network.
BLOCK_NAMES = [
    (r"\.block\.0\.(\w+)$", r".norm1.\1"),
    (r"\.block\.2\.(\w+)$", r".conv1.\1"),
    (r"\.block\.3\.(\w+)$", r".norm2.\1"),
    (r"\.block\.5\.(\w+)$", r".conv2.\1"),
    (r"\.channel_up\.(\w+)$", r".nin_shortcut.\1"),
    (r"\.gn\.(\w+)$", r".norm.\1"),
]
PLACE_NAMES = [
    (r"^quantizer\.", "quantize."),
    (r"^encoder\.mid_blocks\.3\.", "encoder.norm_out."),
    (r"^encoder\.mid_blocks\.", "encoder.mid."),
    (r"^(encoder|decoder)\.mid\.0\.", r"\1.mid.block_1."),
    (r"^(encoder|decoder)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"^(encoder|decoder)\.mid\.2\.", r"\1.mid.block_2."),
    (r"^encoder\.down_sampling\.0\.(\w+)$", r"encoder.conv_in.\1"),
]
ROW = r"^encoder\.down_sampling\.([1-9]\d{0,5})\.(\w+)"


def abridge_vqgan_names(keys: Iterable[str]) -> dict[str, str]:
    """Latent diffusion's name for every key of the VQGAN of the A-Bridge scripts, whose encoder is one long row."""
    names: dict[str, str] = {}
    row: dict[int, set[str]] = {}  # the parts of each block in that row
    for key in keys:
        name = key
        for pattern, replacement in BLOCK_NAMES + PLACE_NAMES:
            name = re.sub(pattern, replacement, name)
        names[key] = name
        if found := re.match(ROW, name):
            row.setdefault(int(found[1]), set()).add(found[2])
    places: dict[str, str] = {}
    level, block = 0, 0
    for index, parts in sorted(row.items()):
        if "conv1" in parts:
            places[str(index)] = f"encoder.down.{level}.block.{block}."
            block += 1
        elif "conv" in parts:
            places[str(index)] = f"encoder.down.{level}.downsample."
            level, block = level + 1, 0
        else:
            places[str(index)] = f"encoder.down.{level}.attn.{block - 1}."
    return {key: re.sub(ROW, lambda found: places[found[1]] + found[2], name) for key, name in names.items()}
