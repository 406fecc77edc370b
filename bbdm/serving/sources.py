"""The pictures of a cluster's run, each with a name: files of a folder, or rows of parquet files.

Nothing here needs torch, so that the processes that read are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from bbdm.pictures.images import SUFFIXES
from bbdm.serving.places import Place

PARQUET = ".parquet"


class Columns(NamedTuple):
    """Columns of parquet files: names, and pictures as bytes or as a struct with ``bytes``."""

    name: str
    image: str


class Where(NamedTuple):
    """Where a picture is: a file below the sources, and of a parquet file the row group."""

    file: str
    group: int | None = None


@dataclass(frozen=True)
class Sources:
    """All pictures of a place: where each is, by its name.

    A name is the path below the folder, or the text of a parquet file's column, without a picture's suffix.
    """

    where: dict[str, Where]

    @classmethod
    def find(cls, place: Place, columns: Columns) -> Sources:
        """The pictures of a place. Files whose path has a part that begins with a dot are left out.

        Raises:
            ValueError: there are none, there are both pictures and parquet files, two have one name, or a
                name is not a relative path.
        """
        visible = [path for path in place.list() if "/." not in f"/{path}"]
        pictures = [path for path in visible if _suffix(path) in SUFFIXES]
        tables = [path for path in visible if _suffix(path) == PARQUET]
        if bool(pictures) == bool(tables):
            found = "both" if pictures else "neither"
            raise ValueError(f"{place.folder} must hold pictures ({', '.join(sorted(SUFFIXES))}) or {PARQUET}: {found}")
        files = ((path, Where(path)) for path in pictures)
        rows = (row for path in tables for row in _rows(place, path, columns))
        where: dict[str, Where] = {}
        for given, at in rows if tables else files:
            name = name_of(given)
            if name in where:
                both = f"{where[name].file} and {at.file}"
                raise ValueError(f"{both} both have a picture named {name!r}: rename or remove one")
            where[name] = at
        return cls(where)

    def blocks(self, names: list[str], rows: int) -> list[Any]:
        """Tables with ``name``, ``file`` and ``group`` of pictures with these names.

        Each is of a number of picture files, or of one row group, so that a row group is read once.
        """
        import pyarrow as pa

        whole: dict[Where | int, list[str]] = {}
        for index, name in enumerate(names):
            at = self.where[name]
            whole.setdefault(index // rows if at.group is None else at, []).append(name)
        schema = pa.schema({"name": pa.string(), "file": pa.string(), "group": pa.int32()})
        return [
            pa.Table.from_pylist([{"name": name, **self.where[name]._asdict()} for name in block], schema=schema)
            for block in whole.values()
        ]


def name_of(path: str) -> str:
    """The name of a picture from its path below its folder.

    Raises:
        ValueError: a part is empty or begins with a dot, so that a result could lie elsewhere.
    """
    name = path[: -len(_suffix(path))] if _suffix(path) in SUFFIXES else path
    if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in name.split("/")):
        raise ValueError(f"a picture's name must be a relative path without parts that begin with a dot, got {path!r}")
    return name


def read_group(place: Place, at: Where, columns: Columns) -> dict[str, bytes]:
    """The pictures' files of a row group, by name; empty where a row has none.

    Raises:
        OSError, ValueError: the parquet file cannot be read.
    """
    from pyarrow import parquet

    with place.files.open_input_file(place.path(at.file)) as file:
        table = parquet.ParquetFile(file).read_row_group(at.group, columns=list(columns))
    contents = (image.get("bytes") if isinstance(image, dict) else image for image in table[columns.image].to_pylist())
    names = (name_of(str(name)) for name in table[columns.name].to_pylist())
    return {name: content or b"" for name, content in zip(names, contents, strict=True)}


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _rows(place: Place, path: str, columns: Columns) -> Iterator[tuple[str, Where]]:
    """The names in a parquet file, each with its place."""
    from pyarrow import ArrowException, parquet

    try:
        with place.files.open_input_file(place.path(path)) as file:
            table = parquet.ParquetFile(file)
            missing = set(columns) - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"{path} has no column {min(missing)!r}, but {', '.join(table.schema_arrow.names)}")
            for group in range(table.num_row_groups):
                for name in table.read_row_group(group, columns=[columns.name])[columns.name].to_pylist():
                    yield str(name), Where(path, group)
    except ArrowException as error:
        raise ValueError(f"cannot read {path}: {error}") from error
