"""Sequences: frames of folders, films and time-lapses, each a row that knows the frames around it.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbdm.base.atomic import stamp
from bbdm.data.cells import Cell, FileCell, cell_of
from bbdm.data.columns import GROUP
from bbdm.data.names import RowName
from bbdm.pictures import Header, Picture, formats, windows
from bbdm.pictures.picture import PHOTOGRAPH, Geometry
from bbdm.pictures.values import Values
from bbdm.pictures.windows import Window

DIGITS = re.compile(r"(\d+)")
Frames = dict[str, Cell]  # the cells of a sequence by the names of its frames, in order


@dataclass(frozen=True, slots=True)
class MomentCell(Cell):
    """One moment of a film or a time-lapse, a picture (C, H, W) of a file (C, T, H, W).

    Args:
        file: the cell of the whole file.
        index: of the moment, from 0.
    """

    file: FileCell
    index: int

    def header(self) -> Header:
        """The header of the file, without the axis of time."""
        header = self.file.header()
        channels, _, *sides = header.shape
        return replace(header, shape=(channels, *sides), geometry=_of_moment(header.geometry))

    def read(self, window: Window = ()) -> Picture:
        """The moment, or a window of it; of a file that is read by windows, it alone is read."""
        _, *sides = self.header().shape
        bounds = windows.bounds(window, sides)
        film = self.file.read((slice(self.index, self.index + 1), *bounds))
        return Picture(np.asarray(film)[:, 0], _of_moment(film.geometry), film.unit, str(self))

    def files(self) -> Sequence[Path]:
        """The file of all moments."""
        return self.file.files()

    def part(self) -> str:
        """The index of the moment."""
        return str(self.index)

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result: of frames of a film, PNG's or TIFF's."""
        if self.header().photograph:
            return formats.suffix_of_result(None, channels, values)
        return ".tif"

    def stamp(self) -> str:
        """That of the file, and the index."""
        return f"{self.index} {stamp(self.file.path.absolute())}"

    def __str__(self) -> str:
        return f"{self.file} at {self.index}"


@dataclass(frozen=True, slots=True)
class FrameCell(Cell):
    """A frame of a sequence, which knows the frames around it.

    Args:
        cell: the picture of the frame.
        index: of the frame, from 0.
        sequence: the cells of all frames, in order.
    """

    cell: Cell
    index: int
    sequence: Sequence[Cell] = field(compare=False, repr=False)

    def around(self, count: int) -> list[Cell]:
        """The cells of the frame and of ``count`` on each side; beyond the ends, the last are repeated."""
        last = len(self.sequence) - 1
        indices = range(self.index - count, self.index + count + 1)
        return [self.sequence[min(max(index, 0), last)] for index in indices]

    def header(self) -> Header:
        """The header of the frame."""
        return self.cell.header()

    def read(self, window: Window = ()) -> Picture:
        """The frame, or a window of it."""
        return self.cell.read(window)

    def files(self) -> Sequence[Path]:
        """The file of the frame."""
        return self.cell.files()

    def part(self) -> str:
        """That of the frame's picture."""
        return self.cell.part()

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result, of the frame's format where that holds it."""
        return self.cell.result_suffix(channels, values)

    @property
    def is_photograph(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  (of others one value)
        """Whether Pillow reads the frame's format."""
        return self.cell.is_photograph

    def image(self) -> Image.Image:
        """The frame as Pillow's picture."""
        return self.cell.image()

    def stamp(self) -> str:
        """That of the frame."""
        return self.cell.stamp()

    def __str__(self) -> str:
        return str(self.cell)


@dataclass(frozen=True, slots=True)
class SequenceCell(Cell):
    """A whole sequence, a picture (C, T, H, W) of frames (C, H, W) of one size.

    Args:
        frames: the cells of the frames, in order.
        name: what messages call it.
    """

    frames: tuple[Cell, ...]
    name: str

    def header(self) -> Header:
        """The header of the first frame, with the axis of time."""
        header = self.frames[0].header()
        channels, *sides = header.shape
        geometry = Geometry(
            format=header.geometry.format, kept={"depth": "t"}, nodata=header.nodata
        )
        return replace(
            header, shape=(channels, len(self.frames), *sides), geometry=geometry, windowed=True
        )

    def read(self, window: Window = ()) -> Picture:
        """The frames, or a window of them; frames outside of it are not read.

        Raises:
            ValueError: a frame has another size, type or number of channels than the first.
        """
        header = self.header()
        moments, *inner = windows.bounds(window, header.sides)
        planes: list[Any] = []
        for cell in self.frames[moments]:
            frame = cell.header()
            if (frame.shape, frame.dtype) != (self.frames[0].header().shape, header.dtype):
                first = self.frames[0]
                raise ValueError(
                    f"{cell} is {frame.shape} of {frame.dtype}, and {first} {first.header().shape}"
                )
            planes.append(np.asarray(cell.read(tuple(inner) if window else ())))
        return Picture(np.stack(planes, 1), header.geometry, header.unit, self.name)

    def files(self) -> Sequence[Path]:
        """The files of all frames, each once."""
        return tuple(dict.fromkeys(file for cell in self.frames for file in cell.files()))

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result: TIFF's, which has many pages."""
        return ".tif"

    def __str__(self) -> str:
        return self.name


def _of_moment(geometry: Geometry) -> Geometry:
    """The geometry of a plane (H, W) of a picture (C, T, H, W)."""
    plane = None
    if geometry.affine is not None and len(geometry.affine) == 4:
        # of the axes y and x, in the world's x and y
        matrix = np.asarray(geometry.affine)[[0, 1, 3]][:, [1, 2, 3]]
        plane = tuple(map(tuple, matrix.tolist()))
    return Geometry(
        plane,
        geometry.format if geometry.format in (PHOTOGRAPH, "tiff") else "",
        nodata=geometry.nodata,
    )


def frames_around(cells: Sequence[Cell], count: int) -> list[Cell]:
    """The cells of a frame and of those around it; see :meth:`FrameCell.around`.

    Raises:
        ValueError: they are not one frame of a sequence.
    """
    frame = cells[0]
    if len(cells) > 1 or not isinstance(frame, FrameCell):
        raise ValueError(
            f"{frame} is no frame of a sequence, and neighbours are those of the data set 'frames'"
        )
    return frame.around(count)


def natural(name: str) -> list[Any]:
    """The key that sorts 2 before 10: numbers in a name count by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in DIGITS.split(name)]


def sequences_in(folder: Path) -> dict[str, Frames]:
    """The sequences of a folder by name: its folders of frames, films and time-lapses.

    Frames that lie in the folder itself are a sequence of the folder's name. A film may stand in the place of
    a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no sequences, or two of one name.
    """
    if folder.is_file():
        name = RowName(formats.stem_of(folder))
        return {name: _moments(cell_of(folder, name))}
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    pictures: dict[Path, list[Path]] = {}
    for path in formats.pictures_in(folder):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if (formats.is_picture(path) or formats.is_film(path)) and not is_hidden:
            pictures.setdefault(path.parent, []).append(path)
    sequences: dict[str, Frames] = {}
    for parent, paths in sorted(pictures.items()):
        frames: Frames = {}
        for path in sorted(paths, key=lambda path: natural(path.name)):
            name = formats.stem_of(path)
            cell = cell_of(path, name)
            if len(cell.header().sides) == 3:
                below = path.with_name(name).relative_to(folder).as_posix()
                _add(sequences, below, _moments(cell), path)
            elif name in frames:
                raise ValueError(
                    f"{frames[name]} and {path} have the same name: rename or remove one"
                )
            else:
                frames[name] = cell
        if frames:
            below = (
                parent.relative_to(folder).as_posix() if parent != folder else folder.resolve().name
            )
            _add(sequences, below, frames, parent)
    if not sequences:
        raise ValueError(f"{folder} has neither folders of frames nor films")
    return sequences


def _moments(cell: Cell) -> Frames:
    """The moments of a file (C, T, H, W), named by their numbers."""
    header = cell.header()
    if not isinstance(cell, FileCell) or len(header.sides) != 3:
        raise ValueError(
            f"{cell} is no film: it has {len(header.sides)} axes, and a film (T, H, W)"
        )
    count = header.sides[0]
    return {f"{index:06d}": MomentCell(cell, index) for index in range(count)}


def _add(sequences: dict[str, Frames], name: str, frames: Frames, path: Path) -> None:
    if name in sequences:
        raise ValueError(
            f"{path} and another sequence have the same name, {name}: rename or remove one"
        )
    sequences[name] = frames


def rows_of(folders: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each frame of the sequences in a folder of sources, and maybe one of targets.

    The name of a row is that of its sequence and of its frame, ``SEQUENCE/FRAME``; its group is the sequence.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder has no sequences, or a frame has no counterpart.
    """
    columns = [sequences_in(Path(folder)) for folder in folders]
    if len(columns) == 2:
        _check_counterparts(columns, folders)
    roles = ("source", "target")[: len(columns)]
    rows: list[dict[str, Any]] = []
    for name, frames in columns[0].items():
        group = f"{folders[0]}/{name}"
        cells = [tuple(column[name].values()) for column in columns]
        for index, frame in enumerate(frames):
            row: dict[str, Any] = {"name": RowName(f"{name}/{frame}"), GROUP: group}
            for role, sequence in zip(roles, cells, strict=True):
                row[role] = FrameCell(sequence[index], index, sequence)
            rows.append(row)
    return rows


def _check_counterparts(columns: Sequence[Mapping[str, Frames]], folders: Sequence[str]) -> None:
    """Raise ValueError where a sequence or a frame has no counterpart in the other folder."""
    for one, other, folder in ((*columns, folders[1]), (*reversed(columns), folders[0])):
        for name, frames in one.items():
            if name not in other:
                raise ValueError(
                    f"the sequence {name} has no counterpart in {folder}: they are matched by name"
                )
            for frame in frames:
                if frame not in other[name]:
                    raise ValueError(
                        f"{name}/{frame} has no counterpart in {folder}: frames are matched by name"
                    )


def as_volumes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of whole sequences, (C, T, H, W), of the rows of their frames: for networks of three axes."""
    frames: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        frames.setdefault(row[GROUP], []).append(row)
    volumes: list[dict[str, Any]] = []
    for group, members in frames.items():
        name = RowName(sequence_of(members[0]["name"]))
        volume: dict[str, Any] = {"name": name, GROUP: group}
        for column in members[0].keys() - volume.keys():
            volume[column] = _of_sequence([row[column] for row in members], f"{column} of {name}")
        volumes.append(volume)
    return volumes


def _of_sequence(values: Sequence[Any], what: str) -> Any:
    """What a sequence has in a column, of what its frames have: their pictures, or the label of all.

    Raises:
        ValueError: frames have several labels.
    """
    cells = [value.cell if isinstance(value, FrameCell) else value for value in values]
    if all(isinstance(cell, Cell) for cell in cells):
        return SequenceCell(tuple(cells), what)
    if len({*values}) > 1:
        raise ValueError(
            f"{what} is {values[0]!r} and others, and a sequence that is seen as a whole has one label"
        )
    return values[0]


def sequence_of(name: str) -> str:
    """The name of the sequence of a row's name, ``SEQUENCE/FRAME``."""
    return name.rpartition("/")[0]
