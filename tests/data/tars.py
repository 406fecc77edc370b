"""Tars for the tests of this folder, written by WebDataset itself or member by member."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset.writer import TarWriter

SIDE = 8


def png(value: int, **options: Any) -> bytes:
    """A picture of one grey."""
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, dtype=np.uint8)).save(file, "png", **options)
    return file.getvalue()


def sample(number: int, key: str | None = None) -> dict[str, Any]:
    """Sample ``number``: a source of that grey, and the target of its negative."""
    key = f"{number:03d}" if key is None else key
    return {"__key__": key, "source.png": png(number), "target.png": png(255 - number)}


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar of samples, by WebDataset's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for each in samples:
            writer.write(each)
    return path


def write_members(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar of members, which may be of any kind and in any order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
