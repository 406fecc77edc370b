"""The noise levels that a network of diffusers was trained on, by the settings of its scheduler."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bbdm.base.optional import package
from bbdm.files.diffusers_folders import SCHEDULE, pipeline_folder
from bbdm.networks.pretrained import LAST_TIME
from bbdm.networks.pretrained_config import Prediction, PretrainedConfig, levels_of

# schedulers, without the word, of networks that were trained on the betas of their settings
OF_BETAS = (
    *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep"),
    *(
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
    ),
    *(
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LCM",
        "LMSDiscrete",
        "PNDM",
        "SASolver",
        "TCD",
        "UniPCMultistep",
    ),
)
OF_FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
OF_EDM = ("EDMDPMSolverMultistep", "EDMEuler")
KNOWN = (*OF_BETAS, *OF_EDM, *OF_FLOWS)
# others change the times
USUAL = {"timestep_type": "discrete", "use_flow_sigmas": False, "invert_sigmas": False}
TIMES = 1000  # of a flow
# noise level: an error of epsilon is sqrt(1 + nu^2) times as large in the estimate of a target
EPSILON_TOP = 2.0


def read_schedule(network: Path) -> dict[str, Any]:
    """The settings of a network's scheduler, in full: its pipeline's, or the one in its own folder.

    Raises:
        FileNotFoundError: there is no file of these settings.
        ValueError: it is none whose networks' times are known.
    """
    path = pipeline_folder(network) / "scheduler" / SCHEDULE
    if not path.is_file() and (network / SCHEDULE).is_file():
        path = network / SCHEDULE
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: the network's schedule, which says its noise levels, is missing"
        )
    settings = json.loads(path.read_text(encoding="utf-8"))
    name = str(settings.get("_class_name"))
    if name.removesuffix("Scheduler") not in KNOWN:
        raise ValueError(
            f"its scheduler must be {', '.join(KNOWN[:-1])} or {KNOWN[-1]}, got {name}"
        )
    scheduler = getattr(package("diffusers", "a pretrained network"), name)
    full = scheduler.from_config(settings).config
    # which lists its defaults
    settings = {key: value for key, value in full.items() if not key.startswith("_")}
    usual = dict(USUAL)
    if name.startswith("Flow"):
        usual["num_train_timesteps"] = TIMES
    for key, value in usual.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{key} of its scheduler must be {value!r}, got {settings[key]!r}")
    return {**settings, "_class_name": name}


def levels(settings: Mapping[str, Any]) -> tuple[Prediction, tuple[float, ...]]:
    """What a network predicts, and ln of the noise levels of its integer times; none of flows and EDM.

    Args:
        settings: the settings of its scheduler, which :func:`read_schedule` returned.

    Raises:
        ValueError: the network predicts something else.
    """
    name = settings["_class_name"]
    if name.startswith("Flow"):
        return "flow", ()
    prediction = settings["prediction_type"]
    known = ["epsilon", "v_prediction"]
    if not name.startswith("EDM"):
        known.append("sample")
    if prediction not in known:
        raise ValueError(
            f"prediction_type must be {', '.join(known[:-1])} or {known[-1]}, got {prediction!r}"
        )
    if name.startswith("EDM"):
        return ("edm_v" if prediction == "v_prediction" else "edm"), ()
    diffusers = package("diffusers", "a pretrained network")
    # some schedulers carry rescale_betas_zero_snr of a training along and do not obey it: that of DDPM does
    betas = diffusers.DDPMScheduler.from_config(dict(settings)).betas.double()
    return prediction, levels_of(betas.numpy())


def noise_range(config: PretrainedConfig, settings: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the largest noise level that a network is used at.

    Args:
        config: the settings of the network.
        settings: the settings of its scheduler, which count for EDM.
    """
    if config.prediction == "flow":  # of the times 1 and 999 of 1,000
        return 1 / LAST_TIME, LAST_TIME
    if config.prediction in ("edm", "edm_v"):
        return float(settings["sigma_min"]), float(settings["sigma_max"])
    low = math.exp(config.log_levels[0])
    high = math.exp(config.log_levels[-1])
    if config.prediction == "epsilon":
        high = min(high, EPSILON_TOP)
    return low, high
