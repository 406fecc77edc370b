"""Translate a data set: bbdm translate edge2shoes DATA CHECKPOINT [OUTPUT_DIR] [flags].

`bbdm translate folder PICTURES CHECKPOINT` is for pictures alone. For several processes, one for each GPU,
which share the work, add --use_multi_gpus, or start it by torchrun --nproc_per_node N -m bbdm translate ...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bbdm.base.atomic import write_atomically
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values, named
from bbdm.cli.training import add_layout
from bbdm.evaluation.config import MapsConfig
from bbdm.pictures import images

if TYPE_CHECKING:
    from bbdm.evaluation.files import Files
    from bbdm.evaluation.results import Job

GRID_PAIRS = 16  # at most
GRIDS = ("grid.png", "grid_of_results.png")  # the first that is no result's name


def parse(argv: Sequence[str]) -> MapsConfig:
    """The settings of the command line."""
    parser = Parser(__doc__, prog="bbdm translate")
    add_layout(parser, help="the layout of the data set; of pictures alone, folder")
    parser.add_argument("data_dir", help="the data set's folder")
    parser.add_argument("model", metavar="checkpoint", type=Path, help="a file, or a name on the Hub")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/CHECKPOINT if left out")
    add_flags(parser, MapsConfig)
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or Path("out") / args.model.stem
    return from_values(MapsConfig, {**vars(args), "named": named(parser, argv, MapsConfig)})


def draw_grid(files: Files, jobs: list[Job]) -> Image.Image:
    """(source | results | target) of the first sources, in a sheet about as high as wide."""
    results: dict[int, list[Path]] = {}
    for job in jobs:
        results.setdefault(job.index, []).append(job.path)
    examples = [files.pictures(index, paths) for index, paths in list(results.items())[:GRID_PAIRS]]
    count = len(results[jobs[0].index])
    names = ["source", *["result"] * count, *["target"] * (len(examples[0]) - 1 - count)]
    return images.sheet(examples, names)


def translate(config: MapsConfig, words: Sequence[str]) -> None:
    """Translate, and draw the grid; ``words`` are the command's, to start it again for each GPU."""
    from bbdm.evaluation.maps import MapTranslator
    from bbdm.evaluation.results import check_places
    from bbdm.evaluation.translate import Translator
    from bbdm.execution.processes import start_on_each_gpu

    if config.use_multi_gpus:
        start_on_each_gpu(words)
    translator = (MapTranslator if config.maps else Translator)(config)
    folder = config.output_dir
    planned = [job.path for job in translator.plan(folder)]
    grid = next(path for name in GRIDS if (path := folder / name) not in planned)
    check_places(translator.files, [grid, *planned])
    kept = 0 if config.overwrite else sum(path.exists() for path in planned)
    jobs, _ = translator.run(translator.config.chosen_solver, translator.config.steps, folder)
    if translator.processes.first:
        print(f"{len(jobs) - kept} results in {folder}" + (f", and {kept} that were there" if kept else ""))
        if small := translator.shown(jobs):
            sheet = draw_grid(translator.files, small)
            write_atomically(grid, lambda temporary: sheet.save(temporary, "png"))
            print(f"to look at: {grid}")
    translator.processes.leave()


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    translate(parse(argv), ["translate", *argv])
