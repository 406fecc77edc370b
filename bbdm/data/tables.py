"""Rows of other libraries: tables of ``datasets`` (tars, Parquet, the Hub), and map-style data sets.

A table of the layout ``hub`` is fetched once, and its files are mapped into memory. One of the layout
``stream`` is read from its first row on, in an order that is a function of the epoch's seed.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from glob import glob
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bbdm.base import optional
from bbdm.data.spec import ROLES
from bbdm.networks.arrays import as_numpy
from bbdm.pictures import Picture, images
from bbdm.pictures.picture import OF_PHOTOGRAPH

SPLITS = {"val": ("val", "validation", "valid", "dev", "test")}  # other names of a split, the first is taken
KEY = "__key__"  # WebDataset's name of a row
MIXED = 1000  # rows of a stream that are mixed at a time
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of encoded pictures
NPY = b"\x93NUMPY"  # how an encoded array begins
FIELDS = (*ROLES, "conditions", "mask", "name")  # of the item of a map-style data set
LOOKED_AT = 8  # items that a digest is of
Order = Callable[[int, int], list[int]]  # the examples at the positions start to end of an epoch
Row = Mapping[str, Any]


class TableRows(Sequence[Row]):
    """The rows of a table, by index: pictures are bytes, classes and texts str, all else as it is.

    Args:
        table: of the ``datasets`` library.
        named: the table's columns by what they are in rows, such as source. Others have their own names;
            without one, source and target are the two columns of pictures.

    Attributes:
        columns: the table's columns by their names in rows.
        digest: names the content of the rows.

    Raises:
        ValueError: there are no such columns, or they hold no pictures.
    """

    digest: str = ""

    def __init__(self, table: Any, named: Mapping[str, str]) -> None:
        from datasets import Image

        self._features = table.features or {}
        if missing := [column for column in named.values() if column not in self._features]:
            raise ValueError(f"the table has no column {missing[0]!r}, but {', '.join(self._features)}")
        pictures = [name for name, kind in self._features.items() if isinstance(kind, Image)]
        own = {name.partition(".")[0]: name for name in self._features}  # WebDataset's are source.png, season.txt
        self.columns = {**own, **named}
        if not named.keys() & {*ROLES} and own.get("source") not in pictures and len(pictures) == 2:
            self.columns |= dict(zip(ROLES, pictures, strict=True))
        sides = [self.columns[side] for side in ROLES if side in self.columns]
        if "source" not in self.columns or not set(sides) <= set(pictures):
            names = f"name them, such as ',source={pictures[0] if pictures else 'COLUMN'}'"
            needed = "a table with a column of pictures source, and maybe target, is needed"
            raise ValueError(f"{needed}; its columns of pictures are {pictures}: {names}")
        self.digest = f"{getattr(table, '_fingerprint', '')} {self.columns}"
        for name in pictures:
            table = table.cast_column(name, Image(decode=False))  # to bytes of files
        self._table = table

    def select(self, names: Iterable[str]) -> TableRows:
        """The rows with some of their columns, which alone are read."""
        found = copy(self)
        found.columns = {name: self.columns[name] for name in names if name in self.columns}
        kept = dict.fromkeys([*found.columns.values(), *[KEY][: KEY in self._features]])
        found._table = self._table.select_columns([*kept])
        return found

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._row(index, self._table[range(len(self))[index]])

    def classes(self, name: str) -> tuple[str, ...] | None:
        """The labels of a ClassLabel, in its order; None of other columns."""
        kind = self._features[self.columns[name]]
        return tuple(kind.names) if hasattr(kind, "names") else None

    def _row(self, index: int, cells: Mapping[str, Any]) -> Row:
        known = {name: column for name, column in self.columns.items() if column in cells and column[:2] != "__"}
        values = {name: self._value(column, cells[column]) for name, column in known.items()}
        return {"name": cells.get(KEY) or f"{index:08d}", **values}

    def _value(self, column: str, cell: Any) -> Any:
        if isinstance(cell, Mapping):
            data, path = cell.get("bytes"), cell.get("path")
            return Path(path) if data is None and path else data
        if isinstance(cell, int) and hasattr(self._features[column], "int2str"):
            return self._features[column].int2str(cell) if cell >= 0 else None
        return str(cell) if isinstance(cell, int | float) else cell


class StreamedRows(TableRows):
    """The rows of a table that is streamed. Indices from the number of rows on are of an epoch's own order.

    Args:
        table: of the ``datasets`` library.
        named: the names of columns, see :class:`TableRows`.
        path: names the table and its split.
        count: the number of rows; None to count them, which reads all.
    """

    def __init__(self, table: Any, named: Mapping[str, str], path: str, count: int | None) -> None:
        super().__init__(table, named)
        self._rank, self._processes = 0, 1
        self._count = sum(1 for _ in self._table) if count is None else count
        self.digest = f"{path} {self._count} {self.columns}"
        if not self._count:
            raise ValueError("the stream has no rows")

    def select(self, names: Iterable[str]) -> StreamedRows:
        """The same rows: a stream is read as a whole."""
        return self

    def shared(self, rank: int, processes: int) -> StreamedRows:
        """The rows of one of several processes."""
        found = copy(self)
        found._rank, found._processes = rank, processes
        return found

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return next(self.rows([range(self._count)[index]], 0))

    def __iter__(self) -> Iterator[Row]:
        return self.rows(range(self._count), 0)  # by index, each row would be read from the first one on

    def order(self, crops: int = 1) -> Order:
        """The order of an epoch: positions in this process's own stream of it.

        The steps of an epoch ask for equal shares of the processes, rank after rank. ``crops`` is the number
        of examples of a row, which follow each other.
        """

        def order(start: int, end: int) -> list[int]:
            share = end - start
            first = crops * self._count + max(0, start - self._rank * share) // self._processes
            return [*range(first, first + share)]

        return order

    def rows(self, order: Iterable[int], seed: int) -> Iterator[Row]:
        """The rows at rising indices; those from ``count`` on are of the order of an epoch's seed."""
        from datasets.distributed import split_dataset_by_node

        stream: Iterator[tuple[int, Any]] | None = None  # all rows, again and again
        for index in order:
            at, table = index - self._count * (index >= self._count), self._table
            if stream is None:
                if index >= self._count:
                    table = table.shuffle(seed=seed, buffer_size=MIXED)
                    table = split_dataset_by_node(table, self._rank, self._processes) if self._processes > 1 else table
                stream = enumerate(chain.from_iterable(repeat(table)))
            yield self._row(at, next(cells for position, cells in stream if position == at))


def open_table(
    path: str, split: str, named: Mapping[str, str] = MappingProxyType({}), streaming: bool = False
) -> TableRows:
    """A split of a table: ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hub, a folder, or files.

    Files are a path or URL that ends in ``.tar`` or ``.parquet``, with ``*`` for several. ``named`` are the
    table's columns by what they are in rows. Rows of a stream are counted where the table does not say it.

    Raises:
        FileNotFoundError: there is no such table or split.
        ValueError: it has no such columns, or they hold no pictures.
        OSError: it cannot be fetched or read.
    """
    datasets, name = optional.package("datasets", "a table"), path
    if match := re.search(r"\.(tar|parquet)$", path):
        if "://" not in path and not glob(path):
            raise FileNotFoundError(f"there is no file {path}")
        kind = {"tar": "webdataset", "parquet": "parquet"}[match[1]]
        where: dict[str, Any] = {"path": kind, "data_files": {split: path}}
    else:
        owner, _, revision = (path, "", "") if Path(path).exists() else path.partition("@")
        where = {"path": owner, "revision": revision or None}
        names = datasets.get_dataset_split_names(**where)
        chosen = next((each for each in SPLITS.get(split, (split,)) if each in names), None)
        if chosen is None:
            raise FileNotFoundError(f"{path} has no split {split!r}, but {', '.join(map(str, names))}")
        name, split = f"{path} {chosen}", chosen
    table = datasets.load_dataset(**where, split=split, streaming=streaming)
    if not streaming:
        return TableRows(table, named)
    known = (table.info.splits or {}).get(str(table.split))
    return StreamedRows(table, named, name, known.num_examples or None if known else None)


def picture_of(cell: Any) -> Picture:
    """A cell of a table or an item as a picture (C, *S): an encoded picture, an array, or lists of numbers.

    Rows of numbers (L, D) are (1, L, D). ValueError for anything else, and FileNotFoundError for text.
    """
    if isinstance(cell, str):
        raise FileNotFoundError(f"there is no picture {cell}")
    if isinstance(cell, bytes) and not cell.startswith(NPY):
        return Picture(images.pixels(images.open_image(cell, "in a table", FORMATS)), OF_PHOTOGRAPH)
    try:
        array = np.load(io.BytesIO(cell), allow_pickle=False) if isinstance(cell, bytes) else cell
        array = array if isinstance(array, np.ndarray) else np.array(array, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"it is neither a picture nor an array of as many numbers each, {error}") from error
    return Picture(array[None] if array.ndim < 3 else array)


class MapStyle(Protocol):
    """What ``torch.utils.data`` calls a map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class ItemRows(Sequence[Row]):
    """The items of a map-style data set as rows of arrays and numbers of classes.

    Args:
        dataset: of items as :class:`~bbdm.data.pairs.MappedDataset` takes them.
        item: makes such an item of what the data set has; None where it has such items.

    Raises:
        ValueError: it is no map-style data set; or later, what is wrong with an item.
    """

    def __init__(self, dataset: MapStyle, item: Callable[[Any], Any] | None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"a data set needs __len__ and __getitem__, and a {type(dataset).__name__} has not both")
        self.dataset, self._item = dataset, item

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        item, name = self.dataset[range(len(self.dataset))[index]], f"item {index} of the data set"
        try:
            item = item if self._item is None else self._item(item)
            if isinstance(item, tuple | list) and len(item) == 2:
                item = dict(zip(FIELDS, item, strict=False))
            if not isinstance(item, Mapping) or not {*ROLES} <= item.keys():
                got = f"a mapping of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
                expected = f"(source, target), or a mapping with source and target, and maybe {', '.join(FIELDS[2:])}"
                raise ValueError(f"it must be {expected}; got {got}")
            row: dict[str, Any] = {"name": str(item.get("name") or name)}
            row |= {side: _array(side, item[side], (3, 4)) for side in (*ROLES, "mask") if item.get(side) is not None}
            for column, value in (item.get("conditions") or {}).items():
                if np.ndim(value) or isinstance(value, Image.Image):
                    row[column] = _array(column, value, (2, 3, 4))
                elif int(value) != value or value < 0 or isinstance(value, float):
                    kinds = "the number of a class, an image or tokens (L, D)"
                    raise ValueError(f"{column} must be {kinds}, got {value!r}")
                else:
                    row[column] = int(value)
            return row
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be trained on: {error}") from error

    @property
    def digest(self) -> str:
        """The data set's ``digest()``, else SHA-256 of its length and of some items."""
        own = getattr(self.dataset, "digest", None)
        if callable(own):
            return str(own())
        digest = hashlib.sha256(str(len(self)).encode())
        for index in sorted({round(i * (len(self) - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}):
            for name, value in sorted(self[index].items()):
                content = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
                digest.update(name.encode() + content)
        return digest.hexdigest()


def _array(name: str, value: Any, axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A picture (C, *S) of Pillow, an array or a tensor, or tokens (L, D), as an array."""
    value = images.pixels(value) if isinstance(value, Image.Image) else value
    array = as_numpy(value) if hasattr(value, "detach") else np.asarray(value)
    if array.ndim not in axes or 0 in array.shape:
        raise ValueError(f"{name} must be (C, H, W), got shape {array.shape}; of volumes, (C, D, H, W)")
    return array.astype(np.float32) if array.dtype == np.float16 else array


LAYOUTS: dict[str, Callable[..., TableRows]] = {"hub": open_table, "stream": partial(open_table, streaming=True)}
