"""How long training waits for a checkpoint: python -m benchmarks.checkpoints FOLDER [flags].

A run of the preset dit-b (129.6 M parameters, 64 x 64) writes checkpoints to FOLDER between steps. Then a new
run resumes from the newest one.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch

from bbdm.base import scripts
from bbdm.base.settings import from_values
from bbdm.cli import setup
from bbdm.cli import train as train_script
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from benchmarks.timing import seconds_of

EXAMPLES = "bbdm/demo"  # its 16 pairs


def make_run(preset: str, batch_size: int, folder: Path) -> Trainer:
    """A run that nothing has begun, on one step an epoch."""
    size = ["--image_size", "64", "-b", str(batch_size)]
    flags = train_script.Train.parse(["edge2shoes", EXAMPLES, "x.pt", "--preset", preset, *size])
    pairs = Pairs(read_rows("edge2shoes", EXAMPLES, "val"), Spec(size=64))
    torch.manual_seed(0)
    bridge = setup.build_bridge(flags.bridge, None, flags.c_lambda, flags.objective, flags.density)
    config = from_values(TrainConfig, vars(flags))
    return Trainer(setup.build_network(preset, 3), bridge, config, pairs, None, folder)


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("folder", type=Path, help="where checkpoints are written; it must not exist")
    parser.add_argument("--preset", default="dit-b", help="the network")
    parser.add_argument("-b", dest="batch_size", type=int, default=4, help="pairs of a step")
    parser.add_argument("--rounds", type=int, default=7, help="checkpoints")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True)
    run = make_run(args.preset, args.batch_size, args.folder)
    batch = next(run.train_batches(range(args.batch_size)))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(2):
        run.train_step(batch)
    for _ in range(args.rounds):
        seconds["a step"].append(seconds_of(partial(run.train_step, batch)))
        seconds["a checkpoint"].append(seconds_of(run._save))
    size = run.run.checkpoint(run.step).stat().st_size
    print(f"{args.preset}, batch {args.batch_size}, a file of {size / 1e9:.2f} GB")
    for _ in range(3):
        run = make_run(args.preset, args.batch_size, args.folder)
        seconds["resume"].append(seconds_of(run.resume_newest))
        seconds["first step of the resumed run"].append(seconds_of(partial(run.train_step, batch)))
    for name, each in seconds.items():
        print(f"{name}: {statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    main()
