"""Translating a folder of pictures on a cluster: ``ray.data`` over their list, an engine in each worker.

A result is written whole or not at all, and its seeds follow from its name. So what a lost worker had made is
there, and Ray gives the rest to another one, which skips what exists.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256, is_temporary, temporary_name
from bbdm.base.scripts import StoppedError
from bbdm.data.examples import BadPicturesError
from bbdm.data.rows import Row, read_rows
from bbdm.data.spec import Spec
from bbdm.files.hub import find_checkpoint
from bbdm.pictures import formats
from bbdm.serving.config import ClusterConfig
from bbdm.serving.connection import connected, machines
from bbdm.translation.results import SETTINGS, Record, missing, paths_of
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
    with tempfile.TemporaryDirectory() as temporary:
        sources, results = folders(config, Path(temporary))
        if sources.overlaps(results):
            raise ValueError(f"results must be outside of the sources, got {config.sources} and {config.results}")
        rows = rows_of(sources)
        sources.fetch([rows[0]["source"]])
        here = replace(config, output_dir=results.here, device="cpu", compile=False)
        translator = Translator(here, rows, independent=True)
        sampler, jobs = translator.sampler(config.chosen_solver, config.steps), translator.plan(results.here)
        alone = translator.files.alone or sampler.window_grid(config) is not None
        worker = config, file_sha256(find_checkpoint(config.model)), translator.dataset.spec
        names = [results.name(path) for path in paths_of(jobs)]
        with suppress(FileNotFoundError):
            results.fetch([results.here / SETTINGS])
        listed = None if results.files is None else results.list
        record = Record(
            results.here, translator.settings(sampler), names, config.overwrite, True, listed, config.results
        )
        if config.overwrite:
            results.remove({*names}.__contains__)
        results.send([record.path])
        left = {job.index: None for job, name in zip(jobs, names, strict=True) if name not in record.existing}
        items = [{"name": rows[i]["name"], "source": sources.name(rows[i]["source"])} for i in left]
        bad: dict[str, str] = {}
        try:
            with tqdm(total=len(rows), initial=len(rows) - len(items), unit="image", disable=not config.shown) as bar:
                for name, error in _outcomes(worker, items, 1 if alone else config.batch_size):
                    bad |= {name: error} if error else {}
                    bar.update()
        finally:
            record.close()
            kept = record.path.exists()
            results.remove(lambda name: is_temporary(name.rpartition("/")[2]) or (name == SETTINGS and not kept))
    if bad and not config.skip_bad:
        first = next(iter(bad.values()))
        raise BadPicturesError(
            f"{first} ({len(bad)} of {len(rows)} pictures; the others are translated, and skip_bad leaves them out)"
        )
    count = len(paths_of(job for job in jobs if rows[job.index]["name"] not in bad))
    return Outcome(count - len(record.existing), len(record.existing), bad)


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
        nodes = machines()
        room = int(max(node.get("CPU", 0) for node in nodes))
        if room < config.threads:
            raise ValueError(f"threads must be at most the {room} cores of a machine, got {config.threads}")
        cores, cards = (int(sum(node.get(each, 0) for node in nodes)) for each in ("CPU", "GPU"))
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


class Folder:
    """A folder here, or copies of what is used of one at an address of fsspec.

    Args:
        address: a path, or an address such as ``s3://BUCKET/FOLDER``.
        copies: the folder where copies are kept.

    Attributes:
        files: the file system of the address; None of a path.
        here: the folder on this machine, or that of copies.

    Raises:
        ValueError: the address cannot be opened, or is a file.
    """

    files: Any = None

    def __init__(self, address: str, copies: Path) -> None:
        self.address = address
        self.here = Path(address.removeprefix("file://")).resolve()
        is_file = self.here.is_file
        if "://" in address and not address.startswith("file://"):
            try:
                self.files, folder = file_system(address)
            except (ImportError, ValueError) as error:
                raise ValueError(f"cannot open {address}: {error}") from error
            self.here, self._folder = copies, folder.rstrip("/")
            is_file = partial(self.files.isfile, self._folder)
        if is_file():
            raise ValueError(f"sources and results are folders, got the file {address}")

    def overlaps(self, other: Folder) -> bool:
        """Whether one of two folders is inside the other, or they are the same."""
        if type(self.files) is not type(other.files):
            return False
        a, b = (PurePosixPath(each.here if each.files is None else each._folder) for each in (self, other))
        return a.is_relative_to(b) or b.is_relative_to(a)

    def name(self, path: Path) -> str:
        """The path of a file here below the folder."""
        return path.relative_to(self.here).as_posix()

    def there(self, path: Path) -> str:
        """The path of a file at the address."""
        return f"{self._folder}/{self.name(path)}"

    def list(self) -> list[str]:
        """All files at an address by their path below it, sorted; none of a folder here."""
        if self.files is None:
            return []
        self.files.invalidate_cache()  # others write there too
        return sorted(path[len(self._folder) + 1 :] for path in self.files.find(self._folder))

    def exists(self, path: Path) -> bool:
        """Whether there is a file."""
        return path.is_file() if self.files is None else self.files.isfile(self.there(path))

    def _copied(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Files that have copies: none of a folder here."""
        return () if self.files is None else paths

    def fetch(self, paths: Iterable[Path]) -> None:
        """Copy files from an address; OSError where one cannot be read."""
        for path in self._copied(paths):
            content = self.files.cat_file(self.there(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def send(self, paths: Iterable[Path]) -> None:
        """Copy files that there are to an address: each is there whole, or not at all."""
        for path in filter(Path.exists, self._copied(paths)):
            target = PurePosixPath(self.there(path))
            part = str(target.with_name(temporary_name(target.name)))
            self.files.makedirs(str(target.parent), exist_ok=True)
            self.files.pipe_file(part, path.read_bytes())
            self.files.cp_file(part, str(target))  # mv would take brackets in a name for a pattern
            self.files.rm_file(part)

    def clear(self, paths: Iterable[Path]) -> None:
        """Delete the copies of files."""
        for path in self._copied(paths):
            path.unlink(missing_ok=True)

    def remove(self, wanted: Callable[[str], bool]) -> None:
        """Delete files at an address by their names."""
        for name in filter(wanted, self.list()):
            self.files.rm_file(f"{self._folder}/{name}")


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there.

    pyarrow reads ``s3``, ``gs`` and ``hdfs`` where the package that fsspec needs for them is missing.

    Raises:
        ImportError: a package is missing; the message names it.
        ValueError: the address is of no known kind.
    """
    try:
        return url_to_fs(address)
    except ImportError:
        with suppress(ImportError, ValueError):
            from pyarrow.fs import FileSystem

            files, path = FileSystem.from_uri(address)
            return ArrowFSWrapper(files), path
        raise


def folders(config: ClusterConfig, copies: Path) -> tuple[Folder, Folder]:
    """The folders of sources and of results, with copies of what is at addresses."""
    return Folder(config.sources, copies / "sources"), Folder(config.results, copies / "results")


def rows_of(sources: Folder) -> Sequence[Row]:
    """All sources, as the layout ``folder`` has them.

    Raises:
        FileNotFoundError, ValueError: there are none, or two have one name.
    """
    if sources.files is None:
        return read_rows("folder", str(sources.here))
    rows: dict[str, Row] = {}
    for path in sources.list():
        if suffix := formats.suffix_of(path) if "/." not in f"/{path}" else "":
            name = path[: -len(suffix)]
            if name in rows:
                raise ValueError(f"two pictures in {sources.address} have the name {name}: remove one")
            rows[name] = {"name": name, "source": sources.here / path}
    if not rows:
        raise ValueError(f"there are no pictures in {sources.address}")
    return [*rows.values()]


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
        self._sources, self._results = folders(config, Path(self._exit.enter_context(tempfile.TemporaryDirectory())))
        self._engine: Any = None  # a translator, its sampler and settings, when there is a picture that can be read

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the results of pictures (``name``, ``source``) that do not exist yet: ``name``, ``error``."""
        names = [str(name) for name in batch["name"]]
        paths = [self._sources.here / str(path) for path in batch["source"]]
        self._sources.fetch(paths)
        try:
            bad = self._make([{"name": name, "source": path} for name, path in zip(names, paths, strict=True)])
        except BadPicturesError as error:  # of all of them
            bad = dict.fromkeys(names, str(error))
        finally:
            self._sources.clear(paths)
        return {"name": np.array(names), "error": np.array([bad.get(name, "") for name in names])}

    def _make(self, rows: Sequence[Row]) -> dict[str, str]:
        """Why pictures have no results, by name."""
        if self._engine is None:
            config = replace(self.config, output_dir=self._results.here, device=self._device)
            translator = Translator(config, rows, self._spec, independent=True)
            sampler = translator.sampler(config.chosen_solver, config.steps)
            self._engine = translator, sampler, translator.settings(sampler)
        translator, sampler, about = self._engine
        translator = translator.of_rows(rows)
        jobs = translator.plan(self._results.here)
        translator.make(sampler, missing(jobs, self._results.exists), about)
        self._results.send(paths_of(jobs))
        self._results.clear(paths_of(jobs))
        return {translator.files.names[index]: reason for index, reason in translator.bad.items()}
