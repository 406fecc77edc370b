"""Reading networks of diffusion models, in folders that diffusers saved. Their files run nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from bbdm.base.optional import package
from bbdm.bridges import Bridge
from bbdm.networks.config import ARCHITECTURES, PARTS, Prediction, PretrainedConfig, network_folder
from bbdm.networks.pretrained import LAST_TIME, Pretrained

Known = TypeVar("Known", bound=Bridge)


def pretrained(folder: str | Path, bridge: Known, source_channels: int = 3) -> tuple[Pretrained, Known]:
    """A network that knows pictures, and a bridge with its objective and its range of noise levels.

    Args:
        folder: what ``save_pretrained`` of diffusers wrote: a pipeline's, with ``unet`` and ``scheduler``.
        bridge: a bridge with noise.
        source_channels: the channels of sources, which the network sees beside the state.

    Returns:
        The network on the CPU in float32, and the bridge.

    Raises:
        FileNotFoundError: the folder lacks the network or its schedule.
        ValueError: the network, its schedule or the bridge is none that go together, or the weights are a
            pickle.
    """
    folder = Path(folder)
    diffusers = package("diffusers", "a pretrained network")
    place = network_folder(folder)
    if place is None:
        raise FileNotFoundError(f"{folder} has no network: a folder with {' or '.join(PARTS)} that diffusers saved")
    settings = _read_json(place / "config.json")
    architecture = str(settings.get("_class_name"))
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{place}: the network must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if not list(place.glob("*.safetensors")):
        raise ValueError(f"{place} must hold weights as .safetensors: save them so, safe_serialization=True")
    module = getattr(diffusers, architecture).from_pretrained(place, use_safetensors=True, local_files_only=True)
    schedule = _read_json(folder / "scheduler" / "scheduler_config.json")
    prediction, log_levels = _schedule(schedule)
    arguments = {name: value for name, value in dict(module.config).items() if not name.startswith("_")}
    channels = arguments["in_channels"]
    first = "conv_in.weight"
    outputs = [channels]
    if architecture == "DiTTransformer2DModel":
        first = "pos_embed.proj.weight"
        outputs = [channels, 2 * channels]  # with its variance
        stride = arguments["patch_size"]
    else:
        stride = 2 ** (len(arguments["block_out_channels"]) - 1)
    if arguments["out_channels"] not in outputs:
        got = f"{channels} channels and predicts {arguments['out_channels']}"
        raise ValueError(f"{place}: the network must predict what it is shown, and is shown {got}")
    arguments["in_channels"] = channels + source_channels
    config = PretrainedConfig(
        architecture=architecture,
        arguments_json=json.dumps(arguments, sort_keys=True),
        channels=channels,
        stride=stride,
        prediction=prediction,
        log_levels=log_levels,
        sigma_data=float(schedule.get("sigma_data", 0.5)),
        condition_channels=source_channels,
    )
    network = Pretrained(config)
    network.module.load_state_dict(_widened(module.state_dict(), first, source_channels))
    noise_range = _noise_range(prediction, log_levels, schedule)
    changed = replace(cast(Any, bridge), objective="denoiser", noise_range=noise_range)
    return network.eval(), cast(Known, changed)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    return json.loads(path.read_text())


def _schedule(settings: Mapping[str, Any]) -> tuple[Prediction, tuple[float, ...]]:
    """What a network predicts, and ln of the noise levels of its integer times; none of flows and EDM."""
    name = str(settings.get("_class_name"))
    if name.startswith("Flow"):
        return "flow", ()
    prediction = settings.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        return ("edm_v" if prediction == "v_prediction" else "edm"), ()
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction!r}")
    diffusers = package("diffusers", "a pretrained network")
    betas = diffusers.DDPMScheduler.from_config(dict(settings)).betas.double()
    kept = torch.cumprod(1 - betas, dim=0)
    levels = (1 / kept - 1).sqrt().log()
    return prediction, tuple(levels[levels.isfinite()].tolist())  # of zero SNR, the last one is infinite


def _noise_range(
    prediction: Prediction, log_levels: tuple[float, ...], settings: Mapping[str, Any]
) -> tuple[float, float]:
    """The least and the largest noise level that a network was trained on."""
    if log_levels:
        return math.exp(log_levels[0]), math.exp(log_levels[-1])
    if prediction == "flow":  # of the times 1 and 999 of 1,000
        return 1 / LAST_TIME, LAST_TIME
    return float(settings["sigma_min"]), float(settings["sigma_max"])


def _widened(state: Mapping[str, torch.Tensor], first: str, channels: int) -> dict[str, torch.Tensor]:
    """Weights whose first layer takes further channels, by zeros; its bias stays as it is."""
    weight = state[first]
    zeros = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    return {**state, first: torch.cat([weight, zeros], dim=1)}
