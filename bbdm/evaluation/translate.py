"""Translating a whole data set into a folder of files named after their sources, PNG or of the sources' kind.

Results that exist are kept, so that an interrupted command can be repeated. :meth:`Translator.run` writes a
:class:`~bbdm.evaluation.results.Record` beside them and refuses results of other settings.

Several processes (see :mod:`bbdm.execution.processes`) share the batches of one process, so the files are the
same. All call the same methods in the same order; the first alone prints and writes the record.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from bbdm import solvers
from bbdm.base import machine, scripts
from bbdm.base.atomic import check_folder, file_sha256, make_folder
from bbdm.data.conditions import known_conditions
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import AXES, Spec
from bbdm.evaluation.config import TranslateConfig
from bbdm.evaluation.files import Files
from bbdm.evaluation.large import LargePictures
from bbdm.evaluation.metrics import Setup
from bbdm.evaluation.results import Job, Record, check_places, description, plan
from bbdm.execution.processes import Processes
from bbdm.files.hub import find_checkpoint
from bbdm.networks.restore import find_dtype
from bbdm.pictures import Picture
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.values import Values
from bbdm.sampling.network_config import DEFAULT_SIZE, chosen_size, described_size
from bbdm.sampling.sampler import BridgeSampler

# The names of sources, and arguments of Scores.update
Batch = tuple[list[str], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity")


class TooLargeError(ValueError):
    """A batch needs more memory than there is."""


class Translator:
    """A trained network and a data set to translate. Only the first process shows progress.

    Raises:
        FileNotFoundError, ValueError: the network or the data set cannot be read.
    """

    def __init__(self, config: TranslateConfig) -> None:
        self.config = config
        self.processes = Processes.join(config.device)
        self.verbose = scripts.is_shown(config.show_verbose, config.quiet) and self.processes.first
        check_folder(config.output_dir)
        self.processes.check_shared(config.output_dir)
        self._model = find_checkpoint(config.model)
        self.checkpoint = config.load(self._model)
        self.bridge = self.checkpoint.bridge
        self.codec = self.checkpoint.build_codec()
        channels = self.checkpoint.unet.source_channels if self.codec is None else self.codec.image_channels
        self._channels = self.checkpoint.unet.config.channels if self.codec is None else self.codec.image_channels
        self.dataset, self._described = self._read(channels)
        self.files = Files(self.dataset, self._channels)
        if not self.files.photographs and config.image_size not in (None, "train", "keep"):
            raise ValueError("image_size is of photographs of 8 bits: pictures of other values keep their size")
        if config.orientations != 1 and self.dataset.spec.slices is None:
            raise ValueError("orientations are of networks of slices of volumes, and this one is of none")
        if config.orientations != 1 and self.dataset.further.images:
            raise ValueError("orientations are of networks that see no further images, and this one sees some")
        self._bad = self.files.bad(self.verbose) if config.skip_bad else {}
        self._report(*(f"left out: {reason}" for reason in self._bad.values()))
        self._large = LargePictures(self.files, config, self.processes)
        self._network = self.checkpoint.build_unet()

    def _report(self, *lines: str) -> None:
        """Print lines in the first process."""
        for line in lines if self.processes.first else ():
            print(line)

    def _read(self, channels: int) -> tuple[Pairs, Any]:
        """The data set, and the size of its pictures for people and manifests.

        Raises:
            ValueError: other values are given than the network was trained on, or conditions are missing.
        """
        config, trained, known = self.config, self.checkpoint.pictures, self.checkpoint.unet.config
        rows = read_rows(config.dataset, config.data_dir, config.split)
        seen = known_conditions(known, trained.conditions, rows, config.conditions)
        self._missing = dict.fromkeys(name for name in known.each if name not in seen)
        of = channels if channels in (1, 3) else None  # photographs become grey or colour, others stay
        about: dict[str, Any] = {"learned": trained, "channels": of, "axes": known.axes, "conditions": seen}
        spec = config.spec(config.dataset, rows, **about)
        size, resize = self._size(spec)
        kept = resize == "keep" or not Files(Pairs(rows, spec, prepare=config.degrade), channels).photographs
        if not kept:
            spec = replace(spec, size=size, resize=resize)
        return Pairs(rows, spec, prepare=config.degrade), described_size(size, "keep" if kept else resize)

    def _size(self, spec: Spec) -> tuple[Size, Resize]:
        """The size of pictures, and what it means: their own, where the network was trained on crops."""
        trained, wanted = self.checkpoint.image_size, self.config.image_size
        if wanted is None and not isinstance(self.config.window, str):
            wanted = "keep"
        if wanted is None:
            wanted = "fit" if self.config.dataset == "folder" else "train"
        if self.checkpoint.pictures.crop is not None or not spec.eight_bit:
            wanted = "keep" if isinstance(wanted, str) else wanted
        if trained is None and wanted in ("train", "fit"):
            self._report(f"{self.config.model} does not hold the size of its pictures: image_size is {DEFAULT_SIZE}")
        return chosen_size(wanted, trained)

    def sampler(self, solver: str | None, steps: int | None) -> BridgeSampler:
        """The sampler with this solver, of the same dtype in all processes.

        Raises:
            TooLargeError: the device is out of memory.
        """

        def build(dtype: torch.dtype | None) -> BridgeSampler:
            return BridgeSampler(
                self._network,
                self.bridge,
                solver,
                steps,
                codec=self.codec,
                defaults=self.checkpoint.defaults,
                device=self.processes.device,
                dtype=dtype,
                compile=self.config.compile,
            )

        with self._memory():
            sampler = build(None if self.config.dtype is None else find_dtype(self.config.dtype))
            chosen = self.processes.gather(sampler.dtype)[0]  # with compile, each process chooses one by timing
            sampler = sampler if sampler.dtype == chosen else build(chosen)
            sampler.origin = self.checkpoint.origin
            sampler.pictures = replace(self.dataset.spec, crop=self.checkpoint.pictures.crop)
            if not self.files.photographs and self.checkpoint.pictures.crop is None:
                sampler.image_size = self.checkpoint.image_size  # to warn of pictures of other sizes, which stay
            return sampler

    def plan(self, folder: Path) -> list[Job]:
        """See :func:`bbdm.evaluation.results.plan`; without the pictures that were left out."""
        jobs = plan(self.files, folder, self.config.num_samples, self.config.seed)
        return [job for job in jobs if job.index not in self._bad]

    def _at_once(self, jobs: list[Job]) -> int:
        """The number of jobs of a batch: of volumes one, whose slices are translated in batches."""
        alone = self.files.volumes or (self.dataset.further.images and self._described in ("fit", "keep"))
        return 1 if alone else min(self.config.batch_size, max(1, len(jobs)))

    def _translate(
        self, sampler: BridgeSampler, jobs: list[Job], record: Record | None, warm_up: bool, about: dict[str, Any]
    ) -> None:
        """Make and write results: batch i in process i modulo their number. Returns when all are written.

        The record counts full batches of this process, except the first, in which the device warms up and
        networks are compiled; with ``warm_up``, a call before it does so. Batches with pictures that are
        larger than memory are not counted. Their states are those of settings ``about``.
        """
        count = self._at_once(jobs)
        windowed = sampler.window_grid(self.config) is not None
        size = self.config.batch_size if self.files.volumes or windowed else count
        batches = [jobs[start : start + count] for start in range(0, len(jobs), count)]
        share = batches[self.processes.rank :: self.processes.count]
        how = self.config.call
        self.processes.wait()  # until all have looked which results exist
        with self._memory(), tqdm(total=sum(map(len, share)), unit="image", disable=not self.verbose) as bar:
            for number, batch in enumerate(share):
                groups, large = self._large.split(sampler, batch)
                seconds = 0.0
                for group in groups:
                    sources = [self.files.source(job.index) for job in group]
                    given, settings = (
                        [source.picture for source in sources],
                        self.settings([job.index for job in group]),
                    )
                    if warm_up and number == 0 and not windowed:  # by one call, on CUDA by all that a graph captures
                        solver, *_ = solvers.Defaults(calls=sampler.calls).fill()
                        one = (None, None) if sampler.device.type == "cuda" else (solver, 1)
                        sampler(given, seed=0, batch_size=size, solver=one[0], steps=one[1], **settings, **how)
                    began = time.perf_counter()
                    results = self._results(
                        sampler, given, seed=[job.seed for job in group], batch_size=size, **settings, **how
                    )
                    seconds += time.perf_counter() - began
                    for job, source, result in zip(group, sources, results, strict=True):
                        self.files.save(job.index, result, source, job.path)
                    bar.update(len(group))
                if record is not None and (warm_up or number > 0) and len(batch) == count and not large:
                    record.add(len(batch), seconds)
                for job in large:
                    self._large.translate(sampler, job, about)
                    bar.update(1)
        self.processes.wait()

    def settings(self, indices: Sequence[int]) -> dict[str, Any]:
        """The arguments of the sampler that sources have: the values of some, and conditions."""
        conditions = {**self._missing, **self.files.conditions(indices)}
        return {**self.files.settings, **({"conditions": conditions} if conditions else {})}

    def _results(self, sampler: BridgeSampler, given: list[Any], **settings: Any) -> list[Any]:
        """The sampler's results; of three orientations, their mean."""
        if self.config.orientations == 1:
            return sampler(given, **settings)
        kind, made = sampler.pictures, []
        floats = replace(kind.target, dtype="float32")  # the mean is rounded, and not what it is of
        try:
            for plane in AXES:
                sampler.pictures = replace(kind, slices=plane)
                made.append(sampler(given, target_values=floats, **settings))
        finally:
            sampler.pictures = kind
        return [mean_of(results, kind.target) for results in zip(*made, strict=True)]

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Turns any device's error for lack of memory into one; other errors pass."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and not any(s in str(error) for s in ("out of memory", "allocate memory", "ALLOC_FAILED")):
                raise
            raise TooLargeError(
                f"out of memory at batch_size {self.config.batch_size} and image_size {self._described}"
            ) from error

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What decides the results, whatever the solver."""
        config = self.config
        return {
            "dataset": config.dataset,
            "split": config.split,
            "direction": config.direction,
            "sources": len(self.files.names),
            **self.files.description(),
            "weights": file_sha256(self._model),
            "config": config.config,
            "num_samples": config.num_samples,
            "seed": config.seed,
            **({} if config.orientations == 1 else {"orientations": config.orientations}),
            **config.call,
        }

    def run(self, solver: str | None, steps: int | None, folder: Path) -> tuple[list[Job], dict[str, Any]]:
        """Make the results that do not exist yet, and describe all.

        Returns:
            The results, and for a report: solver, nfe, pictures, seconds_per_picture (of the first process's
            batches; None if unknown), settings, environment. The report is empty in the other processes.

        Raises:
            LargePictureError: a picture is larger than memory, and there are no windows.
            ResultsError: the folder holds results of other settings, in the first process.
            TooLargeError: the device is out of memory.
        """
        make_folder(folder)
        jobs = self.plan(folder)
        check_places(self.files, [job.path for job in jobs])
        record = None
        sampler = self.sampler(solver, steps)
        about = {"solver": sampler.solver, "nfe": len(sampler.table)}
        of = {**description(sampler, self._settings["weights"]), "image_size": self._described}
        settings = {**self._settings, **about, **of}
        with self.processes.first_before_others():
            if self.processes.first:
                names = [job.path.relative_to(folder).as_posix() for job in jobs]
                record = Record(folder, settings, names, self.config.overwrite)
                self._large.remove_left(jobs)
            todo = [job for job in jobs if not job.path.exists()]
        small = len(todo) == len(jobs) <= self._at_once(jobs)  # one batch, which is to be timed
        self._translate(sampler, todo, record, small, settings)
        if record is None:
            return jobs, {}
        environment = {**machine.versions(["bbdm"]), "processes": self.processes.count}
        return jobs, {
            **about,
            "pictures": len(jobs),
            "seconds_per_picture": record.seconds / record.pictures if record.pictures else None,
            "settings": record.settings,
            "environment": {**environment, **machine.describe(sampler.device, PACKAGES)},
        }

    def shown(self, jobs: list[Job]) -> list[Job]:
        """Those whose pictures fit into the memory, to be looked at."""
        return self._large.small(jobs)

    @property
    def setup(self) -> Setup:
        """What scores of the results are built for."""
        return Setup(self.dataset.spec.target, self._channels, self.config.num_samples)

    def pictures(self, jobs: list[Job]) -> Iterator[Batch]:
        """The names of sources, and arguments of :meth:`bbdm.evaluation.scores.Scores.update`.

        They are of this process's share of the results.

        Pictures that keep their size are batches of one.
        """
        samples = self.config.num_samples
        count = 1 if self._described == "keep" else max(1, self.config.batch_size // samples)
        starts = range(0, len(jobs), count * samples)[self.processes.rank :: self.processes.count]
        for start in tqdm(starts, unit="batch", disable=not self.verbose):
            batch = jobs[start : start + count * samples]
            of = [batch[i : i + samples] for i in range(0, len(batch), samples)]
            made = [self.files.compared(same[0].index, [job.path for job in same]) for same in of]
            results, targets, masks = zip(*made, strict=True)
            valid = None if masks[0] is None else torch.stack(masks)  # of all pictures of a batch, or of none
            names = [self.files.names[same[0].index] for same in of]
            yield names, (torch.stack(results), torch.stack(targets), valid)


def mean_of(results: Sequence[Picture], values: Values) -> Picture:
    """The mean of volumes (C, D, H, W) in stored values, as values of a type are stored."""
    mean, kind = np.mean(results, axis=0, dtype=np.float64), np.dtype(values.dtype)
    first = results[0]
    return Picture((mean if kind.kind == "f" else np.rint(mean)).astype(kind), first.geometry, first.unit, first.name)
