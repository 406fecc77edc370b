"""Columns of files: the pictures of a folder, labels of a CSV, and a table that is a CSV.

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbdm.data.cells import ROLES, Cell, PartCell, cell_of, parts_of
from bbdm.data.names import RowName
from bbdm.pictures import addresses, formats
from bbdm.pictures.formats.parts import Part

PICTURES = (*ROLES, "mask")  # columns of a table that are always paths
# the column of what must not be on both sides of a split, such as a film, a slide or a patient
GROUP = "group"


@dataclass(frozen=True)
class NamedCells:
    """The cells of a column by the names of their rows.

    Args:
        column: the name of the column.
        where: the folder or the file that they are of, for messages.
        cells: cells of pictures, or texts.
    """

    column: str
    where: Path
    cells: Mapping[RowName, Any]


def picture_of(name: str, path: Path) -> NamedCells:
    """A single file, by its name without suffix; each picture of a file of several, or the one of an address.

    Raises:
        ValueError: it is no picture, by its name, or no part of one.
    """
    file, part = addresses.split(path)
    if not formats.is_picture(file):
        raise ValueError(
            f"{path} is neither a folder of pictures nor a picture: no format has its suffix"
        )
    row = RowName(formats.stem_of(file))
    if part:
        return NamedCells(name, file.parent, {_name_of_part(row, part): cell_of(path, row)})
    return NamedCells(name, file.parent, _cells_of(file, row))


def pictures_of(name: str, where: str) -> NamedCells:
    """The pictures of a folder, or of FOLDER/*ENDING, by their paths in it without suffix and ending.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no pictures, or two of one name.
    """
    text, _, ending = where.partition("*")
    folder = Path(text)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    cells: dict[RowName, Cell] = {}
    for path in sorted(formats.pictures_in(folder)):
        below = path.relative_to(folder)
        full = below.with_name(formats.stem_of(path)).as_posix()
        is_hidden = any(part.startswith(".") for part in below.parts)
        if is_hidden or not full.endswith(ending) or not formats.is_picture(path):
            continue
        for row, cell in _cells_of(path, RowName(full.removesuffix(ending))).items():
            if row in cells:
                raise ValueError(
                    f"{cells[row]} and {cell} have the same name: rename or remove one"
                )
            cells[row] = cell
    if not cells:
        suffixes = ", ".join(formats.suffixes_of_pictures())
        raise ValueError(
            f"there are no pictures in {where} (looked for {suffixes}); films are of the data set 'frames'"
        )
    return NamedCells(name, folder, dict(sorted(cells.items(), key=_order)))


def _cells_of(path: Path, row: RowName) -> dict[RowName, Cell]:
    """The cells of a file, or a folder that is a picture, with the names of their rows.

    Args:
        path: the file that has the pictures.
        row: its name, which rows of its parts have before theirs.
    """
    cells: dict[RowName, Cell] = {}
    for part in parts_of(path):
        if part:
            cells[_name_of_part(row, part)] = PartCell(path, part)
        else:
            cells[row] = cell_of(path, row)
    return cells


def _name_of_part(row: RowName, part: Part) -> RowName:
    """The name of a part of a file, such as ``NAME/scene2/time0``; that of the file for all of it."""
    words = [word.replace("=", "") for word in part.words]
    return RowName("/".join([row, *words]))


def _order(named: tuple[RowName, Cell]) -> tuple[str, int, int]:
    """The key that sorts rows by name, and those of one file by its scenes and times."""
    name, cell = named
    if not isinstance(cell, PartCell):
        return name, 0, 0
    file = "/".join(name.split("/")[: -len(cell.which.words)])
    return file, cell.which.scene or 0, cell.which.time or 0


def labels_of(name: str, where: str) -> NamedCells:
    """Labels by the names of rows, from a CSV of lines ``name,class``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form, or a name has two labels.
    """
    path = Path(where)
    labels: dict[RowName, str] = {}
    for number, cells in _lines(path):
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"line {number} of {path} must be NAME,CLASS, got {','.join(cells)!r}")
        row, label = cells
        known = labels.setdefault(_row_name(row, number, path), label)
        if known != label:
            above = f"{row!r} is of the class {known!r} above"
            raise ValueError(
                f"line {number} of {path}: {above}; each split may have its labels_{{split}}.csv"
            )
    return NamedCells(name, path, labels)


def table_of(where: str) -> list[NamedCells]:
    """The columns of a CSV with the columns source, maybe target, name and others.

    Paths are relative to the file; ``;`` is between several sources.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no source, no rows, a line of other columns, or a name twice.
    """
    path = Path(where)
    lines = _lines(path)
    _, header = next(lines, (0, list[str]()))
    if "source" not in header or len(set(header)) < len(header):
        raise ValueError(
            f"{path} must begin with a line of column names, each once, source among them; got {header}"
        )
    columns: dict[str, dict[RowName, Any]] = {column: {} for column in header if column != "name"}
    for number, cells in lines:
        if len(cells) != len(header) or not all(cells):
            raise ValueError(
                f"line {number} of {path} must have a cell of each of {header}, got {cells}"
            )
        row = dict(zip(header, cells, strict=True))
        if "name" in row:
            name = _row_name(row.pop("name"), number, path)
            remedy = ""
        else:
            name = _name_of_source(row["source"], number, path)
            remedy = ": add a column 'name'"
        if name in columns["source"]:
            raise ValueError(
                f"line {number} of {path}: the name {str(name)!r} is there twice{remedy}"
            )
        for column, text in row.items():
            columns[column][name] = _table_cell(column, text, path.parent, name)
    if not columns["source"]:
        raise ValueError(f"there are no rows in {path}")
    return [NamedCells(column, path, cells) for column, cells in columns.items()]


def _table_cell(column: str, text: str, folder: Path, name: RowName) -> Any:
    """A cell of a table: of pictures by their paths, which several sources have, or a text."""
    if column == "source":
        sources = [cell_of(folder / path.strip(), name) for path in text.split(";")]
        return sources[0] if len(sources) == 1 else tuple(sources)
    if column == GROUP:
        return text
    path = folder / text
    if column in PICTURES or _is_file_of_a_picture(path):
        return cell_of(path, name)
    return text


def _is_file_of_a_picture(path: Path) -> bool:
    """Whether a path is a file, or a link, with a picture's suffix, or a folder of DICOM."""
    with suppress(OSError):  # of texts that no path can be
        if addresses.split(path)[1]:
            return True
        if path.is_dir():
            return formats.is_picture(path)
        return os.path.lexists(path) and bool(formats.suffix_of(path))
    return False


def _row_name(text: str, number: int, path: Path) -> RowName:
    """The name of a row that a line of a CSV has."""
    try:
        return RowName(text)
    except ValueError as error:
        raise ValueError(f"line {number} of {path}: {error}") from error


def _name_of_source(text: str, number: int, path: Path) -> RowName:
    """The name of a row by the path of its first source, without the root and ``..`` at its start."""
    source = Path(text.split(";")[0].strip())
    file, part = addresses.split(path.parent / source)
    parts = [*source.relative_to(source.anchor).parts]
    if part:
        parts[-1] = file.name
    while parts and parts[0] == "..":
        parts.pop(0)
    try:
        return _name_of_part(RowName.of(Path(*parts)), part)
    except ValueError as error:
        raise ValueError(f"line {number} of {path}: {error}; add a column 'name'") from error


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV that are not empty: the number of each in the file, and its cells without spaces."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV of UTF-8: {error}") from error
