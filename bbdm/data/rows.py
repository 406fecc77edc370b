"""The rows of a data set: where the pictures of each example lie, by layout. Nothing here imports torch.

A row is a mapping of columns: name, source, target, and whatever else there is, such as mask, sar or season.
A layout is a function of its folder and a split that says where the cells of each column are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bbdm.data import tables
from bbdm.data.spec import ROLES
from bbdm.pictures import Header, Picture, formats
from bbdm.pictures.picture import check_grid

Row = Mapping[str, Any]
COLUMN = re.compile(r"[,;](?=[A-Za-z_]\w*=)")  # before NAME=WHERE, which follows a layout's folders
PICTURES = (*ROLES, "mask")  # columns of a table that are always paths
UNPAIRED = "unpaired"  # the layout of two sets without pairs
LOOKED_AT = 64  # rows, to find one that can be read
Found = TypeVar("Found")


class BadPicturesError(ValueError):
    """Pictures of a data set cannot be read."""


class Half(NamedTuple):
    """A side of a picture that holds source and target: 0 is the left one, 1 the right one."""

    path: Path
    side: int

    def __str__(self) -> str:
        return str(self.path)


class Part(NamedTuple):
    """Cells of a column, by the names of rows. Several parts of one column are a tuple in a row."""

    column: str
    where: Path  # for messages
    cells: Mapping[str, Any]


class UnpairedRows(Sequence[Row]):
    """Rows with a source of one set and a target of another, which have nothing to do with each other.

    There are as many rows as pictures in the larger set; the smaller one begins anew where it ends. The rows
    of an epoch are a function of its seed, and the rows by index are those of seed 0.

    Args:
        sources: cells of the set A by name.
        targets: cells of the set B by name.
    """

    def __init__(self, sources: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        self._sets = [list(each.items()) for each in (sources, targets)]
        self._count = max(map(len, self._sets))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self.drawn(range(self._count)[index], 0)

    def drawn(self, index: int, seed: int) -> Row:
        """Row ``index`` of the epoch of a seed, whose order is drawn already."""
        drawn = (cells[_order(seed, side, len(cells), self._count)[index]] for side, cells in enumerate(self._sets))
        (a, source), (b, target) = drawn
        return {"name": f"{a}+{b}", "source": source, "target": target}


@lru_cache(maxsize=8)
def _order(seed: int, side: int, size: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` indices of a set of ``size`` pictures: all of them in random order, again and again."""
    generator = np.random.default_rng([seed, side])
    return np.concatenate([generator.permutation(size) for _ in range(-(-count // size))])[:count]


def cells_of(cell: Any) -> tuple[Any, ...]:
    """The cells of a column in a row: several, one, or none."""
    return cell if type(cell) is tuple else () if cell is None else (cell,)


def paths_of(row: Row, columns: Collection[str] | None = None) -> tuple[Path, ...]:
    """The files and folders of a row's pictures, each once; of some columns, None for all."""
    cells = chain.from_iterable(map(cells_of, row.values() if columns is None else map(row.get, columns)))
    paths = (cell.path if isinstance(cell, Half) else cell for cell in cells)
    return tuple(dict.fromkeys(path for path in paths if isinstance(path, Path)))


def shown(row: Row) -> str:
    """What messages call a row: the path of its source, or its name."""
    source = cells_of(row["source"])[0]
    return str(source) if isinstance(source, Half | Path) else row["name"]


def named(row: Row, error: Exception) -> str:
    """What an error says of a row, with the file that it is of."""
    names = (*paths_of(row), shown(row))
    return str(error) if any(str(each) in str(error) for each in names) else f"{shown(row)}: {error}"


def check_grids(
    columns: Mapping[str, Sequence[Any]],
    heads: Mapping[str, Sequence[Header | Picture]],
    sized: Collection[str],
    paired: bool = True,
) -> None:
    """Raise ValueError where pictures of a row lie on another grid than its target, or its source.

    ``heads`` are the headers or pictures of some columns, and those in ``sized`` must have one size even
    where they do not say where they lie. Pictures that are not ``paired`` lie anywhere in the world.
    """
    role = "target" if columns["target"] else "source"
    for column, others in heads.items() if heads.get(role) else ():
        for cell, other in zip(columns[column], others, strict=True):
            like = heads[role][0]
            located = paired and None not in (like.geometry.affine, other.geometry.affine)
            if located or column in sized or len(like.sides) != len(other.sides):
                pair = (cell, column), (columns[role][0], role)
                names = [str(each) if isinstance(each, Half | Path) else name for each, name in pair]
                check_grid(other, like, names, paired)


def first(rows: Iterable[Row], read: Callable[[Row], Found], count: int = LOOKED_AT) -> Found:
    """What ``read`` gives of the first row that can be read; BadPicturesError if none of the first can."""
    failed: Exception | None = None
    for row in islice(rows, count):
        try:
            return read(row)
        except (ValueError, FileNotFoundError) as error:
            failed = failed or error
    raise BadPicturesError(str(failed) if failed else "there are no rows")


def read_rows(dataset: str, data_dir: str, split: str = "train") -> Sequence[Row]:
    """The rows of a data set.

    Args:
        dataset: a layout in :data:`DATASETS`.
        data_dir: its folder or folders, in which ``{split}`` is filled in. Behind it, ``,NAME=WHERE`` adds a
            column: from a folder of files by the sources' names, or a CSV of lines ``name,class``; of a
            table it names one of its columns.
        split: ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: a folder or a split does not exist.
        ValueError: an unknown layout, no pictures, or a file without a counterpart, which is named.
    """
    read_layout(dataset)
    data_dir = data_dir.replace("{split}", split)
    folders, *others = [data_dir] if dataset == UNPAIRED else COLUMN.split(data_dir)
    columns = {name: where for name, _, where in (each.partition("=") for each in others)}
    if dataset in tables.LAYOUTS:
        return DATASETS[dataset](folders, split, columns)
    parts: list[Part] = DATASETS[dataset](folders, split)
    if dataset == UNPAIRED:
        return UnpairedRows(*(part.cells for part in parts))
    for name, where in columns.items():
        if name in ("name", *(part.column for part in parts)):
            raise ValueError(f"rows have a {name} already: {where} would be another")
        try:
            parts.append(_labels(name, where) if where.endswith(".csv") else _pictures(name, where))
        except FileNotFoundError as error:
            raise ValueError(f"{name}: {error}") from error
    leading, *others = parts
    for part in others:
        for one, other in ((leading, part), (part, leading)) if part.column in ROLES else ((leading, part),):
            if alone := sorted(one.cells.keys() - other.cells.keys()):
                more = "" if len(alone) == 1 else f", and {len(alone) - 1} more have none"
                rule = "files are matched by name without suffix"
                raise ValueError(f"{one.cells[alone[0]]} has no {other.column} in {other.where}{more}: {rule}")
    rows: list[Row] = []
    for name in leading.cells:
        row: dict[str, Any] = {"name": name}
        for part in parts:
            before, cell = cells_of(row.get(part.column)), part.cells[name]
            row[part.column] = (*before, cell) if before else cell
        rows.append(row)
    return rows


def _lines(path: Path) -> list[list[str]]:
    """The cells of the lines of a CSV that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        lines = [*csv.reader(path.read_text("utf-8-sig").splitlines())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV of UTF-8: {error}") from error
    return [[cell.strip() for cell in line] for line in lines if any(line)]


def _labels(column: str, where: str) -> Part:
    """Labels by the names of rows, from lines ``name,class``."""
    path, labels = Path(where), dict[str, str]()
    for number, cells in enumerate(_lines(path), start=1):
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"line {number} of {path} must be NAME,CLASS, got {','.join(cells)!r}")
        if labels.setdefault(*cells) != cells[1]:
            above = f"{cells[0]!r} is of the class {labels[cells[0]]!r} above"
            raise ValueError(f"line {number} of {path}: {above}; each split may have its labels_{{split}}.csv")
    return Part(column, path, labels)


def _pictures(column: str, where: str) -> Part:
    """The pictures of a folder, or of FOLDER/*ENDING, by their paths in it without suffix and ending."""
    text, _, ending = where.partition("*")
    folder, stems = Path(text), dict[str, Path]()
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    for path in sorted(formats.pictures_in(folder)):
        below = path.relative_to(folder)
        full = below.with_name(formats.stem_of(path)).as_posix()
        if full.endswith(ending) and not any(part.startswith(".") for part in below.parts) and formats.is_picture(path):
            other = stems.setdefault(full.removesuffix(ending), path)
            if other != path:
                raise ValueError(f"{other} and {path} have the same name: rename or remove one")
    if not stems:
        suffix = ", ".join(sorted(formats.SUFFIXES))
        raise ValueError(f"there are no pictures in {where} (looked for {suffix})")
    return Part(column, folder, dict(sorted(stems.items())))


def _below(source: str, target: str) -> Callable[[str, str], list[Part]]:
    """Sources and targets in folders below that of the data set."""
    folders = dict(zip(ROLES, (source, target), strict=True)).items()
    return lambda data_dir, split: [_pictures(c, f"{data_dir}/{each.format(split=split)}") for c, each in folders]


def _side_by_side(data_dir: str, split: str) -> list[Part]:
    """SPLIT/*.jpg, the source on the left, the target on the right."""
    root = Path(data_dir) / split
    if (root / "A").is_dir() and (root / "B").is_dir():
        raise ValueError(f"{root} has the folders A and B, the layout of 'celeba'; here a picture holds both sides")
    both = _pictures("source", f"{root}").cells
    return [Part(c, root, {name: Half(path, side) for name, path in both.items()}) for side, c in enumerate(ROLES)]


def _paired(data_dir: str, split: str) -> list[Part]:
    """SOURCES,TARGETS; of several sources, whose channels follow each other, FIRST,SECOND;TARGETS."""
    sources, mark, target = data_dir.rpartition(";" if ";" in data_dir else ",")
    folders = sources.split(",")
    if not all([*folders, target]) or (len(folders) > 1 and mark != ";"):
        also = "; of several sources, FIRST,SECOND;TARGETS"
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}{also}")
    return [*(_pictures("source", folder) for folder in folders), _pictures("target", target)]


def _unpaired(data_dir: str, split: str) -> list[Part]:
    """A,B: two folders of pictures that have nothing to do with each other; neither has further columns."""
    folders = data_dir.split(",")
    if len(folders) != 2 or not all(folders):
        raise ValueError(f"data_dir of 'unpaired' must be two folders, A,B, and no columns; got {data_dir!r}")
    return [*map(_pictures, ROLES, folders)]


def _folder(data_dir: str, split: str) -> list[Part]:
    """Pictures alone: SPLIT/* where there is train/ or val/, else *."""
    root = Path(data_dir)
    divided = any((root / name).is_dir() for name in ("train", "val"))
    return [_pictures("source", str(root / split if divided else root))]


def _table(data_dir: str, split: str) -> list[Part]:
    """A CSV with the columns source, target and others, of paths relative to it; ``;`` is between several."""
    path = Path(data_dir)
    header, *lines = _lines(path) or [[]]
    if "source" not in header or len(set(header)) < len(header):
        raise ValueError(f"{path} must begin with a line of column names, each once, source among them; got {header}")
    columns: dict[str, dict[str, Any]] = {column: {} for column in header if column != "name"}
    for number, cells in enumerate(lines, start=2):
        row = dict(zip(header, cells, strict=False))
        if len(cells) != len(header) or not all(cells):
            raise ValueError(f"line {number} of {path} must have a cell of each of {header}, got {cells}")
        name = row.pop("name", Path(row["source"].split(";")[0]).with_suffix("").as_posix())
        if name in columns["source"]:
            raise ValueError(f"line {number} of {path}: the name {name!r} is there twice")
        for column, cell in row.items():
            paths = [path.parent / each.strip() for each in (cell.split(";") if column == "source" else [cell])]
            is_file = column in PICTURES or (formats.suffix_of(cell) and paths[0].exists())
            columns[column][name] = tuple(paths) if len(paths) > 1 else paths[0] if is_file else cell
    if not lines:
        raise ValueError(f"there are no rows in {path}")
    return [Part(column, path, cells) for column, cells in columns.items()]


def read_layout(text: str) -> str:
    """The name of a layout, checked.

    Raises:
        ValueError: there is no such layout.
    """
    if text not in DATASETS:
        pictures = Path(text).exists()
        hint = f": the first word is the layout, of pictures alone 'folder', as in folder {text}" if pictures else ""
        raise ValueError(f"dataset must be one of {', '.join(sorted(DATASETS))}, got {text!r}{hint}")
    return text


A_B = _below("{split}/A", "{split}/B")
DATASETS: dict[str, Callable[..., Any]] = {
    "edge2shoes": _side_by_side,
    "edge2handbags": _side_by_side,
    "celeba": A_B,
    "face2comics": A_B,
    "cityscapes": _below("gtFine/{split}/*_gtFine_color", "leftImg8bit/{split}/*_leftImg8bit"),
    "paired": _paired,
    UNPAIRED: _unpaired,
    "folder": _folder,
    "table": _table,
    **tables.LAYOUTS,
}
