"""A subcommand that records its work, for tests that start processes of their own.

In the environment, WATCH=FILE gets a line from a process for each file that it writes (RANK NAME) and for
each batch that it scores (RANK scored NUMBER), and SLOW=RANK delays a process where lateness could matter:
after the first has looked at a folder, and before each batch of results. Inception is a stand-in."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bbdm
from bbdm import cli  # imports nothing that writes files
from bbdm.base import atomic

RANK = os.environ.get("RANK", "0")


class Features(nn.Module):
    """A stand-in for Inception: the mean colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def record(line: str) -> None:
    with Path(os.environ["WATCH"]).open("a") as file:
        file.write(f"{RANK} {line}\n")


def watch_files() -> None:
    """Patch the functions before another module imports them."""

    def recorded(original: Callable[[Path, Callable[[Path], Any]], None], path: Path, write: Any) -> None:
        original(path, write)
        record(path.name)

    atomic.write_atomically = partial(recorded, atomic.write_atomically)


def watch_scores() -> None:
    perceptual: Any = import_module("bbdm.evaluation.perceptual")
    scores = import_module("bbdm.evaluation.scores").Scores
    original = scores.update

    def update(self: Any, results: torch.Tensor, *args: Any, **settings: Any) -> None:
        original(self, results, *args, **settings)
        record(f"scored {len(results)}")

    scores.update = update
    perceptual.inception = Features


def be_slow() -> None:
    team, sampler = import_module("bbdm.execution.processes").Processes, bbdm.BridgeSampler
    in_turn, call = team.first_before_others, sampler.__call__

    @contextmanager
    def first_before_others(self: Any) -> Iterator[None]:
        with in_turn(self):
            time.sleep(0.7)
            yield

    def slow_call(self: Any, *args: Any, **settings: Any) -> Any:
        time.sleep(3)
        return call(self, *args, **settings)

    team.first_before_others = first_before_others
    sampler.__call__ = slow_call  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    torch.set_num_threads(1)
    watch_files()
    name = sys.argv.pop(1)
    if name == "eval":
        watch_scores()
    if os.environ.get("SLOW") == RANK:
        be_slow()
    if name == "eval_miou":
        sys.path.append("examples")
        import_module(name).Miou.main()
    else:
        cli.run(name)
