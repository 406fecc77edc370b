"""Restoring photographs, each at its own size, by windows; those larger than memory from file to file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bbdm import pictures
from bbdm.base import manifest, scripts
from bbdm.base.atomic import check_folder, file_sha256
from bbdm.base.memory import free_memory, shown
from bbdm.base.seeds import seed_of
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.data.strips import Strips
from bbdm.evaluation.config import RestoreConfig
from bbdm.evaluation.large import translate_by_parts
from bbdm.evaluation.photographs import Photograph
from bbdm.evaluation.results import SETTINGS, ResultsError
from bbdm.execution.device import best_dtype, find_device
from bbdm.files.hub import find_checkpoint
from bbdm.networks.windows import WindowGrid
from bbdm.pictures import files, suffixes
from bbdm.pictures.values import EIGHT_BIT
from bbdm.sampling.large import in_memory
from bbdm.sampling.sampler import BridgeSampler

SUFFIX = ".png"  # of results: they lose nothing


@dataclass(frozen=True)
class Outcome:
    """What became of a photograph."""

    photograph: Path
    written: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()  # results that were there
    error: Exception | None = None  # why there is none


class Restorer:
    """A network that restores photographs.

    Raises:
        FileNotFoundError, ValueError: the network cannot be read.
    """

    def __init__(self, config: RestoreConfig) -> None:
        self.config = config
        check_folder(config.output_dir)
        self._limit = config.memory or free_memory() // 2
        self._verbose = scripts.is_shown(config.show_verbose, config.quiet)

    @cached_property
    def sampler(self) -> BridgeSampler:
        """The sampler of the network's file, which is read when it is needed."""
        config = self.config
        device = find_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        solver = "mean" if config.mean else None
        return BridgeSampler.from_checkpoint(
            find_checkpoint(config.model),
            solver=solver,
            steps=config.steps,
            device=device,
            dtype=config.dtype or best_dtype(device),
            compile=config.compile,
        )

    def __call__(self) -> Iterator[Outcome]:
        """Restore all photographs, one after the other; what is wrong with one is its outcome.

        Raises:
            DiskFullError: the disk is full.
            FileNotFoundError: there is no such network.
            ResultsError: a result of other settings is there, by the record that is kept beside results.
            ValueError: two results have one name, or a photograph's name; or a folder has no picture.
        """
        planned = self._plan()
        self._record(planned)
        for photograph, results in planned.items():
            kept = [] if self.config.overwrite else [path for path in results if path.exists()]
            missing = {path: number for number, path in enumerate(results) if path not in kept}
            try:
                if missing:
                    self._restore(photograph, missing)
            except (ValueError, FileNotFoundError, PermissionError) as error:
                yield Outcome(photograph, (), tuple(kept), error)
            else:
                yield Outcome(photograph, tuple(missing), tuple(kept))

    def _plan(self) -> dict[Path, list[Path]]:
        """The results of each photograph."""
        planned: dict[Path, list[Path]] = {}
        owners: dict[Path, Path] = {}
        given = list(_files(self.config.photographs))
        originals = {path.resolve() for path in given}
        for photograph in given:
            numbers = [f"_{number}" for number in range(self.config.samples)] if self.config.samples > 1 else [""]
            stem = suffixes.stem_of(photograph)
            planned[photograph] = [self.config.output_dir / f"{stem}{number}{SUFFIX}" for number in numbers]
            for result in planned[photograph]:
                if owners.setdefault(result, photograph) != photograph:
                    raise ValueError(f"{owners[result]} and {photograph} would both become {result}: rename one")
                if result.resolve() in originals:
                    raise ValueError(f"the result of {photograph} would replace {result}: give another output_dir")
        return planned

    def _record(self, planned: dict[Path, list[Path]]) -> None:
        """Write what makes each result; those without a record, of an earlier version, stay without one."""
        config, file = self.config, self.config.output_dir / SETTINGS
        made: dict[str, Any] = {}
        if file.exists():
            with manifest.reading(file, "give another output_dir, or delete it") as content:
                made = {name: dict(each) for name, each in content.items()}
        about = {"weights": file_sha256(find_checkpoint(config.model)), "mean": config.mean, "steps": config.steps}
        about |= {"dtype": config.dtype, **config.call}
        for photograph, results in planned.items():
            for number, path in enumerate(results):
                seed = None if config.mean else config.seed + number
                now = manifest.as_json({"photograph": photograph.name, "seed": seed, **about})
                if config.overwrite:
                    path.unlink(missing_ok=True)
                before = made.get(path.name) if path.exists() else now
                if before and (differing := manifest.differences(before, now)):
                    raise ResultsError(f"{path} is a result of other settings ({differing})")
                made |= {path.name: now} if before else {}
        manifest.write(file, made)

    def _restore(self, path: Path, results: dict[Path, int]) -> None:
        """Write results, each with a number, of a photograph."""
        height, width = size = pictures.header(path).sides[-2:]
        windows = self.sampler.window_grid(self.config, size)
        needed = in_memory(self.sampler, (height, width), windows)
        if needed > self._limit and windows is None:
            raise ValueError(f"{path} needs about {shown(needed)} of memory, more than {shown(self._limit)}")
        photograph = None if needed > self._limit else Photograph.read(path)
        for result, number in results.items():
            seed = seed_of(path.name, self.config.seed + number)
            if photograph is None:
                assert windows is not None
                self._stream(path, result, windows, seed)
                continue
            source = torch.from_numpy(photograph.pixels.copy())[None]
            made = self.sampler(source, seed=seed, progress=self._verbose, **self.config.call)
            photograph.with_pixels(made[0].cpu().numpy()).save(result)

    def _stream(self, path: Path, result: Path, windows: WindowGrid, seed: int) -> None:
        """Write the result of a photograph of 8-bit colours that is larger than memory."""
        row = {"name": path.name, "source": path}
        strips = Strips.of(Pairs([row], Spec(channels=self.sampler.unet.channels)).reader, row)
        if strips.dtype != EIGHT_BIT.dtype:
            raise ValueError(f"{path} is larger than memory and has {strips.dtype} values: give more --memory")
        about: dict[str, Any] = {"model": str(self.config.model), "photograph": str(path.resolve())}
        stream = self.sampler, strips, windows, seed, self._limit
        translate_by_parts(stream, result, about, str(path), self._verbose)


def _files(given: Iterable[Path]) -> Iterator[Path]:
    """Files, and the pictures of folders."""
    for path in given:
        if path.is_dir():
            found = sorted(each for each in files.pictures_in(path) if files.is_picture(each))
            if not found:
                raise ValueError(f"there is no picture in {path}; suffixes are {', '.join(sorted(suffixes.SUFFIXES))}")
            yield from found
        else:
            yield path
