"""Flicker: how much results of a sequence change from frame to frame where their targets do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.data.sequences import FrameCell, sequence_of

if TYPE_CHECKING:
    from bbdm.translation.files import Files
    from bbdm.translation.results import Job

LEVELS = 255  # of a source's range; a source that changes by less than one has not changed
Array = npt.NDArray[Any]


class Frame(NamedTuple):
    """What a frame is compared by."""

    results: Array  # (S, C, H, W)
    reference: Array  # (C, H, W), the target, or (K, H, W), the source
    inside: Array  # (1, H, W), where pixels count


def flicker(
    results: npt.ArrayLike, targets: npt.ArrayLike, inside: npt.ArrayLike | None = None
) -> float:
    """The mean of |(r_t+1 - r_t) - (x_t+1 - x_t)| of the results r and the targets x of a sequence.

    Args:
        results: (T, C, H, W) in stored values.
        targets: of the same shape and unit.
        inside: (T, 1, H, W), not 0 where pixels count; None where all do. A change counts where both of its
            frames do.

    Returns:
        The flicker in the unit of the values; NaN of a single frame, or where no pixel counts twice.
    """
    r = np.asarray(results, np.float64)
    x = np.asarray(targets, np.float64)
    if r.ndim != 4 or r.shape != x.shape:
        raise ValueError(f"results and targets must be (T, C, H, W), got {r.shape} and {x.shape}")
    return _mean(np.abs(np.diff(r, axis=0) - np.diff(x, axis=0)), _twice(inside, r))


def flicker_of_stills(
    results: npt.ArrayLike,
    sources: npt.ArrayLike,
    inside: npt.ArrayLike | None = None,
    level: float = 1.0,
) -> float:
    """The mean of |r_t+1 - r_t| where the source changes by less than a level: flicker without targets.

    Args:
        results: (T, C, H, W) in stored values.
        sources: (T, K, H, W) in stored values.
        inside: (T, 1, H, W), not 0 where pixels count; None where all do.
        level: a pixel counts where each channel of the source changes by less, in its stored values.

    Returns:
        The flicker in the unit of the results; NaN where no pixel of the source stays.
    """
    r = np.asarray(results, np.float64)
    y = np.asarray(sources, np.float64)
    if r.ndim != 4 or y.ndim != 4 or r[:, 0].shape != y[:, 0].shape:
        raise ValueError(
            f"results and sources must be (T, C, H, W) of one size, got {r.shape} and {y.shape}"
        )
    stays = (np.abs(np.diff(y, axis=0)) < level).all(1, keepdims=True)
    return _mean(np.abs(np.diff(r, axis=0)), stays & _twice(inside, r))


def _twice(inside: npt.ArrayLike | None, frames: Array) -> Array:
    """(T - 1, 1, H, W), whether a pixel counts in a frame and in the next one."""
    if inside is None:
        return np.ones((len(frames) - 1, 1, *frames.shape[2:]), bool)
    counts = np.asarray(inside) != 0
    return counts[1:] & counts[:-1]


def _mean(changes: Array, counted: Array) -> float:
    """The mean of changes (T, C, H, W) where (T, 1, H, W) counts."""
    chosen = changes[np.broadcast_to(counted, changes.shape)]
    if not chosen.size:
        return float("nan")
    return float(chosen.mean())


def of_sequences(
    files: Files, jobs: Sequence[Job], without_targets: bool = False
) -> Mapping[str, float]:
    """The flicker of each sequence of a data set by its name, the mean of its samples; not of single frames.

    Results are read from their files, two frames at a time. Frames that were left out count as cuts.

    Args:
        files: the pictures of a data set of sequences.
        jobs: of all results, those of a frame one after the other.
        without_targets: measures :func:`flicker_of_stills`, with 1 / 255 of the source's range as the level.
    """
    changes: dict[str, list[float]] = {}
    before: tuple[str, int, Frame] | None = None
    for index, paths in _paths_of_rows(jobs).items():
        level = files.source_range(index) / LEVELS if without_targets else None
        for name, number, frame in _frames(files, index, paths, without_targets):
            if before is not None and before[:2] == (name, number - 1):
                changes.setdefault(name, []).extend(_changes(before[2], frame, level))
            before = (name, number, frame)
    means: dict[str, float] = {}
    for name, of_frames in changes.items():
        if not np.isnan(of_frames).all():
            means[name] = float(np.nanmean(of_frames))
    return means


def _paths_of_rows(jobs: Sequence[Job]) -> Mapping[int, Sequence[Path]]:
    """The results of each row by its index."""
    paths: dict[int, list[Path]] = {}
    for job in jobs:
        paths.setdefault(job.index, []).extend(job.paths.values())
    return paths


def _changes(earlier: Frame, later: Frame, level: float | None) -> Iterator[float]:
    """The flicker of each sample from one frame to the next; of stills where there is a level."""
    references = np.stack([earlier.reference, later.reference])
    inside = np.stack([earlier.inside, later.inside])
    for pair in zip(earlier.results, later.results, strict=True):
        results = np.stack(pair)
        if level is None:
            yield flicker(results, references, inside)
        else:
            yield flicker_of_stills(results, references, inside, level)


def _frames(
    files: Files, index: int, paths: Sequence[Path], without_targets: bool
) -> Iterator[tuple[str, int, Frame]]:
    """The sequence, the number and the pictures of a row's frame; of a whole sequence, of all its frames."""
    read = files.beside_source if without_targets else files.compared
    of_results, of_reference, of_mask = read(index, paths)
    results = of_results.numpy()
    reference = of_reference.numpy()
    mask = np.ones((1, *reference.shape[1:]), bool) if of_mask is None else of_mask.numpy()
    name = files.names[index]
    source = files.pairs.rows[index]["source"]
    if isinstance(source, FrameCell):
        yield sequence_of(name), source.index, Frame(results, reference, mask)
        return
    for number in range(reference.shape[1]):
        yield name, number, Frame(results[:, :, number], reference[:, number], mask[:, number])
