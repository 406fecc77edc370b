"""Reading pictures on a cluster, and the names of results.

Nothing here needs torch, so that the processes that read are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bbdm.base import images
from bbdm.base.images import Resize, Size
from bbdm.clusters.places import Place


@dataclass(frozen=True)
class Reading:
    """Where pictures are, where their results are, and what pictures become for a network."""

    pictures: Place
    results: Place
    channels: int
    size: Size
    resize: Resize
    paths: bool  # whether a table's column ``file`` holds paths below ``pictures``, or the content of files


def result_of(name: str) -> str:
    """The file of a picture's result."""
    return f"{name}.png"


def read(batch: Any, reading: Reading) -> Any:
    """Read those pictures of a batch that have no result yet.

    Args:
        batch: a table with ``name`` and ``file``: a path below the sources, or a file's content.
        reading: where, and how.

    Returns:
        A table with ``name``, ``pixels`` as bytes of 8 bits a channel, ``height`` and ``width``, and
        ``reason``, which is empty or says why the picture cannot be read.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    names, files = batch["name"].to_pylist(), batch["file"].to_pylist()
    there = reading.results.exist(result_of(name) for name in names)
    for name, file in (pair for pair, made in zip(zip(names, files, strict=True), there, strict=True) if not made):
        row = {"name": name, "pixels": b"", "height": 0, "width": 0, "reason": ""}
        try:
            data = reading.pictures.read(file) if reading.paths else file or b""
            image = images.decode(data, file if reading.paths else name)
            image = images.resized(images.convert(image, reading.channels), reading.size, reading.resize)
            row |= {"pixels": image.tobytes(), "height": image.height, "width": image.width}
        except (OSError, ValueError) as error:
            row["reason"] = str(error)
        rows.append(row)
    text, number = pa.string(), pa.int32()
    types = {"name": text, "pixels": pa.large_binary(), "height": number, "width": number, "reason": text}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))
