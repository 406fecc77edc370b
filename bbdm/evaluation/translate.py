"""Translating a whole data set into a folder: what generate.py, eval.py and eval_miou.py in examples/ share.

Results are PNG files named after their sources. What is there is kept, so that an interrupted command can be
repeated. :meth:`Translator.run`, which eval.py and eval_miou.py score, keeps a
:class:`~bbdm.evaluation.results.Record` beside them and refuses results of other settings; generate.py keeps
whatever is there.

Several processes (see :mod:`bbdm.execution.processes`) share the very batches that one makes, so that files
are the same. All of them call the same methods in the same order; the first alone tells, and keeps the
record.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm.auto import tqdm

import bbdm
from bbdm import solvers
from bbdm.base import machine
from bbdm.base.atomic import file_sha256, make_folder
from bbdm.base.images import Size, read_size
from bbdm.codec import Codec, VQGANCodec
from bbdm.data.pairs import DIRECTIONS, load_dataset, open_image
from bbdm.evaluation.results import Job, Record, check_places, plan, save, to_tensor
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.networks.unet import UNet
from bbdm.sampler import BridgeSampler

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity")


def size_flag(text: str) -> Size:
    """What argparse makes of a size; see :func:`bbdm.base.images.read_size`."""
    try:
        return read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a data set is translated; :func:`finish` goes with it."""
    parser.add_argument("--split", default="val", help="the part of the data set to translate (default: val)")
    parser.add_argument("--solver", choices=get_args(solvers.Solver), help=f"(default: {solvers.DEFAULT})")
    parser.add_argument("--steps", type=int, help="network evaluations for each result; the solver's default if unset")
    parser.add_argument("--fast_sampling", action="store_true", help="the paper's 199 steps: --solver fast")
    parser.add_argument("-b", "--batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument(
        "-r", "--repeat", "--num_samples", dest="num_samples", type=int, default=1, help="results of a source (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="source i gets the seed SEED + i (default: 0)")
    parser.add_argument(
        "--image_size", type=size_flag, help="side, or HxW, that sources are resized to; as in training if unset"
    )
    parser.add_argument("--direction", choices=DIRECTIONS, default="AtoB")
    parser.add_argument("-t", "--t", "--time_steps", dest="time_steps", type=int, help="for files that leave it out")
    parser.add_argument("-l", "--c_lambda", type=float, help="for files that leave it out")
    parser.add_argument("-vq", "--vqgan_path", type=Path, help="the autoencoder, for files that leave it out")
    parser.add_argument("--config", type=Path, help="the YAML file of a network of the original BBDM")
    parser.add_argument("--overwrite", action="store_true", help="make results again that are already there")
    parser.add_argument("--compile", action="store_true", help="faster results after a minute or two of compiling")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the network's arithmetic; the file's if unset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--use_multi_gpus", "-use_multi_gpus", action="store_true", help="a process for each GPU here")
    parser.add_argument("--show_verbose", action="store_true", help="a progress bar")


def finish(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and fill in the solver."""
    if args.num_samples < 1 or args.batch_size < 1:
        parser.error("--num_samples and --batch_size must be at least 1")
    if args.fast_sampling:
        if args.solver not in (None, "fast"):
            parser.error(f"--fast_sampling is --solver fast, and --solver {args.solver} was given")
        args.solver = "fast"
    args.solver = args.solver or solvers.DEFAULT


class Translator:
    """A trained network and a data set, as the flags of a script give them: all that makes results but the
    solver.

    Args:
        args: what :func:`add_arguments` parsed, with ``dataset``, ``data_dir`` and ``model``. The first
            process alone keeps ``show_verbose``.

    Raises:
        FileNotFoundError, ValueError: the network or the data set cannot be read.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.processes = Processes.join(args.device)
        args.show_verbose &= self.processes.first
        codec = None if args.vqgan_path is None else VQGANCodec(load_vqgan(args.vqgan_path))
        self.checkpoint = load_checkpoint(args.model, args.time_steps, args.c_lambda, codec, args.config)
        self.bridge = self.checkpoint.bridge
        chosen = self.checkpoint.image_size if args.image_size is None else args.image_size
        if chosen is None:
            chosen = 256
            if self.processes.first:
                print(f"{args.model} does not say the size of its pictures: 256 is taken, and --image_size changes it")
        coded = self.checkpoint.codec
        channels = (
            self.checkpoint.unet.config.in_channels if coded is None else coded.config["config"]["image_channels"]
        )
        self.dataset = load_dataset(args.dataset, args.data_dir, args.split, chosen, args.direction, channels)

    @cached_property
    def networks(self) -> tuple[UNet, Codec | None]:
        """The network and its codec, built once."""
        return self.checkpoint.build_unet(), self.checkpoint.build_codec()

    def sampler(self, solver: str, steps: int | None) -> BridgeSampler:
        """What the flags describe, with this solver; of one dtype in all processes."""
        unet, codec = self.networks
        args, device = self.args, self.processes.device
        dtype = None if args.dtype is None else DTYPES[args.dtype]
        build = partial(
            BridgeSampler, unet, self.bridge, solver, steps, codec=codec, device=device, compile=args.compile
        )
        sampler = build(dtype=dtype)
        chosen = self.processes.gather(sampler.dtype)[0]  # where it is compiled, by a timing that each does
        return sampler if sampler.dtype == chosen else build(dtype=chosen)

    def plan(self, folder: Path) -> list[Job]:
        """See :func:`bbdm.evaluation.results.plan`."""
        return plan(self.dataset, folder, self.args.num_samples, self.args.seed)

    def translate(
        self, sampler: BridgeSampler, jobs: list[Job], timed: Callable[[int, float], None] | None = None
    ) -> None:
        """Make results and write them: batch i in process i modulo their number, and back when all are made.

        ``timed`` is told the number of pictures and the seconds of each whole batch of this process, from
        pictures to pictures; not of its first, in which a device warms up and networks are compiled.
        """
        size = min(self.args.batch_size, max(1, len(jobs)))
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        share = batches[self.processes.rank :: self.processes.count]
        self.processes.wait()  # until all know what was there
        with tqdm(total=sum(map(len, share)), unit="image", disable=not self.args.show_verbose) as bar:
            for number, batch in enumerate(share):
                sources = [self.dataset.images(job.index)[0] for job in batch]
                began = time.perf_counter()
                results = sampler(sources, seed=[job.seed for job in batch], batch_size=size)
                seconds = time.perf_counter() - began
                for job, result in zip(batch, results, strict=True):
                    save(result, job.path)
                if timed is not None and number > 0 and len(batch) == size:
                    timed(len(batch), seconds)
                bar.update(len(batch))
        self.processes.wait()

    @contextmanager
    def hint(self) -> Iterator[None]:
        """Ends a script that runs out of memory with what to lower; other errors pass."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            told = str(error)
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and not any(s in told for s in ("out of memory", "allocate memory", "ALLOC_FAILED")):
                raise
            raise SystemExit(
                f"error: out of memory: lower -b (now {self.args.batch_size}) "
                f"or --image_size (now {self.dataset.image_size})"
            ) from error

    @cached_property
    def _fixed_settings(self) -> dict[str, Any]:
        args, codec = self.args, self.networks[1]
        return {
            "dataset": args.dataset,
            "split": args.split,
            "direction": args.direction,
            "image_size": self.dataset.image_size,
            "sources": len(self.dataset),
            "files": self.dataset.digest(),
            "weights": file_sha256(args.model),
            "config": None if args.config is None else file_sha256(args.config),
            "unet": asdict(self.checkpoint.unet.config),
            "codec": None if codec is None else {**codec.description(), **codec.config()},
            "bridge": self.bridge.config(),
            "num_samples": args.num_samples,
            "seed": args.seed,
        }

    def settings(self, sampler: BridgeSampler, solver: str) -> dict[str, Any]:
        """All that decides what the results look like, as JSON has it."""
        table = sampler.table
        chosen = {
            "solver": solver,
            "nfe": len(table),
            "dtype": str(sampler.dtype).removeprefix("torch."),
            "timesteps": table.timesteps.tolist(),
        }
        return json.loads(json.dumps({**self._fixed_settings, **chosen}))

    def run(self, solver: str, steps: int | None, folder: Path) -> tuple[list[Job], dict[str, Any]]:
        """Make all results that are not there, and tell what made them.

        Returns:
            The results, and in the first process for a report: solver, nfe, pictures, seconds_per_picture (in
                one
            process: of the first's batches; None if unknown), settings, environment. The others get an empty
                one.

        Raises:
            ValueError: the folder holds results of other settings, as the first process finds.
        """
        make_folder(folder)
        jobs = self.plan(folder)
        check_places(self.dataset, [job.path for job in jobs])
        record = None
        with self.hint():
            sampler = self.sampler(solver, steps)
            with self.processes.first_before_others():
                if self.processes.first:
                    record = Record(folder, self.settings(sampler, solver), jobs, self.args.overwrite)
                todo = [job for job in jobs if not job.path.exists()]
            self.translate(sampler, todo, None if record is None else record.add)
        if record is None:
            return jobs, {}
        return jobs, {
            "solver": solver,
            "nfe": len(sampler.table),
            "pictures": len(jobs),
            "seconds_per_picture": record.seconds / record.pictures if record.pictures else None,
            "settings": record.settings,
            "environment": {
                "bbdm": bbdm.__version__,
                "processes": self.processes.count,
                **machine.describe(sampler.device, PACKAGES),
            },
        }

    def pictures(self, jobs: list[Job]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of (B, S, 3, H, W) results and (B, 3, H, W) targets, uint8: this process's share, maybe none."""
        samples = self.args.num_samples
        size = max(1, self.args.batch_size // samples) * samples
        starts = range(0, len(jobs), size)[self.processes.rank :: self.processes.count]
        for start in tqdm(starts, unit="batch", disable=not self.args.show_verbose):
            batch = jobs[start : start + size]
            results = torch.stack([to_tensor(open_image(job.path)) for job in batch])
            targets = []
            for job in batch[::samples]:
                _, target = self.dataset.images(job.index)
                if target is None:
                    raise ValueError(f"{self.dataset.pairs[job.index].source} has no target to compare with")
                targets.append(to_tensor(target))
            yield results.unflatten(0, (-1, samples)), torch.stack(targets)
