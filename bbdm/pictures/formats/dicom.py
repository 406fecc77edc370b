"""A folder of DICOM as one volume: its slices in order, at equal distances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures.formats import common, medical
from bbdm.pictures.formats.dicom_header import check, is_dicom
from bbdm.pictures.lazy import Geometry, LazyPicture

POSITION = "0020|0032"  # of the first pixel, in mm
SERIES = "0020|000e"  # the identifier of its series
TOLERANCE = 0.01  # of the distance of slices: more is unequal


def open(path: Path) -> LazyPicture:
    """The volume of a folder.

    Raises:
        ModuleNotFoundError: SimpleITK is not installed.
        ValueError: the folder has several series, lacks a slice, or has slices at unequal distances.
    """
    package = medical.simpleitk()
    with common.reading(path):
        return Series(path, package)


class Series(common.FilePicture):
    """The only series of a folder, (C, D, H, W). A window reads the files of its slices.

    Args:
        path: the folder of its files.
        package: SimpleITK, which reads the files.

    Raises:
        ValueError: there are several series, or slices of several sizes; a slice is missing or cannot be
            read, or distances differ.
    """

    def __init__(self, path: Path, package: Any) -> None:
        self.path = path
        files = dicom_files(path)
        damaged = [each.name for each in path.glob("*.dcm") if each not in files]
        if damaged:
            raise ValueError(f"{', '.join(sorted(damaged)[:9])} cannot be read as DICOM")
        for file in files:
            check(file)
        found = [(file, medical.header(package, file)) for file in files]
        series = sorted({_text_of(reader, SERIES) for _, reader in found})
        if len(series) != 1:
            raise ValueError(f"it has {len(series)} series, {', '.join(series)}: put each into a folder of its own")
        if len(found) > 1:
            across = np.reshape(found[0][1].GetDirection(), (3, 3))[:, 2]
            found.sort(key=lambda each: float(_position(each[1], each[0]) @ across))
        self._files, readers = [str(file) for file, _ in found], [reader for _, reader in found]
        first = readers[0]
        if len({(each.GetSize(), medical.type_of(package, each), _turn(each)) for each in readers}) != 1:
            raise ValueError("its slices have several sizes, types or directions")
        width, height, depth = (*first.GetSize(), 1)[:3]
        if depth > 1 and len(readers) > 1:
            raise ValueError("it has several files of several slices: put each into a folder of its own")
        self.windowed = len(self._files) > 1  # files of slices outside are not read
        self.dtype = medical.type_of(package, first)
        self.shape = (first.GetNumberOfComponents(), depth * len(readers), height, width)
        common.check_cost(self.shape, self.dtype, sum(file.stat().st_size for file in files))
        place = {name: getattr(first, f"Get{name.capitalize()}")() for name in ("spacing", "origin", "direction")}
        if len(readers) > 1:
            step = _step([_position(reader, file) for file, reader in found])
            length = float(np.linalg.norm(step))
            turn = np.reshape(place["direction"], (3, 3)).copy()
            turn[:, 2] = step / length
            place |= {"spacing": (*place["spacing"][:2], length), "direction": tuple(turn.ravel().tolist())}
        self.geometry = Geometry(medical.affine(**place), medical.NAME, place)

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        package = optional.package("SimpleITK", "a folder of DICOM")
        slices, rows, columns = window
        shape = list(self.shape)
        if len(self._files) > 1:
            reader = package.ImageSeriesReader()
            reader.SetFileNames(self._files[slices])
            shape[1], slices = slices.stop - slices.start, slice(None)
        else:
            reader = package.ImageFileReader()
            reader.SetFileName(self._files[0])
        whole = medical.channels_first(package.GetArrayFromImage(reader.Execute()), shape)
        return np.ascontiguousarray(whole[:, slices, rows, columns])


def dicom_files(folder: Path, most: int | None = None) -> list[Path]:
    """The files of DICOM in a folder, of the first ``most`` of its files."""
    files = (path for path in sorted(folder.iterdir())[:most] if path.is_file() and path.name != "DICOMDIR")
    return [path for path in files if is_dicom(path)]


def _turn(reader: Any) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in reader.GetDirection())


def _text_of(reader: Any, key: str) -> str:
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""


def _position(reader: Any, file: Path) -> npt.NDArray[np.float64]:
    try:
        x, y, z = _text_of(reader, POSITION).split("\\")
        return np.array([float(x), float(y), float(z)])
    except ValueError as error:
        raise ValueError(f"{file.name} does not say where its slice lies") from error


def _step(places: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """From a slice to the next.

    Raises:
        ValueError: two are at one place, one is missing, or distances differ.
    """
    steps = np.diff(places, axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    usual = float(np.median(gaps))
    for i, gap in enumerate(gaps):
        where = f"between slices {i + 1} and {i + 2}, at {_text(places[i])} and {_text(places[i + 1])} mm"
        if gap < 1e-6:
            raise ValueError(f"two slices are at one place, {_text(places[i])} mm")
        if abs(gap - usual) <= TOLERANCE * usual:
            continue
        times = round(gap / usual)
        if times > 1 and abs(gap - times * usual) <= TOLERANCE * gap:
            raise ValueError(f"{times - 1} slice{'s are' if times > 2 else ' is'} missing {where}")
        raise ValueError(f"slices are {usual:g} mm apart, but {gap:g} mm {where}")
    return (places[-1] - places[0]) / (len(places) - 1)


def _text(place: npt.NDArray[np.float64]) -> str:
    return f"({', '.join(f'{number:g}' for number in place)})"
