"""Results: what is made of sources, and the jobs that make it in a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bbdm.base.progress import Meter
from bbdm.data import rows
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Step
from bbdm.translation.files import SAMPLE, Files
from bbdm.translation.record import Item


@dataclass(frozen=True)
class Job:
    """What to make of a source.

    Args:
        index: of the source among those of the data set.
        seeds: the seed of each sample.
        paths: the file of each kind of result; see :func:`translated`.
    """

    index: int
    seeds: tuple[int, ...]
    paths: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """The file of the first kind, of a sample the only one."""
        return next(iter(self.paths.values()))

    def item(self, kind: str, content: str) -> Item:
        """What decides a result besides the settings, for its line.

        Args:
            kind: that the result has, a sample or the name of a map.
            content: SHA-256 of what is read for it; see :meth:`bbdm.translation.files.Files.content`.
        """
        return {"kind": kind, "seeds": [*self.seeds], "content": content}


def paths_of(jobs: Iterable[Job]) -> list[Path]:
    """The files of all results."""
    return [path for job in jobs for path in job.paths.values()]


def missing(jobs: Iterable[Job]) -> list[Job]:
    """What of jobs is not there yet."""
    left: list[Job] = []
    for job in jobs:
        paths = {kind: path for kind, path in job.paths.items() if not path.exists()}
        if paths:
            left.append(replace(job, paths=paths))
    return left


def check_paths(files: Files, paths: Sequence[Path]) -> None:
    """Raise ValueError if one of ``paths`` is a source or a target of the data set, or occurs twice."""
    taken: set[Path] = set()
    for row in files.pairs.rows:
        for file in rows.files_of(row):
            resolved = file.resolve()
            taken |= {resolved, *resolved.parents}  # among them a folder that is one picture
    for path in paths:
        resolved = path.resolve()
        if resolved in taken:
            raise ValueError(
                f"{path} would replace another picture: give another folder of results"
            )
        taken.add(resolved)


def counting_steps(
    meter: Meter, jobs: Sequence[Job], files: Files, steps: int
) -> Callable[[Step], None]:
    """A callback of a sampler's call, by which a meter counts the steps of results, as parts of them.

    Args:
        meter: what counts the results.
        jobs: those of the call.
        files: the pictures of the data set.
        steps: the number for each result.
    """
    images = 0  # that a step is done for
    for job in jobs:
        images += files.slices(job.index) * len(job.seeds)
    part = len(jobs) / (images * steps)

    def count(step: Step) -> None:
        meter.note = f"step {step.index + 1} of {steps}"
        meter.advance(part * len(step.images))

    return count


def translated(
    sampler: Sampler[Any],
    sources: Sequence[Any],
    seeds: Sequence[Sequence[int]],
    maps: Collection[str] = (),
    intervals: Any = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The results of sources by kind.

    Args:
        sampler: what makes the results.
        sources: what a call of it takes as a list.
        seeds: of each source, one; or one for each sample that maps are of.
        maps: in place of a sample, those of all samples: ``mean``, ``std``; ``low`` and ``high``, the ends of
            ``intervals``.
        intervals: a :class:`~bbdm.Intervals` of the sampler, where their ends are wanted.
        options: of a call of the sampler.

    Returns:
        For each source, its maps by name, or a sample by :data:`SAMPLE`, as the sampler's calls return them.

    Raises:
        ValueError: what a call of the sampler refuses, or the intervals.
    """
    sources = list(sources)
    if not maps:
        results = sampler(sources, [seed for (seed,) in seeds], **options)
        return [{SAMPLE: result} for result in results]
    seeds_of_samples = [list(of_source) for of_source in seeds]
    by_name: dict[str, Any] = {}
    if intervals is None:
        samples = sampler.distribution(
            sources, len(seeds_of_samples[0]), seeds_of_samples, keep=False, **options
        )
    else:
        samples = intervals.sample(sources, seeds_of_samples, **options)
        by_name["low"], by_name["high"] = intervals.of(samples)
    for name in maps:
        if name not in by_name:
            by_name[name] = getattr(samples, name)
    return [{name: by_name[name][index] for name in maps} for index in range(len(sources))]
