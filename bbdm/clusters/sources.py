"""The pictures of a cluster's run, each with a name: files of a folder, or rows of parquet files.

Nothing here needs torch, so that the processes that read are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from bbdm.base.images import SUFFIXES
from bbdm.clusters.places import Place

if TYPE_CHECKING:
    from ray.data import Dataset

PARQUET = ".parquet"


@dataclass(frozen=True)
class Columns:
    """Columns of parquet files: names, and pictures as bytes or as a struct with ``bytes``."""

    name: str
    image: str


@dataclass(frozen=True)
class Sources:
    """All pictures of a place: the file that holds each, by its name.

    A name is the path below the folder, or the text of a parquet file's column, without a picture's suffix.
    """

    place: Place
    files: dict[str, str]
    columns: Columns | None  # of parquet files; None for a folder of pictures

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
        rows = ((name, path) for path in tables for name in _names(place, path, columns))
        files: dict[str, str] = {}
        for given, path in rows if tables else zip(pictures, pictures, strict=True):
            name = name_of(given)
            if name in files:
                raise ValueError(f"{files[name]} and {path} both have a picture named {name!r}: rename or remove one")
            files[name] = path
        return cls(place, files, columns if tables else None)

    def dataset(self, names: list[str], rows: int) -> Dataset:
        """Pictures with these names, in blocks of a number of rows, with the columns ``name`` and ``file``.

        Of parquet files, all rows of those files that hold one of the pictures, and ``file`` is the content.
        """
        import pyarrow as pa
        import ray.data

        if self.columns is not None:
            columns = self.columns
            read = ray.data.read_parquet(
                sorted({self.place.path(self.files[name]) for name in names}),
                filesystem=self.place.files,
                columns=[columns.name, columns.image],
                num_cpus=0,  # as in reading: workers may take all cores
            )
            renamed = partial(_renamed, columns=columns)
            return read.map_batches(renamed, batch_size=rows, batch_format="pyarrow", num_cpus=0)
        blocks = (names[start : start + rows] for start in range(0, len(names), rows))
        return ray.data.from_blocks(
            [pa.table({"name": block, "file": [self.files[name] for name in block]}) for block in blocks]
        )


def name_of(path: str) -> str:
    """The name of a picture from its path below its folder.

    Raises:
        ValueError: a part is empty or begins with a dot, so that a result could lie elsewhere.
    """
    name = path[: -len(_suffix(path))] if _suffix(path) in SUFFIXES else path
    if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in name.split("/")):
        raise ValueError(f"a picture's name must be a relative path without parts that begin with a dot, got {path!r}")
    return name


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _names(place: Place, path: str, columns: Columns) -> Iterator[str]:
    """The names in a parquet file."""
    from pyarrow import ArrowException, parquet

    try:
        with place.files.open_input_file(place.path(path)) as file:
            table = parquet.ParquetFile(file)
            missing = {columns.name, columns.image} - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"{path} has no column {min(missing)!r}, but {', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(columns=[columns.name]):
                yield from map(str, batch.column(0).to_pylist())
    except ArrowException as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _renamed(batch: Any, columns: Columns) -> Any:
    """Rows of a parquet file with the columns ``name`` and ``file``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    content = batch[columns.image]
    if pa.types.is_struct(content.type):
        content = pc.struct_field(content, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    names = [name_of(str(name)) for name in batch[columns.name].to_pylist()]
    return pa.table({"name": pa.array(names, pa.string()), "file": content.cast(pa.large_binary())})
