"""Training from shards against training on one batch in memory: python -m benchmarks.shards SHARDS [flags].

SHARDS is a folder that `bbdm shard` made. An optimizer step of the preset demo, eager in bfloat16 at
64 x 64, is timed in turns: on a batch in memory, and on the next batch of an epoch's order, with the wait for
it. The shards are dropped from the system's cache of files first.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import torch

from bbdm.base import scripts
from bbdm.base.settings import from_values
from bbdm.cli import setup
from bbdm.cli import train as train_script
from bbdm.data.pairs import load_dataset
from bbdm.data.shards import Shards
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from benchmarks.timing import seconds_of


def forget(pairs: Shards) -> None:
    """Drop local shards from the cache of files, where the system can."""
    for shard in pairs.shards if hasattr(os, "posix_fadvise") else ():
        with Path(shard.url).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("shards", help="the folder")
    parser.add_argument("--steps", type=int, default=100, help="of each kind")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    args = parser.parse_args(argv)
    flags = train_script.parse(["shards", args.shards, "x.pt", "--preset", "demo", "--workers", str(args.workers)])
    pairs = load_dataset("shards", args.shards, image_size=flags.image_size)
    assert isinstance(pairs.pairs, Shards)
    torch.manual_seed(0)
    bridge = setup.build_bridge(flags.bridge, None, flags.c_lambda, flags.objective, flags.density)
    config = from_values(TrainConfig, vars(flags))
    trainer = Trainer(setup.build_network("demo", 3), bridge, config, pairs, None, Path(tempfile.gettempdir()))
    kept = next(trainer.train_batches(range(config.batch_size)))
    forget(pairs.pairs)
    batches = iter(())

    def from_shards() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = trainer.train_batches(trainer._order(0))
            batch = next(batches)
        trainer.train_step(batch)

    for _ in range(3):
        trainer.train_step(kept)
        from_shards()
    seconds: dict[str, list[float]] = {"in memory": [], "from shards": []}
    for _ in range(args.steps):
        seconds["in memory"].append(seconds_of(lambda: trainer.train_step(kept)))
        seconds["from shards"].append(seconds_of(from_shards))
    trainer.train_batches.close()
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median * 1000:.1f} ms a step, {config.batch_size / median:.2f} pairs/s")
    print(f"throughput from shards: {100 * medians['in memory'] / medians['from shards']:.1f} % of the bare step's")
    means = [statistics.fmean(each) for each in seconds.values()]
    print(f"by means of {args.steps} steps: {100 * means[0] / means[1]:.1f} %")


if __name__ == "__main__":
    main()
