"""Files of the original BBDM (Li et al., CVPR 2023): the ``.pth`` of its runner, with its YAML settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bbdm.bridges import BrownianBridge, Objective
from bbdm.codec import LatentStatistics, VQGANCodec
from bbdm.files.content import Checkpoint, CodecState, UNetState
from bbdm.files.importers import shapes, states
from bbdm.files.records import StoredTensor
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet

SCHEDULE = "m_t"  # a buffer that every file has
GROUPS = 32  # of every GroupNorm, in its code
NETWORK, AUTOENCODER, CONDITION = "denoise_fn.", "vqgan.", "cond_stage_model."
OBJECTIVES: dict[str, Objective] = {"grad": "residual", "noise": "noise", "ysubx": "displacement"}
STATISTICS = {
    "source_mean": "cond_latent_mean",
    "source_std": "cond_latent_std",
    "target_mean": "ori_latent_mean",
    "target_std": "ori_latent_std",
}


def read(content: Any, state: states.State, config: str | os.PathLike[str] | None) -> Checkpoint:
    """The network, its moving average, its bridge and its autoencoder; the YAML file has the objective."""
    if states.below(state, f"{CONDITION}channel_mapper."):
        raise ValueError(f"it is conditioned by a SpatialRescaler ({CONDITION}*), which is not supported")
    if config is None:
        raise IncompleteFileError(
            "it does not state its objective and condition: give config=, the YAML file that it was trained with"
        )
    settings = _Settings(Path(config))
    bridge = _bridge(state, settings)
    latent = bool(states.below(state, AUTOENCODER))
    settings.check("model.model_type", "LBBDM" if latent else "BBDM")

    condition = settings.get("model.BB.params.UNetParams.condition_key")
    if latent and condition != "nocond":
        raise ValueError(f"it is a latent model with the condition {condition}; of these only nocond is supported")
    weights = states.below(state, NETWORK)
    unet = shapes.unet_config(states.tensors(weights), **_unet_settings(weights, settings))
    if (condition == "nocond") != (unet.condition_channels == 0):
        raise ValueError(
            f"its UNet has {unet.condition_channels} channels of condition, but {config} has condition_key {condition}"
        )
    average = content.get("ema") if isinstance(content, dict) else None
    ema = None
    if isinstance(average, dict) and average:
        ema = states.load(UNet.from_config, unet, states.below(average, NETWORK))

    image_size = settings.get("model.BB.params.UNetParams.image_size")  # in the UNet's space, as training asserts
    coded = None
    if latent:
        vqgan = states.build_vqgan(states.below(state, AUTOENCODER), num_groups=GROUPS)
        codec = VQGANCodec(vqgan, bool(settings.get("model.latent_before_quant_conv", False)))
        statistics = _statistics(content, settings)
        codec = codec if statistics is None else codec.with_statistics(statistics)
        image_size *= codec.stride
        coded = CodecState.of(codec)
        if codec.channels != unet.in_channels:
            raise ValueError(f"its UNet works on {unet.in_channels} channels, its latents have {codec.channels}")
    return Checkpoint(UNetState(unet, states.load(UNet.from_config, unet, weights), ema), bridge, coded, image_size)


def _bridge(state: states.State, settings: _Settings) -> BrownianBridge:
    """The bridge whose whole schedule is in the buffers."""
    m, variance = (states.numbers(state, name).numpy() for name in (SCHEDULE, "variance_t"))
    steps = len(m)
    if steps < 2 or len(variance) != steps:
        raise ValueError(f"its buffers {SCHEDULE} and variance_t are of {steps} and {len(variance)} steps")
    objective = settings.get("model.BB.params.objective")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {sorted(OBJECTIVES)}, got {objective!r} from {settings.path}")
    for schedule in ("linear", "sin"):
        middle = steps // 2
        scale = float(f"{variance[middle] / (2 * m[middle] * (1 - m[middle])):.6g}")  # the buffers are of float32
        bridge = BrownianBridge.bbdm(steps, scale, schedule, OBJECTIVES[objective])
        _, beta, sigma = bridge.marginal(np.arange(steps))
        if np.allclose(m, beta, rtol=1e-5, atol=0) and np.allclose(variance, sigma**2, rtol=1e-4, atol=0):
            settings.check("model.BB.params.num_timesteps", steps)
            settings.check("model.BB.params.mt_type", schedule)
            settings.check("model.BB.params.max_var", scale)
            return bridge
    raise ValueError(f"its buffers {SCHEDULE} and variance_t are of neither of the schedules linear and sin")


def _unet_settings(weights: dict[str, Any], settings: _Settings) -> dict[str, Any]:
    """The settings of the UNet that leave no trace in its weights."""
    params = settings.get("model.BB.params.UNetParams")
    if params.get("use_new_attention_order"):
        raise ValueError("its attention has the new order of q, k and v; only the legacy order is read")
    head_channels = params.get("num_head_channels", -1)
    if head_channels == -1:
        qkv = [value for key, value in weights.items() if key.endswith(".qkv.weight")]
        widths = {value.shape[1] for value in qkv if isinstance(value, StoredTensor) and len(value.shape) > 1}
        if len(widths) != 1 or not params.get("num_heads"):
            raise ValueError("its attention has heads of different or unknown widths; wanted one width for all")
        head_channels = widths.pop() // params["num_heads"]
    return {
        "head_channels": head_channels,
        "num_groups": GROUPS,
        "attention_resolutions": tuple(settings.get("model.BB.params.UNetParams.attention_resolutions")),
        "dropout": float(params.get("dropout", 0)),
    }


def _statistics(content: Any, settings: _Settings) -> LatentStatistics | None:
    if not settings.get("model.normalize_latent", False):
        if isinstance(content, dict) and any(key in content for key in STATISTICS.values()):
            raise ValueError(f"it has statistics of latents, but {settings.path} does not set normalize_latent")
        return None
    if not isinstance(content, dict):
        raise ValueError(f"{settings.path} sets normalize_latent, but it has no statistics of latents")
    found = {name: tuple(states.numbers(content, key).tolist()) for name, key in STATISTICS.items()}
    return LatentStatistics(**found)


class _Settings:
    """BBDM's YAML file: a template, or as its runner saved it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = yaml.load(path.read_bytes(), Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is no YAML of the original BBDM: {' '.join(str(error).split())}") from error

    def get(self, name: str, *default: Any) -> Any:
        """The value at a dotted name; ValueError where there is none, and no default."""
        value = self.content
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                if default:
                    return default[0]
                raise ValueError(f"{self.path} does not have {name}")
            value = value[part]
        return value

    def check(self, name: str, found: Any) -> None:
        """Raise ValueError where the YAML has another value than the one found in the file."""
        value = self.get(name, found)
        same = abs(value - found) <= 1e-5 * found if isinstance(found, float) else value == found
        if not same:
            raise ValueError(f"{self.path} has {name} {value!r}, but the file was trained with {found!r}")


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads the Python objects in BBDM's files as plain lists and dicts."""

    def plain(self, node: yaml.Node) -> Any:
        """The content of a node; its tag is ignored."""
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        raise yaml.constructor.ConstructorError(None, None, f"{node.tag} has a single value", node.start_mark)


for tag in ("tuple", "object:argparse.Namespace", "object/apply:torch.device"):
    _Loader.add_constructor(f"tag:yaml.org,2002:python/{tag}", _Loader.plain)
