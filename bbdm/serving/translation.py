"""Translating a large set of pictures on a cluster of Ray, by samplers in actors.

The driver lists sources and results, and sends what is missing to the actors. A result is written whole or
not at all, and its seed follows from its name. So what a lost machine had made is there, and what it had not
made is found missing and sent again. The driver alone writes the manifest, from what it finds at the end.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from threading import Lock
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
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.kind import check_eight_bit
from bbdm.sampling.network_config import chosen_size, described_size
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import connected, room_for
from bbdm.serving.sources import Columns, Sources, blocks, find, read_group

MANIFEST = "manifest.jsonl"
CALLS = 2  # of each worker at a time: one reads and writes while the other translates
MOST_FRUITLESS = 3  # attempts in a row that make nothing: Ray notices a lost machine after some 10 seconds


@dataclass(frozen=True)
class Task:
    """What each worker needs to know: the network, where pictures and results are, what pictures become."""

    config: ClusterConfig
    sha256: str  # of the network's file
    pictures: Place
    results: Place
    columns: Columns  # of parquet files
    channels: int
    size: Size
    resize: Resize


def result_of(name: str) -> str:
    """The file of a picture's result."""
    return f"{name}.png"


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
    check_eight_bit(sampler.pictures, "translate-ray")
    size, resize = chosen_size(config.image_size, sampler.image_size)
    channels = sampler.unet.source_channels if sampler.codec is None else sampler.codec.image_channels
    sha256 = file_sha256(model)
    about = {**description(sampler, sha256), "image_size": described_size(size, resize)}
    settings = {**about, "seed": config.seed, "seeds": "by name"}
    del sampler  # the workers have their own
    pictures, results = Place.of(config.sources), Place.of(config.results)
    if pictures.overlaps(results):
        raise ValueError(f"results must be outside of the sources, got {config.sources} and {config.results}")
    columns = Columns(config.name_column, config.image_column)
    sources = find(pictures, columns)
    record = Record(config.results, settings, [*map(result_of, sources)], config.overwrite)
    before = record.existing
    task = Task(config, sha256, pictures, results, columns, channels, size, resize)
    with connected(config.address), tqdm(total=len(sources), unit="image", disable=not progress) as bar:
        bad = _make(task, sources, before, bar)
    _write_manifest(task, sources, bad)
    if bad and not config.skip_bad:
        first = next(iter(bad.values()))
        raise BadPicturesError(f"{first} ({len(bad)} of {len(sources)} pictures; the others are translated)")
    return Outcome(len(sources) - len(before) - len(bad), len(before), bad)


def _make(task: Task, sources: Sources, done: set[str], bar: Any) -> dict[str, str]:
    """Make the results that are not done, however often machines are lost.

    Returns:
        Why pictures cannot be read, by name.
    """
    from ray.exceptions import RayError, RayTaskError

    bad: dict[str, str] = {}
    fruitless = 0  # attempts, one after the other
    bar.update(len(done))
    while missing := [name for name in sources if result_of(name) not in done and name not in bad]:
        before, lost = len(done) + len(bad), ""
        try:
            with closing(_outcomes(task, blocks(sources, missing, task.config.batch_size))) as outcomes:
                for count, unreadable in outcomes:
                    bad |= unreadable
                    bar.update(count)
        except RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError):  # of the network's file, or of a disk
                raise StoppedError(f"{error.cause}; results that were made are kept") from error
            raise  # a defect, which would come again
        except RayError as error:
            lost = str(error)
        done = task.results.existing(map(result_of, sources))
        bar.n = len(done) + len(bad)
        bar.refresh()
        fruitless = 0 if len(done) + len(bad) > before else fruitless + 1
        if fruitless == MOST_FRUITLESS:
            raise StoppedError(f"the cluster makes no more results, {len(missing)} are missing: {lost}")
    return bad


def _outcomes(task: Task, waiting: list[Sources]) -> Generator[tuple[int, dict[str, str]]]:
    """Send pictures to workers. One that is lost is not started again: its machine may never come back.

    Yields:
        A number of pictures, and what :meth:`Worker.make` returned of them.

    Raises:
        RayError: workers were lost with their pictures; the others have made theirs.
    """
    import ray
    from ray.exceptions import RayActorError

    config = task.config
    count, gpu = room_for(config.threads)
    actor: Any = ray.remote(Worker)
    actor = actor.options(num_cpus=config.threads, num_gpus=int(gpu), max_concurrency=CALLS)
    workers = [actor.remote(task) for _ in range(min(count, config.workers or count))]
    # One that waits for its machine gets no pictures yet: others may be done with all before
    calls: dict[Any, tuple[Any, Sources]] = {worker.make.remote({}): (worker, {}) for worker in workers * CALLS}
    lost: RayActorError | None = None
    try:
        while calls and (waiting or any(block for _, block in calls.values())):
            (call,), _ = ray.wait([*calls])
            worker, block = calls.pop(call)
            try:
                yield len(block), ray.get(call)
            except RayActorError as error:
                lost = error
                continue
            if waiting:
                block = waiting.pop()
                calls[worker.make.remote(block)] = worker, block
    finally:
        for worker in workers:
            ray.kill(worker)
    if lost is not None:
        raise lost


class Worker:
    """A sampler in a process of its own, which reads pictures, translates them, and writes the results."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._lock = Lock()

    def make(self, block: Sources) -> dict[str, str]:
        """Make those results of some pictures that do not exist yet.

        Returns:
            Why pictures cannot be read, by name.

        Raises:
            OSError: a result cannot be written.
            ValueError: the network is not the driver's.
        """
        task, size, bad = self.task, self.task.config.batch_size, dict[str, str]()
        pictures = self._read(block, bad)
        while batch := list(islice(pictures, size)):
            seeds = [seed_of(name, task.config.seed) for name, _ in batch]
            with self._lock:
                made = self._sampler([picture for _, picture in batch], seed=seeds, batch_size=size)
            for (name, _), result in zip(batch, made, strict=True):
                task.results.write(result_of(name), images.to_png(result))
        return bad

    def _read(self, block: Sources, bad: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
        """The pictures without a result, as the network takes them; notes why others cannot be read."""
        task = self.task
        group: dict[str, bytes] = {}
        for name, at in block.items():
            if task.results.exists(result_of(name)):
                continue
            try:
                if at.group is None:
                    picture = images.decode(task.pictures.read(at.file), at.file)
                else:
                    group = group or read_group(task.pictures, at, task.columns)
                    picture = images.decode(group[name], f"{name} of {at.file}")
                yield name, images.resized(images.convert(picture, task.channels), task.size, task.resize)
            except (OSError, ValueError) as error:
                bad[name] = str(error)

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


def _write_manifest(task: Task, sources: Sources, bad: dict[str, str]) -> None:
    """Write a line for each source, and delete what lost workers left half written."""
    results = task.results
    results.remove_leftovers(map(result_of, sources))
    lines: list[str] = []
    for name in sorted(sources):
        outcome = {"error": bad[name]} if name in bad else {"result": result_of(name)}
        lines.append(json.dumps({"name": name, "seed": seed_of(name, task.config.seed), **outcome}))
    results.write(MANIFEST, "".join(f"{line}\n" for line in lines).encode())
