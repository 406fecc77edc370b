"""Translating a large set of pictures on a cluster: Ray Data reads, samplers in actors make and write.

The driver lists sources and results, and sends what is missing through the cluster. A result is written whole
or not at all, and its seed follows from its name. So what a lost machine had made is there, and what it had
not made is found missing and sent again. The driver alone writes the manifest, from what it finds at the end.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256
from bbdm.base.places import Place
from bbdm.base.scripts import StoppedError
from bbdm.base.seeds import seed_of
from bbdm.data.survey import BadPicturesError
from bbdm.evaluation.results import Record, description
from bbdm.files.hub import find_checkpoint
from bbdm.pictures.images import to_png
from bbdm.sampling.network_config import chosen_size
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import connected, room_for
from bbdm.serving.reading import Reading, read, result_of
from bbdm.serving.sources import Columns, Sources, blocks, find

MANIFEST = "manifest.jsonl"
READERS = 2  # tasks that read pictures, for each worker
MOST_FRUITLESS = 3  # attempts in a row that make nothing: Ray notices a lost machine after some 10 seconds


@dataclass(frozen=True)
class Task:
    """What each worker needs to know."""

    config: ClusterConfig
    sha256: str  # of the network's file
    reading: Reading


@dataclass
class Outcome:
    """What a run did."""

    made: int  # results
    kept: int  # results that were there
    bad: dict[str, str] = field(default_factory=dict)  # why pictures cannot be read, by name


def translate(config: ClusterConfig, progress: bool = False) -> Outcome:
    """Make the results that do not exist yet, and write the manifest of all.

    Raises:
        BadPicturesError: pictures cannot be read, without ``skip_bad``; all others are made.
        ResultsError: the folder holds results of other settings.
        StoppedError: a result cannot be written, or machines were lost and those that are left make none.
        ValueError, OSError: the network, the pictures or the cluster cannot be used.
    """
    model = find_checkpoint(config.model)
    sampler = replace(config, compile=False).sampler(model, "cpu")
    size, resize = chosen_size(config.image_size, sampler.image_size)
    channels = sampler.unet.channels if sampler.codec is None else sampler.codec.image_channels
    sha256 = file_sha256(model)
    settings = {**description(sampler, sha256, size, resize), "seed": config.seed, "seeds": "by name"}
    del sampler  # the workers have their own
    pictures, results = Place.of(config.sources), Place.of(config.results)
    if pictures.overlaps(results):
        raise ValueError(f"results must be outside of the sources, got {config.sources} and {config.results}")
    columns = Columns(config.name_column, config.image_column)
    sources = find(pictures, columns)
    record = Record(config.results, settings, [*map(result_of, sources)], config.overwrite)
    before = _names(record.existing)
    task = Task(config, sha256, Reading(pictures, results, channels, size, resize, columns))
    with connected(config.address), tqdm(total=len(sources), unit="image", disable=not progress) as bar:
        bad = _make(task, sources, before, bar)
    _write_manifest(task, sources, bad)
    if bad and not config.skip_bad:
        first = next(iter(bad.values()))
        raise BadPicturesError(f"{first} ({len(bad)} of {len(sources)} pictures; the others are translated)")
    return Outcome(len(sources) - len(before) - len(bad), len(before), bad)


def _names(results: Iterable[str]) -> set[str]:
    """The names of the pictures of results."""
    return {file.removesuffix(result_of("")) for file in results}


def _make(task: Task, sources: Sources, done: set[str], bar: Any) -> dict[str, str]:
    """Make what is missing, however often machines are lost; returns why pictures cannot be read, by name."""
    from ray.exceptions import RayError, UserCodeException

    bad: dict[str, str] = {}
    fruitless = 0  # attempts, one after the other
    bar.update(len(done))
    while missing := [name for name in sources if name not in done and name not in bad]:
        lost = ""
        try:
            for name, reason, failure in _outcomes(task, sources, missing):
                if failure:
                    raise StoppedError(f"{failure}; results that were made are kept")
                if reason:
                    bad[name] = reason
                bar.update()
        except UserCodeException:  # a defect, which would come again
            raise
        except RayError as error:
            lost = str(error)  # not the error itself, which would keep the pipeline and its cores
        done = _names(task.reading.results.existing(map(result_of, sources)))
        bar.n = len(done) + len(bad)
        bar.refresh()
        fruitless = 0 if any(name in done or name in bad for name in missing) else fruitless + 1
        if fruitless == MOST_FRUITLESS:
            raise StoppedError(f"the cluster makes no more results, {len(missing)} are missing: {lost}")
    return bad


def _outcomes(task: Task, sources: Sources, missing: list[str]) -> Iterator[tuple[str, str, str]]:
    """Send missing pictures through the cluster.

    Yields:
        The name of each, why it cannot be read, and why the work cannot go on; empty where it was made.
    """
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    config = task.config
    count, gpu = room_for(config.threads)
    count = min(count, config.workers or count)
    reader = partial(read, reading=task.reading)
    # Reading waits for the disk or the network, and workers may take all cores: it asks for none.
    readers = ray.data.TaskPoolStrategy(size=READERS * count)
    samplers = ray.data.ActorPoolStrategy(size=count)
    # A worker that is lost is not started again: it could wait for a machine that never comes back.
    once: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of ``once``, until Ray 2.64
        made = (
            ray.data.from_blocks(blocks(sources, missing, config.batch_size))
            .map_batches(reader, batch_size=None, batch_format="pyarrow", compute=readers, num_cpus=0)
            .map_batches(
                Worker,
                fn_constructor_args=(task,),
                compute=samplers,
                num_cpus=config.threads,
                num_gpus=int(gpu),
                batch_size=config.batch_size,
                batch_format="pyarrow",
                **once,
            )
        )
    batch: Any
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from zip(*(batch[name].to_pylist() for name in ("name", "reason", "failure")), strict=True)


class Worker:
    """A sampler in a process of its own, which translates what was read, and writes the results."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, batch: Any) -> Any:
        """Translate a table of :func:`~bbdm.serving.reading.read`.

        Returns:
            Its ``name`` and ``reason``, and ``failure``: why the work cannot go on, or empty.
        """
        import pyarrow as pa

        failure = ""
        try:
            self._translate([row for row in batch.to_pylist() if not row["reason"]])
        except (ValueError, OSError) as error:  # of the network's file, or of a disk
            failure = str(error)
        failures = pa.array([failure] * len(batch), pa.string())
        return batch.select(["name", "reason"]).append_column("failure", failures)

    @cached_property
    def _sampler(self) -> BridgeSampler:
        config = self.task.config
        model = find_checkpoint(config.model)
        if file_sha256(model) != self.task.sha256:
            raise ValueError(f"{config.model} differs from machine to machine")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(config.threads)
        return config.sampler(model, device)

    def _translate(self, rows: list[dict[str, Any]]) -> None:
        config, reading = self.task.config, self.task.reading
        mode = "L" if reading.channels == 1 else "RGB"
        sources = [Image.frombytes(mode, (row["width"], row["height"]), row["pixels"]) for row in rows]
        seeds = [seed_of(row["name"], config.seed) for row in rows]
        made = self._sampler(sources, seed=seeds, batch_size=config.batch_size) if rows else []
        for row, result in zip(rows, made, strict=True):
            reading.results.write(result_of(row["name"]), to_png(result))


def _write_manifest(task: Task, sources: Sources, bad: dict[str, str]) -> None:
    """Write a line for each source, and delete what lost workers left half written."""
    results = task.reading.results
    results.remove_leftovers(map(result_of, sources))
    lines: list[str] = []
    for name in sorted(sources):
        outcome = {"error": bad[name]} if name in bad else {"result": result_of(name)}
        lines.append(json.dumps({"name": name, "seed": seed_of(name, task.config.seed), **outcome}))
    results.write(MANIFEST, "".join(f"{line}\n" for line in lines).encode())
