"""``bridge.json``, which describes an export: its name, version and reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from bbdm import bridges
from bbdm.base.atomic import file_sha256, short
from bbdm.data.spec import Spec
from bbdm.files import hub
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.config import check_endpoint
from bbdm.pictures.images import as_size
from bbdm.solvers import StepTable

FORMAT = "bbdm onnx"
# An export has the oldest version that describes it, so that the page and older runtimes read what they can.
PLAIN = 3  # 8-bit pictures whose sources have the target's channels, and no other conditions
VALUED = 4  # sources of other channels, images beside them, pictures of other values
VOLUMES = 5  # volumes, and strides for each axis
OLDEST = 2  # whose steps take masks
VERSION = 6  # classes, tokens, and conditions that may be left out
SETTINGS = "bridge.json"
PIPELINE = "pipeline.onnx"  # a complete translation as one graph, for other programs


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_counts(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(_is_count, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


COUNT = "an integer of at least 1"
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "solver": (lambda value: isinstance(value, str), "a name"),
    "dtype": (lambda value: isinstance(value, str), "a name"),
    "conditioned": (lambda value: isinstance(value, bool), "true or false"),
    "stride": (lambda value: _is_count(value) or _is_counts(value, 2, 3), COUNT),
    "channels": (_is_count, COUNT),
    "image_channels": (_is_count, COUNT),
    "latent_stride": (_is_count, COUNT),
    "source_channels": (_is_count, COUNT),
    "endpoint": (lambda value: isinstance(value, list), "a list of channels"),
    "axes": (lambda value: value in (2, 3), "2 or 3"),
    "images": (_are_counts, "channels by name"),
    "classes": (lambda value: isinstance(value, dict), "classes by name"),
    "tokens": (_are_counts, "widths by name"),
    "drop": (lambda value: isinstance(value, dict), "shares by name"),
}
OPTIONAL = ("source_channels", "endpoint", "axes", "images", "classes", "tokens", "drop")


def conditions_of(settings: dict[str, Any]) -> ConditionsConfig:
    """The conditions besides the source; ValueError where a name or a number is out of range."""
    return ConditionsConfig(**{each.name: settings.get(each.name, {}) for each in fields(ConditionsConfig)})


def find_export(
    name_or_folder: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of an export: a repository's ``onnx/``, that of a folder, or the folder itself.

    Arguments and errors are those of :func:`bbdm.files.hub.fetch`.
    """
    files = [f"{hub.ONNX}/{name}" for name in (SETTINGS, "unet.onnx*", "step.onnx*", "encoder.onnx*", "decoder.onnx*")]
    folder = hub.fetch(name_or_folder, files, revision, token, cache_dir)
    return folder / hub.ONNX if (folder / hub.ONNX / SETTINGS).is_file() else folder


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of an export's ``bridge.json``, after a comparison of its files with their hashes.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: ``bridge.json`` cannot be read, is of a newer version, or describes other files.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {folder} is no export of `bbdm export`")
    settings = _read(path)
    for name, digest in settings["files"].items():
        if name == PIPELINE:  # the runtime does not need it, so it may be left out
            continue
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {SETTINGS} lists")
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not what {SETTINGS} describes: it is damaged, or of another export")
    return settings


def _read(path: Path) -> dict[str, Any]:
    """The content of a ``bridge.json``, checked."""
    try:
        settings = json.loads(path.read_text())
        _check(settings)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    return settings


def _check(settings: dict[str, Any]) -> None:
    """Raise an error where settings are of a newer version, out of range, or of files that are no graphs."""
    if settings["format"] != FORMAT:
        raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
    if settings["version"] > VERSION:
        raise ValueError(f"version {settings['version']} is newer than this library reads ({VERSION}): update bbdm")
    if settings["version"] < OLDEST:
        raise ValueError(
            f"version {settings['version']} is older than this library reads ({OLDEST}): export the checkpoint again"
        )
    if settings.get("static") is not None:
        raise ValueError(f"static is {settings['static']}, and exports take any size now: export the checkpoint again")
    files = dict(settings["files"])
    if missing := sorted({"unet.onnx", "step.onnx"} - files.keys()):
        raise ValueError(f"it lists no {missing[0]}")
    for name in files:
        if Path(name).name != name or not name.endswith((".onnx", ".onnx.data")):
            raise ValueError(f"it lists {name}, which is no graph in its folder")
    for name, (fits, expected) in CHECKS.items():
        if (name in settings or name not in OPTIONAL) and not fits(settings[name]):
            raise ValueError(f"{name} must be {expected}, got {short(settings[name])}")
    axes = settings.get("axes", 2)
    if isinstance(settings["stride"], list) and len(settings["stride"]) != axes:
        raise ValueError(f"stride must be of {axes} axes, got {short(settings['stride'])}")
    if "endpoint" in settings:
        channels = settings["channels"], settings.get("source_channels", settings["channels"])
        check_endpoint(tuple(settings["endpoint"]), *channels)
    if settings.get("image_size") is not None:
        as_size(settings["image_size"], axes)
    bridges.from_config(settings["bridge"])
    Spec.from_config(settings)
    conditions_of(settings)
    StepTable.from_description(settings)
