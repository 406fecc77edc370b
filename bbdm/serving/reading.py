"""Reading pictures on a cluster, and the names of results.

Nothing here needs torch, so that the processes that read are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bbdm.base.places import Place
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size
from bbdm.serving.sources import Columns, Where, read_group


@dataclass(frozen=True)
class Reading:
    """Where pictures are, where their results are, and what pictures become for a network."""

    pictures: Place
    results: Place
    channels: int
    size: Size
    resize: Resize
    columns: Columns  # of parquet files


def result_of(name: str) -> str:
    """The file of a picture's result."""
    return f"{name}.png"


def read(block: Any, reading: Reading) -> Any:
    """Read those pictures of a block that have no result yet.

    Args:
        block: a table of :func:`~bbdm.serving.sources.blocks`.
        reading: where, and how.

    Returns:
        A table with ``name``, ``pixels`` as bytes of 8 bits a channel, ``height`` and ``width``, and
        ``reason``, which is empty or says why the picture cannot be read.
    """
    import pyarrow as pa

    groups: dict[Where, dict[str, bytes]] = {}
    rows: list[dict[str, Any]] = []
    for given in block.to_pylist():
        name, at = given["name"], Where(given["file"], given["group"])
        if reading.results.exists(result_of(name)):
            continue
        row = {"name": name, "pixels": b"", "height": 0, "width": 0, "reason": ""}
        try:
            if at.group is None:
                image = images.decode(reading.pictures.read(at.file), at.file)
            else:
                if at not in groups:
                    groups[at] = read_group(reading.pictures, at, reading.columns)
                image = images.decode(groups[at][name], f"{name} of {at.file}")
            image = images.resized(images.convert(image, reading.channels), reading.size, reading.resize)
            row |= {"pixels": image.tobytes(), "height": image.height, "width": image.width}
        except (OSError, ValueError) as error:
            row["reason"] = str(error)
        rows.append(row)
    text, number = pa.string(), pa.int32()
    types = {"name": text, "pixels": pa.large_binary(), "height": number, "width": number, "reason": text}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))
