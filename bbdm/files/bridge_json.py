"""``bridge.json``, which describes an export: its name, version and reading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from bbdm.base.atomic import file_sha256, short
from bbdm.data.spec import Spec
from bbdm.files import hub
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.endpoint import check_endpoint
from bbdm.pictures.images import as_size
from bbdm.solvers import StepTable

FORMAT = "bbdm onnx"
PLAIN = 3  # the version of exports of whole 8-bit pictures, whose sources have the target's channels, and no others
# Since 2, steps show the network weights of x and y, and times are float32. Since 3, noise may start.
# Since 4, sources have other channels, or images beside them, and pictures other values.
# Since 5, volumes, and strides for each axis. Since 6, classes, tokens, and conditions that may be left out.
VALUED = 4
VOLUMES = 5
VERSION = 6
SETTINGS = "bridge.json"
PIPELINE = "pipeline.onnx"  # a whole translation as one graph, for other programs


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_counts(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(_is_count, value))


COUNT = (_is_count, "an integer of at least 1")
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "solver": (lambda value: isinstance(value, str), "a name"),
    "dtype": (lambda value: isinstance(value, str), "a name"),
    "conditioned": (lambda value: isinstance(value, bool), "true or false"),
    "static": (lambda value: value is None or _is_counts(value, 3, 4), "null or [number, height, width]"),
    "stride": (lambda value: _is_count(value) or _is_counts(value, 2, 3), COUNT[1]),
    **dict.fromkeys(["channels", "image_channels", "latent_stride"], COUNT),
}
LATER: dict[str, tuple[Callable[[Any], bool], str]] = {  # left out where sources are as targets
    "source_channels": COUNT,
    "endpoint": (lambda value: isinstance(value, list), "a list of channels"),
    "axes": (lambda value: value in (2, 3), "2 or 3"),
    "images": (lambda value: isinstance(value, dict) and all(map(_is_count, value.values())), "channels by name"),
    "classes": (lambda value: isinstance(value, dict), "classes by name"),
    "tokens": (lambda value: isinstance(value, dict) and all(map(_is_count, value.values())), "widths by name"),
    "drop": (lambda value: isinstance(value, dict), "shares by name"),
}


def conditions_of(settings: dict[str, Any]) -> ConditionsConfig:
    """What the network is told besides the source, of the content of a ``bridge.json``.

    Raises:
        ValueError: a name or a number is out of range.
    """
    return ConditionsConfig(**{each.name: settings.get(each.name, {}) for each in fields(ConditionsConfig)})


def find_export(
    name_or_folder: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of an export: a repository's ``onnx/``, that of a folder, or the folder itself.

    The arguments are those of :class:`bbdm.files.hub.Repository`. Of a repository, ``bridge.json`` and the
    graphs that it lists are fetched.

    Raises:
        HubError: a file cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: the repository's ``bridge.json`` cannot be read, or a revision was given for a folder.
    """
    found = hub.repository(name_or_folder, revision, token, cache_dir)
    if found is None:
        folder = Path(name_or_folder)
        return folder / hub.ONNX if (folder / hub.ONNX / SETTINGS).is_file() else folder
    path = found.fetch(f"{hub.ONNX}/{SETTINGS}")
    for name in _described(path)["files"]:
        if name != PIPELINE:
            found.fetch(f"{hub.ONNX}/{name}")
    return path.parent


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of an export's ``bridge.json``, after a comparison of its files with their hashes.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: ``bridge.json`` cannot be read, is of a newer version, or describes other files.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {folder} is no export of `bbdm export`")
    settings = _described(path)
    for name, digest in settings["files"].items():
        if name == PIPELINE:  # the runtime does not need it, so it may be left out
            continue
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {SETTINGS} lists")
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not what {SETTINGS} describes: it is damaged, or of another export")
    return settings


def _described(path: Path) -> dict[str, Any]:
    """The content of a ``bridge.json``. The files that it lists are graphs and their weights, beside it.

    Raises:
        ValueError: it cannot be read, is of a newer version, or lists other files.
    """
    try:
        settings = json.loads(path.read_text())
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
        if settings["version"] > VERSION:
            raise ValueError(f"version {settings['version']} is newer than this library reads ({VERSION}): update bbdm")
        files = dict(settings["files"])
        missing = {"unet.onnx", "step.onnx"} - files.keys()
        if missing:
            raise ValueError(f"it lists no {sorted(missing)[0]}")
        for name in files:
            if Path(name).name != name or not name.endswith((".onnx", ".onnx.data")):
                raise ValueError(f"it lists {name}, which is no graph in its folder")
        for name, (fits, wanted) in {**VALUES, **{k: v for k, v in LATER.items() if k in settings}}.items():
            if not fits(settings[name]):
                raise ValueError(f"{name} must be {wanted}, got {short(settings[name])}")
        axes = settings.get("axes", 2)
        for name, beside in (("static", 1), ("stride", 0)):  # beside the sides
            if isinstance(settings[name], list) and len(settings[name]) != axes + beside:
                raise ValueError(f"{name} must be of {axes} axes, got {short(settings[name])}")
        if "endpoint" in settings:
            channels = settings["channels"], settings.get("source_channels", settings["channels"])
            check_endpoint(tuple(settings["endpoint"]), *channels)
        if settings.get("image_size") is not None:
            as_size(settings["image_size"], axes)
        Spec.from_config(settings)
        conditions_of(settings)
        StepTable.from_description(settings)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    return settings
