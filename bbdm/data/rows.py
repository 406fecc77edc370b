"""The rows of a data set: which pictures each example has, by layout. Nothing here imports torch.

A row is a mapping of columns: name, source, target, and whatever else there is, such as mask, sar or season.
A layout is a function of a folder, a split and further columns, and a row of :data:`DATASETS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bbdm.base.registry import Registry
from bbdm.data import columns as files
from bbdm.data import sequences, tables
from bbdm.data.cells import ROLES, Cell, HalfCell, cell_of
from bbdm.data.columns import NamedCells
from bbdm.data.names import RowName
from bbdm.pictures import Header, Picture, addresses, formats
from bbdm.pictures.picture import check_grid

Row = Mapping[str, Any]
Layout = Callable[[str, str, Mapping[str, str]], Sequence[Row]]
# before NAME=WHERE, which follows a layout's folders
FURTHER = re.compile(r"[,;](?=[A-Za-z_]\w*=)")
UNPAIRED = "unpaired"  # the layout of two sets without pairs
FRAMES = "frames"  # the layout of sequences
LOOKED_AT = 64  # rows, to find one that can be read
Found = TypeVar("Found")


class BadPicturesError(ValueError):
    """Pictures of a data set cannot be read."""


class UnpairedRows(Sequence[Row]):
    """Rows with a source of one set and a target of another, which have nothing to do with each other.

    There are as many rows as pictures in the larger set; the smaller one begins anew where it ends. The rows
    of an epoch are a function of its seed, and the rows by index are those of seed 0. The first of them have
    each picture once.

    Args:
        sources: cells of the set A by name.
        targets: cells of the set B by name.

    Attributes:
        sizes: the numbers of pictures of A and of B.
    """

    def __init__(self, sources: Mapping[Any, Any], targets: Mapping[Any, Any]) -> None:
        self._sources = [*sources.items()]
        self._targets = [*targets.items()]
        self.sizes = (len(sources), len(targets))
        self._count = max(self.sizes)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self.drawn(range(self._count)[index], 0)

    def pictures(self) -> list[Row]:
        """The pictures of both sets, each as the source of a row, with the set before its name."""
        rows: list[Row] = [{"name": f"A/{name}", "source": cell} for name, cell in self._sources]
        return [*rows, *({"name": f"B/{name}", "source": cell} for name, cell in self._targets)]

    def drawn(self, index: int, seed: int) -> Row:
        """Row ``index`` of the epoch of a seed, whose order is drawn already."""
        a, source = self._sources[_order(seed, 0, len(self._sources), self._count)[index]]
        b, target = self._targets[_order(seed, 1, len(self._targets), self._count)[index]]
        return {"name": RowName(f"{a}+{b}"), "source": source, "target": target}


@lru_cache(maxsize=8)
def _order(seed: int, side: int, size: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` indices of a set of ``size`` pictures: all of them in random order, again and again."""
    generator = np.random.default_rng([seed, side])
    return np.concatenate([generator.permutation(size) for _ in range(-(-count // size))])[:count]


def values_of(row: Row, column: str) -> tuple[Any, ...]:
    """What a row has in a column: several values, one, or none."""
    value = row.get(column)
    if value is None:
        return ()
    return value if type(value) is tuple else (value,)


def files_of_value(value: object) -> tuple[Path, ...]:
    """The files that hold a value of a row; () of one in memory."""
    if not isinstance(value, Cell | os.PathLike):
        return ()
    return tuple(cell_of(value, "").files())


def files_of(row: Row, columns: Collection[str] | None = None) -> tuple[Path, ...]:
    """The files of a row's pictures, each once.

    Args:
        row: of a data set.
        columns: whose pictures are meant; None for all.
    """
    if columns is None:
        columns = row.keys()
    paths: dict[Path, None] = {}  # an ordered set
    for column in columns:
        for value in values_of(row, column):
            paths.update(dict.fromkeys(files_of_value(value)))
    return tuple(paths)


def shown(row: Row) -> str:
    """What messages call a row: its source, which is a path or has the row's name."""
    sources = values_of(row, "source")
    if not sources or isinstance(sources[0], str):  # which is no picture
        return row["name"]
    return str(cell_of(sources[0], row["name"]))


def named(row: Row, error: Exception) -> str:
    """What an error says of a row, with the picture that it is of."""
    message = str(error)
    cells: list[str] = []
    for column in row:
        for value in values_of(row, column):
            if isinstance(value, Cell | os.PathLike):
                cells.append(str(value))
    if any(name in message for name in (*cells, shown(row))):
        return message
    return f"{shown(row)}: {message}"


def check_grids(
    columns: Mapping[str, Sequence[Cell]],
    heads: Mapping[str, Sequence[Header | Picture]],
    sized: Collection[str],
    paired: bool = True,
) -> None:
    """Raise ValueError where pictures of a row lie on another grid than its target, or its source.

    Args:
        columns: the cells of a row by column.
        heads: the headers of some columns.
        sized: columns that must have one size even where they do not say where they lie.
        paired: whether the pictures show the same; others lie anywhere in the world.
    """
    role = "target" if columns["target"] else "source"
    if not heads.get(role):
        return
    first_cell = columns[role][0]
    first_head = heads[role][0]
    for column, others in heads.items():
        for cell, head in zip(columns[column], others, strict=True):
            located = (
                paired
                and first_head.geometry.affine is not None
                and head.geometry.affine is not None
            )
            if located or column in sized or len(first_head.sides) != len(head.sides):
                names = [
                    str(cell) if cell.files() else column,
                    str(first_cell) if first_cell.files() else role,
                ]
                check_grid(head, first_head, names, paired)


def first(rows: Iterable[Row], read: Callable[[Row], Found], count: int = LOOKED_AT) -> Found:
    """What ``read`` gives of the first row that can be read; BadPicturesError if none of the first can."""
    failed: Exception | None = None
    for row in islice(rows, count):
        try:
            return read(row)
        except (ValueError, FileNotFoundError) as error:
            failed = failed or error
    raise BadPicturesError(str(failed) if failed else "there are no rows")


def read_rows(dataset: str, data_dir: str, split: str = "train", axes: int = 2) -> Sequence[Row]:
    """The rows of a data set.

    Args:
        dataset: a layout in :data:`DATASETS`.
        data_dir: its folder or folders, in which ``{split}`` is filled in. Behind it, ``,NAME=WHERE`` adds a
            column: from a folder of files by the sources' names, or a CSV of lines ``name,class``; of a
            table it names one of its columns.
        split: ``train``, ``val`` or ``test``.
        axes: of a network; with 3, a row of the layout ``frames`` is a whole sequence (C, T, H, W).

    Returns:
        Mappings with a ``name``, a ``source``, a ``target`` where there is one, and the further columns.
        Pictures are :class:`cells <bbdm.data.cells.Cell>`; those of files are paths for ``open`` too.

    Raises:
        FileNotFoundError: a folder or a split does not exist.
        ValueError: an unknown layout, no pictures, a file without a counterpart, a row without a name or a
            source, or two rows of one name. The message names the file or the row.
    """
    read_layout(dataset)
    folders, *further = _with_further(data_dir.replace("{split}", split))
    columns: dict[str, str] = {}
    for word in further:
        name, _, where = word.partition("=")
        columns[name] = where
    rows = DATASETS[dataset](folders, split, columns)
    if dataset == FRAMES and axes == 3:
        rows = sequences.as_volumes(rows)
    if isinstance(rows, list | tuple):  # others are read row by row
        _check_needed(rows)
    return rows


def only_columns(data_dir: str, names: Collection[str]) -> str:
    """What names a data set's folder, as :func:`read_rows` takes it, with some of its further columns."""
    folders, *further = _with_further(data_dir)
    kept = [word for word in further if word.partition("=")[0] in names]
    return ",".join([folders, *kept])


def _with_further(data_dir: str) -> list[str]:
    """The folders of a data set, and each NAME=WHERE behind them; a file may have an address with commas."""
    folders, *further = FURTHER.split(data_dir)
    while further and addresses.split(Path(f"{folders},{further[0]}"))[1]:
        folders = f"{folders},{further.pop(0)}"
    return [folders, *further]


def _check_needed(rows: Sequence[Row]) -> None:
    """Raise ValueError where a row has no name or no source, or two rows have one name."""
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows):
        for column in ("name", "source"):
            if row.get(column) is None:
                has = ", ".join(row) or "nothing"
                raise ValueError(
                    f"row {number} has no {column}: a row needs a name and a source, and has {has}"
                )
        name = row["name"]
        first_number = numbers.setdefault(name, number)
        if first_number != number:
            both = (
                f"{shown(rows[first_number])} (row {first_number}) and {shown(row)} (row {number})"
            )
            raise ValueError(f"{both} have the same name, {str(name)!r}: names of rows are unique")


def read_layout(text: str) -> str:
    """The name of a layout, checked.

    Raises:
        ValueError: there is no such layout.
    """
    if text not in DATASETS:
        message = f"dataset must be one of {', '.join(sorted(DATASETS))}, got {text!r}"
        if Path(text).exists():
            message += (
                f": the first word is the layout, of pictures alone 'folder', as in folder {text}"
            )
        raise ValueError(message)
    return text


def matched(columns: Sequence[NamedCells], further: Mapping[str, str]) -> list[Row]:
    """The rows of columns whose cells are matched by name. Columns of one name are several sources.

    Args:
        columns: the first one's names are the rows'. Sources and targets have the same names.
        further: folders and CSVs of further columns by name, as ``,NAME=WHERE`` says.

    Raises:
        ValueError: a cell has no counterpart, or a column is there twice.
    """
    leading = columns[0]
    for column in columns[1:]:
        _check_names(leading, column)
        if column.column in ROLES:
            _check_names(column, leading)
    rows: list[Row] = []
    for name in leading.cells:
        row: dict[str, Any] = {"name": name}
        for column in columns:
            cell = column.cells[name]
            row[column.column] = (
                (*values_of(row, column.column), cell) if column.column in row else cell
            )
        rows.append(row)
    return with_columns(rows, further)


def with_columns(rows: Sequence[Row], further: Mapping[str, str]) -> list[Row]:
    """Rows with further columns: of folders of pictures, or CSVs of lines ``name,class``, by names of rows.

    Args:
        rows: that a layout has made.
        further: the folder or CSV of each column by name.

    Raises:
        ValueError: rows have the column already, or one has no cell in it; or a row has no name or no source.
    """
    _check_needed(rows)
    added = [dict(row) for row in rows]
    for name, where in further.items():
        if any(name in row for row in rows):
            raise ValueError(f"rows have a {name} already: {where} would be another")
        if name == files.GROUP and not where.endswith(".csv"):
            raise ValueError(f"{name} must be a CSV of lines NAME,GROUP, got {where}")
        try:
            if where.endswith(".csv"):
                column = files.labels_of(name, where)
            else:
                column = files.pictures_of(name, where)
        except FileNotFoundError as error:
            raise ValueError(f"{name}: {error}") from error
        _check_names(
            NamedCells("row", Path(), {RowName(row["name"]): shown(row) for row in rows}), column
        )
        for row in added:
            row[name] = column.cells[RowName(row["name"])]
    return [*added]


def _check_names(one: NamedCells, other: NamedCells) -> None:
    """Raise ValueError where a cell of a column has no counterpart in another."""
    alone = sorted(one.cells.keys() - other.cells.keys())
    if alone:
        more = f", and {len(alone) - 1} more have none" if len(alone) > 1 else ""
        rule = "files are matched by name without suffix"
        raise ValueError(
            f"{one.cells[alone[0]]} has no {other.column} in {other.where}{more}: {rule}"
        )


def _folders(
    source: str, target: str, data_dir: str, split: str, columns: Mapping[str, str]
) -> Sequence[Row]:
    """Sources and targets in folders below that of the data set."""
    sources = files.pictures_of("source", f"{data_dir}/{source.format(split=split)}")
    targets = files.pictures_of("target", f"{data_dir}/{target.format(split=split)}")
    return matched([sources, targets], columns)


def _side_by_side(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """SPLIT/*.jpg, the source on the left, the target on the right."""
    root = Path(data_dir) / split
    if (root / "A").is_dir() and (root / "B").is_dir():
        raise ValueError(
            f"{root} has the folders A and B, the layout of 'celeba'; here a picture holds both sides"
        )
    pictures = files.pictures_of("source", str(root)).cells
    sources = {name: HalfCell(cell.path, 0) for name, cell in pictures.items()}
    targets = {name: HalfCell(cell.path, 1) for name, cell in pictures.items()}
    return matched(
        [NamedCells("source", root, sources), NamedCells("target", root, targets)], columns
    )


def _paired(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """SOURCES,TARGETS; of several sources, whose channels follow each other, FIRST,SECOND;TARGETS."""
    mark = ";" if ";" in data_dir else ","
    sources, _, target = data_dir.rpartition(mark)
    folders = sources.split(",")
    if not all([*folders, target]) or (len(folders) > 1 and mark == ","):
        also = "; of several sources, FIRST,SECOND;TARGETS"
        raise ValueError(
            f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}{also}"
        )
    return matched(
        [
            *(files.pictures_of("source", folder) for folder in folders),
            files.pictures_of("target", target),
        ],
        columns,
    )


def _unpaired(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """A,B: two folders of pictures that have nothing to do with each other; neither has further columns."""
    folders = data_dir.split(",")
    if columns or len(folders) != 2 or not all(folders):
        also = "".join(f",{name}={where}" for name, where in columns.items())
        rule = "data_dir of 'unpaired' must be two folders, A,B, and no columns"
        raise ValueError(f"{rule}; got {data_dir + also!r}")
    sources, targets = folders
    return UnpairedRows(
        files.pictures_of("source", sources).cells, files.pictures_of("target", targets).cells
    )


def _folder(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """Pictures alone: SPLIT/* where there is train/ or val/, else *; or a single file, or a part of one."""
    root = Path(data_dir)
    is_tree = root.is_dir() and formats.is_tree(root)
    if root.is_file() or is_tree or addresses.split(root)[1]:
        return matched([files.picture_of("source", root)], columns)
    if (root / "train").is_dir() or (root / "val").is_dir():
        root = root / split
    return matched([files.pictures_of("source", str(root))], columns)


def _frames(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """SEQUENCES, or SOURCES,TARGETS: folders of films, of time-lapses and of folders of frames."""
    folders = data_dir.split(",")
    if len(folders) > 2 or not all(folders):
        raise ValueError(
            f"data_dir of 'frames' must be a folder, or two, SOURCES,TARGETS; got {data_dir!r}"
        )
    return with_columns(sequences.rows_of(folders), columns)


def _table(data_dir: str, split: str, columns: Mapping[str, str]) -> Sequence[Row]:
    """A CSV with the columns source, target and others, of paths relative to it; ``;`` is between several."""
    return matched(files.table_of(data_dir), columns)


def register_layout(name: str, layout: Layout) -> None:
    """Add a layout, for all commands by ``--import MODULE``.

    Args:
        name: of the layout, which commands take before the data set's folder.
        layout: a function of ``data_dir``, in which ``{split}`` is filled in; of the split, ``train``,
            ``val`` or ``test``; and of the folders of further columns by name. It returns rows, to which
            :func:`with_columns` adds those columns. FileNotFoundError means that there is no such split.

    Raises:
        ValueError: another layout has the name.
    """
    DATASETS.register(name, layout)


A_B = partial(_folders, "{split}/A", "{split}/B")
CITYSCAPES = partial(_folders, "gtFine/{split}/*_gtFine_color", "leftImg8bit/{split}/*_leftImg8bit")
DATASETS: Registry[Layout] = Registry("layout")
for _name, _layout in {
    "edge2shoes": _side_by_side,
    "edge2handbags": _side_by_side,
    "celeba": A_B,
    "face2comics": A_B,
    "cityscapes": CITYSCAPES,
    "paired": _paired,
    UNPAIRED: _unpaired,
    "folder": _folder,
    FRAMES: _frames,
    "table": _table,
    "hub": tables.hub,
    "stream": tables.stream,
}.items():
    DATASETS.register(_name, _layout)
