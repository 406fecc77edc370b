"""Noise levels of diffusers' schedulers: beside their own tables, and those that are refused."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bbdm.bridges import BrownianBridge
from bbdm.files.pretrained import pretrained
from bbdm.files.schedules import OF_BETAS, levels, read_schedule
from tests.files.test_pretrained import save


def write(folder: Path, settings: dict[str, Any]) -> Path:
    """A network's own folder, of which the scheduler's settings alone are there."""
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps(settings))
    return folder


def read(folder: Path, settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array(levels(read_schedule(write(folder, settings)))[1])


def log_levels(kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.log((1 - kept) / kept) / 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in some schedulers
@pytest.mark.parametrize("name", OF_BETAS)
def test_levels_are_those_of_the_scheduler(name: str, tmp_path: Path) -> None:
    """By its own table, also where a file leaves its defaults out, which differ."""
    scheduler = getattr(diffusers, f"{name}Scheduler")
    for settings in (
        {},
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    ):
        expected = log_levels(scheduler(**settings).alphas_cumprod.double().numpy())
        found = read(tmp_path, {"_class_name": f"{name}Scheduler", **settings})
        np.testing.assert_allclose(found, expected, atol=1e-3)  # its products are of float32


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "PNDM"])
def test_levels_of_zero_snr_are_those_of_the_paper(name: str, tmp_path: Path) -> None:
    """Lin et al. 2024, algorithm 1; PNDM carries the setting of a training along, and does not obey it."""
    trained = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(trained.config)
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    found = read(tmp_path, {**scheduler.config, "_class_name": f"{name}Scheduler"})
    np.testing.assert_allclose(found, log_levels(root[:-1] ** 2), atol=1e-3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a consistency model": (
        {"_class_name": "CMStochasticIterativeScheduler"},
        "got CMStochasticIterativeScheduler",
    ),
    "an SDE": (
        {"_class_name": "ScoreSdeVeScheduler"},
        "EDMEuler, .* or FlowMatchLCM, got ScoreSdeVeScheduler",
    ),
    "no diffusion of pictures": (
        {"_class_name": "VQDiffusionScheduler"},
        "must be DDIM, .*, got VQDiffusionScheduler",
    ),
    "no betas": ({"_class_name": "IPNDMScheduler"}, "got IPNDMScheduler"),
    "no class": ({}, "got None"),
    "other times": (
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
        },
        "timestep_type of its scheduler must be 'discrete', got 'continuous'",
    ),
    "betas of a flow": (
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        "use_flow_sigmas of its scheduler must be False, got True",
    ),
    "a flow backwards": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
        "invert_sigmas of its scheduler must be False, got True",
    ),
    "a flow of other times": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500},
        "num_train_timesteps of its scheduler must be 1000, got 500",
    ),
    "EDM of x0": (
        {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
        "prediction_type must be epsilon or v_prediction, got 'sample'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schedulers_whose_times_are_not_known_are_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    settings, reason = REFUSED[case]
    save(tmp_path, DDPMScheduler())
    write(tmp_path / "scheduler", settings)
    with pytest.raises(ValueError, match=f"cannot read .*unet as a pretrained network: .*{reason}"):
        pretrained(tmp_path, BrownianBridge())
