"""Maps of the results of each source, in files of the sources' kind: mean, spread, quantiles, intervals."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256
from bbdm.evaluation.calibration import place_of
from bbdm.evaluation.intervals import Intervals, OtherSamplerError
from bbdm.evaluation.large import LargePictureError
from bbdm.evaluation.results import Job, Record
from bbdm.evaluation.translate import Translator
from bbdm.files.hub import find_checkpoint

if TYPE_CHECKING:
    from bbdm.evaluation.config import MapsConfig
    from bbdm.sampling.distribution import Distribution
    from bbdm.sampling.sampler import BridgeSampler


class MapTranslator(Translator):
    """Writes maps in place of the results that they are of.

    Raises:
        FileNotFoundError: there are no intervals, and their ends are wanted.
        ValueError: the network or the data set cannot be read.
    """

    config: MapsConfig

    def __init__(self, config: MapsConfig) -> None:
        self._intervals: Path | None = None
        if config.with_ends:
            self._intervals = config.intervals or place_of(find_checkpoint(config.model))
            config = as_calibrated(config, self._intervals)
        super().__init__(config)

    def plan(self, folder: Path) -> list[Job]:
        """A job for each map of each source that was not left out, with the seed of its first sample."""
        return [
            Job(i, self.config.seed + i, folder / f"{name}_{kind}{self.files.suffix(i)}", kind)
            for i, name in enumerate(self.files.names)
            for kind in self.config.maps
            if i not in self._bad
        ]

    @cached_property
    def _settings(self) -> dict[str, Any]:
        of = {} if self._intervals is None else {"intervals": file_sha256(self._intervals)}
        return {**super()._settings, **of}

    def _translate(
        self, sampler: BridgeSampler, jobs: list[Job], record: Record | None, warm_up: bool, about: dict[str, Any]
    ) -> None:
        """Make and write maps: of source i of those that are left in process i modulo their number."""
        intervals = None if self._intervals is None else Intervals.load(self._intervals, sampler)
        config, count = self.config, len(self.files.names)
        keep = any(kind not in ("mean", "std") for kind in config.maps)
        maps: dict[int, list[Job]] = {}
        for job in jobs:
            maps.setdefault(job.index, []).append(job)
        share = list(maps.items())[self.processes.rank :: self.processes.count]
        self.processes.wait()  # until all have looked which results exist
        with self._memory(), tqdm(share, unit="image", disable=not self.verbose) as bar:
            for index, of in bar:
                if self._large.split(sampler, of[:1])[1]:
                    raise LargePictureError(f"{self.files.shown(index)} is larger than memory, where maps are made")
                size = None if intervals is None else self.files.size(index)
                if intervals is not None and size and sorted(size) != sorted(intervals.size or size):
                    intervals.check_size(size)  # before it is read; a picture may be turned then
                source = self.files.source(index)
                seeds = [[of[0].seed + j * count for j in range(config.num_samples)]]
                settings = {
                    "batch_size": config.batch_size,
                    **self.settings([index]),
                    **config.call,
                }
                made = sampler.distribution([source.picture], config.num_samples, seeds, keep=keep, **settings)
                ends: dict[str, Any] = dict(zip(("low", "high"), intervals.of(made), strict=True)) if intervals else {}
                for job in of:
                    self.files.save(index, (ends.get(job.kind) or _map(made, job.kind))[0], source, job.path)
        self.processes.wait()


def as_calibrated(config: MapsConfig, path: Path) -> MapsConfig:
    """A translation with what the file of intervals fixes: solver, steps, samples, windows and guidance.

    Raises:
        FileNotFoundError: there is no such file.
        OtherSamplerError: a setting that was given, or is not the default, says otherwise.
    """
    fixed = Intervals.call_of(path)
    fixed["num_samples"] = fixed.pop("samples")
    usual = {each.name: each.default for each in fields(config)}
    for name, value in fixed.items():
        given = config.chosen_solver if name == "solver" else getattr(config, name)
        if given != value and (name in config.named or given != usual[name]):
            raise OtherSamplerError(
                f"{name} is {given}, and {path} was calibrated with {name} {value}: leave it out, or calibrate again"
            )
    if config.image_size is None and config.window != fixed["window"]:  # which keeps pictures as they are, if named
        fixed["image_size"] = "fit" if config.dataset == "folder" else "train"
    return replace(config, **fixed, fast_sampling=False)


def _map(distribution: Distribution, kind: str) -> Any:
    if kind in ("mean", "std"):
        return getattr(distribution, kind)
    return distribution.quantile(float(kind[1:]) / 100)
