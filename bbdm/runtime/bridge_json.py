"""``bridge.json``, which describes an export: its name, version and reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bbdm.base.atomic import file_sha256

FORMAT = "bbdm onnx"
VERSION = 3  # since 2, steps show the network weights of x and y, and times are float32; since 3, noise may start
SETTINGS = "bridge.json"
PIPELINE = "pipeline.onnx"  # a whole translation as one graph, for other programs


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of an export's ``bridge.json``, after a comparison of its files with their hashes.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: ``bridge.json`` cannot be read, is of a newer version, or describes other files.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {folder} is not what export/to_onnx.py writes")
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
    except (ValueError, KeyError, TypeError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    files.pop(PIPELINE, None)  # the runtime does not need it, so it may be left out
    for name, digest in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {SETTINGS} lists")
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not what {SETTINGS} describes: it is damaged, or of another export")
    return settings
