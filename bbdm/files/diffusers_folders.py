"""The folders that diffusers saves, of pipelines and of networks, here or on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bbdm.files import repository, weights
from bbdm.networks.pretrained_config import DIT, check_settings, pooled_width

PARTS = ("unet", "transformer")  # folders of the network in a pipeline's
CONFIG = "config.json"
SCHEDULE = "scheduler_config.json"
AUTOENCODER = "AutoencoderKL"
SETTINGS = [repository.CARD, "model_index.json", CONFIG, SCHEDULE, f"*/{CONFIG}", f"*/{SCHEDULE}"]
NETWORK = "diffusion_pytorch_model"
WEIGHTS = [
    f"{NETWORK}.safetensors",
    f"{NETWORK}.safetensors.index.json",
    f"{NETWORK}-*-of-*.safetensors",
]
HALF = "fp16"  # the variant of weights that are read where there are no others
HALVES = [f"{NETWORK}.{HALF}*.safetensors", f"{NETWORK}.safetensors.index.{HALF}.json"]
TEXT = ["text_encoder/model.safetensors", "tokenizer/*.json", "tokenizer/merges.txt"]


def network_folder(path: str | Path) -> Path | None:
    """The network's folder in a pipeline's of diffusers, or a network's own; None where it is neither."""
    folders = [Path(path) / name for name in PARTS]
    for folder in [*folders, Path(path)]:
        if architecture_in(folder) is not None:
            return folder
    return None


def architecture_in(folder: Path) -> str | None:
    """The class whose settings diffusers saved in a folder; None where it saved none."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(settings, dict) or "_class_name" not in settings:
        return None
    return str(settings["_class_name"])


def pipeline_folder(network: Path) -> Path:
    """The folder of the pipeline that a network's folder is a part of; that itself where it is of none."""
    if (network.parent / "scheduler" / SCHEDULE).is_file() or network.name in PARTS:
        return network.parent
    return network


def autoencoder_folder(path: Path) -> Path | None:
    """The autoencoder in whose latents a network works; None of pictures.

    Raises:
        ValueError: it is of another class, or scales each channel of its latents.
    """
    network = network_folder(path)
    if network is None:
        return None
    pipeline = pipeline_folder(network)
    for name in ("vqvae", "movq"):
        if (pipeline / name).is_dir():
            raise ValueError(
                f"{path} is of latents of {name}, which is not read: only those of vae, an AutoencoderKL"
            )
    folder = pipeline / "vae"
    if not folder.is_dir():
        return None
    if (folder / CONFIG).is_file():
        settings = read_json(folder / CONFIG)
        architecture = settings.get("_class_name")
        if architecture != AUTOENCODER:
            raise ValueError(f"{folder} must be an {AUTOENCODER}, got {architecture}")
        for name in ("latents_mean", "latents_std"):
            if settings.get(name) is not None:
                raise ValueError(
                    f"{name} of {folder} must be unset: latents are scaled by scaling_factor alone"
                )
    return folder


def fetch(match: re.Match[str]) -> Path | None:
    """The folder of what a bridge needs of a repository of diffusers; None where it is of something else."""
    folder = repository.fetch(match, SETTINGS)
    network = network_folder(folder)
    if network is None:
        return None
    settings = read_settings(network)  # before weights, which can be tens of gigabytes
    parts = ["", "vae/"]
    parts += [f"{part}/" for part in PARTS]
    files = [f"{part}{file}" for part in parts for file in WEIGHTS]
    if not pooled_width(settings):
        files += TEXT
    folder = repository.fetch(match, [*SETTINGS, *files])
    if not list(network.glob("*.safetensors")):
        halves = [f"{part}{file}" for part in parts for file in HALVES]
        folder = repository.fetch(
            match, [*SETTINGS, *files, *halves, f"text_encoder/model.{HALF}.safetensors"]
        )
    return folder


def variant_of(folder: Path, name: str) -> str | None:
    """The variant of the weights in a folder: ``fp16`` where there are no others, None of the usual ones.

    ``name`` is that of the usual file, without its suffix.
    """
    usual = [*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")]
    halves = list(folder.glob(f"{name}.{HALF}*.safetensors"))
    return HALF if halves and not usual else None


def read_settings(place: Path) -> dict[str, Any]:
    """The settings of the network in a folder; ValueError where no bridge can start from it."""
    settings = read_json(place / CONFIG)
    with weights.readable(place, "pretrained network"):
        architecture = str(settings["_class_name"])
        check_settings(architecture, settings)
        channels = settings["in_channels"]
        outputs = [channels]
        if architecture == DIT:
            outputs = [channels, 2 * channels, None]  # with its variance, or as many as it is shown
        if settings["out_channels"] not in outputs:
            got = f"{channels} channels and predicts {settings['out_channels']}"
            raise ValueError(f"the network must predict what it is shown, and is shown {got}")
    return settings


def check_weights(folder: Path) -> None:
    """Raise ValueError where a folder has no weights that are read without running code."""
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} must hold weights as .safetensors: save them so, safe_serialization=True"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file; FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    return json.loads(path.read_text(encoding="utf-8"))
