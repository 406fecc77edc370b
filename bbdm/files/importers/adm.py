"""Guided diffusion's networks without classes (ADM, Dhariwal and Nichol 2021), and as I2SB's code saves them.

A file is a state dict with the keys of our UNet. A head that predicts the variance too is known by its
channels, twice those of pictures; a file without one is known by the name that a user gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bbdm.bridges.path import Array
from bbdm.files import inert
from bbdm.files.importers.arguments import HEADS
from bbdm.files.importers.states import FIRST, File, dim, load, unet_config
from bbdm.networks.pretrained_config import ADM, PretrainedConfig, levels_of
from bbdm.networks.unet import UNet

TIMES = 1000
LAST = ("out.2.weight", "out.2.bias")
CLASSES = "label_emb.weight"
SUFFIXES = (".pt", ".pth", ".ckpt")


def linear() -> Array:
    """The betas at each time."""
    return np.linspace(1e-4, 0.02, TIMES)


def cosine() -> Array:
    """The betas at each time (Nichol and Dhariwal 2021, eq. 17)."""
    kept = np.cos((np.arange(TIMES + 1) / TIMES + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


# by the names that a user gives
SCHEDULES: dict[str, Callable[[], Array]] = {"adm": linear, "adm-cosine": cosine}


def is_adm(path: Path) -> bool:
    """Whether a file is of a network that predicts the variance too."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    try:
        file = File(inert.load(path)[0])
        if len(file.prefixes(FIRST)) != 1:
            return False
        state = file.below(file.prefixes(FIRST)[0])
        return dim(state, LAST[0], 0) == 2 * dim(state, FIRST, 1)
    except Exception:  # who reads the file as what it may be instead says what is wrong
        return False


def read_adm(content: object, config: str | None) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The settings of a network and its weights, without the head that predicts the variance.

    Args:
        content: what the file holds.
        config: a name in :data:`SCHEDULES`; None for the first.

    Raises:
        ValueError: the network has classes, or is none of guided diffusion's, or ``config`` is unknown.
    """
    if config is not None and config not in SCHEDULES:
        raise ValueError(f"config must be one of {', '.join(SCHEDULES)}, got {config!r}")
    file = File(content)
    prefix = file.prefix("a state dict of guided diffusion", "UNets", FIRST)
    state = file.below(prefix)
    if CLASSES in state:
        count = dim(state, CLASSES, 0)
        raise ValueError(
            f"it is class-conditional, of {count} classes: only networks without classes are read"
        )
    _check_blocks(state)
    channels = dim(state, FIRST, 1)
    for key in LAST:
        if dim(state, key, 0) == 2 * channels:
            state[key] = state[key][:channels]
    unet = unet_config(state, HEADS)
    if unet.condition_channels:
        raise ValueError(
            f"it must be shown {unet.channels} channels, as it predicts, got {channels}"
        )
    state = load(UNet.from_config, unet, state)
    settings = PretrainedConfig(
        architecture=ADM,
        arguments_json=json.dumps(asdict(unet), sort_keys=True),
        channels=channels,
        stride=unet.stride,
        prediction="epsilon",
        log_levels=levels_of(SCHEDULES[config or "adm"]()),
    )
    return settings, state


def _check_blocks(state: Mapping[str, Any]) -> None:
    """Raise ValueError for networks of improved diffusion: their heads of attention are of other widths."""
    halved = any(key.endswith(".op.weight") for key in state)  # by convolutions, not by blocks
    channels = dim(state, "input_blocks.1.0.out_layers.3.weight", 0)
    modulation = dim(state, "input_blocks.1.0.emb_layers.1.weight", 0)
    if halved or modulation != 2 * channels:  # a scale and a shift
        expected = "a network of guided diffusion with resblock_updown and use_scale_shift_norm"
        raise ValueError(
            f"it must be {expected}, and has other blocks, as those of improved diffusion"
        )
