"""A network's settings from the keys and shapes of its state dict, where the file does not state them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from bbdm.networks.config import UNETS, VQGANS, UNetConfig, VQGANConfig
from bbdm.networks.restore import skeleton
from bbdm.networks.vqgan import VQGAN

State = Mapping[str, Any]  # tensors, or objects with their ``shape``
Config = UNetConfig | VQGANConfig


def _count(state: State, prefix: str) -> int:
    """The number of ``prefix``0, ``prefix``1, ... without a gap."""
    found = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return next(i for i in range(len(found) + 1) if str(i) not in found)


def _dim(state: State, key: str, axis: int) -> int:
    """A dimension, at least 1; KeyError where there is no such key."""
    shape = state[key].shape
    if axis >= len(shape) or shape[axis] < 1:
        raise ValueError(f"{key} has the impossible shape {tuple(shape)}")
    return shape[axis]


def unet_config(state: State, **known: Any) -> UNetConfig:
    """The settings of a UNet with the keys of guided diffusion, sde-bbdm and BBDM.

    The width of an attention head, the groups of a GroupNorm and the dropout leave no trace in the shapes.
    The first two are those of a preset of these shapes, else the paper's, with a warning; ``known`` settings,
    which the file states, take precedence. A patch shows in the channels alone, and is a preset's too.
    """
    width = _dim(state, "input_blocks.0.0.weight", 0)
    channels = _dim(state, "out.2.weight", 0)
    condition = _dim(state, "input_blocks.0.0.weight", 1) - channels
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
    firsts = range(stages - blocks, -1, -blocks)  # each level's first stage on the way up, from the first level
    settings: dict[str, Any] = {
        "model_channels": width,
        "channel_mult": tuple(_dim(state, f"output_blocks.{i}.0.out_layers.3.weight", 0) // width for i in firsts),
        "num_res_blocks": blocks - 1,
        "attention_resolutions": tuple(
            2**level for level, i in enumerate(firsts) if f"output_blocks.{i}.1.qkv.weight" in state
        ),
    }
    fitting = (p for p in UNETS.values() if p.axes == 2 and channels % p.patch**2 == 0 and _same_blocks(settings, p))
    preset = next(fitting, None)
    assumed = _assumed(preset, UNetConfig(), {"head_channels", "num_groups"} - known.keys())
    settings |= {"patch": 1 if preset is None else preset.patch, **assumed, **known}
    pixels = settings["patch"] ** 2
    ends = {"in_channels": channels, "out_channels": channels, "condition_channels": condition}
    return UNetConfig(**{name: count // pixels for name, count in ends.items()}, **settings)


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
    inner = settings.keys() - {"image_channels", "latent_channels", "num_codes"}
    return all(settings[name] == {**vars(preset), "attention_resolutions": attention}[name] for name in inner)


def vqgan_config(state: State, **known: Any) -> VQGANConfig:
    """The settings of a VQGAN with the keys of latent diffusion; see :func:`unet_config`.

    Where a key is missing that a setting is read from, they are those of the preset whose keys differ least,
    so that the error that follows names every key.
    """
    try:
        width = _dim(state, "encoder.conv_in.weight", 0)
        levels = range(_count(state, "encoder.down."))
        settings = {
            "image_channels": _dim(state, "encoder.conv_in.weight", 1),
            "latent_channels": _dim(state, "quantize.embedding.weight", 1),
            "num_codes": _dim(state, "quantize.embedding.weight", 0),
            "model_channels": width,
            "channel_mult": tuple(
                _dim(state, f"encoder.down.{level}.block.0.conv1.weight", 0) // width for level in levels
            ),
            "num_res_blocks": _count(state, "encoder.down.0.block."),
            "attention_resolutions": tuple(
                2**level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in state
            ),
        }
    except KeyError:
        keys = {name: skeleton(VQGAN.from_config, preset).state_dict().keys() for name, preset in VQGANS.items()}
        return VQGANS[min(keys, key=lambda name: len(keys[name] ^ state.keys()))]
    preset = next((preset for preset in VQGANS.values() if _same_blocks(settings, preset)), None)
    assumed = _assumed(preset, VQGANConfig(), {"num_groups"} - known.keys())
    return VQGANConfig(**{**settings, **assumed, **known})


# The A-Bridge scripts' VQGAN is latent diffusion's with other keys of a block's parts, and of layers.
BLOCK_NAMES = [
    (r"\.block\.0\.(\w+)$", r".norm1.\1"),
    (r"\.block\.2\.(\w+)$", r".conv1.\1"),
    (r"\.block\.3\.(\w+)$", r".norm2.\1"),
    (r"\.block\.5\.(\w+)$", r".conv2.\1"),
    (r"\.channel_up\.(\w+)$", r".nin_shortcut.\1"),
    (r"\.gn\.(\w+)$", r".norm.\1"),
]
LAYER_NAMES = [
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
    """Latent diffusion's key for each key of the A-Bridge scripts' VQGAN, whose encoder is one sequence."""
    names: dict[str, str] = {}
    row: dict[int, set[str]] = {}  # the parts of each block in the sequence
    for key in keys:
        name = key
        for pattern, replacement in BLOCK_NAMES + LAYER_NAMES:
            name = re.sub(pattern, replacement, name)
        names[key] = name
        if found := re.match(ROW, name):
            row.setdefault(int(found[1]), set()).add(found[2])
    prefixes: dict[str, str] = {}
    level, block = 0, 0
    for index, parts in sorted(row.items()):
        if "conv1" in parts:
            prefixes[str(index)] = f"encoder.down.{level}.block.{block}."
            block += 1
        elif "conv" in parts:
            prefixes[str(index)] = f"encoder.down.{level}.downsample."
            level, block = level + 1, 0
        else:
            prefixes[str(index)] = f"encoder.down.{level}.attn.{block - 1}."
    return {key: re.sub(ROW, lambda found: prefixes[found[1]] + found[2], name) for key, name in names.items()}
