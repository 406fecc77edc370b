"""Training on crops of large pictures against a batch in memory: python -m benchmarks.crops [flags].

Pictures of 512 x 512 in 16 bits are made in a temporary folder, one of each format. An optimizer step of the
preset demo, eager in bfloat16 on crops of 96 x 96, is timed in turns of some steps: on a batch in memory, and
on the next batches of each format, with the wait for them. MONAI's CacheDataset and PersistentDataset give
the same crops through PyTorch's loader, where MONAI is installed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from bbdm.base import scripts
from bbdm.base.settings import from_values
from bbdm.cli import setup
from bbdm.cli import train as train_script
from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import Values
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from benchmarks.timing import seconds_of

SIDE, CROP, PICTURES, EACH = 512, 96, 32, 4
TURN = 6  # steps of a kind that are timed one after the other
VALUES = Values(0, 4095, dtype="uint16")
FORMATS = {".tif": None, ".npy": None, ".nii": None, ".nii.gz": "cache"}


def write(folder: Path, suffix: str) -> str:
    """Pairs of random pictures; returns SOURCES,TARGETS."""
    random = np.random.default_rng(0)
    for side in "AB":
        (folder / side).mkdir(parents=True)
        for number in range(PICTURES):
            Picture(random.integers(0, 4096, (1, SIDE, SIDE), dtype=np.uint16)).save(
                folder / side / f"{number}{suffix}"
            )
    return f"{folder}/A,{folder}/B"


def epochs(batches: Callable[[int], Any]) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from batches(epoch)
        epoch += 1


def of_files(suffix: str, folder: Path, batch_size: int, workers: int) -> Iterator[Example]:
    """Batches of crops of files."""
    spec = Spec(source=VALUES, target=VALUES, crop=CROP, crops=EACH)
    cache = FORMATS[suffix] and folder / "cache"
    pairs = Pairs(read_rows("paired", write(folder, suffix)), spec, cache or None)
    batches = Batches(pairs, batch_size, torch.device("cpu"), workers)
    return epochs(lambda epoch: batches(pairs.order(epoch)(0, len(pairs)), epoch))


def of_monai(kind: str, folder: Path, batch_size: int, workers: int) -> Iterator[Example]:
    """Batches of the same crops by MONAI."""
    from monai.data import CacheDataset, PersistentDataset  # pyright: ignore[reportPrivateImportUsage]
    from monai.data.utils import list_data_collate
    from monai.transforms import Compose, RandSpatialCropSamplesd  # pyright: ignore[reportPrivateImportUsage]

    random = np.random.default_rng(0)

    def picture() -> Any:
        return VALUES.scaled(random.integers(0, 4096, (1, SIDE, SIDE), dtype=np.uint16))

    data = [{"source": picture(), "target": picture()} for _ in range(PICTURES)]
    crops = Compose([RandSpatialCropSamplesd(["source", "target"], [CROP, CROP], EACH, random_size=False)])
    made = {
        "CacheDataset": lambda: CacheDataset(data, crops, progress=False),
        "PersistentDataset": lambda: PersistentDataset(data, crops, folder),
    }[kind]()
    loader = DataLoader(
        made,
        batch_size // EACH,
        shuffle=True,
        num_workers=workers,
        collate_fn=list_data_collate,
        persistent_workers=workers > 0,
    )

    def batches(_: int) -> Iterator[Example]:
        for batch in loader:
            yield Example(*(batch[side].as_tensor() for side in ("source", "target")))

    return epochs(batches)


def cost(batches: Iterator[Example]) -> float:
    """Seconds of the processor for a batch, made in this process: the least of some means."""
    means: list[float] = []
    for _ in range(TURN):
        began = time.process_time()
        for _ in range(TURN):
            next(batches)
        means.append((time.process_time() - began) / TURN)
    return min(means[1:])


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of each kind")
    parser.add_argument("--workers", type=int, default=1, help="processes that read pictures")
    args = parser.parse_args(argv)
    flags = train_script.Train.parse(["paired", "A,B", "x.pt", "--preset", "demo", "-b", "8"])
    torch.manual_seed(0)
    config = from_values(TrainConfig, vars(flags))
    bridge = setup.build_bridge(flags.bridge, None, flags.c_lambda, flags.objective, flags.density)
    shape = config.batch_size, 1, CROP, CROP
    kept = Example(torch.rand(shape) * 2 - 1, torch.rand(shape) * 2 - 1)
    with tempfile.TemporaryDirectory() as root:
        rows: dict[str, Iterator[Example]] = {"in memory": iter(lambda: kept, None)}
        costs = {"in memory": 0.0}
        kinds: dict[str, Any] = {suffix: partial(of_files, suffix) for suffix in FORMATS}
        kinds |= {f"MONAI {kind}": partial(of_monai, kind) for kind in ("CacheDataset", "PersistentDataset")}
        for name, made in kinds.items():
            try:
                costs[name] = cost(made(Path(root, name), config.batch_size, 0))
                rows[name] = made(Path(root, f"{name} by workers"), config.batch_size, args.workers)
            except ModuleNotFoundError:
                print(f"{name}: not installed")
        pairs = [(kept.source[0], kept.target[0])] * config.batch_size
        trainer = Trainer(setup.build_network("demo", 1), bridge, config, pairs, None, Path(root, "run"))
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(-1, -(-args.steps // TURN)):  # the first turn warms up
            for name, batches in rows.items():
                took = [seconds_of(lambda batches=batches: trainer.train_step(next(batches))) for _ in range(TURN + 1)]
                seconds[name] += took[1:] if turn >= 0 else []  # before the first, the last row's worker was busy
    for name, each in seconds.items():
        median, of_whole = (f(seconds["in memory"]) / f(each) * 100 for f in (statistics.median, statistics.fmean))
        rate = config.batch_size / statistics.median(each)
        loaded = f"{costs[name] * 1000:6.1f} ms of a processor to load a batch"
        print(f"{name:24}{rate:8.2f} crops/s {median:6.1f} %, by means {of_whole:6.1f} %, {loaded}")


if __name__ == "__main__":
    main()
