"""The pictures of a cluster's run, each with a name: files of a folder, or rows of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from bbdm.base.places import Place
from bbdm.pictures.images import SUFFIXES

PARQUET = ".parquet"
OF_GROUP = 16  # batches of a row group that one worker gets at a time


class Where(NamedTuple):
    """Where a picture is: a file below the sources, and of a parquet file the row group."""

    file: str
    group: int | None = None


Sources = dict[str, Where]  # all pictures, by name


def find(place: Place, columns: tuple[str, str]) -> Sources:
    """Where each picture of a place is, by its name; see :func:`name_of`.

    Files whose path has a part that begins with a dot are left out.

    Raises:
        ValueError: there are none, there are both pictures and parquet files, two have one name, or a name is
            not a relative path.
    """
    visible = [path for path in place.list() if "/." not in f"/{path}"]
    pictures = [path for path in visible if _suffix(path) in SUFFIXES]
    tables = [path for path in visible if _suffix(path) == PARQUET]
    if bool(pictures) == bool(tables):
        found = "both" if pictures else "neither"
        raise ValueError(f"{place.folder} must hold pictures ({', '.join(sorted(SUFFIXES))}) or {PARQUET}: {found}")
    rows = (row for path in tables for row in _rows(place, path, columns))
    sources: Sources = {}
    for given, at in rows if tables else ((path, Where(path)) for path in pictures):
        name = name_of(given)
        if name in sources:
            both = f"{sources[name].file} and {at.file}"
            raise ValueError(f"{both} both have a picture named {name!r}: rename or remove one")
        sources[name] = at
    return sources


def blocks(sources: Sources, names: list[str], rows: int) -> list[Sources]:
    """Pictures with these names, in parts: of a number of files, or of one row group, which is read once."""
    parts: dict[tuple[Where | None, int], Sources] = {}
    for index, name in enumerate(names):
        at = sources[name]
        part = (None, index // rows) if at.group is None else (at, index // (rows * OF_GROUP))
        parts.setdefault(part, {})[name] = at
    return list(parts.values())


def name_of(path: str) -> str:
    """The name of a picture: its path below its folder, or the text of a column, without a picture's suffix.

    Raises:
        ValueError: a part is empty or begins with a dot, so that a result could lie elsewhere.
    """
    name = path[: -len(_suffix(path))] if _suffix(path) in SUFFIXES else path
    if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in name.split("/")):
        raise ValueError(f"a picture's name must be a relative path without parts that begin with a dot, got {path!r}")
    return name


def read_group(place: Place, at: Where, columns: tuple[str, str]) -> dict[str, bytes]:
    """The pictures' files of a row group, by name; empty where a row has none.

    Raises:
        OSError, ValueError: the parquet file cannot be read.
    """
    from pyarrow.parquet import ParquetFile

    with ParquetFile(place.path(at.file), filesystem=place.files) as file:
        table = file.read_row_group(at.group, columns=list(columns))
    cells = zip(*(table[column].to_pylist() for column in columns), strict=True)
    return {name_of(str(name)): (cell.get("bytes") if isinstance(cell, dict) else cell) or b"" for name, cell in cells}


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _rows(place: Place, path: str, columns: tuple[str, str]) -> Iterator[tuple[str, Where]]:
    """The names in a parquet file, each with its place."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(place.path(path), filesystem=place.files) as table:
            missing = set(columns) - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"{path} has no column {min(missing)!r}, but {', '.join(table.schema_arrow.names)}")
            for group in range(table.num_row_groups):
                for name in table.read_row_group(group, columns=[columns[0]])[columns[0]].to_pylist():
                    yield str(name), Where(path, group)
    except ArrowException as error:
        raise ValueError(f"cannot read {path}: {error}") from error
