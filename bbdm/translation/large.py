"""Pictures of a data set that are larger than the memory: which they are, and how they are translated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bbdm.base import scripts
from bbdm.base.machine import free_memory
from bbdm.base.progress import Meter, Shown, write
from bbdm.base.sizes import amount
from bbdm.data.rows import shown
from bbdm.execution.processes import Processes
from bbdm.networks.windows import WindowGrid
from bbdm.sampling.large import LargePicture, folder_of, in_memory
from bbdm.sampling.sampler import BridgeSampler
from bbdm.translation.config import TranslateConfig
from bbdm.translation.files import Files
from bbdm.translation.record import derivation_of
from bbdm.translation.results import Job

DRAWN = 32  # bytes of memory for each value of a picture that is drawn in a grid
# of pictures in a network call, beyond which a CPU gains nothing: 8 pictures of 64 x 64
CPU_PIXELS = 2**15


class LargePictures:
    """Divides the pictures of a data set by the memory that they need.

    Args:
        files: the pictures of the data set.
        config: how they are translated; ``memory`` is for the pictures of this process.
        processes: those that translate; the default of ``memory``, half of what is free, is for all of them.
    """

    def __init__(self, files: Files, config: TranslateConfig, processes: Processes) -> None:
        self._files = files
        self._config = config
        self._first = processes.first
        self._limit = config.memory or free_memory() // 2 // processes.count

    def small(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose pictures can be drawn."""
        return [job for job in jobs if self._drawn_bytes(job) <= self._limit]

    def _drawn_bytes(self, job: Job) -> int:
        """The memory that drawing a picture takes; little of volumes, of which slices are drawn."""
        size = self._files.size(job.index) or ()
        return DRAWN * self._files.channels * math.prod(size)

    def at_once(self, sampler: BridgeSampler, job: Job) -> int:
        """The most pictures of a job's size that a network call takes."""
        size = self._files.size(job.index)
        if size is None or sampler.device.type != "cpu":
            return self._config.batch_size
        return max(1, CPU_PIXELS // math.prod(size))

    def split(
        self, sampler: BridgeSampler, batch: Sequence[Job]
    ) -> tuple[list[list[Job]], list[Job]]:
        """The jobs that are translated together, and those whose pictures are too large for memory.

        On a CPU, pictures that are translated together have at most :data:`CPU_PIXELS` pixels, or are one.
        """
        most = CPU_PIXELS if sampler.device.type == "cpu" else math.inf
        groups: list[list[Job]] = []
        large: list[Job] = []
        used = pixels = 0
        for job in batch:
            size = self._files.size(job.index)
            needed = 0 if size is None else in_memory(sampler, size, self._windows(sampler, size))
            own = 0 if size is None else math.prod(size)
            if needed > self._limit:
                large.append(job)
                continue
            if not groups or used + needed > self._limit or pixels + own > most:
                groups.append([])
                used = pixels = 0
            groups[-1].append(job)
            used += needed
            pixels += own
        return groups, large

    def _windows(self, sampler: BridgeSampler, size: Sequence[int]) -> WindowGrid | None:
        return sampler.window_grid(self._config, size, self._config.batch_size)

    def translate(
        self, sampler: BridgeSampler, job: Job, settings: Mapping[str, Any], progress: Shown
    ) -> None:
        """Make and write the result of a picture by windows.

        Args:
            sampler: what makes the results.
            job: a sample of the picture.
            settings: the settings; states of others are not used.
            progress: show the network calls.

        Raises:
            InUseError: another process makes this result.
            KeyboardInterrupt: it came while the result was made; the message says where its steps are.
            OSError: the disk is too small, or became full.
            StoppedError: SIGTERM came while it was made.
            ValueError: the picture is damaged or not finite, or it cannot be read or written by parts; or
                there are no windows, there is guidance, or it is a map.
        """
        row = self._files.pairs.rows[job.index]
        source = shown(row)
        strips = self._files.pairs.reader.strips(row)
        windows = self._windows_of(sampler, source, strips.shape[1:])
        settings = {**settings, "source": self._files.names[job.index]}
        meter: Meter | None = None
        with scripts.termination() as asked, ExitStack() as ends:

            def report(done: int, total: int) -> None:
                if asked():
                    raise scripts.StoppedError(
                        f"SIGTERM came while {job.path.name} was made", scripts.TERMINATED
                    )
                nonlocal meter
                if meter is None:  # what was done before is known now
                    meter = ends.enter_context(Meter(job.path.name, total, "calls", progress, done))
                meter.reach(done)

            try:
                picture = LargePicture(sampler, strips, windows, job.seeds[0], self._limit, report)
                if self._first:
                    place = folder_of(job.path)
                    if picture.left_out:
                        write(f"{source}: {picture.left_out}")
                    write(
                        f"{job.path.name}: its steps take up to {amount(picture.disk)} of the disk, in {place}"
                    )
                picture.run(job.path, settings, derivation_of(settings, job.seeds))
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(*_kept(job.path)) from error
            except scripts.StoppedError as error:
                raise scripts.StoppedError(
                    ": ".join([str(error), *_kept(job.path)]), error.status
                ) from error
            except ValueError as error:
                raise type(error)(f"{source}: {error}") from error

    def _windows_of(self, sampler: BridgeSampler, source: str, size: Sequence[int]) -> WindowGrid:
        """The windows of a picture that is larger than memory.

        Raises:
            ValueError: there are none, or such a picture cannot be translated as the settings ask.
        """
        windows = self._windows(sampler, size)
        if windows is None:
            raise ValueError(
                f"{source} of {size[0]} x {size[1]} needs about {amount(in_memory(sampler, size))} of memory, more "
                f"than {amount(self._limit)}, and the network is called on whole pictures: give --window, the side of "
                "windows, or more --memory"
            )
        refusals = {
            "no maps are made of it": bool(self._config.maps),
            "no mask is applied to it": self._config.outside is not None,
            "it cannot be guided": self._config.guidance is not None,
            "the network sees more than the source": bool(sampler.unet.network_config.each),
        }
        for what, refused in refusals.items():
            if refused:
                raise ValueError(
                    f"{source} is larger than memory, and then {what}: give more --memory"
                )
        return windows


def _kept(result: Path) -> list[str]:
    """What is said of the steps of a result that was interrupted; nothing where none is done."""
    folder = folder_of(result)
    if not folder.exists():
        return []
    return [f"the steps that are done are in {folder}, and the same command goes on from them"]
