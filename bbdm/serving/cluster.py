"""Translating a folder of pictures on a cluster: ``ray.data`` over their list, an engine in each worker.

A result is written whole or not at all, and its seeds follow from its name. So what a lost worker had made is
there, and Ray gives the rest to another one, which skips what exists.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256
from bbdm.base.places import Place
from bbdm.base.scripts import StoppedError
from bbdm.data.examples import BadPicturesError
from bbdm.data.rows import Row, read_rows
from bbdm.data.spec import Spec
from bbdm.files.hub import find_checkpoint
from bbdm.pictures import suffixes
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import connected
from bbdm.translation.results import Record, missing, paths_of
from bbdm.translation.translator import Translator


class Outcome(NamedTuple):
    """What a run did."""

    results: int
    kept: int  # results that were there
    bad: dict[str, str]  # why pictures have no results, by name


def translate(config: ClusterConfig) -> Outcome:
    """Make the results that do not exist yet.

    Raises:
        BadPicturesError: pictures cannot be read, without ``skip_bad``; all others are made.
        ResultsError: the folder holds results of other settings.
        StoppedError: a worker cannot go on, such as with a full disk.
        ValueError, OSError: the network, the pictures or the cluster cannot be used.
    """
    pictures, results = Place.of(config.sources), Place.of(config.results)
    if pictures.overlaps(results):
        raise ValueError(f"results must be outside of the sources, got {config.sources} and {config.results}")
    if pictures.is_file:
        raise ValueError(f"sources are a folder of pictures, got the file {config.sources}")
    with tempfile.TemporaryDirectory() as temporary:
        exchange = Exchange(config, Path(temporary))
        rows = exchange.rows()
        exchange.fetch([rows[0]["source"]])
        here = replace(config, output_dir=exchange.results, device="cpu", compile=False)
        translator = Translator(here, rows, independent=True)
        sampler, jobs = translator.sampler(config.chosen_solver, config.steps), translator.plan(exchange.results)
        alone = translator.files.alone or sampler.window_grid(config) is not None
        worker = config, file_sha256(find_checkpoint(config.model)), translator.dataset.spec
        names = [exchange.name(path) for path in paths_of(jobs)]
        record = Record(config.results, translator.settings(sampler), names, config.overwrite, further=True)
        missing = {job.index: None for job, name in zip(jobs, names, strict=True) if name not in record.existing}
        items = [
            {"name": rows[i]["name"], "source": str(rows[i]["source"].relative_to(exchange.sources))} for i in missing
        ]
        bad: dict[str, str] = {}
        try:
            with tqdm(total=len(rows), initial=len(rows) - len(items), unit="image", disable=not config.shown) as bar:
                for name, error in _outcomes(worker, items, 1 if alone else config.batch_size):
                    bad |= {name: error} if error else {}
                    bar.update()
        finally:
            record.place.remove_leftovers(names)
            record.close()
    if bad and not config.skip_bad:
        first = next(iter(bad.values()))
        raise BadPicturesError(
            f"{first} ({len(bad)} of {len(rows)} pictures; the others are translated, and skip_bad leaves them out)"
        )
    results = paths_of(job for job in jobs if rows[job.index]["name"] not in bad)
    return Outcome(len(results) - len(record.existing), len(record.existing), bad)


def _outcomes(
    worker: tuple[ClusterConfig, str, Spec], items: Sequence[Mapping[str, str]], at_once: int
) -> Iterator[tuple[str, str]]:
    """The name of each picture as it is done, and why it has no result, or nothing.

    Args:
        worker: the arguments of :class:`Worker`.
        items: the name and the source of each.
        at_once: pictures of a batch.
    """
    if not items:
        return
    config = worker[0]
    with connected(config.address):
        import ray.data
        from ray.exceptions import RayError

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        cores, cards = (int(ray.cluster_resources().get(each, 0)) for each in ("CPU", "GPU"))
        if cores < config.threads:
            raise ValueError(f"threads must be at most the {cores} cores of the cluster, got {config.threads}")
        most = min(cards or cores // config.threads, config.workers or len(items), len(items))
        data = ray.data.from_items([*items], override_num_blocks=max(most, math.ceil(len(items) / at_once)))
        workers = data.map_batches(
            Worker,
            fn_constructor_args=worker,
            batch_size=at_once,
            num_cpus=config.threads,
            num_gpus=1 if cards else 0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        )
        try:
            for row in workers.iter_rows():
                yield str(row["name"]), str(row["error"])
        except RayError as error:
            cause: Any = getattr(error, "cause", None) or error
            if not isinstance(cause, ValueError | OSError | RayError):
                raise
            raise StoppedError(f"{cause}; results that were made are kept") from error


class Exchange:
    """The folders of sources and of results here: their own, or copies of what is at addresses.

    Args:
        config: where sources and results are.
        folder: where copies are kept.
    """

    def __init__(self, config: ClusterConfig, folder: Path) -> None:
        self._pictures, self._results = Place.of(config.sources), Place.of(config.results)
        self.sources = Path(self._pictures.folder) if self._pictures.is_here else folder / "sources"
        self.results = Path(self._results.folder) if self._results.is_here else folder / "results"

    def rows(self) -> Sequence[Row]:
        """All sources, as the layout ``folder`` has them.

        Raises:
            FileNotFoundError, ValueError: there are none, or two have one name.
        """
        if self._pictures.is_here:
            return read_rows("folder", str(self.sources))
        rows: dict[str, Row] = {}
        for path in self._pictures.list():
            if suffix := suffixes.suffix_of(path) if "/." not in f"/{path}" else "":
                name = path[: -len(suffix)]
                if name in rows:
                    raise ValueError(f"two pictures in {self._pictures.folder} have the name {name}: remove one")
                rows[name] = {"name": name, "source": self.sources / path}
        if not rows:
            raise ValueError(f"there are no pictures in {self._pictures.folder}")
        return [*rows.values()]

    def fetch(self, paths: Sequence[Path]) -> None:
        """Copy sources from an address."""
        for path in () if self._pictures.is_here else paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._pictures.read(path.relative_to(self.sources).as_posix()))

    def name(self, path: Path) -> str:
        """The file of a result, below the folder or the address of all."""
        return path.relative_to(self.results).as_posix()

    def exists(self, path: Path) -> bool:
        """Whether there is a result."""
        return self._results.exists(self.name(path))

    def send(self, paths: Sequence[Path]) -> None:
        """Move results to an address."""
        for path in () if self._results.is_here else paths:
            if path.exists():
                self._results.write(self.name(path), path.read_bytes())
                path.unlink()

    def clear(self, paths: Sequence[Path]) -> None:
        """Delete copies of sources."""
        for path in () if self._pictures.is_here else paths:
            path.unlink()


class Worker:
    """An engine in a process of its own, on its GPU or on the cores that it has.

    Args:
        config: how pictures are translated.
        sha256: of the network's file.
        spec: what all pictures are.

    Raises:
        ValueError: the network's file is not the driver's.
    """

    def __init__(self, config: ClusterConfig, sha256: str, spec: Spec) -> None:
        if file_sha256(find_checkpoint(config.model)) != sha256:
            raise ValueError(f"{config.model} differs from machine to machine")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(config.threads)
        self.config, self._spec, self._exit = config, spec, ExitStack()
        self._exchange = Exchange(config, Path(self._exit.enter_context(tempfile.TemporaryDirectory())))
        self._engine: Any = None  # a translator, its sampler and settings, when there is a picture that can be read

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the results of pictures (``name``, ``source``) that do not exist yet: ``name``, ``error``."""
        names, exchange = [str(name) for name in batch["name"]], self._exchange
        sources = [exchange.sources / str(path) for path in batch["source"]]
        exchange.fetch(sources)
        try:
            bad = self._make([{"name": name, "source": path} for name, path in zip(names, sources, strict=True)])
        except BadPicturesError as error:  # of all of them
            bad = dict.fromkeys(names, str(error))
        finally:
            exchange.clear(sources)
        return {"name": np.array(names), "error": np.array([bad.get(name, "") for name in names])}

    def _make(self, rows: Sequence[Row]) -> dict[str, str]:
        """Why pictures have no results, by name."""
        if self._engine is None:
            config = replace(self.config, output_dir=self._exchange.results, device=self._device)
            translator = Translator(config, rows, self._spec, independent=True)
            sampler = translator.sampler(config.chosen_solver, config.steps)
            self._engine = translator, sampler, translator.settings(sampler)
        translator, sampler, about = self._engine
        translator = translator.of_rows(rows)
        jobs = translator.plan(self._exchange.results)
        translator.make(sampler, missing(jobs, self._exchange.exists), about)
        self._exchange.send(paths_of(jobs))
        return {translator.files.names[index]: reason for index, reason in translator.bad.items()}
