"""Translate a data set's sources: python examples/generate.py edge2shoes DATA CHECKPOINT [OUTPUT_DIR] [flags].

`python examples/generate.py demo` needs nothing else: it translates the bundled drawings with the bundled weights.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from tqdm.auto import tqdm

from bbdm import images, solvers
from bbdm.checkpoint import load_checkpoint, write_atomically
from bbdm.data import DATASETS, DIRECTIONS, PairedDataset, load_dataset, open_image
from bbdm.sampler import BridgeSampler

DEMO = Path(__file__).parent / "demo"
DEMO_WEIGHTS = DEMO / "openmoji64.safetensors"
GRID_PAIRS = 16  # more would not be looked at


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with the places of the demo filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["demo", *sorted(DATASETS)])
    parser.add_argument("data_dir", nargs="?", help="the data set's folder; for 'demo', the output folder")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/CHECKPOINT if left out")
    parser.add_argument("--split", default="val", help="the part of the data set to translate (default: val)")
    parser.add_argument("--num_samples", type=int, default=1, help="results for each source (default: 1)")
    parser.add_argument("--solver", choices=get_args(solvers.Solver), help=f"(default: {solvers.DEFAULT})")
    parser.add_argument("--steps", type=int, help="network evaluations for each result; the solver's default if unset")
    parser.add_argument("--fast_sampling", action="store_true", help="the paper's 199 steps: --solver fast")
    parser.add_argument("-b", "--batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="source i gets the seed SEED + i (default: 0)")
    parser.add_argument("--image_size", type=int, help="side that sources are resized to; as in training if unset")
    parser.add_argument("--direction", choices=DIRECTIONS, default="AtoB")
    parser.add_argument("-t", "--t", "--time_steps", dest="time_steps", type=int, help="for files that leave it out")
    parser.add_argument("-l", "--c_lambda", type=float, help="for files that leave it out")
    parser.add_argument("--overwrite", action="store_true", help="make results again that are already there")
    parser.add_argument("--compile", action="store_true", help="faster results after a minute or two of compiling")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show_verbose", action="store_true", help="a progress bar")
    args = parser.parse_args(argv)
    if args.dataset == "demo":
        if args.checkpoint is not None:
            parser.error("'demo' brings its own data and weights: python examples/generate.py demo [OUTPUT_DIR]")
        args.output_dir = Path(args.data_dir or "out/demo")
        args.dataset, args.data_dir, args.checkpoint = "edge2shoes", str(DEMO), DEMO_WEIGHTS
    if args.data_dir is None or args.checkpoint is None:
        parser.error(f"{args.dataset} needs data_dir and checkpoint")
    if args.num_samples < 1 or args.batch_size < 1:
        parser.error("--num_samples and --batch_size must be at least 1")
    if args.fast_sampling:
        if args.solver not in (None, "fast"):
            parser.error(f"--fast_sampling is --solver fast, and --solver {args.solver} was given")
        args.solver = "fast"
    args.solver = args.solver or solvers.DEFAULT
    args.output_dir = args.output_dir or Path("out") / args.checkpoint.stem
    return args


@dataclass(frozen=True)
class Job:
    """One result to make."""

    index: int  # of the source in the sorted data set
    seed: int
    path: Path


def plan(dataset: PairedDataset, folder: Path, num_samples: int, seed: int) -> list[Job]:
    """All results of a data set. Sample j of source i has the seed seed + i + j * (number of sources)."""
    return [
        Job(i, seed + i + j * len(dataset), folder / f"{pair.name}{f'_{j}' if num_samples > 1 else ''}.png")
        for i, pair in enumerate(dataset.pairs)
        for j in range(num_samples)
    ]


def check_places(dataset: PairedDataset, jobs: list[Job], grid: Path) -> None:
    """Stop before a result or the grid takes the place of a source, a target or each other."""
    taken = {path.resolve() for pair in dataset.pairs for path in (pair.source, pair.target) if path}
    for path in [grid, *(job.path for job in jobs)]:
        if path.resolve() in taken:
            raise SystemExit(f"{path} would take the place of another picture: give another output_dir")
        taken.add(path.resolve())


def save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: image.save(temporary, "png"))


def draw_grid(dataset: PairedDataset, jobs: list[Job]) -> Image.Image:
    """(source | results | target) of the first sources, in a sheet about as high as wide."""
    examples: list[list[Image.Image]] = []
    for index in range(min(GRID_PAIRS, len(dataset))):
        source, target = dataset.images(index)
        results = [open_image(job.path) for job in jobs if job.index == index]
        examples.append([source, *results, *([] if target is None else [target])])
    across = max(1, round(math.sqrt(len(examples) / len(examples[0]))))
    return images.grid([list(chain(*examples[i : i + across])) for i in range(0, len(examples), across)])


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    checkpoint = load_checkpoint(args.checkpoint, args.time_steps, args.c_lambda)
    image_size = args.image_size or checkpoint.image_size or 256
    dataset = load_dataset(args.dataset, args.data_dir, args.split, image_size, args.direction)
    jobs = plan(dataset, args.output_dir, args.num_samples, args.seed)
    grid = args.output_dir / "grid.png"
    check_places(dataset, jobs, grid)
    todo = [job for job in jobs if args.overwrite or not job.path.exists()]
    try:
        unet = checkpoint.build_unet()
        sampler = BridgeSampler(
            unet, checkpoint.bridge, args.solver, args.steps, device=args.device, compile=args.compile
        )
        with tqdm(total=len(todo), unit="image", disable=not args.show_verbose) as bar:
            for start in range(0, len(todo), args.batch_size):
                batch = todo[start : start + args.batch_size]
                sources = [dataset.images(job.index)[0] for job in batch]
                for job, result in zip(batch, sampler(sources, seed=[job.seed for job in batch]), strict=True):
                    save(result, job.path)
                bar.update(len(batch))
    except (RuntimeError, MemoryError) as error:
        told = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(s in told for s in ("out of memory", "allocate memory", "ALLOC_FAILED")):
            raise
        raise SystemExit(
            f"out of memory: lower -b (now {args.batch_size}) or --image_size (now {image_size})"
        ) from error
    save(draw_grid(dataset, jobs), grid)
    kept = len(jobs) - len(todo)
    print(
        f"{len(todo)} results in {args.output_dir}"
        + (f" ({kept} kept as they were; --overwrite makes them again)" if kept else "")
    )
    print(f"to look at: {grid}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
