"""Translating a whole data set into a folder of PNG files named after their sources.

Results that exist are kept, so that an interrupted command can be repeated. :meth:`Translator.run` writes a
:class:`~bbdm.evaluation.results.Record` beside them and refuses results of other settings.

Several processes (see :mod:`bbdm.execution.processes`) share the batches of one process, so the files are the
same. All call the same methods in the same order; the first alone prints and writes the record.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from bbdm import solvers
from bbdm.base import machine, scripts
from bbdm.base.atomic import check_folder, file_sha256, make_folder
from bbdm.data.pairs import load_dataset, open_image
from bbdm.data.survey import survey
from bbdm.evaluation.config import TranslateConfig
from bbdm.evaluation.results import Job, Record, check_places, description, plan, save
from bbdm.execution.device import find_dtype
from bbdm.execution.processes import Processes
from bbdm.files.hub import find_checkpoint
from bbdm.pictures import images
from bbdm.pictures.images import Size
from bbdm.sampling.network_config import (
    DEFAULT_SIZE,
    chosen_size,
    described_size,
)
from bbdm.sampling.sampler import BridgeSampler

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
        size, resize = self._size()
        pictures = config.dataset, config.data_dir, config.split, size, config.direction, channels, resize
        self.dataset = load_dataset(*pictures, config.degrade, config.degrade_seed, config.columns)
        bad = survey(self.dataset, whole=True, progress=self.verbose).bad if config.skip_bad else {}
        self._bad = {i for i, pair in enumerate(self.dataset.pairs) if pair.name in bad}
        self._report(*(f"left out: {reason}" for reason in bad.values()))
        self._network = self.checkpoint.build_unet()

    def _report(self, *lines: str) -> None:
        """Print lines in the first process."""
        for line in lines if self.processes.first else ():
            print(line)

    def _size(self) -> tuple[Size, images.Resize]:
        """The size of pictures, and what it means."""
        trained, wanted = self.checkpoint.image_size, self.config.image_size
        if wanted is None:
            wanted = "fit" if self.config.dataset == "folder" else "train"
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
                calls=self.checkpoint.calls,
                device=self.processes.device,
                dtype=dtype,
                compile=self.config.compile,
            )

        with self._memory():
            sampler = build(None if self.config.dtype is None else find_dtype(self.config.dtype))
            chosen = self.processes.gather(sampler.dtype)[0]  # with compile, each process chooses one by timing
            return sampler if sampler.dtype == chosen else build(chosen)

    def plan(self, folder: Path) -> list[Job]:
        """See :func:`bbdm.evaluation.results.plan`; without the pictures that were left out."""
        jobs = plan(self.dataset, folder, self.config.num_samples, self.config.seed)
        return [job for job in jobs if job.index not in self._bad]

    def _translate(self, sampler: BridgeSampler, jobs: list[Job], record: Record | None, warm_up: bool) -> None:
        """Make and write results: batch i in process i modulo their number. Returns when all are written.

        The record counts full batches of this process, except the first, in which the device warms up and
        networks are compiled; with ``warm_up``, a call before it does so.
        """
        size = min(self.config.batch_size, max(1, len(jobs)))
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        share = batches[self.processes.rank :: self.processes.count]
        self.processes.wait()  # until all have looked which results exist
        with self._memory(), tqdm(total=sum(map(len, share)), unit="image", disable=not self.verbose) as bar:
            for number, batch in enumerate(share):
                sources = [self.dataset.images(job.index)[0] for job in batch]
                if warm_up and number == 0:  # by one network call, or on CUDA by all that a graph captures
                    solver, _ = solvers.with_defaults(sampler.calls)
                    one = (None, None) if sampler.device.type == "cuda" else (solver, 1)
                    sampler(sources, seed=0, batch_size=size, solver=one[0], steps=one[1])
                began = time.perf_counter()
                results = sampler(sources, seed=[job.seed for job in batch], batch_size=size)
                seconds = time.perf_counter() - began
                for job, result in zip(batch, results, strict=True):
                    save(result, job.path)
                if record is not None and (warm_up or number > 0) and len(batch) == size:
                    record.add(len(batch), seconds)
                bar.update(len(batch))
        self.processes.wait()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Turns any device's error for lack of memory into one; other errors pass."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and not any(s in str(error) for s in ("out of memory", "allocate memory", "ALLOC_FAILED")):
                raise
            size = described_size(self.dataset.image_size, self.dataset.resize)
            raise TooLargeError(
                f"out of memory at batch_size {self.config.batch_size} and image_size {size}"
            ) from error

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What decides the results, whatever the solver."""
        config, given = self.config, self.config.config
        return {
            "dataset": config.dataset,
            "split": config.split,
            "direction": config.direction,
            "sources": len(self.dataset),
            **self.dataset.description(),
            "weights": file_sha256(self._model),
            "config": None if given is None else file_sha256(given) if given.is_file() else str(given),
            "num_samples": config.num_samples,
            "seed": config.seed,
        }

    def run(self, solver: str | None, steps: int | None, folder: Path) -> tuple[list[Job], dict[str, Any]]:
        """Make the results that do not exist yet, and describe all.

        Returns:
            The results, and for a report: solver, nfe, pictures, seconds_per_picture (of the first process's
            batches; None if unknown), settings, environment. The report is empty in the other processes.

        Raises:
            ResultsError: the folder holds results of other settings, in the first process.
            TooLargeError: the device is out of memory.
        """
        make_folder(folder)
        jobs = self.plan(folder)
        check_places(self.dataset, [job.path for job in jobs])
        record = None
        sampler = self.sampler(solver, steps)
        about = {"solver": sampler.solver, "nfe": len(sampler.table)}
        with self.processes.first_before_others():
            if self.processes.first:
                of = description(sampler, self._settings["weights"], self.dataset.image_size, self.dataset.resize)
                names = [job.path.relative_to(folder).as_posix() for job in jobs]
                record = Record(folder, {**self._settings, **about, **of}, names, self.config.overwrite)
            todo = [job for job in jobs if not job.path.exists()]
        small = len(todo) == len(jobs) <= self.config.batch_size  # one batch, which is to be timed
        self._translate(sampler, todo, record, warm_up=small)
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

    def pictures(self, jobs: list[Job]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of (B, S, 3, H, W) results and (B, 3, H, W) targets, uint8: this process's share."""
        samples = self.config.num_samples
        size = max(1, self.config.batch_size // samples) * samples
        starts = range(0, len(jobs), size)[self.processes.rank :: self.processes.count]
        for start in tqdm(starts, unit="batch", disable=not self.verbose):
            batch = jobs[start : start + size]
            results = torch.from_numpy(np.stack([images.to_pixels(open_image(job.path)) for job in batch]))
            targets = []
            for job in batch[::samples]:
                _, target = self.dataset.images(job.index)
                if target is None:
                    raise ValueError(f"{self.dataset.pairs[job.index]} has no target to compare with")
                targets.append(images.to_pixels(target))  # RGB, of grey pictures too
            yield results.unflatten(0, (-1, samples)), torch.from_numpy(np.stack(targets))
