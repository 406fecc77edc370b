"""The settings of networks of diffusion models, which a bridge can start from; without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bbdm.networks.arrays import Stride
from bbdm.networks.config import NetworkConfig, UNetConfig

Prediction = Literal["epsilon", "v_prediction", "sample", "flow", "edm", "edm_v"]
DIT = "DiTTransformer2DModel"
# of diffusers, that a bridge can start from
ARCHITECTURES = ("UNet2DModel", "UNet2DConditionModel", DIT)
KIND = "pretrained"  # of such a network, in files of bbdm
ADM = "UNet"  # of this library, with the weights of guided diffusion
# arguments of networks that are shown guidance, pictures or projected prompts, which a bridge does not have
UNSHOWN = (
    "time_cond_proj_dim",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "class_embeddings_concat",
)
SIZES = 6  # numbers of sizes and crops that SDXL is shown
ENDS = {  # the first layer and the last, by the network's class
    "UNet2DModel": ("conv_in", "conv_out"),
    "UNet2DConditionModel": ("conv_in", "conv_out"),
    DIT: ("pos_embed.proj", "proj_out_2"),
    ADM: ("input_blocks.0.0", "out.2"),
}


@dataclass(frozen=True)
class PretrainedConfig(NetworkConfig):
    """The settings of a pretrained network.

    Raises:
        ValueError: it is none that a bridge can use; see :func:`check_settings`.
    """

    architecture: str  # the class of diffusers, or UNet of this library
    arguments_json: str  # its arguments, as JSON; they count the channels of the source too
    channels: int  # of the state, and of the prediction
    stride: Stride  # sides are multiples of it
    prediction: Prediction  # what it predicts
    # ln of the noise levels of its integer times, increasing; of a schedule
    log_levels: tuple[float, ...] = ()
    sigma_data: float = 0.5  # of EDM

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction must be one of {get_args(Prediction)}, got {self.prediction!r}"
            )
        if not isinstance(self.arguments, dict):
            raise ValueError("arguments_json must hold the arguments of a network by name")
        check_settings(self.architecture, self.arguments)
        self._check_levels()

    def __str__(self) -> str:
        """In a line, without all levels and arguments."""
        levels = ""
        if self.log_levels:
            low = math.exp(self.log_levels[0])
            high = math.exp(self.log_levels[-1])
            levels = f" at {len(self.log_levels)} noise levels from {low:.3g} to {high:.4g}"
        channels = f"channels={self.channels}, condition_channels={self.condition_channels}, stride={self.stride}"
        return f"{self.architecture}, predicts {self.prediction}{levels}; {channels}"

    def _check_levels(self) -> None:
        """Raise ValueError unless levels increase where times are those of a schedule; others have none."""
        levels = self.log_levels
        of_schedule = self.prediction in ("epsilon", "v_prediction", "sample")
        if not all(isinstance(level, float) and math.isfinite(level) for level in levels):
            raise ValueError("log_levels must be finite numbers")
        if (len(levels) >= 2) != of_schedule or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                f"log_levels must be increasing, two or more of a schedule, got {len(levels)}"
            )
        if not isinstance(self.sigma_data, float | int) or not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be a positive number, got {self.sigma_data!r}")

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the network's class."""
        return json.loads(self.arguments_json)

    @property
    def blocks(self) -> int:
        """The number of its blocks, at most: each has weights."""
        if self.architecture == ADM:
            return _adm_config(self.arguments).blocks
        count = 1
        for name in ("layers_per_block", "num_layers", "transformer_layers_per_block"):
            values = self.arguments.get(name)
            numbers = values if isinstance(values, list) else [values]
            count = max([count, *(number for number in numbers if isinstance(number, int))])
        return count


def levels_of(betas: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Ln of the noise levels of a schedule's times; without the last of zero SNR, which is infinite."""
    kept = np.cumprod(1 - betas)
    with np.errstate(divide="ignore"):
        levels = np.log(np.sqrt(1 / kept - 1))
    return tuple(levels[np.isfinite(levels)].tolist())


def check_settings(architecture: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where a pretrained network cannot be a bridge's: by its class and arguments."""
    if architecture == ADM:
        _adm_config(arguments)
        return
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"the network must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    times = arguments.get("time_embedding_type", "positional")
    if times != "positional":
        raise ValueError(f"time_embedding_type must be 'positional', got {times!r}")
    if arguments.get("center_input_sample"):
        raise ValueError("center_input_sample is for pictures in [0, 1], and must be false")
    classes = arguments.get("class_embed_type") or arguments.get("num_class_embeds")
    if classes:
        raise ValueError(f"the network must have no classes, got {classes!r}")
    for name in UNSHOWN:
        if arguments.get(name):
            raise ValueError(
                f"{name} must be unset, got {arguments[name]!r}: a bridge does not show what it needs"
            )
    attention = arguments.get("attention_type", "default")
    if attention != "default":
        raise ValueError(f"attention_type must be 'default', got {attention!r}")
    tokens = arguments.get("cross_attention_dim")
    if isinstance(tokens, list | tuple):
        raise ValueError(f"cross_attention_dim must be one number, got {tokens}")
    pooled_width(arguments)
    kinds = [*arguments.get("down_block_types", ()), *arguments.get("up_block_types", ())]
    skips = sorted(kind for kind in kinds if "Skip" in kind)
    if skips:
        raise ValueError(f"the network must have no skip blocks, got {skips[0]}")


def pooled_width(arguments: Mapping[str, Any]) -> int:
    """The numbers of the pooled prompt that SDXL is shown; 0 of other networks.

    Raises:
        ValueError: it is shown something else, as SDXL's refiner.
    """
    additions = arguments.get("addition_embed_type")
    if additions is None:
        return 0
    if additions != "text_time":
        raise ValueError(f"addition_embed_type must be 'text_time' or unset, got {additions!r}")
    width = arguments["projection_class_embeddings_input_dim"]
    sizes = arguments["addition_time_embed_dim"]
    pooled = width - SIZES * sizes
    if pooled < 1 or width - (SIZES - 1) * sizes == arguments.get("cross_attention_dim"):
        raise ValueError(
            f"the network must be shown {SIZES} sizes of a picture, and not fewer, as SDXL's refiner is"
        )
    return pooled


def _adm_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """The settings of a UNet of this library; ValueError where some are unknown or out of range."""
    try:
        return UNetConfig(**arguments)
    except TypeError as error:
        raise ValueError(f"no UNet can be built of its arguments: {error}") from error
