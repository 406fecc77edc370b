"""The commands that make results: of data sets, of the bundled drawings, of photographs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from PIL import Image

from bbdm.base import demo
from bbdm.base.atomic import write_atomically
from bbdm.base.scripts import Command, StoppedError
from bbdm.base.settings import flag_fields, position, setting
from bbdm.cli.calibrated import CalibratedCommand
from bbdm.data.rows import FRAMES
from bbdm.files.header import read_header
from bbdm.pictures import images
from bbdm.translation.config import OF_SEQUENCES, TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.files import Files
    from bbdm.translation.films import Film
    from bbdm.translation.results import Job
    from bbdm.translation.translator import Translator

GRID_PAIRS = 16  # at most


def draw_grid(files: Files, jobs: list[Job]) -> Image.Image:
    """(source | results | target) of the first sources, in a sheet about as high as wide."""
    results: dict[int, list[Path]] = {}
    for job in jobs:
        results.setdefault(job.index, []).extend(job.paths.values())
    first = list(results.items())[:GRID_PAIRS]
    examples = [files.pictures(index, paths) for index, paths in first]
    count = len(results[jobs[0].index])
    targets = len(examples[0]) - 1 - count
    return images.sheet(examples, ["source", *["result"] * count, *["target"] * targets])


@dataclass(frozen=True, kw_only=True)
class Translate(CalibratedCommand):
    """Translate a data set: bbdm translate edge2shoes DATA CHECKPOINT OUTPUT_DIR [flags].

    `bbdm translate folder PICTURES CHECKPOINT` is for pictures alone.
    """

    FIRST: ClassVar[str] = "solver steps num_samples seed image_size batch_size device overwrite"

    @property
    def opening(self) -> str:
        """Of what, with which network and by how many steps, as far as its file says it at once."""
        network = read_header(self.model)
        # which the intervals fix
        calls = "" if self.with_ends else network.calls(self.solver, self.steps)
        return f"translating {self._sources} with {network}{calls}"

    @property
    def _sources(self) -> str:
        """The data set in words."""
        return self.data_dir

    def run(self) -> None:
        """Translate, print where the results are, and draw a grid of the first."""
        from bbdm.evaluation.intervals import Intervals, file_of
        from bbdm.files.repository import find_checkpoint
        from bbdm.translation.results import paths_of
        from bbdm.translation.translator import Translator

        config = self
        load = None
        if self.with_ends:
            path = self.intervals or file_of(find_checkpoint(self.model))
            config = self.as_calibrated(path)
            load = partial(Intervals.load, path)
        translator = Translator(config, load_intervals=load)
        planned = translator.plan(self.folder)
        grid = self._grid(translator, planned)
        films = self._films(translator, planned)
        began = time.perf_counter()
        jobs, existing, _ = translator.run(config.solver, config.steps, self.folder)
        if translator.processes.first:
            seconds = time.perf_counter() - began
            line = f"{len(paths_of(jobs)) - len(existing)} results in {self.folder}"
            if existing:
                line += f", and {len(existing)} that were there"
            print(f"{line} ({seconds:.1f} s)")
            self._write_films(translator, films, set(paths_of(jobs)))
            small = translator.large.small(jobs)
            if small:
                sheet = draw_grid(translator.files, small)
                write_atomically(grid, lambda temporary: sheet.save(temporary, "png"))
                print(f"to look at: {grid}")
        translator.processes.leave()

    def _films(self, translator: Translator, jobs: Sequence[Job]) -> list[Film]:
        """The films of planned results, as far as all frames can be translated.

        Raises:
            ValueError: a film would replace a picture of the data set.
        """
        if self.dataset != FRAMES or self.film == "none":
            return []
        from bbdm.translation import films
        from bbdm.translation.results import check_paths

        planned = films.films_of(translator.files, jobs, exact=self.film == "exact")
        check_paths(translator.files, [film.path for film in planned])
        return planned

    def _write_films(self, translator: Translator, films: Sequence[Film], made: set[Path]) -> None:
        """Write the films all of whose frames were made, and say where they are."""
        whole = [film for film in films if made.issuperset(film.frames)]
        if not whole:
            return
        from bbdm.translation.films import write

        write(whole, translator.dataset.spec.target_values, translator.verbose)
        for film in whole:
            print(f"a film: {film.path}")

    def _grid(self, translator: Translator, jobs: Sequence[Job]) -> Path:
        """The file of the grid: ``grid.png``, or another where a planned result has this name.

        Raises:
            ValueError: it is a picture of the data set.
        """
        from bbdm.data.names import RowName
        from bbdm.translation.results import check_paths, paths_of

        taken = self.folder / "grid.png" in paths_of(jobs)
        name = "grid_of_results" if taken else "grid"
        grid = RowName(name).below(self.folder, ".png")
        check_paths(translator.files, [grid])  # of the results the run checks it
        return grid


@dataclass(frozen=True, kw_only=True)
class Demo(Translate):
    """Translate the bundled drawings with the bundled weights: bbdm demo OUTPUT_DIR [flags].

    OUTPUT_DIR, out/demo if left out, gets 16 results and grid.png: sources, results, and the artists'
    colours.
    """

    HIDDEN: ClassVar[frozenset[str]] = frozenset(OF_SEQUENCES)

    dataset: str = "edge2shoes"
    data_dir: str = str(demo.FOLDER)
    model: Path = demo.WEIGHTS
    output_dir: Path = position("the folder of the results", Path("out/demo"), names=("-o",))

    @property
    def _sources(self) -> str:
        return "16 drawings"


@dataclass(frozen=True, kw_only=True)
class Restore(Command, TranslateConfig):
    """Restore photographs: bbdm restore PHOTO... -o DIR [flags].

    JPEGs of any quality, noise, blur and pictures that were enlarged, of any size, in grey or colour of 8
    bits. The result is the expected picture, which is nearest to the clean one; --samples N gives N random
    ones, with grain. Results are PNG files, with the transparency and the colour profile of their
    photographs.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    FIRST: ClassVar[str] = "output_dir model samples steps seed device dtype compile overwrite"
    FURTHER: ClassVar[str] = "window overlap margin memory plain_files show_verbose quiet"
    HIDDEN: ClassVar[frozenset[str]] = frozenset(flag_fields(TranslateConfig)) - {
        *f"{FIRST} {FURTHER}".split()
    }

    dataset: str = "folder"  # pictures alone
    data_dir: str = ""  # the pictures have positions of their own
    batch_size: int = 16
    photographs: tuple[Path, ...] = position("a file, or a folder of them", metavar="PHOTO")
    output_dir: Path = setting(Path("restored"), "the folder of the results", "-o")
    model: Path = setting(demo.PHOTOGRAPHS, "a network that restores, a file or a name on the Hub")
    samples: int | None = setting(
        None,
        "random results of each photograph, in place of the expected picture, which is nearest to the clean one",
        least=1,
    )
    dtype: Literal["bf16", "fp32"] | None = setting(
        None, "of the network's arithmetic; the faster here if unset"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is None and (self.steps is not None or self.seed):
            raise ValueError("--steps and --seed are of random results: give --samples too")

    @property
    def opening(self) -> str:
        """Which photographs, with which network, and by how many steps."""
        network = read_header(self.model)
        sources = str(self.photographs[0])
        if len(self.photographs) > 1:
            sources += f" and {len(self.photographs) - 1} more"
        solver = "mean" if self.samples is None else self.solver
        return f"restoring {sources} with {network}{network.calls(solver, self.steps)}"

    def run(self) -> None:
        """Restore, and print each result, what was there, and what is wrong with others.

        Raises:
            FileNotFoundError: there is no such network.
            StoppedError: a photograph was not restored; the others are.
            ValueError: two results have one name, or a photograph's name; a folder has no picture, or results
                of other settings.
        """
        import torch

        from bbdm.data.spec import Spec
        from bbdm.execution.device import best_dtype, find_device
        from bbdm.translation.photographs import Photographs, read_photographs
        from bbdm.translation.results import paths_of
        from bbdm.translation.translator import Translator

        rows, errors = read_photographs(self.photographs)
        if rows:
            usual = "cuda" if torch.cuda.is_available() else "cpu"
            device = find_device(self.device or usual)
            fastest = "bf16" if best_dtype(device) == torch.bfloat16 else "fp32"
            config = replace(self, dtype=self.dtype or fastest)
            if self.samples is None:
                config = replace(config, solver="mean")
            else:
                config = replace(config, num_samples=self.samples)
            translator = Translator(config, rows, Spec(channels=3), Photographs, independent=True)
            jobs, existing, _ = translator.run(config.solver, config.steps, config.folder)
            for path in paths_of(jobs):
                print(f"{path} was there: --overwrite makes it again" if path in existing else path)
            errors += translator.bad.values()
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        if errors:
            were = "photograph was" if len(errors) == 1 else "photographs were"
            raise StoppedError(f"{len(errors)} {were} not restored")


main = Translate.main
