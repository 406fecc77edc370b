"""The rows of a data set: where the pictures of each example lie, by layout. Nothing here imports torch.

A row is a mapping of columns: name, source, target, and whatever else there is, such as mask, sar or season.
A layout is a function of its folder and a split that returns rows.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bbdm.data import tables
from bbdm.pictures import files, suffixes
from bbdm.pictures.values import AnyValues, Percentiles, Values

log = logging.getLogger(__name__)
Row = Mapping[str, Any]
COLUMN = re.compile(r"[,;](?=[A-Za-z_]\w*=)")  # before NAME=WHERE, which follows a layout's folders
PICTURES = ("source", "target", "mask")  # columns of a table that are always paths
HU = Values(-1024, 3071, "HU", "int16")
SYNTHRAD: dict[str, AnyValues] = {"mr": Percentiles(0.5, 99.5), "cbct": HU}  # sources and their values
PATIENT = "a folder for each patient, with mr.mha or cbct.mha, ct.mha and mask.mha, or .nii.gz"
VALIDATED = 10  # of as many patients, one is for validation


class Half(NamedTuple):
    """A side of a picture that holds source and target: 0 is the left one, 1 the right one."""

    path: Path
    side: int

    def __str__(self) -> str:
        return str(self.path)


def paths_of(row: Row, columns: Collection[str] | None = None) -> tuple[Path, ...]:
    """The files and folders of a row's pictures, each once; of some columns, None for all."""
    values = row.values() if columns is None else map(row.get, columns)
    cells = chain.from_iterable(value if type(value) is tuple else (value,) for value in values)
    paths = (cell.path if isinstance(cell, Half) else cell for cell in cells if isinstance(cell, Half | Path))
    return tuple(dict.fromkeys(paths))


def shown(row: Row) -> str:
    """What messages call a row: the path of its source, or its name."""
    source = row["source"]
    source = source[0] if type(source) is tuple else source
    return str(source) if isinstance(source, Half | Path) else row["name"]


def named(row: Row, error: Exception) -> str:
    """What an error says of a row, with the file that it is of."""
    names = (*paths_of(row), shown(row))
    return str(error) if any(str(each) in str(error) for each in names) else f"{shown(row)}: {error}"


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
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(sorted(DATASETS))}, got {dataset!r}")
    folders, *others = COLUMN.split(data_dir)
    columns = {name: where.replace("{split}", split) for name, _, where in (each.partition("=") for each in others)}
    if dataset in tables.LAYOUTS:
        return DATASETS[dataset](folders.replace("{split}", split), split, columns)
    rows = DATASETS[dataset](folders, split)
    for name, where in columns.items():
        rows = _with_column(rows, name, Path(where))
    return rows


def _with_column(rows: Sequence[Row], name: str, where: Path) -> Sequence[Row]:
    """The rows with a column of files in a folder, or of labels in a CSV."""
    try:
        cells: Mapping[str, Any] = _labels(where) if where.suffix == ".csv" else _pictures(where)
    except FileNotFoundError as error:
        raise ValueError(f"{name}: {error}") from error
    for row in rows:
        if name in row:
            raise ValueError(f"{shown(row)} has a {name} already: {where} would be another")
        if row["name"] not in cells:
            raise ValueError(f"{shown(row)} has no {name} in {where}: files are matched by name without suffix")
    return [{**row, name: cells[row["name"]]} for row in rows]


def _labels(path: Path) -> dict[str, str]:
    """Labels by the names of rows, from lines ``name,class``."""
    labels: dict[str, str] = {}
    for number, cells in enumerate(_lines(path), start=1):
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"line {number} of {path} must be NAME,CLASS, got {','.join(cells)!r}")
        if labels.setdefault(*cells) != cells[1]:
            raise ValueError(
                f"line {number} of {path}: {cells[0]!r} is of the class {labels[cells[0]]!r} above; where two splits "
                "have pictures of one name, give labels_{split}.csv: {split} in a path is train or val"
            )
    return labels


def _lines(path: Path) -> list[list[str]]:
    """The cells of the lines of a CSV that are not empty."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        lines = [*csv.reader(path.read_text("utf-8-sig").splitlines())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV of UTF-8: {error}") from error
    return [[cell.strip() for cell in line] for line in lines if any(line)]


def _pictures(folder: Path, ending: str = "") -> dict[str, Path]:
    """Pictures by their path below ``folder`` without suffix and ``ending``, in the order of these paths."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    below = sorted(path.relative_to(folder) for path in files.pictures_in(folder))
    below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    found = [path for path in below if files.is_picture(folder / path)]
    others = Image.registered_extensions().keys() - set(suffixes.SUFFIXES)
    skipped = [path.suffix.lower() for path in below if path.suffix.lower() in others and path not in found]
    if skipped:
        count = "1 picture is" if len(skipped) == 1 else f"{len(skipped)} pictures are"
        log.warning("%s skipped in %s, of kinds that are not read (%s)", count, folder, ", ".join(sorted(set(skipped))))
    if not found:
        raise ValueError(f"there are no pictures in {folder} (looked for {', '.join(sorted(suffixes.SUFFIXES))})")
    stems: dict[str, Path] = {}
    for path in found:
        full = suffixes.stem_of(path)
        if full.endswith(ending):
            stem = path.with_name(full.removesuffix(ending)).as_posix()
            if stem in stems:
                raise ValueError(f"{stems[stem]} and {folder / path} have the same name: rename or remove one")
            stems[stem] = folder / path
    if not stems:
        raise ValueError(f"there are no pictures *{ending} in {folder}")
    return dict(sorted(stems.items()))


def _matched(sources: Sequence[dict[str, Path]], targets: dict[str, Path]) -> list[Row]:
    """Rows of files of equal names; ValueError where one has no counterpart."""
    first = sources[0]
    for other in (*sources[1:], targets):
        if single := sorted({**first, **other}[stem] for stem in first.keys() ^ other.keys()):
            where = next(iter((other if single[0] in first.values() else first).values())).parent
            more = "" if len(single) == 1 else f", and {len(single) - 1} more have none"
            rule = "files are matched by name without suffix"
            raise ValueError(f"{single[0]} has no counterpart in {where}{more}: {rule}")
    several = len(sources) > 1
    return [
        {"name": name, "source": tuple(each[name] for each in sources) if several else path, "target": targets[name]}
        for name, path in first.items()
    ]


def _side_by_side(data_dir: str, split: str) -> list[Row]:
    """SPLIT/*.jpg, the source on the left, the target on the right."""
    root = Path(data_dir) / split
    if (root / "A").is_dir() and (root / "B").is_dir():
        raise ValueError(
            f"{root} has the folders A and B, which is the layout of 'celeba'; here a picture holds both sides"
        )
    return [{"name": name, "source": Half(path, 0), "target": Half(path, 1)} for name, path in _pictures(root).items()]


def _folders_a_b(data_dir: str, split: str) -> list[Row]:
    """SPLIT/A/* and SPLIT/B/*."""
    root = Path(data_dir) / split
    return _matched([_pictures(root / "A")], _pictures(root / "B"))


def _cityscapes(data_dir: str, split: str) -> list[Row]:
    """gtFine/SPLIT/*/*_gtFine_color.png and leftImg8bit/SPLIT/*/*_leftImg8bit.png."""
    labels, photos = Path(data_dir) / "gtFine" / split, Path(data_dir) / "leftImg8bit" / split
    return _matched([_pictures(labels, "_gtFine_color")], _pictures(photos, "_leftImg8bit"))


def _paired(data_dir: str, split: str) -> list[Row]:
    """SOURCES,TARGETS; of several sources, whose channels follow each other, FIRST,SECOND;TARGETS."""
    sources, mark, target = data_dir.replace("{split}", split).rpartition(";" if ";" in data_dir else ",")
    folders = sources.split(",")
    if not all([*folders, target]) or (len(folders) > 1 and mark != ";"):
        also = "; of several sources, FIRST,SECOND;TARGETS"
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}{also}")
    return _matched([_pictures(Path(folder)) for folder in folders], _pictures(Path(target)))


def _folder(data_dir: str, split: str) -> list[Row]:
    """Pictures alone: SPLIT/* where there is train/ or val/, else *."""
    root = Path(data_dir.replace("{split}", split))
    if any((root / name).is_dir() for name in ("train", "val")):
        root = root / split
    return [{"name": name, "source": path} for name, path in _pictures(root).items()]


def _table(data_dir: str, split: str) -> list[Row]:
    """A CSV with the columns name, source, target and others; paths are relative to the file.

    A name is that of the source without suffix where there is no such column. A source of several files has
    ``;`` between them.
    """
    path = Path(data_dir.replace("{split}", split))
    lines = _lines(path)
    header = lines[0] if lines else []
    if "source" not in header or len(set(header)) < len(header):
        raise ValueError(f"{path} must begin with a line of column names, each once, source among them; got {header}")
    rows: dict[str, Row] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(header):
            raise ValueError(f"line {number} of {path} has {len(cells)} cells, and its header {len(header)}")
        row: dict[str, Any] = {}
        for column, cell in zip(header, cells, strict=True):
            if not cell:
                raise ValueError(f"line {number} of {path} has no {column}")
            parts = [path.parent / part.strip() for part in cell.split(";")]
            if column == "source" and len(parts) > 1:
                row[column] = tuple(parts)
            else:
                is_file = column != "name" and (column in PICTURES or (suffixes.suffix_of(cell) and parts[0].exists()))
                row[column] = parts[0] if is_file else cell
        name = row.setdefault("name", Path(cells[header.index("source")].split(";")[0]).with_suffix("").as_posix())
        if name in rows:
            raise ValueError(f"line {number} of {path}: the name {name!r} is there twice")
        rows[name] = row
    if not rows:
        raise ValueError(f"there are no rows in {path}")
    return list(rows.values())


def _patients(data_dir: str, split: str) -> list[Row]:
    """The patients of the SynthRAD challenges 2023 and 2025, a folder each, with MR or CBCT, CT, and a mask.

    Where there are no folders ``train`` and ``val``, a tenth of the patients is for validation, chosen by
    their names. Where no patient has a CT, each split has all of them, as sources alone.
    """
    root = Path(data_dir.replace("{split}", split))
    divided = any((root / name).is_dir() for name in ("train", "val"))
    root = root / split if divided else root
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found: dict[Path, dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        name = suffixes.stem_of(path) if suffixes.suffix_of(path) else ""
        if name in (*SYNTHRAD, "ct", "mask") and found.setdefault(path.parent, {}).setdefault(name, path) != path:
            raise ValueError(f"{path.parent} has {name} twice: remove one")
    kinds = {name for pictures in found.values() for name in pictures.keys() & SYNTHRAD.keys()}
    if len(kinds) != 1:
        what = "both mr and cbct: give the folder of one task" if kinds else f"no patients: {PATIENT}, is wanted"
        raise ValueError(f"{root} has {what}")
    columns = {"source": kinds.pop(), "mask": "mask"}
    if any("ct" in pictures for pictures in found.values()):
        columns["target"] = "ct"
    rows: list[Row] = []
    for folder, pictures in found.items():
        if missing := [name for name in columns.values() if name not in pictures]:
            others = ", or no ct of any patient" if missing[0] == "ct" else ""
            raise ValueError(f"patient {folder} has no {missing[0]}: {PATIENT}, is wanted{others}")
        paths = {column: pictures[name] for column, name in columns.items()}
        rows.append({"name": folder.relative_to(root).as_posix(), **paths})
    if divided or "{split}" in data_dir or "target" not in columns:
        return rows
    if len(rows) < 2:
        raise ValueError(f"{rows[0]['source'].parent} is the only patient, and one is needed for validation too")
    order = sorted(rows, key=lambda row: hashlib.sha256(row["source"].parent.name.encode()).hexdigest())
    validation = order[: max(1, round(len(rows) / VALIDATED))]
    return [row for row in rows if (row in validation) == (split != "train")]


def synthrad_values(rows: Iterable[Row]) -> tuple[AnyValues, Values]:
    """The values of SynthRAD's sources and targets: an MR's percentiles; -1024 to 3071 HU of CT and CBCT."""
    first = next(iter(rows))
    return SYNTHRAD[suffixes.stem_of(first["source"])], HU


def read_layout(text: str) -> str:
    """The name of a layout, checked.

    Raises:
        ValueError: there is no such layout.
    """
    if text not in DATASETS:
        pictures = Path(text).exists()
        hint = f": the first word is the layout, of pictures alone 'folder', as in folder {text}" if pictures else ""
        raise ValueError(f"it must be one of {', '.join(sorted(DATASETS))}, got {text!r}{hint}")
    return text


DATASETS: dict[str, Callable[..., Sequence[Row]]] = {
    "edge2shoes": _side_by_side,
    "edge2handbags": _side_by_side,
    "celeba": _folders_a_b,
    "face2comics": _folders_a_b,
    "cityscapes": _cityscapes,
    "paired": _paired,
    "folder": _folder,
    "table": _table,
    "synthrad": _patients,
    **tables.LAYOUTS,
}
