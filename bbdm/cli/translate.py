"""Translate a data set: python examples/generate.py edge2shoes DATA CHECKPOINT [OUTPUT_DIR] [flags].

`python examples/generate.py demo` needs nothing else: it translates the bundled drawings with the bundled
weights.

In several processes, one for each GPU: torchrun --nproc_per_node N in place of python. They share the work.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

from PIL import Image

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_names, from_values
from bbdm.data.pairs import DATASETS, PairedDataset, open_image
from bbdm.evaluation.results import Job, ResultsError, check_places, save
from bbdm.evaluation.translate import TooLargeError, TranslateConfig, Translator
from bbdm.execution.processes import start_on_each_gpu
from bbdm.files.weights import IncompleteFileError
from bbdm.pictures import images
from bbdm.sampling.network_config import FileConfig

DEMO = Path(__file__).parent / "demo"
DEMO_WEIGHTS = DEMO / "openmoji64.safetensors"
GRID_PAIRS = 16  # at most
HINTS: dict[type[Exception], str] = {
    TooLargeError: "lower -b or --size",
    ResultsError: "give another output_dir, or --overwrite to make all results again",
    IncompleteFileError: f"the flags are {flag_names(FileConfig)}",
}


def parse(argv: list[str] | None = None) -> TranslateConfig:
    """The settings of the command line, with the paths of the demo filled in."""
    parser = scripts.Parser(__doc__)
    parser.add_argument("dataset", choices=["demo", *sorted(DATASETS)])
    parser.add_argument("data_dir", nargs="?", help="the data set's folder; for 'demo', the output folder")
    parser.add_argument("model", metavar="checkpoint", type=Path, nargs="?", help="a file, or a name on the Hub")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/CHECKPOINT if left out")
    add_flags(parser, TranslateConfig)
    args = parser.parse_args(argv)
    if args.dataset == "demo":
        if args.model is not None:
            parser.error("'demo' brings its own data and weights: python examples/generate.py demo [OUTPUT_DIR]")
        args.output_dir = Path(args.data_dir or "out/demo")
        args.dataset, args.data_dir, args.model = "edge2shoes", str(DEMO), DEMO_WEIGHTS
    if args.data_dir is None or args.model is None:
        parser.error(f"{args.dataset} needs data_dir and checkpoint")
    args.output_dir = args.output_dir or Path("out") / args.model.stem
    return from_values(TranslateConfig, vars(args))


def draw_grid(dataset: PairedDataset, jobs: list[Job]) -> Image.Image:
    """(source | results | target) of the first sources, in a sheet about as high as wide."""
    examples: list[list[Image.Image]] = []
    for index in list(dict.fromkeys(job.index for job in jobs))[:GRID_PAIRS]:
        source, target = dataset.images(index)
        results = [open_image(job.path) for job in jobs if job.index == index]
        examples.append([source, *results, *([] if target is None else [target])])
    across = max(1, round(math.sqrt(len(examples) / len(examples[0]))))
    rows = [list(chain(*examples[i : i + across])) for i in range(0, len(examples), across)]
    return images.grid(rows, group=len(examples[0]))


def main(argv: list[str] | None = None) -> None:
    config = parse(argv)
    if config.use_multi_gpus:
        start_on_each_gpu(__file__, argv)
    translator = Translator(config)
    folder = config.output_dir
    grid = folder / "grid.png"
    planned = [job.path for job in translator.plan(folder)]
    check_places(translator.dataset, [grid, *planned])
    kept = 0 if config.overwrite else sum(path.exists() for path in planned)
    jobs, _ = translator.run(config.chosen_solver, config.steps, folder)
    if translator.processes.first:
        save(draw_grid(translator.dataset, jobs), grid)
        print(f"{len(jobs) - kept} results in {folder}" + (f", and {kept} that were there" if kept else ""))
        print(f"to look at: {grid}")
    translator.processes.leave()


if __name__ == "__main__":
    scripts.run(main, "results are kept, and the same command resumes", HINTS)
