"""Results: what is made of sources, the jobs that make it in a folder, and the manifest of what made them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bbdm.base import manifest
from bbdm.base.atomic import remove_leftovers
from bbdm.data import rows
from bbdm.sampling.base import Sampler
from bbdm.sampling.sampler import BridgeSampler
from bbdm.translation.files import SAMPLE, Files

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Job:
    """What to make of a source.

    Args:
        index: of the source among those of the data set.
        seeds: the seed of each sample.
        paths: the file of each kind of result; see :func:`make`.
    """

    index: int
    seeds: tuple[int, ...]
    paths: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """The file of the first kind, of a sample the only one."""
        return next(iter(self.paths.values()))


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
        taken.update(path.resolve() for path in rows.files_of(row))
    for path in paths:
        resolved = path.resolve()
        if resolved in taken:
            raise ValueError(f"{path} would replace another picture: give another folder of results")
        taken.add(resolved)


def make(
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
    seeds_of_samples = [list(each) for each in seeds]
    by_name: dict[str, Any] = {}
    if intervals is None:
        samples = sampler.distribution(sources, len(seeds_of_samples[0]), seeds_of_samples, keep=False, **options)
    else:
        samples = intervals.sample(sources, seeds_of_samples, **options)
        by_name["low"], by_name["high"] = intervals.of(samples)
    for name in maps:
        if name not in by_name:
            by_name[name] = getattr(samples, name)
    return [{name: by_name[name][index] for name in maps} for index in range(len(sources))]


def description(sampler: BridgeSampler, weights: str) -> dict[str, Any]:
    """What of a sampler and of the SHA-256 of its weights decides the results."""
    codec = sampler.codec
    return {
        "weights": weights,
        "unet": sampler.unet.description(),
        "codec": None if codec is None else {**codec.description(), **codec.config()},
        "bridge": sampler.bridge.config(),
        "solver": sampler.solver,
        "timesteps": sampler.table.timesteps.tolist(),
        "dtype": str(sampler.dtype).removeprefix("torch."),
    }


class Record:
    """``settings.json``, the manifest of results: what made them, and which they are. One process writes it.

    Temporary files that a killed process left beside results are deleted.

    Args:
        folder: the folder of the results.
        settings: all that decides the results.
        names: the files of all results, as paths below the folder.
        overwrite: delete the results that exist, and start again.
        further: results of other names may be there already, and more may come later.

    Attributes:
        existing: the files of the results that there are, and that stay.
        path: the file of the manifest.

    Raises:
        ValueError: there are results of other settings, or without a manifest, or it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        names: Collection[str],
        overwrite: bool,
        further: bool = False,
    ) -> None:
        self.path = folder / SETTINGS
        self.settings = manifest.as_json(settings)
        for above in {(folder / name).parent for name in names} | {folder}:
            remove_leftovers(above)
        self.existing = {name for name in names if (folder / name).is_file()}
        differing = ""
        known: set[str] = set()
        if self.path.is_file():
            with manifest.reading(self.path, f"give another folder of results, or delete {folder}") as content:
                known = {str(name) for name in content["results"]} if further else self.existing
                differing = manifest.differences(content["settings"], self.settings)
        if overwrite:
            for name in self.existing:
                (folder / name).unlink(missing_ok=True)
            self.existing = set[str]()
        elif differing:
            raise ValueError(
                f"{folder} holds results of other settings ({differing}): give another folder, or --overwrite"
            )
        unknown = sorted(self.existing - known)
        if unknown:
            no = f"no {self.path} says what made it"
            raise ValueError(f"{folder}/{unknown[0]} exists, but {no}: give another folder")
        self._names = set(names) if differing else known.union(names)
        content: dict[str, Any] = {"settings": self.settings}
        if further:
            content["results"] = sorted(self._names)
        manifest.write(self.path, content)

    def close(self) -> None:
        """Delete the manifest where there are no results, and a folder that is empty then."""
        if not any((self.path.parent / name).is_file() for name in self._names):
            self.path.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.parent.rmdir()
