"""What a network of diffusion models is called, and on what terms its weights are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bbdm.files.repository import CARD, find
from bbdm.networks.config import Base

TERMS = ("license", "license_name", "license_link")  # in the head of a model card
LONGEST = 200  # characters of each


def read_base(place: Path, name: str | os.PathLike[str]) -> Base:
    """The name and the terms of a network.

    Args:
        place: its pipeline's folder, whose model card says the terms; or its file, of which they are unknown.
        name: what a user calls it: a path, or OWNER/NAME on the Hugging Face Hub.
    """
    match = find(Path(name))
    terms: dict[str, str] = {}
    for key, value in _metadata(place / CARD).items():
        if key in TERMS and isinstance(value, str):
            terms[key] = " ".join(value.split())[:LONGEST]
    return Base(place.resolve().name if match is None else match["name"], **terms)


def _metadata(path: Path) -> Mapping[str, Any]:
    """The head of a model card; empty where it cannot be read, which hinders no training."""
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load  # diffusers needs it too

    try:
        return metadata_load(path) or {}
    except Exception:  # a stranger's YAML can raise any error
        return {}
