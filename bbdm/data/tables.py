"""Rows of other libraries: tables of ``datasets`` (tars, Parquet, the Hub), and map-style data sets.

A table of the layout ``hub`` is fetched once, and its files are mapped into memory. One of the layout
``stream`` is read from its first row on, in an order that is a function of the epoch's seed.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from glob import glob
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bbdm.base import optional
from bbdm.base.atomic import stamp
from bbdm.data.cells import ROLES, ArrayCell, BytesCell, cell_of
from bbdm.data.names import RowName
from bbdm.networks.arrays import as_numpy
from bbdm.pictures import images

# other names of a split, the first is taken
SPLITS = {"val": ("val", "validation", "valid", "dev", "test")}
KEY = "__key__"  # WebDataset's name of a row
TAR = "__url__"  # the path of its tar
MIXED = 1000  # rows of a stream that are mixed at a time
FIELDS = (*ROLES, "conditions", "mask", "name")  # of the item of a map-style data set
NO_ROWS = "at least one table"  # in pyarrow's error of a tar from which no row can be made
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
        for column in named.values():
            if column not in self._features:
                raise ValueError(
                    f"the table has no column {column!r}, but {', '.join(self._features)}"
                )
        pictures = [name for name, kind in self._features.items() if isinstance(kind, Image)]
        # WebDataset's are source.png, season.txt
        own = {name.partition(".")[0]: name for name in self._features}
        self.columns = {**own, **named}
        names_a_side = any(role in named for role in ROLES)
        if not names_a_side and own.get("source") not in pictures and len(pictures) == 2:
            self.columns |= dict(zip(ROLES, pictures, strict=True))
        sides = [self.columns[role] for role in ROLES if role in self.columns]
        if "source" not in self.columns or not all(side in pictures for side in sides):
            example = pictures[0] if pictures else "COLUMN"
            needed = "a table with a column of pictures source, and maybe target, is needed"
            raise ValueError(
                f"{needed}; its columns of pictures are {pictures}: name them, such as ',source={example}'"
            )
        self.digest = f"{getattr(table, '_fingerprint', '')} {self.columns}"
        for name in pictures:
            table = table.cast_column(name, Image(decode=False))  # to bytes of files
        self._table = table

    def select(self, names: Iterable[str]) -> TableRows:
        """The rows with some of their columns, which alone are read."""
        chosen = copy(self)
        chosen.columns = {name: self.columns[name] for name in names if name in self.columns}
        of_rows = [column for column in (KEY, TAR) if column in self._features]
        chosen._table = self._table.select_columns(
            [*dict.fromkeys([*chosen.columns.values(), *of_rows])]
        )
        return chosen

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._row(index, self._table[range(len(self))[index]])

    def classes(self, name: str) -> tuple[str, ...] | None:
        """The labels of a ClassLabel, in its order; None of other columns."""
        kind = self._features[self.columns[name]]
        return tuple(kind.names) if hasattr(kind, "names") else None

    def _row(self, index: int, cells: Mapping[str, Any]) -> Row:
        key = cells.get(KEY)
        try:
            row: dict[str, Any] = {"name": RowName(key or f"{index:08d}")}
        except ValueError as error:
            raise ValueError(f"row {index} of {cells.get(TAR) or 'the table'}: {error}") from error
        for name, column in self.columns.items():
            if column in cells and column not in (KEY, TAR):
                if key:
                    where = f"{key}.{column} of {cells.get(TAR, 'the table')}"
                else:
                    where = f"{column} of row {row['name']}"
                row[name] = self._value(column, cells[column], where)
        return row

    def _value(self, column: str, cell: object, where: str) -> object:
        """A cell of a picture, a class or a text as str, all else as it is; ``where`` names it."""
        if isinstance(cell, Mapping):
            content = cell.get("bytes")
            if content is not None:
                return BytesCell(content, where)
            path = cell.get("path")
            return cell_of(Path(path), where) if path else None
        if isinstance(cell, int) and hasattr(self._features[column], "int2str"):
            return self._features[column].int2str(cell) if cell >= 0 else None
        if isinstance(cell, int | float):
            return str(cell)
        return cell


class StreamedRows(TableRows):
    """The rows of a table that is streamed. Indices from the number of rows on are of an epoch's own order.

    Args:
        table: of the ``datasets`` library.
        named: the names of columns, see :class:`TableRows`.
        path: names the table and its split.
        count: the number of rows; None to count them, which reads all.
        files: paths and addresses of what holds the table.

    Attributes:
        digest: names path, number and columns, whatever files hold.
        stamps: paths, sizes and times of the files on this machine.
    """

    def __init__(
        self,
        table: Any,
        named: Mapping[str, str],
        path: str,
        count: int | None,
        files: Iterable[str] = (),
    ) -> None:
        super().__init__(table, named)
        self.stamps = [stamp(Path(file)) for file in sorted(files) if "://" not in file]
        self._path = path
        self._rank = 0
        self._processes = 1
        if count is None:
            with _reading(path):
                count = sum(1 for _ in self._table)
        self._count = count
        self.digest = f"{path} {self._count} {self.columns}"
        if not self._count:
            raise ValueError("the stream has no rows")

    def select(self, names: Iterable[str]) -> StreamedRows:
        """The same rows: a stream is read as a whole."""
        return self

    def shared(self, rank: int, processes: int) -> StreamedRows:
        """The rows of one of several processes."""
        part = copy(self)
        part._rank = rank
        part._processes = processes
        return part

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return next(self.rows([range(self._count)[index]], 0))

    def __iter__(self) -> Iterator[Row]:
        # by index, each row would be read from the first one on
        return self.rows(range(self._count), 0)

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
            if stream is None:
                table = self._table
                if index >= self._count:
                    table = table.shuffle(seed=seed, buffer_size=MIXED)
                    if self._processes > 1:
                        table = split_dataset_by_node(table, self._rank, self._processes)
                stream = enumerate(chain.from_iterable(repeat(table)))
            wanted = index - self._count if index >= self._count else index
            with _reading(self._path):
                cells = next(cells for position, cells in stream if position == wanted)
            yield self._row(wanted, cells)


def hub(data_dir: str, split: str, columns: Mapping[str, str]) -> TableRows:
    """The layout of a table that is fetched once; see :func:`open_table`."""
    return open_table(data_dir, split, columns)


def stream(data_dir: str, split: str, columns: Mapping[str, str]) -> TableRows:
    """The layout of a table that is streamed; see :func:`open_table`."""
    return open_table(data_dir, split, columns, streaming=True)


def open_table(
    path: str, split: str, named: Mapping[str, str] = MappingProxyType({}), streaming: bool = False
) -> TableRows:
    """A split of a table: ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hub, a folder, or files.

    Files are a path or URL that ends in ``.tar`` or ``.parquet``, with ``*`` for several. ``named`` are the
    table's columns by what they are in rows. Rows of a stream are counted where the table does not say it.

    Raises:
        FileNotFoundError: there is no such table or split.
        ValueError: it has no such columns, they hold no pictures, or a file in a tar is damaged.
        OSError: it cannot be fetched or read.
    """
    datasets = optional.package("datasets", "a table")
    name = path
    match = re.search(r"\.(tar|parquet)$", path)
    if match:
        if "://" not in path and not glob(path):
            raise FileNotFoundError(f"there is no file {path}")
        reader = {"tar": "webdataset", "parquet": "parquet"}[match[1]]
        where: dict[str, Any] = {"path": reader, "data_files": {split: path}}
    else:
        owner = path
        revision = ""
        if not Path(path).exists():
            owner, _, revision = path.partition("@")
        where = {"path": owner, "revision": revision or None}
        names = datasets.get_dataset_split_names(**where)
        chosen = next((name for name in SPLITS.get(split, (split,)) if name in names), None)
        if chosen is None:
            raise FileNotFoundError(
                f"{path} has no split {split!r}, but {', '.join(map(str, names))}"
            )
        name = f"{path} {chosen}"
        split = chosen
    with _reading(path):
        if not streaming:
            return TableRows(datasets.load_dataset(**where, split=split), named)
        builder = datasets.load_dataset_builder(**where)
        table = builder.as_streaming_dataset(split=split)
    known = (table.info.splits or {}).get(str(table.split))
    count = known.num_examples if known else None
    files = (builder.config.data_files or {}).get(split, ())
    return StreamedRows(table, named, name, count or None, files)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """An error of the library ``datasets`` on tars becomes a ValueError in one line that names the damage.

    The library decodes arrays in tars, such as .npy, .npz and .pth, before rows are asked for.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError | ImportError | StopIteration) or not path.endswith(".tar"):
            raise
        if NO_ROWS in str(cause):
            empty = "the first tar" if "*" in path else "it"
            needed = "a row is the files KEY.source.png and KEY.target.png, or of other formats"
            raise ValueError(f"cannot read {path}: {empty} has no rows; {needed}") from error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ValueError(_damage(path, lines[0])) from error


def _damage(path: str, reason: str) -> str:
    """What is wrong with local tars: the first that is none or is damaged; ``reason`` is the library's."""
    for name in sorted(glob(path)):
        try:
            with tarfile.open(name) as tar:
                damaged = _damaged_file(tar)
        except (tarfile.TarError, EOFError):
            return f"{name} is cut off or no tar"
        if damaged:
            return f"cannot read {damaged} of {name}: {reason}"
    return f"cannot read {path}: {reason}"


def _damaged_file(tar: tarfile.TarFile) -> str:
    """The first file in a tar that the library cannot decode; "" where all are well."""
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    for member in tar:
        decode = WebDataset.DECODERS.get(member.name.rpartition(".")[2].lower())
        file = tar.extractfile(member)
        if decode is None or file is None:
            continue
        content = file.read()
        try:
            decode(content)
        except Exception:  # of whichever decoder
            return member.name
    return ""


class MapStyle(Protocol):
    """What ``torch.utils.data`` calls a map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class ItemRows(Sequence[Row]):
    """The items of a map-style data set as rows of arrays and numbers of classes.

    Args:
        dataset: of items as :class:`~bbdm.data.mapped.MappedDataset` takes them.
        item: makes such an item of what the data set has; None where it has such items.

    Raises:
        ValueError: it is no map-style data set; or later, what is wrong with an item.
    """

    def __init__(self, dataset: MapStyle, item: Callable[[Any], Any] | None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"a data set needs __len__ and __getitem__, and a {type(dataset).__name__} has not both"
            )
        self.dataset = dataset
        self._item = item

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        item = self.dataset[range(len(self.dataset))[index]]
        name = f"item {index} of the data set"
        try:
            return self._row(item if self._item is None else self._item(item), name)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be trained on: {error}") from error

    def _row(self, item: Any, name: str) -> Row:
        """The row of an item; ``name`` is that of an item without one."""
        if isinstance(item, tuple | list) and len(item) == 2:
            item = dict(zip(ROLES, item, strict=True))
        if not isinstance(item, Mapping) or not all(role in item for role in ROLES):
            got = type(item).__name__
            if isinstance(item, Mapping):
                got = f"a mapping of {', '.join(map(str, item))}"
            expected = f"(source, target), or a mapping with source and target, and maybe {', '.join(FIELDS[2:])}"
            raise ValueError(f"it must be {expected}; got {got}")
        row: dict[str, Any] = {"name": RowName(str(item.get("name") or name))}
        for column in (*ROLES, "mask"):
            if item.get(column) is not None:
                row[column] = _array_cell(column, item[column], (3, 4), row["name"])
        for column, value in (item.get("conditions") or {}).items():
            row[column] = _condition(column, value, row["name"])
        return row

    @property
    def digest(self) -> str:
        """The data set's ``digest()``, else SHA-256 of its length and of some items."""
        of_dataset = getattr(self.dataset, "digest", None)
        if callable(of_dataset):
            return str(of_dataset())
        digest = hashlib.sha256(str(len(self)).encode())
        last = len(self) - 1
        indices = {round(i * last / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}
        for index in sorted(indices):
            for name, value in sorted(self[index].items()):
                content = (
                    value.array.tobytes() if isinstance(value, ArrayCell) else str(value).encode()
                )
                digest.update(name.encode() + content)
        return digest.hexdigest()


def _array_cell(column: str, value: object, axes: tuple[int, ...], name: str) -> ArrayCell:
    """A picture (C, *S) of Pillow, an array or a tensor, or tokens (L, D), as a cell.

    Raises:
        ValueError: it has another number of axes, or no pixels.
    """
    if isinstance(value, Image.Image):
        value = images.pixels(value)
    array = as_numpy(value) if hasattr(value, "detach") else np.asarray(value)
    if array.ndim not in axes or 0 in array.shape:
        raise ValueError(
            f"{column} must be (C, H, W), got shape {array.shape}; of volumes, (C, D, H, W)"
        )
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    return ArrayCell(array, name)


def _condition(column: str, value: Any, name: str) -> ArrayCell | int:
    """An image, tokens, or the number of a class.

    Raises:
        ValueError: it is none of these.
    """
    if np.ndim(value) or isinstance(value, Image.Image):
        return _array_cell(column, value, (2, 3, 4), name)
    if isinstance(value, float) or int(value) != value or value < 0:
        raise ValueError(
            f"{column} must be the number of a class, an image or tokens (L, D), got {value!r}"
        )
    return int(value)
