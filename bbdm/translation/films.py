"""Films of results: after the frames of a film were translated, they become a film beside their folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm import pictures
from bbdm.base.atomic import write_atomically
from bbdm.base.progress import Shown, counted
from bbdm.data.sequences import FrameCell, MomentCell
from bbdm.pictures import formats, images
from bbdm.pictures.formats import pyav
from bbdm.pictures.values import Values
from bbdm.translation.files import Files
from bbdm.translation.results import Job


@dataclass(frozen=True)
class Film:
    """A film to write.

    Args:
        path: where the film is written.
        source: the film that was translated.
        frames: the files of its results, in order; or the only one, of a whole sequence.
        exact: whether it keeps all values, and is not only for viewing.
    """

    path: Path
    source: Path
    frames: Sequence[Path]
    exact: bool

    @property
    def is_current(self) -> bool:
        """Whether the film is there, and no frame is newer."""
        if not self.path.exists():
            return False
        changed = self.path.stat().st_mtime_ns
        return all(frame.stat().st_mtime_ns <= changed for frame in self.frames)


def films_of(files: Files, jobs: Sequence[Job], exact: bool) -> list[Film]:
    """The films of results: one for each film among the sources, and each sample or map of its frames.

    Films with frames that were left out are not among them.

    Args:
        files: the pictures of a data set of sequences.
        jobs: what was made of them.
        exact: whether films keep all values, and are not only for viewing.
    """
    frames: dict[tuple[Path, Path], dict[int, Path]] = {}
    counts: dict[Path, int] = {}
    for job in jobs:
        cell = files.pairs.rows[job.index]["source"]
        source = _film_of(cell)
        if source is None:
            continue
        name = PurePath(files.names[job.index])
        for path in job.paths.values():
            ending = path.name.removesuffix(path.suffix).removeprefix(name.name)
            if isinstance(cell, FrameCell):
                film = path.parent.with_name(f"{path.parent.name}{ending}{_suffix(source, exact)}")
                counts[source] = len(cell.sequence)
                frames.setdefault((film, source), {})[cell.index] = path
            else:
                film = path.with_name(f"{name.name}{ending}{_suffix(source, exact)}")
                counts[source] = 1
                frames.setdefault((film, source), {})[0] = path
    films: list[Film] = []
    for (film, source), by_index in frames.items():
        if len(by_index) == counts[source]:
            films.append(Film(film, source, [by_index[index] for index in sorted(by_index)], exact))
    return films


def _film_of(cell: Any) -> Path | None:
    """The film that a frame, or a whole sequence, is of; None of other sequences."""
    moment = cell.cell if isinstance(cell, FrameCell) else cell.frames[0]
    if isinstance(moment, MomentCell) and formats.is_film(moment.file.path):
        return moment.file.path
    return None


def _suffix(source: Path, exact: bool) -> str:
    """The suffix of a film of a source."""
    if exact:
        return ".mkv"
    suffix = source.suffix.lower()
    return suffix if suffix in pyav.MUXERS else ".mp4"


def write(films: Sequence[Film], values: Values, progress: Shown) -> None:
    """Write the films that are not there, or older than one of their frames.

    Args:
        films: those that are wanted, of which some may be there.
        values: the range of results; its ends are black and white where results are no 8-bit pictures.
        progress: whether progress is shown.
    """
    missing = [film for film in films if not film.is_current]
    for film in counted(missing, "films", len(missing), "films", progress):
        shown = _shown(film.frames, values)
        make = partial(pyav.write_film, frames=shown, source=film.source, exact=film.exact)
        write_atomically(film.path, make)


def _shown(files: Sequence[Path], values: Values) -> Iterator[npt.NDArray[np.uint8]]:
    """(H, W, 3) of each frame of results, of which each file has one or all."""
    for path in files:
        result = np.asarray(pictures.read(path))
        planes = [result] if result.ndim == 3 else np.moveaxis(result, 1, 0)
        for plane in planes:
            if plane.dtype == np.uint8:
                pixels = plane[:3]
            else:
                pixels = images.pixels(images.from_array(values.scaled(np.nan_to_num(plane))))
            yield np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1)
