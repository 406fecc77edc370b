"""Films of results: after the frames of a film were translated, they become a film beside their folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bbdm import pictures
from bbdm.base.atomic import write_atomically
from bbdm.base.progress import Shown, counted
from bbdm.data.sequences import FrameCell, MomentCell
from bbdm.pictures import images
from bbdm.pictures.formats import pyav
from bbdm.pictures.values import Values
from bbdm.translation.files import Files
from bbdm.translation.results import Job


@dataclass(frozen=True)
class Film:
    """A film to write.

    Args:
        path: of the film.
        source: the film that was translated.
        frames: the files of its results, in order.
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
    frames: dict[tuple[Path, str], dict[int, Path]] = {}
    counts: dict[Path, int] = {}
    for job in jobs:
        cell = files.pairs.rows[job.index]["source"]
        if not isinstance(cell, FrameCell) or not isinstance(cell.cell, MomentCell):
            continue
        source = cell.cell.file.path
        if source.suffix.lower() not in pyav.DEMUXERS:
            continue
        counts[source] = len(cell.sequence)
        name = files.names[job.index]
        for path in job.paths.values():
            ending = path.name.removesuffix(path.suffix).removeprefix(Path(name).name)
            film = path.parent.with_name(f"{path.parent.name}{ending}{_suffix(source, exact)}")
            frames.setdefault((source, str(film)), {})[cell.index] = path
    films: list[Film] = []
    for (source, film), by_index in frames.items():
        if len(by_index) == counts[source]:
            films.append(Film(Path(film), source, [by_index[index] for index in sorted(by_index)], exact))
    return films


def _suffix(source: Path, exact: bool) -> str:
    """The suffix of a film of a source."""
    if exact:
        return ".mkv"
    suffix = source.suffix.lower()
    return suffix if suffix in pyav.MUXERS else ".mp4"


def write(films: Sequence[Film], values: Values, progress: Shown) -> None:
    """Write the films that are not there, or older than one of their frames.

    Args:
        films: what to write.
        values: the range of results; its ends are black and white where results are no 8-bit pictures.
        progress: whether progress is shown.
    """
    missing = [film for film in films if not film.is_current]
    for film in counted(missing, "films", len(missing), "films", progress):
        shown = _shown(film.frames, values)
        make = partial(pyav.write_film, frames=shown, source=film.source, exact=film.exact)
        write_atomically(film.path, make)


def _shown(frames: Sequence[Path], values: Values) -> Iterator[npt.NDArray[np.uint8]]:
    """(H, W, 3) of each frame."""
    for path in frames:
        array = np.asarray(pictures.read(path))
        if array.dtype != np.uint8:
            array = images.pixels(images.from_array(values.scaled(np.nan_to_num(array))))
        if len(array) == 1:
            array = np.repeat(array, 3, axis=0)
        yield np.moveaxis(array[:3], 0, -1)
