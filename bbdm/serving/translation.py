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

from PIL import Image
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256
from bbdm.base.places import Place
from bbdm.base.scripts import StoppedError
from bbdm.base.seeds import seed_of
from bbdm.data.examples import BadPicturesError
from bbdm.data.spec import check_eight_bit
from bbdm.evaluation.results import Record, description
from bbdm.files.hub import find_checkpoint
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size
from bbdm.sampling.network_config import chosen_size, described_size
from bbdm.sampling.sampler import BridgeSampler
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import connected
from bbdm.serving.sources import Sources, Where, blocks, find, read_group
from bbdm.serving.workers import MOST_FRUITLESS, Call, Workers, load_sampler, what_was_lost

MANIFEST = "manifest.jsonl"
CALLS = 2  # of each worker at a time: one reads and writes while the other translates


@dataclass(frozen=True)
class Task:
    """What each worker needs to know: the network, where pictures and results are, what pictures become."""

    config: ClusterConfig
    sha256: str  # of the network's file
    pictures: Place
    results: Place
    channels: int
    size: Size
    resize: Resize
    at_once: int  # pictures of a call: one where the network is called on its windows


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
    sha256 = file_sha256(model)
    pictures, results = Place.of(config.sources), Place.of(config.results)
    if pictures.overlaps(results):
        raise ValueError(f"results must be outside of the sources, got {config.sources} and {config.results}")
    if pictures.is_file:
        raise ValueError(f"sources are a folder of pictures, got the file {config.sources}: use bbdm translate")
    check_eight_bit(sampler.pictures, "translate-ray")
    windows = sampler.window_grid(config)
    wanted = config.image_size or ("fit" if windows is None else "keep")
    size, resize = chosen_size(wanted, sampler.image_size)
    channels = sampler._shapes.source_channels
    settings = _settings(config, sampler, sha256, described_size(size, resize))
    del sampler  # the workers have their own
    sources = find(pictures, config.columns)
    files = {name: result_of(name) for name in sources}
    record = Record(config.results, settings, [*files.values()], config.overwrite)
    before = record.existing
    at_once = config.batch_size if windows is None else 1
    task = Task(config, sha256, pictures, results, channels, size, resize, at_once)
    bad = _still_bad(task, sources)
    if len(before) + len(bad) < len(sources):
        with connected(config.address), tqdm(total=len(sources), unit="image", disable=not progress) as bar:
            bad = _make(task, sources, before, bad, bar)
    _write_manifest(results, files, config.seed, bad)
    if bad and not config.skip_bad:
        first = next(iter(bad.values()))
        raise BadPicturesError(f"{first} ({len(bad)} of {len(sources)} pictures; the others are translated)")
    return Outcome(len(sources) - len(before) - len(bad), len(before), bad)


def _settings(config: ClusterConfig, sampler: BridgeSampler, sha256: str, size: Any) -> dict[str, Any]:
    """What decides the results."""
    about = {**description(sampler, sha256), "image_size": size, "seed": config.seed, "seeds": "by name"}
    return {**about, **config.call}


def _still_bad(task: Task, sources: Sources) -> dict[str, str]:
    """Why pictures that could not be read before still cannot, by name; no cluster is started to see that."""
    bad: dict[str, str] = {}
    if task.results.exists(MANIFEST):
        lines = map(json.loads, task.results.read(MANIFEST).decode().splitlines())
        before = {line["name"]: sources[line["name"]] for line in lines if "error" in line and line["name"] in sources}
        for _ in _read(task, before, bad):
            pass
    return bad


def _make(task: Task, sources: Sources, done: set[str], bad: dict[str, str], bar: Any) -> dict[str, str]:
    """Make the results that are not done, however often machines are lost. ``bad`` are left out.

    Returns:
        Why pictures cannot be read, by name.
    """
    from ray.exceptions import RayError

    bad = dict(bad)
    fruitless = 0  # attempts, one after the other
    bar.update(len(done) + len(bad))
    while missing := [name for name in sources if result_of(name) not in done and name not in bad]:
        before, lost = len(done) + len(bad), ""
        try:
            with closing(_outcomes(task, blocks(sources, missing, task.at_once))) as outcomes:
                for count, unreadable in outcomes:
                    bad |= unreadable
                    bar.update(count)
        except RayError as error:
            lost = what_was_lost(error)
        done = task.results.existing(map(result_of, sources))
        bar.n = len(done) + len(bad)
        bar.refresh()
        fruitless = 0 if len(done) + len(bad) > before else fruitless + 1
        if fruitless == MOST_FRUITLESS:
            raise StoppedError(f"the cluster makes no more results, {len(missing)} are missing: {lost}")
    return bad


def _outcomes(task: Task, waiting: list[Sources]) -> Generator[tuple[int, dict[str, str]]]:
    """Send pictures to workers.

    Yields:
        A number of pictures, and what :meth:`Worker.make` returned of them.

    Raises:
        RayError: all workers were lost, or a call failed.
    """
    with closing(Workers(Worker, task, task.config, CALLS)) as workers:
        calls = {index: Call((block,)) for index, block in enumerate(waiting)}
        for index, _, bad in workers.run("make", calls):
            yield len(waiting[index]), bad


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
        task, config, bad = self.task, self.task.config, dict[str, str]()
        settings = {"batch_size": config.batch_size, **config.call}
        pictures = _read(task, block, bad)
        while batch := list(islice(pictures, task.at_once)):
            seeds = [seed_of(name, config.seed) for name, _ in batch]
            with self._lock:
                made = self._sampler([picture for _, picture in batch], seed=seeds, **settings)
            for (name, _), result in zip(batch, made, strict=True):
                task.results.write(result_of(name), images.to_png(result))
        return bad

    @cached_property
    def _sampler(self) -> BridgeSampler:
        return load_sampler(self.task.config, self.task.sha256)


def _read(task: Task, pictures: Sources, bad: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures without a result, as the network takes them; notes why others cannot be read."""
    groups: dict[Where, dict[str, bytes]] = {}  # the last
    for name, at in pictures.items():
        if task.results.exists(result_of(name)):
            continue
        try:
            if at.group is None:
                picture = images.open_image(task.pictures.read(at.file), at.file)
            else:
                if at not in groups:
                    groups = {at: read_group(task.pictures, at, task.config.columns)}
                picture = images.open_image(groups[at][name], f"{name} of {at.file}")
            yield name, images.resized(images.convert(picture, task.channels), task.size, task.resize)
        except (OSError, ValueError) as error:
            bad[name] = str(error)


def _write_manifest(results: Place, files: dict[str, str], seed: int, bad: dict[str, str]) -> None:
    """Write a line for each source, and delete what lost workers left half written."""
    results.remove_leftovers(files.values())
    lines: list[str] = []
    for name, file in sorted(files.items()):
        outcome = {"error": bad[name]} if name in bad else {"result": file}
        lines.append(json.dumps({"name": name, "seed": seed_of(name, seed), **outcome}))
    results.write(MANIFEST, "".join(f"{line}\n" for line in lines).encode())
