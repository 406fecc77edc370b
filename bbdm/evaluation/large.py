"""Pictures of a data set that are larger than the memory: which they are, and how they are translated."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bbdm.base import scripts
from bbdm.base.memory import free_memory, shown
from bbdm.data.strips import Strips
from bbdm.evaluation.config import TranslateConfig
from bbdm.evaluation.files import Files
from bbdm.evaluation.results import Job
from bbdm.execution.processes import Processes
from bbdm.networks.windows import WindowGrid
from bbdm.sampling.large import LargePicture, in_memory
from bbdm.sampling.sampler import BridgeSampler
from bbdm.sampling.state import ResultInUseError, folder_of, state_folder

DRAWN = 32  # bytes of memory for each value of a picture that is drawn in a grid


class LargePictureError(ValueError):
    """A picture needs more memory than there is, and the network is called on whole pictures."""


class LargePictures:
    """Divides the pictures of a data set by the memory that they need.

    Args:
        files: the pictures of the data set.
        config: how they are translated; ``memory`` is for the pictures of this process.
        processes: those that translate; the default of ``memory``, half of what is free, is for all of them.
    """

    def __init__(self, files: Files, config: TranslateConfig, processes: Processes) -> None:
        self._files, self._config, self._processes = files, config, processes
        self._limit = config.memory or free_memory() // 2 // processes.count

    def small(self, jobs: list[Job]) -> list[Job]:
        """The jobs whose pictures can be drawn."""
        sizes = {job.index: self._files.size(job.index) or () for job in jobs}
        return [job for job in jobs if DRAWN * self._files.channels * math.prod(sizes[job.index]) <= self._limit]

    def split(self, sampler: BridgeSampler, batch: list[Job]) -> tuple[list[list[Job]], list[Job]]:
        """The jobs of a batch that are in memory together, and those whose pictures are too large for it."""
        groups: list[list[Job]] = []
        large: list[Job] = []
        used = 0
        for job in batch:
            size = self._files.size(job.index)
            needed = 0 if size is None else in_memory(sampler, size, self._windows(sampler, size))
            if needed > self._limit:
                large.append(job)
                continue
            if not groups or used + needed > self._limit:
                groups.append([])
                used = 0
            groups[-1].append(job)
            used += needed
        return groups, large

    def remove_left(self, jobs: list[Job]) -> None:
        """Delete the states of results that exist: a process was killed when it had made one."""
        for job in jobs:
            if job.path.exists() and folder_of(job.path).is_dir():
                with suppress(ResultInUseError), state_folder(job.path, {}):
                    pass

    def _windows(self, sampler: BridgeSampler, size: tuple[int, int]) -> WindowGrid | None:
        return sampler.window_grid(self._config, size, self._config.batch_size)

    def translate(self, sampler: BridgeSampler, job: Job, about: dict[str, Any]) -> None:
        """Make and write the result of a picture by windows. Its states are those of settings ``about``.

        Raises:
            DiskFullError: the disk is too small, or became full.
            LargePictureError: there are no windows, or there is guidance.
            ResultInUseError: another process makes this result.
            StoppedError: SIGTERM came while it was made.
            ValueError: the picture is damaged or not finite, or it cannot be read or written by parts.
        """
        entry, strips = self._files.shown(job.index), self._files.strips(job.index)
        height, width = size = strips.shape[1], strips.shape[2]
        windows = self._windows(sampler, size)
        if windows is None:
            raise LargePictureError(
                f"{entry} of {height} x {width} needs about {shown(in_memory(sampler, size))} of memory, more than "
                f"{shown(self._limit)}, and the network is called on whole pictures"
            )
        if self._config.guidance is not None:
            raise LargePictureError(f"{entry} is larger than memory, and then it cannot be guided: give more --memory")
        if sampler.unet.further.each:
            raise LargePictureError(f"{entry} is larger than memory, and the network is told more than the source")
        first = self._processes.first
        verbose = scripts.is_shown(self._config.show_verbose, self._config.quiet) and first
        stream = sampler, strips, windows, job.seed, self._limit
        translate_by_parts(stream, job.path, {**about, "source": self._files.names[job.index]}, entry, verbose, first)


def translate_by_parts(
    stream: tuple[BridgeSampler, Strips, WindowGrid, int, int],
    path: Path,
    about: dict[str, Any],
    source: str,
    verbose: bool,
    first: bool = True,
) -> None:
    """Make and write the result of a picture that is larger than memory.

    Args:
        stream: the arguments of :class:`~bbdm.sampling.large.LargePicture`, without ``report``.
        path: the file of the result.
        about: names the network and the source; states of others are not used.
        source: what messages call the picture.
        verbose: show the network calls.
        first: say how much of the disk is used.

    Raises:
        DiskFullError: the disk is too small, or became full.
        ResultInUseError: another process makes this result.
        StoppedError: SIGTERM came while it was made.
        ValueError: the picture is damaged or not finite, or it cannot be read or written by parts.
    """
    name = path.name
    with scripts.termination() as asked, tqdm(desc=name, unit="call", leave=False, disable=not verbose) as bar:

        def report(done: int, total: int) -> None:
            if asked():
                raise scripts.StoppedError(f"SIGTERM came while {name} was made", scripts.TERMINATED)
            if bar.total is None:
                bar.total, bar.initial, bar.n = total, done, done
            bar.update(done - bar.n)

        try:
            made = LargePicture(*stream, report)
            if first:
                print(f"{name}: its steps take up to {shown(made.disk)} of the disk, in {folder_of(path)}")
            made.run(path, about)
        except ValueError as error:
            raise type(error)(f"{source}: {error}") from error
