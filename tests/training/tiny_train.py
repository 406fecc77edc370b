"""`bbdm train` with a tiny network for the demo preset, for tests that start processes of their own.

In the environment, DIE=RANK,STEP ends the process of a rank by SIGKILL at an optimizer step, TERM_AT sends
it SIGTERM there, DAMAGE=RANK,STEP,FILE makes a file unreadable there, and PAUSE=SECONDS makes each step
last longer. COMMAND is another subcommand, and LEVELS=1 takes a network of one level. SLOW=RANK delays a
process after the first one has looked at a folder."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bbdm import cli
from bbdm.data.examples import Example
from bbdm.execution.processes import Processes
from bbdm.networks import config as networks
from bbdm.training.trainer import Trainer
from tests.conftest import TINY
from tests.networks.test_vqgan import TINY as TINY_VQGAN


def set_up() -> None:
    torch.set_num_threads(1)
    levels = {"channel_mult": (1, 2)[: int(os.environ.get("LEVELS", "2"))]}
    networks.UNETS["demo"] = networks.UNetConfig(condition_channels=3, **{**TINY, **levels})
    networks.VQGANS["demo"] = networks.VQGANConfig(**TINY_VQGAN)


def watch_steps() -> None:
    """Act on the environment before each step."""
    original, pause = Trainer.train_step, float(os.environ.get("PAUSE", "0"))

    def train_step(self: Trainer, batch: Example) -> torch.Tensor:
        here = f"{self.processes.rank},{self.step}"
        if here == os.environ.get("DIE"):
            os.kill(os.getpid(), signal.SIGKILL)
        if here == os.environ.get("TERM_AT"):
            os.kill(os.getpid(), signal.SIGTERM)
        damage = os.environ.get("DAMAGE", "")
        if damage.startswith(f"{here},"):
            Path(damage.removeprefix(f"{here},")).write_bytes(b"no picture")
        time.sleep(pause)
        return original(self, batch)

    Trainer.train_step = train_step


def be_slow() -> None:
    in_turn = Processes.first_before_others

    @contextmanager
    def first_before_others(self: Processes) -> Iterator[None]:
        with in_turn(self):
            time.sleep(0.7 if str(self.rank) == os.environ.get("SLOW") else 0)
            yield

    Processes.first_before_others = first_before_others


if __name__ == "__main__":
    set_up()
    watch_steps()
    be_slow()
    cli.run(os.environ.get("COMMAND", "train"))
