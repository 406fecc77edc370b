"""Translate a data set: bbdm translate edge2shoes DATA CHECKPOINT OUTPUT_DIR [flags].

`bbdm translate folder PICTURES CHECKPOINT` is for pictures alone. For several processes, one for each GPU,
which share the work, add --use_multi_gpus, or start it by torchrun --nproc_per_node N -m bbdm translate ...
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from PIL import Image

from bbdm.base.atomic import write_atomically
from bbdm.cli import GPUsCommand
from bbdm.pictures import images
from bbdm.translation.config import TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.files import Files
    from bbdm.translation.results import Job

GRID_PAIRS = 16  # at most
GRIDS = ("grid.png", "grid_of_results.png")  # the first that is no result's name


def draw_grid(files: Files, jobs: list[Job]) -> Image.Image:
    """(source | results | target) of the first sources, in a sheet about as high as wide."""
    results: dict[int, list[Path]] = {}
    for job in jobs:
        results.setdefault(job.index, []).extend(job.paths.values())
    examples = [files.pictures(index, paths) for index, paths in list(results.items())[:GRID_PAIRS]]
    count = len(results[jobs[0].index])
    names = ["source", *["result"] * count, *["target"] * (len(examples[0]) - 1 - count)]
    return images.sheet(examples, names)


@dataclass(frozen=True, kw_only=True)
class Translate(GPUsCommand, TranslateConfig):
    """A translation of a data set."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("dataset", "data_dir", "model", "output_dir", "solver", "steps", "num_samples", "seed", "image_size"),
        *("batch_size", "device", "overwrite"),
    )

    def run(self) -> None:
        """Translate, print where the results are, and draw a grid of the first."""
        from bbdm.evaluation.calibration import as_calibrated, place_of
        from bbdm.evaluation.intervals import Intervals
        from bbdm.files.hub import find_checkpoint
        from bbdm.translation.results import check_paths, paths_of
        from bbdm.translation.translator import Translator

        config, load, folder = self, None, self.folder
        if self.with_ends:
            path = self.intervals or place_of(find_checkpoint(self.model))
            config, load = as_calibrated(self, path, self.named), partial(Intervals.load, path)
        translator = Translator(config, load_intervals=load)
        planned = paths_of(translator.plan(folder))
        grid = next(path for name in GRIDS if (path := folder / name) not in planned)
        check_paths(translator.files, [grid])  # of the results the run checks it
        began = time.perf_counter()
        jobs, existing, _ = translator.run(config.chosen_solver, config.steps, folder)
        if translator.processes.first:
            kept_too = f", and {len(existing)} that were there" if existing else ""
            seconds = time.perf_counter() - began
            print(f"{len(paths_of(jobs)) - len(existing)} results in {folder}{kept_too} ({seconds:.1f} s)")
            if small := translator.large.small(jobs):
                sheet = draw_grid(translator.files, small)
                write_atomically(grid, lambda temporary: sheet.save(temporary, "png"))
                print(f"to look at: {grid}")
        translator.processes.leave()


main = Translate.main
