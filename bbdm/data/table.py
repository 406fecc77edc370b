"""Pairs in a table of the Hugging Face ``datasets`` library: two columns of pictures, or one.

A :class:`Table` is fetched once, and its files are mapped into memory. So a row is read by its index, and
memory stays flat. A table can also be streamed: :func:`parts` are shards, one for each file of the table, and
:func:`write_part` makes the tar of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bbdm.data.collection import EncodedPair, Pairs, sorted_labels
from bbdm.pictures.formats import numpy_files

PREFIX = "hub:"  # of parts of a table
SPLITS = {"val": ("val", "validation", "valid", "dev", "test")}  # other names of a split, the first is taken


class Table(Pairs):
    """The rows of a table.

    Args:
        table: an object of the class ``datasets.Dataset``.
        columns: of source and target, or of sources alone; None for the two columns of pictures.
        told: the columns of conditions, by name.

    Raises:
        ValueError: there are no such columns, or they hold no pictures.
    """

    def __init__(
        self, table: Any, columns: tuple[str, ...] | None = None, told: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.told = dict(told)
        if missing := [name for name in self.told.values() if name not in table.column_names]:
            raise ValueError(f"the table has no column {missing[0]!r}, but {', '.join(table.column_names)}")
        pictures = [name for name in _pictures(table) if columns is not None or name not in self.told.values()]
        self.columns = tuple(pictures) if columns is None else columns
        known = set(self.columns) <= set(pictures) and len(set(self.columns)) == len(self.columns)
        if not known or len(self.columns) not in (1, 2) or (columns is None and len(pictures) != 2):
            wanted = "two columns of pictures" if columns is None else f"columns of pictures {', '.join(columns)}"
            raise ValueError(f"a table with {wanted} is needed; its columns of pictures are {pictures}: name two")
        table = _encoded(table)
        self._table = table.select_columns(list(self.columns))
        self._told = {name: table.select_columns([column]) for name, column in self.told.items()}
        self.has_targets = len(self.columns) > 1
        self.names = f"{len(self)} {','.join((*self.columns, *self.told.values()))}"

    @classmethod
    def open(
        cls, data_dir: str, split: str, columns: str | None = None, told: Mapping[str, str] = MappingProxyType({})
    ) -> Table:
        """A split of a data set of the Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, or of a folder.

        Raises:
            FileNotFoundError: there is no such data set or split.
            ValueError: the table has no such columns, or they hold no pictures.
            OSError: it cannot be fetched or read.
        """
        table = _load(data_dir.replace("{split}", split), split)
        return cls(table, None if columns is None else tuple(columns.split(",")), told)

    def __len__(self) -> int:
        return len(self._table)

    def at(self, index: int) -> EncodedPair:
        """A row."""
        return EncodedPair(f"{index:08d}", f"row {index}", partial(self._read, index), partial(self._read_told, index))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        return self.columns, self.told, self._table._fingerprint

    def _read(self, index: int) -> list[bytes]:
        row = self._table[index]
        return [_content(row[column], index, column) for column in self.columns]

    def _read_told(self, index: int, name: str) -> Any:
        """A condition: the bytes of a picture, a label, or rows of numbers."""
        column = self.told[name]
        cell = self._told[name][index][column]
        if cell is None or isinstance(cell, dict):
            return _content(cell, index, column)
        return cell if isinstance(cell, list) else _label(cell, self._told[name].features[column])

    def labels(self, name: str) -> tuple[str, ...]:
        """The labels of a condition: of a ClassLabel in its order, of others those that are there."""
        from datasets import Value

        kind = self._told[name].features[self.told[name]]
        if hasattr(kind, "names"):
            return tuple(kind.names)
        if not isinstance(kind, Value):
            raise ValueError(f"the column {self.told[name]!r} has no labels, but {kind}")
        return sorted_labels(str(cell) for cell in self._told[name].unique(self.told[name]) if cell is not None)


def _label(cell: Any, kind: Any) -> str:
    """A cell as a label: of a ClassLabel its name."""
    return kind.int2str(cell) if hasattr(kind, "int2str") and cell >= 0 else str(cell)


def _content(cell: Any, index: int, column: str) -> bytes:
    """The bytes of a cell's picture."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError(f"row {index} has no {column}")
    return Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]


def _pictures(table: Any) -> list[str]:
    """The columns of pictures."""
    from datasets import Image

    return [name for name, kind in (table.features or {}).items() if isinstance(kind, Image)]


def _encoded(table: Any) -> Any:
    """The table with pictures as bytes of files."""
    from datasets import Image

    for name in _pictures(table):
        table = table.cast_column(name, Image(decode=False))
    return table


def _load(place: str, split: str, streaming: bool = False) -> Any:
    """A split of a data set of the Hub, or of a folder: a saved data set, or files that the library reads."""
    import datasets

    folder = Path(place)
    if not streaming and (folder / "state.json").exists():  # one split, by Dataset.save_to_disk
        return datasets.load_from_disk(place)
    if not streaming and (folder / "dataset_dict.json").exists():
        saved = datasets.load_from_disk(place)
        return saved[_chosen(place, split, list(saved))]
    name, _, revision = (place, "", "") if folder.exists() else place.partition("@")
    names = datasets.get_dataset_split_names(name, revision=revision or None)
    chosen = _chosen(place, split, names)
    return datasets.load_dataset(name, split=chosen, revision=revision or None, streaming=streaming)


def _chosen(place: str, split: str, names: list[Any]) -> Any:
    """The split of a table that has the name, or stands in for it."""
    for name in SPLITS.get(split, (split,)):
        if name in names:
            return name
    raise FileNotFoundError(f"{place} has no split {split!r}, but {', '.join(map(str, names))}")


def parts(place: str, split: str) -> list[str]:
    """The parts of a split of a table, each of one of its files, as URLs ``hub:PLACE/SPLIT/NUMBER``.

    Raises:
        FileNotFoundError: there is no such data set or split.
        OSError: it cannot be reached.
    """
    count = _load(place, split, streaming=True).num_shards
    return [f"{PREFIX}{place}/{split}/{number}" for number in range(count)]


def write_part(url: str, path: Path) -> None:
    """Stream a part of a table into a tar, with the names of its columns as endings.

    Of other columns than pictures, text and numbers become text, and lists of numbers .npy files.
    """
    from webdataset.writer import TarWriter

    place, split, number = url.removeprefix(PREFIX).rsplit("/", 2)
    table = _encoded(_load(place, split, streaming=True))
    rows = table.shard(num_shards=table.num_shards, index=int(number))
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
        for row, cells in enumerate(rows):
            parts = {name: _as_file(cell, (table.features or {}).get(name)) for name, cell in cells.items()}
            written = {name: part for name, part in parts.items() if part is not None}
            writer.write({"__key__": f"{int(number):05d}-{row:08d}", **written})


def _as_file(cell: Any, kind: Any) -> bytes | None:
    """A cell as a member of a tar; None for what is neither a picture, a label nor tokens."""
    if isinstance(cell, dict):
        return cell.get("bytes")
    if isinstance(cell, list):
        with suppress(ValueError, TypeError):  # of rows of several lengths, or of other things than numbers
            return numpy_files.encoded(np.asarray(cell, np.float32))
        return None
    return _label(cell, kind).encode() if isinstance(cell, str | int) else None
