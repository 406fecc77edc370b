"""Rows of tables of the Hugging Face ``datasets`` library: tars of WebDataset, Parquet, the Hub.

A table of the layout ``hub`` is fetched once, and its files are mapped into memory. One of the layout
``stream`` is read from its first row on, in an order that is a function of the epoch's seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bbdm.base import optional

SPLITS = {"val": ("val", "validation", "valid", "dev", "test")}  # other names of a split, the first is taken
KEY = "__key__"  # WebDataset's name of a row
MIXED = 1000  # rows of a stream that are mixed at a time
SIDES = ("source", "target")
Order = Callable[[int, int], list[int]]
Row = Mapping[str, Any]


class Columns:
    """What a table's columns are in rows.

    Args:
        table: of the ``datasets`` library.
        named: the table's columns by what they are in rows, such as source. Others have their own names;
            without one, source and target are the two columns of pictures.

    Raises:
        ValueError: there are no such columns, or they hold no pictures.
    """

    def __init__(self, table: Any, named: Mapping[str, str]) -> None:
        from datasets import Image

        self.features = table.features or {}
        if missing := [column for column in named.values() if column not in self.features]:
            raise ValueError(f"the table has no column {missing[0]!r}, but {', '.join(self.features)}")
        pictures = [name for name, kind in self.features.items() if isinstance(kind, Image)]
        own = {name.partition(".")[0]: name for name in self.features}  # WebDataset's are source.png, season.txt
        self.names = {**own, **named}
        if not named.keys() & {*SIDES} and own.get("source") not in pictures and len(pictures) == 2:
            self.names |= dict(zip(SIDES, pictures, strict=True))
        sides = [self.names[side] for side in SIDES if side in self.names]
        if "source" not in self.names or not set(sides) <= set(pictures):
            raise ValueError(
                f"a table with a column of pictures source, and maybe target, is needed; its columns of pictures are "
                f"{pictures}: name them, such as ',source={pictures[0] if pictures else 'COLUMN'}'"
            )

    def encoded(self, table: Any) -> Any:
        """The table with pictures as bytes of files."""
        from datasets import Image

        for name in self.names.values():
            if isinstance(self.features[name], Image):
                table = table.cast_column(name, Image(decode=False))
        return table

    def row(self, index: int, cells: Mapping[str, Any]) -> Row:
        """A row of cells: pictures are bytes, classes and texts str, all else as it is; empty cells None."""
        row: dict[str, Any] = {"name": cells.get(KEY) or f"{index:08d}"}
        for name, column in self.names.items():
            if column in cells and not column.startswith("__"):
                row[name] = self._value(column, cells[column])
        return row

    def _value(self, column: str, cell: Any) -> Any:
        if isinstance(cell, Mapping):
            if cell.get("bytes") is None and cell.get("path"):
                return Path(cell["path"])
            return cell.get("bytes")
        if isinstance(cell, int) and hasattr(self.features[column], "int2str"):
            return self.features[column].int2str(cell) if cell >= 0 else None
        return str(cell) if isinstance(cell, int | float) else cell

    def classes(self, name: str) -> tuple[str, ...] | None:
        """The labels of a ClassLabel, in its order; None of other columns."""
        kind = self.features[self.names[name]]
        return tuple(kind.names) if hasattr(kind, "names") else None


class TableRows(Sequence[Row]):
    """The rows of a table, by index.

    Attributes:
        digest: names the table's content.
    """

    def __init__(self, table: Any, columns: Columns) -> None:
        self.columns, self.digest = columns, str(table._fingerprint)
        self._table = columns.encoded(table)

    def select(self, names: Iterable[str]) -> TableRows:
        """The rows with some of their columns, which alone are read."""
        kept = [self.columns.names[name] for name in names if name in self.columns.names]
        key = [KEY] if KEY in self._table.column_names else []
        return TableRows(self._table.select_columns([*dict.fromkeys([*kept, *key])]), self.columns)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        return self.columns.row(index, self._table[range(len(self))[index]])


class Streamed(NamedTuple):
    """A row of a stream, and its number."""

    number: int
    row: Row


class StreamedRows(Sequence[Row]):
    """The rows of a table that is streamed. Indices from the number of rows on are of an epoch's own order.

    Args:
        table: of the ``datasets`` library.
        columns: what its columns are.
        place: names the table and its split.
        count: the number of rows; None to count them, which reads all.
        rank: of the process among those that share the rows.
        processes: the number of those.
    """

    def __init__(
        self, table: Any, columns: Columns, place: str, count: int | None, rank: int = 0, processes: int = 1
    ) -> None:
        self.columns, self._place = columns, place
        self._source, self._table = table, columns.encoded(table)
        self._rank, self._processes = rank, processes
        self._rows = sum(1 for _ in self._table) if count is None else count
        self.digest = f"{place} {self._rows} {','.join(columns.names.values())}"
        if not self._rows:
            raise ValueError("the stream has no rows")

    def select(self, names: Iterable[str]) -> StreamedRows:
        """The same rows: a stream is read as a whole."""
        return self

    def shared(self, rank: int, processes: int) -> StreamedRows:
        """The rows of one of several processes."""
        return StreamedRows(self._source, self.columns, self._place, self._rows, rank, processes)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [row for _, row in self.rows(range(self._rows)[index], 0)]
        return next(self.rows([range(self._rows)[index]], 0)).row

    def order(self, crops: int = 1) -> Order:
        """The order of an epoch: positions in this process's own stream of it.

        The steps of an epoch ask for equal shares of the processes, rank after rank. ``crops`` is the number
        of examples of a row, which follow each other.
        """

        def order(start: int, end: int) -> list[int]:
            share = end - start
            first = max(0, start - self._rank * share) // self._processes
            return [crops * self._rows + first + i for i in range(share)]

        return order

    def rows(self, order: Iterable[int], seed: int) -> Iterator[Streamed]:
        """The rows at rising indices; those from ``count`` on are of the order of an epoch's seed."""
        stream: Iterator[Row] | None = None
        position = 0
        for index in order:
            at = index - self._rows if index >= self._rows else index
            if stream is None:
                stream = self._stream(seed if index >= self._rows else None)
            while position < at:
                next(stream)
                position += 1
            cells = next(stream)
            position += 1
            yield Streamed(index, self.columns.row(at, cells))

    def _stream(self, seed: int | None) -> Iterator[Row]:
        """All rows, again and again: as stored, or this process's share in the order of a seed."""
        table = self._table
        if seed is not None:
            from datasets.distributed import split_dataset_by_node

            table = table.shuffle(seed=seed, buffer_size=MIXED)
            if self._processes > 1:
                table = split_dataset_by_node(table, self._rank, self._processes)
        while True:
            yield from table


def open_table(place: str, split: str, named: Mapping[str, str] = MappingProxyType({})) -> TableRows:
    """A split of a table: ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hub, a folder, or files.

    Files are a path or URL that ends in ``.tar`` or ``.parquet``, with ``*`` for several. ``named`` are the
    table's columns by what they are in rows.

    Raises:
        FileNotFoundError: there is no such table or split.
        ValueError: it has no such columns, or they hold no pictures.
        OSError: it cannot be fetched or read.
    """
    table, _ = _load(place, split, streaming=False)
    return TableRows(table, Columns(table, named))


def open_stream(place: str, split: str, named: Mapping[str, str] = MappingProxyType({})) -> StreamedRows:
    """The same as a stream; see :func:`open_table`. Rows are counted where the table does not say it."""
    table, name = _load(place, split, streaming=True)
    known = (table.info.splits or {}).get(str(table.split))
    count = known.num_examples if known and known.num_examples else None
    return StreamedRows(table, Columns(table, named), name, count)


LAYOUTS = {"hub": open_table, "stream": open_stream}


def _load(place: str, split: str, streaming: bool) -> tuple[Any, str]:
    """A split of a table, and what names it."""
    datasets = optional.package("datasets", "a table")
    if match := re.search(r"\.(tar|parquet)$", place):
        if "://" not in place and not glob(place):
            raise FileNotFoundError(f"there is no file {place}")
        kind = {"tar": "webdataset", "parquet": "parquet"}[match[1]]
        return datasets.load_dataset(kind, data_files={split: place}, split=split, streaming=streaming), place
    folder = Path(place)
    if (folder / "state.json").exists():  # one split, by Dataset.save_to_disk
        table = datasets.load_from_disk(place)
        return table.to_iterable_dataset() if streaming else table, place
    if (folder / "dataset_dict.json").exists():
        saved = datasets.load_from_disk(place)
        table = saved[chosen := _chosen(place, split, list(saved))]
        return table.to_iterable_dataset() if streaming else table, f"{place} {chosen}"
    name, _, revision = (place, "", "") if folder.exists() else place.partition("@")
    names = datasets.get_dataset_split_names(name, revision=revision or None)
    chosen = _chosen(place, split, names)
    table = datasets.load_dataset(name, split=chosen, revision=revision or None, streaming=streaming)
    return table, f"{place} {chosen}"


def _chosen(place: str, split: str, names: Sequence[Any]) -> Any:
    """The split of a table that has the name, or stands in for it."""
    for name in SPLITS.get(split, (split,)):
        if name in names:
            return name
    raise FileNotFoundError(f"{place} has no split {split!r}, but {', '.join(map(str, names))}")
