"""``bridge.json``, which describes an export: its name, version and reading. Nothing here needs torch."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from bbdm import bridges
from bbdm.base.atomic import file_sha256, short
from bbdm.data.spec import Spec
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.config import NetworkConfig, WrappedConfig
from bbdm.pictures.images import as_size
from bbdm.solvers import StepTable

FORMAT = "bbdm onnx"
VERSION = 6
TWO_TABLES = 7  # the version of two directions whose steps differ, which other readers may not know
SETTINGS = "bridge.json"
PIPELINE = "pipeline.onnx"  # a complete translation as one graph, for other programs


def conditions_of(settings: dict[str, Any]) -> NetworkConfig:
    """The conditions of the network, with its sizes; ValueError where a name or a number is out of range."""
    names = ("endpoint", "axes", *(field.name for field in fields(ConditionsConfig)))
    further = {name: settings[name] for name in names if name in settings}
    source = settings.get("source_channels", settings["image_channels"])
    return WrappedConfig(
        FORMAT, settings["channels"], settings["stride"], condition_channels=source, **further
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of an export's ``bridge.json``, after a comparison of its files with their hashes.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: ``bridge.json`` cannot be read, is of a newer version, or describes other files.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {folder} is no export of `bbdm export`")
    try:
        settings = json.loads(path.read_text())
        _check(settings)
    except Exception as error:  # settings that were edited can raise any error
        reason = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    for name, digest in settings["files"].items():
        if name == PIPELINE:  # the runtime does not need it, so it may be left out
            continue
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {SETTINGS} lists")
        if file_sha256(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is not what {SETTINGS} describes: it is damaged, or of another export"
            )
    return settings


def _check(settings: dict[str, Any]) -> None:
    """Raise an error where settings are of another version, out of range, or of files that are no graphs."""
    if settings["format"] != FORMAT:
        raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
    if settings["version"] > TWO_TABLES:
        raise ValueError(
            f"version {settings['version']} is newer than this library reads ({TWO_TABLES}): update bbdm"
        )
    if settings["version"] < VERSION:
        raise ValueError(f"version {settings['version']} is too old: export the checkpoint again")
    missing = sorted({"unet.onnx", "step.onnx"} - settings["files"].keys())
    if missing:
        raise ValueError(f"it lists no {missing[0]}")
    for name in settings["files"]:
        if Path(name).name != name or not name.endswith((".onnx", ".onnx.data")):
            raise ValueError(f"it lists {name}, which is no graph in its folder")
    for name, kind in {"solver": str, "conditioned": bool}.items():
        if not isinstance(settings[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {short(settings[name])}")
    for name in ("image_channels", "latent_stride"):
        if type(settings[name]) is not int or settings[name] < 1:
            raise ValueError(
                f"{name} must be an integer of at least 1, got {short(settings[name])}"
            )
    network = conditions_of(settings)
    if settings.get("image_size") is not None:
        as_size(settings["image_size"], network.axes)
    bridges.from_config(settings["bridge"])
    Spec.from_config(settings)
    StepTable.from_description(settings)
