"""Formats of pictures: a module for each library, of three functions, and what is checked for all of them.

    header(path) -> Header                  of a picture (C, *S); no values are read
    read(header, window) -> NDArray         (C, *W) of a window, a slice for each of the axes S
    write(path, picture) -> None            with what the format holds of geometry, derivation and unit

A format of chunks may have two more, for pictures that are larger than memory:

    chunks(header) -> Chunks                which of its chunks are stored
    create(path, picture, fill) -> Canvas   ``write(window, values)`` writes parts, ``finish()`` the rest

Which files are pictures, and which module reads and writes them, is said by the rows of :data:`LIBRARIES`. A
module is imported when its format is met: ModuleNotFoundError says what installs its library. Reading raises
ValueError where a file is damaged, or has what is not read. Axes and types are checked here and by
:class:`bbdm.pictures.Header`, windows and costs by :func:`bbdm.pictures.read`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bbdm.base import sizes
from bbdm.base.scripts import warn
from bbdm.pictures.formats.libraries import LIBRARIES as LIBRARIES
from bbdm.pictures.formats.libraries import SUFFIXES
from bbdm.pictures.formats.libraries import Library as Library
from bbdm.pictures.formats.libraries import register as register
from bbdm.pictures.formats.parts import Part as Part
from bbdm.pictures.values import Values
from bbdm.pictures.windows import Chunks

ONLY_A_SUFFIX = "its name is only a suffix: rename it"


class UnknownFormatError(ValueError):
    """A file is not a picture, or one of a format that is not read."""


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The longest suffix that is read, in lower case; "" where the name has none, or is only that."""
    name = Path(path).name.lower()
    return max(
        (suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix),
        key=len,
        default="",
    )


def stem_of(path: Path) -> str:
    """The name without its suffix; of a folder that is a picture of a format without suffixes, its name."""
    if path.is_dir():
        return path.name.removesuffix(_suffix_of_folder(path))
    suffix = suffix_of(path)
    if not suffix:
        return path.stem
    return path.name[: -len(suffix)]


def suffix_of_result(source: Path | None, channels: int, values: Values) -> str:
    """The suffix of a result: the source's; of photographs and of none PNG's if it holds it, else TIFF's."""
    if source is not None:
        suffix = _suffix_like(source)
        if suffix:
            return suffix
    if LIBRARIES["png"].holds(values.dtype, channels):
        return ".png"
    return ".tif"


def _suffix_like(source: Path) -> str:
    """The suffix of results in the format of their source; "" of photographs, and of what is only read."""
    if source.is_dir():
        name = _reader_of_folder(source)
        own = _suffix_of_folder(source).lower()
        return "" if name is None else own or LIBRARIES[name].results
    suffix = suffix_of(source)
    if not suffix:
        return ""
    library = LIBRARIES[SUFFIXES[suffix][-1]]
    if library.photographs:
        return ""
    if library.types and not library.results:
        return suffix
    return library.results


def _suffix_of_folder(folder: Path) -> str:
    """The end of a folder's name that is a suffix of the format that it has; "" without one."""
    name = _reader_of_folder(folder)
    suffix = suffix_of(folder)
    if name is None or suffix not in LIBRARIES[name].suffixes:
        return ""
    return folder.name[-len(suffix) :]


def is_photograph(path: str | os.PathLike[str]) -> bool:
    """Whether the format of a file's suffix is one of photographs: PNG, JPEG, WebP or BMP."""
    return any(LIBRARIES[name].photographs for name in SUFFIXES.get(suffix_of(path), ()))


def suffixes_of_pictures() -> list[str]:
    """The suffixes that are read, in order, but those of films."""
    return sorted(suffix for suffix in SUFFIXES if not is_film(Path(f"a{suffix}")))


def suffixes_of_large() -> list[str]:
    """The suffixes of results that may be larger than memory, in order."""
    large = {name for name, library in LIBRARIES.items() if library.large}
    return sorted(suffix for suffix, names in SUFFIXES.items() if large.intersection(names))


def is_film(path: Path) -> bool:
    """Whether it has the suffix of a film."""
    return any(LIBRARIES[name].films for name in SUFFIXES.get(suffix_of(path), ()))


def is_picture(path: Path) -> bool:
    """Whether it is a file with a suffix that is read, or a folder that is one picture; films are none.

    A link to a file that is not there is one too: reading it says what is missing.
    """
    if path.is_dir():
        return _reader_of_folder(path) is not None
    return bool(suffix_of(path)) and not is_film(path) and (path.is_file() or path.is_symlink())


def may_have_parts(path: Path) -> bool:
    """Whether it is a folder, or has the suffix of a format whose files may hold several pictures."""
    return path.is_dir() or any(LIBRARIES[name].parts for name in _readers_of(path))


def is_tree(folder: Path) -> bool:
    """Whether a folder is one picture with all folders below it, whose files have their places by name."""
    name = _reader_of_folder(folder)
    return name is not None and LIBRARIES[name].is_tree


def pictures_in(folder: Path) -> list[Path]:
    """All files below a folder, whatever they are; a folder that is one picture in place of its files.

    Links to folders are followed. Links to files that are not there are among the files.
    """
    paths: list[Path] = []
    for parent, files in _folders(folder, lambda below: below != folder and is_tree(below)):
        if parent != folder and _reader_of_folder(parent) is not None:
            paths.append(parent)
        else:
            paths.extend(files)
    return paths


def files_of(path: Path) -> list[Path]:
    """The files of a picture: one, or all in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for _, files in _folders(path) for file in files if file.is_file())


def module(name: str) -> Any:
    """The module of a library."""
    library = LIBRARIES[name].module
    if isinstance(library, str):
        return import_module(library)
    return library


def missing_chunks(header: Any) -> Chunks | None:
    """The chunks of a picture of which some are not stored; None of other pictures."""
    chunks = getattr(module(header.reader), "chunks", None)
    if chunks is None:
        return None
    stored_chunks = chunks(header)
    return None if stored_chunks.stored.all() else stored_chunks


def reader_of(path: Path) -> str:
    """The name of the library that reads a file, or a folder that is one picture.

    Raises:
        FileNotFoundError: the path leads to nothing.
        UnknownFormatError: it has none of the formats.
    """
    name = None
    if path.is_dir():
        name = _reader_of_folder(path)
    elif path.is_file():
        for candidate in _readers_of(path):
            claims = LIBRARIES[candidate].claims
            if claims is None or claims(path):
                return candidate
    elif not path.exists():
        raise FileNotFoundError(path)
    if name is not None:
        return name
    if path.name.lower() in SUFFIXES:
        raise UnknownFormatError(ONLY_A_SUFFIX)
    suffixes = ", ".join(SUFFIXES)
    if path.is_dir() and suffix_of(path):
        raise UnknownFormatError(
            "it is a folder, and no picture of OME-Zarr: it has no multiscales"
        )
    raise UnknownFormatError(f"its name has none of {suffixes}, and it is no folder of DICOM")


def writer(path: Path, picture: Any) -> Any:
    """The module that writes a picture to a path.

    Args:
        path: whose suffix says the format.
        picture: (C, *S). The ``format`` of its geometry chooses among several modules for a suffix.

    Raises:
        ValueError: the path's format does not hold the type, the channels or the axes; or it needs a place
            that the picture has lost, or whose affine is singular or not finite.
    """
    suffix = suffix_of(path)
    if not suffix:
        if path.name.lower() in SUFFIXES:
            raise ValueError(ONLY_A_SUFFIX)
        raise ValueError(f"its name must end in one of {', '.join(SUFFIXES)}")
    names = SUFFIXES[suffix]
    geometry = picture.geometry
    same = [name for name in names if LIBRARIES[name].format == geometry.format]
    name = same[0] if geometry.format and same else names[-1]
    library = LIBRARIES[name]
    if path.is_dir() and _reader_of_folder(path) != name:
        raise ValueError("it is a folder of something else: delete it, or give another name")
    if not library.types:
        raise ValueError(f"{suffix} is only read")
    if picture.ndim - 1 not in library.axes or 0 in picture.shape:
        shapes = " or ".join(f"(C, {sizes.SIDES[count]})" for count in library.axes)
        raise ValueError(f"{suffix} holds {shapes}, got {picture.shape}")
    types = library.types_of(len(picture))
    if picture.dtype.name not in types:
        raise ValueError(f"{suffix} cannot hold {picture.dtype}, but {', '.join(types)}")
    if not library.holds(picture.dtype.name, len(picture)):
        raise ValueError(
            f"{suffix} holds {' or '.join(map(str, library.channels or ()))} channels, got {len(picture)}"
        )
    if library.holds_place and (geometry.lost or geometry.axes not in (None, picture.ndim - 1)):
        reason = (
            "a step, a flip, a mask, an index or another order of axes lost where its pixels lie"
        )
        raise ValueError(
            f"{reason}: say it by Picture(array, geometry), or write numpy.asarray(picture)"
        )
    if library.holds_place and geometry.affine is not None:
        _check_affine(geometry)
    return module(name)


def _check_affine(geometry: Any) -> None:
    """Raise ValueError for an affine that is not finite, or maps several pixels to one point."""
    affine = np.asarray(geometry.affine, np.float64)
    if not np.isfinite(affine).all():
        raise ValueError(f"its affine must be finite, got {affine.tolist()}")
    # which stands upright in a NIfTI's volume: its affine is only a part of it
    if "plane" in geometry.kept:
        return
    steps = affine[:-1, :-1]
    spacing = np.linalg.norm(steps, axis=0)
    if not spacing.all() or np.linalg.matrix_rank(steps / spacing) < len(steps):
        raise ValueError(
            f"its affine is singular, so that several pixels lie at one point: {affine.tolist()}"
        )


def _readers_of(path: Path) -> list[str]:
    """The names of the libraries that may read a file, by its suffix."""
    return SUFFIXES.get(suffix_of(path), [])


def _reader_of_folder(path: Path) -> str | None:
    """The name of the library that reads a folder as one picture; None where none does."""
    for name, library in LIBRARIES.items():
        if library.is_folder is not None and library.is_folder(path):
            return name
    return None


def _folders(
    folder: Path, is_end: Callable[[Path], bool] = lambda folder: False
) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and each one below it with its files; none below one that is an end.

    A link to a folder above itself is not followed.
    """
    waiting: list[tuple[Path, frozenset[str]]] = [(folder, frozenset())]
    while waiting:
        parent, above = waiting.pop()
        real = os.path.realpath(parent)
        if real in above:
            continue
        try:
            with os.scandir(parent) as entries:
                listed = list(entries)
        except PermissionError:
            warn(
                f"the folder {parent} may not be read, so what is in it is left out: see its permissions"
            )
            continue
        files: list[Path] = []
        ends = is_end(parent)
        for entry in listed:
            if entry.is_dir():
                if not ends:
                    waiting.append((parent / entry.name, above | {real}))
            elif entry.is_file() or entry.is_symlink():
                files.append(parent / entry.name)
        yield parent, files
