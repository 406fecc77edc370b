"""Measurements that need a process of their own: its peak memory, its environment, its start.

``run(task, **arguments)`` calls the function of that name here in a fresh process and returns what it returns.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from bbdm import BridgeSampler
from bbdm.data import PairedDataset
from bbdm.train_config import TrainConfig
from bbdm.training import Trainer
from benchmarks import networks
from benchmarks.timing import Row, interleaved, seconds_of

ROOT = Path(__file__).parent.parent


def environment(**changes: str) -> dict[str, str]:
    """Variables of a child that can import bbdm and benchmarks."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def run(task: Callable[..., Any], variables: dict[str, str] | None = None, **arguments: Any) -> Any:
    """Call ``task(**arguments)`` in a fresh process, where variables are set; both must be plain values."""
    command = [sys.executable, "-m", "benchmarks.processes", task.__name__, json.dumps(arguments)]
    done = subprocess.run(
        command, env=environment(**(variables or {})), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{task.__name__} with {arguments} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(device: str) -> int:
    """Bytes: of the card's memory, or the largest resident size of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at the parent's, so it tells nothing of a child of a large process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Pairs:
    """A stand-in for a data set on disk."""

    def __init__(self, y: torch.Tensor, x0: torch.Tensor) -> None:
        self.y, self.x0, self.channels, self.image_size = y, x0, y.shape[1], y.shape[-1]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.y[index], self.x0[index]


def _our_step(device: str, quick: bool, y: torch.Tensor, x0: torch.Tensor, settings: dict[str, Any]) -> Row:
    config = TrainConfig(batch_size=len(y), epochs=1000, **settings)
    pairs = cast(PairedDataset, Pairs(y, x0))
    folder = Path(tempfile.gettempdir())  # a step writes nothing
    trainer = Trainer(networks.build(device, quick), networks.BRIDGE, config, pairs, None, folder)

    def step() -> None:
        loss = trainer.train_step(y, x0)
        assert math.isfinite(loss), loss

    return step


def _peer_step(device: str, quick: bool, y: torch.Tensor, x0: torch.Tensor) -> Row:
    from benchmarks.peers import sde_bbdm

    unet = networks.build(device, quick)
    return sde_bbdm.train_step(unet, y.contiguous(), x0.contiguous())  # ``unet`` itself is dropped here


def train(settings: dict[str, Any] | None, batch: int, steps: int, device: str, quick: bool) -> Any:
    """Seconds of each training step after the first, and the peak memory; settings None for sde-bbdm."""
    y = networks.images(batch, device, quick).to(memory_format=torch.channels_last)
    x0 = y.flip(-1).contiguous(memory_format=torch.channels_last)
    step = _peer_step(device, quick, y, x0) if settings is None else _our_step(device, quick, y, x0, settings)
    step()
    return {"seconds": [seconds_of(step) for _ in range(steps)], "peak_bytes": peak_memory(device)}


@torch.inference_mode()
def unet_call(rounds: int) -> Any:
    """One UNet call of sde-bbdm in float32 and of our compiled network, in turns, and the dtype that ours chose."""
    from benchmarks.peers import sde_bbdm

    unet = networks.build("cpu", quick=False)
    sampler = BridgeSampler(unet, networks.BRIDGE, steps=networks.STEPS, compile=True)
    public = sde_bbdm.network(unet)
    x, t = networks.images(1, "cpu", quick=False), torch.full((1,), 500)
    inputs = x.to(sampler.dtype, memory_format=torch.channels_last)
    modulation = unet.modulation(t)
    rows: dict[str, Row] = {
        "sde-bbdm float32": lambda: public(x, t),
        "compiled": lambda: sampler._loop.network(inputs, modulation),
    }
    error = networks.relative_error(sampler._loop.network(inputs, modulation), public(x, t))
    seconds = interleaved(rows, rounds)
    return {"seconds": seconds, "dtype": str(sampler.dtype).removeprefix("torch."), "relative_error": error}


if __name__ == "__main__":
    function = {"train": train, "unet_call": unet_call}[sys.argv[1]]
    print(json.dumps(function(**json.loads(sys.argv[2]))))
