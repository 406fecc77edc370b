"""The engine of results: jobs of a data set in; out files, named after their sources, and what made them.

Results that exist are kept, so that an interrupted command can be repeated. :meth:`Translator.run` has a
:class:`~bbdm.translation.record.Record` beside them, which refuses results of other settings, and deletes
those whose source, seed or file has changed.

Several processes (see :mod:`bbdm.execution.processes`) share the batches of one process, so the files are the
same. All call the same methods in the same order; the first alone prints and has the record, to which each
adds lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from bbdm.base import machine
from bbdm.base.atomic import check_folder, file_sha256
from bbdm.base.progress import Meter, counted
from bbdm.data.loading import check_rows
from bbdm.data.names import RowName
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row, named, read_rows
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.repository import find_checkpoint
from bbdm.networks.base import find_dtype, state_hash
from bbdm.networks.conditions import DIRECTION
from bbdm.sampling.sampler import BridgeSampler
from bbdm.translation.config import TranslateConfig
from bbdm.translation.files import SAMPLE, Files
from bbdm.translation.large import LargePictures
from bbdm.translation.record import Item, Lines, Record, derivation_of, describe
from bbdm.translation.results import Job, check_paths, counting_steps, missing, paths_of, translated
from bbdm.translation.seeds import Seeds
from bbdm.translation.specs import Pictures, pictures_of

# The names of sources, and arguments of Scores.update
Batch = tuple[list[str], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity")


class Translator:
    """A trained network and a data set to translate. Only the first process shows progress.

    Args:
        config: the settings, which name both.
        rows: those of the data set; None to read them.
        spec: what its pictures are; None to take them as the network was trained, and as ``config`` says.
        files: opens sources and writes results.
        load_intervals: gives the intervals of a sampler, whose ends are among the maps.
        independent: pictures may be added later, and what is wrong with one is its entry in ``bad``.

    Attributes:
        bad: why there are no results of sources, by their indices.
        files: the pictures, and the files of their results.
        large: which pictures are larger than memory.

    Raises:
        FileNotFoundError, ValueError: the network or the data set cannot be read.
    """

    def __init__(
        self,
        config: TranslateConfig,
        rows: Sequence[Row] | None = None,
        spec: Spec | None = None,
        files: type[Files] = Files,
        load_intervals: Callable[[BridgeSampler], Any] | None = None,
        independent: bool = False,
    ) -> None:
        self.config = config
        self._load_intervals = load_intervals
        self._independent = independent
        self.processes = Processes.join(config.device)
        self.verbose = config.shown and self.processes.first
        check_folder(config.folder)
        self.processes.check_shared(config.folder)
        self._model = find_checkpoint(config.model)
        self.checkpoint = load_checkpoint(self._model, **config.missing)
        self.bridge = self.checkpoint.bridge
        self.codec = self.checkpoint.build_codec()
        axes = self.checkpoint.unet.config.axes
        self._seeds = Seeds.of(config, axes, independent)
        if rows is None:
            rows = read_rows(config.dataset, config.data_dir, config.split, axes)
        self._pictures = (
            pictures_of(config, self.checkpoint, rows) if spec is None else Pictures(spec)
        )
        self._missing = self._missing_conditions()
        self._files = files
        self._open(rows)
        self._photographs = self.files.photographs
        if not self._photographs and config.image_size not in (None, "train", "keep"):
            raise ValueError(
                "--image_size is of photographs of 8 bits: pictures of other values keep their size"
            )
        self.bad: dict[int, str] = {}
        if config.skip_bad and not independent:
            self.bad = check_rows(self.dataset, progress=self.verbose)
        if self.processes.first:
            for line in self._notes():
                print(line)
        self._network = self.checkpoint.build_unet()

    def _missing_conditions(self) -> dict[str, None]:
        """The conditions of the network that the data set has not, by name."""
        known = self.checkpoint.unet.config
        named = set(self._pictures.spec.conditions)
        if known.two_way:
            named.add(DIRECTION)  # which the sampler has
        return dict.fromkeys(known.each.keys() - named)

    def _notes(self) -> list[str]:
        """What a user should know before pictures are translated."""
        notes = [*self._pictures.notes, *(f"left out: {reason}" for reason in self.bad.values())]
        if self._pictures.spec.masked and self.config.outside is None and not self.config.TARGETS:
            note = "the network has learned the pixels in masks alone, and results elsewhere are made up"
            if not self._independent:  # whose commands take masks
                note += ": give the masks, DATA,mask=FOLDER, and --outside VALUE"
            notes.append(note)
        return [*notes, *self.files.first_look()]

    def _open(self, rows: Sequence[Row]) -> None:
        skip_bad = self.config.skip_bad or self._independent
        self.dataset = Pairs(
            rows, self._pictures.spec, prepare=self.config.degrade, skip_bad=skip_bad
        )
        if self.codec is None:
            channels = self.checkpoint.unet.config.channels
        else:
            channels = self.codec.image_channels
        self.files = self._files(self.dataset, channels, self.config.outside)
        self.large = LargePictures(self.files, self.config, self.processes)

    def of_rows(self, rows: Sequence[Row]) -> Translator:
        """The same network for other rows of pictures of the same kind."""
        other = copy(self)
        other._open(rows)
        other.bad = {}
        return other

    def on(self, config: TranslateConfig) -> Translator:
        """The same network, elsewhere: on the device of other settings, of no rows before :meth:`of_rows`."""
        other = copy(self)
        other.config = config
        other.processes = Processes.join(config.device)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # which are those of rows
        return {**vars(self), "dataset": None, "files": None, "large": None}

    def sampler(self, solver: str | None, steps: int | None) -> BridgeSampler:
        """The sampler with this solver, of the same dtype in all processes."""
        build = partial(
            BridgeSampler,
            self._network,
            self.bridge,
            solver,
            steps,
            device=self.processes.device,
            codec=self.codec,
            defaults=self.checkpoint.defaults,
            compile=self.config.compile,
        )
        sampler = build(dtype=None if self.config.dtype is None else find_dtype(self.config.dtype))
        # with compile, each process chooses one by timing
        chosen = self.processes.gather(sampler.dtype)[0]
        if sampler.dtype != chosen:
            sampler = build(dtype=chosen)
        if sampler.direction:
            sampler = sampler.towards(self.config.direction)
        crop = self.checkpoint.pictures.crop
        sampler.origin = self.checkpoint.origin
        sampler.pictures = replace(self._pictures.spec, crop=crop)
        if not self._photographs and crop is None:
            # to warn of pictures of other sizes, which stay
            sampler.image_size = self.checkpoint.image_size
        return sampler

    def plan(self, folder: Path) -> list[Job]:
        """The jobs of all results in a folder: of each source one for each sample, or one for its maps.

        Raises:
            ValueError: the name of a row leads out of the folder, by itself or by a link.
        """
        jobs: list[Job] = []
        for index in range(len(self.files.names)):
            if index not in self.bad:
                jobs += self._jobs(index, folder)
        return jobs

    def _jobs(self, index: int, folder: Path) -> list[Job]:
        """The jobs of a source."""
        name = RowName(self.files.names[index])
        seeds = self._seeds(index, name, len(self.files.names))
        if self.config.maps:
            paths: dict[str, Path] = {}
            for kind in self.config.maps:
                paths[kind] = name.below(folder, f"_{kind}{self.files.suffix(index, kind)}")
            return [Job(index, seeds, paths)]
        suffix = self.files.suffix(index)
        if len(seeds) == 1:
            return [Job(index, seeds, {SAMPLE: name.below(folder, suffix)})]
        jobs: list[Job] = []
        for number, seed in enumerate(seeds):
            jobs.append(Job(index, (seed,), {SAMPLE: name.below(folder, f"_{number}{suffix}")}))
        return jobs

    def write_results(
        self, sampler: BridgeSampler, jobs: Sequence[Job], lines: Lines, intervals: Any = None
    ) -> None:
        """Make and write results: batch i in process i modulo their number. Returns when all are written.

        Results of one call are written before the next one, so an interruption loses those of one.

        Args:
            sampler: one of this network.
            jobs: what is missing, the same in all processes.
            lines: get one for each result, and know its settings.
            intervals: those of the sampler, where their ends are made.

        Raises:
            ValueError: the device is out of memory, or what is wrong with a source.
        """
        count = self._pictures_at_once(jobs)
        batches = [jobs[start : start + count] for start in range(0, len(jobs), count)]
        share = batches[self.processes.rank :: self.processes.count]
        self.processes.wait()  # until all have looked which results exist
        with Meter("translating", sum(map(len, share)), "results", self.verbose) as meter:
            while share:
                batch = share.pop(0)
                try:
                    groups, large = self.large.split(sampler, batch)
                    for group in groups:
                        with meter.part(len(group)):
                            self._group(
                                sampler,
                                group,
                                lines,
                                intervals,
                                self._options(sampler, group, count, meter),
                            )
                    for job in large:
                        item = job.item(SAMPLE, self.files.content(job.index))
                        self.large.translate(
                            sampler, job, {**lines.settings, "item": item}, self.verbose
                        )
                        lines.add(job.path, item)
                        meter.advance()
                except torch.OutOfMemoryError as error:
                    lower = f"lower --batch_size {self.config.batch_size} or --image_size {self._pictures.size}"
                    raise ValueError(f"the device is out of memory: {lower}") from error
                except (ValueError, FileNotFoundError, PermissionError) as error:
                    if not self._independent:
                        raise
                    if len(batch) > 1:  # one after the other, since something is wrong with one
                        share[:0] = [[job] for job in missing(batch)]
                        continue
                    self.bad[batch[0].index] = named(self.dataset.rows[batch[0].index], error)
                    meter.advance()
        self.processes.wait()
        for bad in self.processes.gather(self.bad):
            self.bad = {**self.bad, **bad}

    def _pictures_at_once(self, jobs: Sequence[Job]) -> int:
        """The number of pictures that are read at once."""
        # not resized to one
        own_sizes = self.dataset.further.images and isinstance(self._pictures.size, str)
        if self.files.alone or self.config.maps or own_sizes:
            return 1
        return min(self.config.batch_size, max(1, len(jobs)))

    def _options(
        self, sampler: BridgeSampler, group: Sequence[Job], pictures: int, meter: Meter
    ) -> dict[str, Any]:
        """The options of a call.

        Args:
            sampler: the one that is called.
            group: the jobs of the call.
            pictures: the number of pictures that are read at once.
            meter: counts the steps too.
        """
        windowed = sampler.window_grid(self.config) is not None
        # slices, windows or samples of one picture
        several = self.files.volumes or windowed or self.config.maps
        if several:
            count = self.config.batch_size
        else:
            count = min(pictures, self.large.at_once(sampler, group[0]))
        options = {"batch_size": count, **self.config.call}
        if self.verbose:
            options["callback"] = counting_steps(meter, group, self.files, len(sampler.table))
        return options

    def _group(
        self,
        sampler: BridgeSampler,
        jobs: Sequence[Job],
        lines: Lines,
        intervals: Any,
        options: Mapping[str, Any],
    ) -> None:
        """Make and write the results of pictures that are in memory together."""
        sources: list[Any] = []
        all_details: list[Any] = []
        # before they are read
        contents = {index: self.files.content(index) for index in {job.index for job in jobs}}
        for job in jobs:
            source, details = self.files.source(job.index)
            sources.append(source)
            all_details.append(details)
        seeds = [job.seeds for job in jobs]
        maps = [kind for kind in jobs[0].paths if kind != SAMPLE]
        options = {**options, "conditions": self._conditions(jobs) or None}
        results = translated(sampler, sources, seeds, maps, intervals, **options)
        for job, result, details in zip(jobs, results, all_details, strict=True):
            for kind, path in job.paths.items():
                self.files.save(
                    result[kind], details, path, kind, derivation_of(lines.settings, job.seeds)
                )
                lines.add(path, job.item(kind, contents[job.index]))

    def _conditions(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """What the network sees besides the sources of jobs; None for what the data set has not."""
        return {**self._missing, **self.files.conditions([job.index for job in jobs])}

    @cached_property
    def _weights(self) -> str:
        """The SHA-256 of the network's weights, in the dtype of its file."""
        return state_hash(self._network.state_dict())

    def settings(self, sampler: BridgeSampler) -> dict[str, Any]:
        """All that decides the results, besides what is of one alone."""
        config = self.config
        settings: dict[str, Any] = {}
        if not self._independent:
            settings |= {
                "dataset": config.dataset,
                "split": config.split,
                "direction": config.direction,
            }
        settings |= self.dataset.settings()
        if config.outside is not None:
            settings["outside"] = config.outside
        if self._seeds.by != "place":
            settings["seeds"] = f"by {self._seeds.by}"
        if config.plain_files:
            settings["plain_files"] = True
        if self._files is not Files:
            settings["files"] = self._files.__name__
        settings |= {
            "weights": self._weights,
            "config": config.config,
            "num_samples": config.num_samples,
            "seed": config.seed,
            "maps": [*config.maps],
            **config.call,
            "solver": sampler.solver,
            "nfe": len(sampler.table),
            **describe(sampler, self._weights),
            "image_size": self._pictures.size,
        }
        if self._load_intervals is not None and config.intervals is not None:
            settings["intervals"] = file_sha256(config.intervals)
        return settings

    def run(
        self,
        solver: str | None,
        steps: int | None,
        folder: Path,
        write: Callable[..., None] | None = None,
    ) -> tuple[list[Job], set[Path], dict[str, Any]]:
        """Make the results that do not exist yet, and describe all.

        Args:
            solver: of the results; None for the network's own.
            steps: of the results; None for those of the solver.
            folder: where the results are, below which their names are paths.
            write: what makes and writes them, in place of :meth:`write_results`, with its arguments.

        Returns:
            The results, those that were there, and for a report: solver, nfe, pictures, seconds_per_picture
            (of the pictures of this run; None where all were there), settings, environment. The last two are
            empty in the other processes.

        Raises:
            ValueError: a picture is larger than memory, and there are no windows; or, in the first process,
                the folder holds results of other settings, or a file of a result's name that is no result.
        """
        jobs = self.plan(folder)
        check_paths(self.files, paths_of(jobs))
        sampler = self.sampler(solver, steps)
        intervals = None if self._load_intervals is None else self._load_intervals(sampler)
        settings = self.settings(sampler)
        record: Record | None = None
        with self.processes.first_before_others():
            if self.processes.first:
                record = self._record(folder, settings, jobs)
            todo = missing(jobs)
        began = time.perf_counter()
        try:
            (write or self.write_results)(sampler, todo, Lines(folder, settings), intervals)
        except BaseException:
            if record is not None and self.processes.count == 1:  # others may write yet
                record.close()
            raise
        if record is not None:
            record.close()
        seconds = time.perf_counter() - began
        jobs = self._good(jobs)
        if record is None:
            return jobs, set(), {}
        made = len(self._good(todo))
        report = {
            "solver": sampler.solver,
            "nfe": len(sampler.table),
            "pictures": len(jobs),
            "seconds_per_picture": seconds / made if made else None,
            "settings": record.settings,
            "environment": {
                **machine.versions(["bbdm"]),
                "processes": self.processes.count,
                **machine.describe(sampler.device, PACKAGES),
            },
        }
        return jobs, {folder / name for name in record.existing}, report

    def _record(self, folder: Path, settings: Mapping[str, Any], jobs: Sequence[Job]) -> Record:
        """The record of jobs in a folder; says how many results are made anew."""
        planned: dict[str, tuple[Job, str]] = {}
        for job in jobs:
            for kind, path in job.paths.items():
                planned[path.relative_to(folder).as_posix()] = job, kind

        def item(name: str) -> Item:
            job, kind = planned[name]
            return job.item(kind, self.files.content(job.index))

        record = Record(folder, settings, [*planned], item, self.config.overwrite)
        if record.changed:
            print(
                f"{len(record.changed)} results are made anew: their sources, seeds or files have changed"
            )
        return record

    def _good(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of sources that could be translated."""
        return [job for job in jobs if job.index not in self.bad]

    def pictures(self, jobs: Sequence[Job]) -> Iterator[Batch]:
        """The names of sources, and arguments of :meth:`bbdm.evaluation.scores.Scores.update`.

        They are of this process's share of the results. Pictures that keep their size are batches of one. The
        maps of a source, in the order of the settings, stand in the place of its results.
        """
        samples = 1 if self.config.maps else self.config.num_samples
        count = 1 if self._pictures.size == "keep" else max(1, self.config.batch_size // samples)
        starts = range(0, len(jobs), count * samples)[self.processes.rank :: self.processes.count]
        for start in counted(starts, "scoring", len(starts), "batches", self.verbose):
            names: list[str] = []
            results: list[torch.Tensor] = []
            targets: list[torch.Tensor] = []
            masks: list[torch.Tensor] = []
            for first in range(start, min(start + count * samples, len(jobs)), samples):
                same = jobs[first : first + samples]
                made_results, target, mask = self.files.compared(same[0].index, paths_of(same))
                names.append(self.files.names[same[0].index])
                results.append(made_results)
                targets.append(target)
                if mask is not None:  # of all pictures of a batch, or of none
                    masks.append(mask)
            yield (
                names,
                (torch.stack(results), torch.stack(targets), torch.stack(masks) if masks else None),
            )
