"""Measurements in a fresh process: of its peak memory, and from its start.

``run(task, **arguments)`` calls a function of this module in a fresh process and returns its result.
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from bbdm import BrownianBridge, UNet
from bbdm.base.settings import from_command
from bbdm.cli import train as train_script
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.execution.device import best_dtype
from bbdm.networks.config import UNETS
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from benchmarks import networks
from benchmarks.timing import Row, seconds_of

ROOT = Path(__file__).parent.parent
BATCH = 16  # of the preset demo-residual


def environment(**changes: str) -> dict[str, str]:
    """Environment variables with which a child imports bbdm and benchmarks."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def run(task: Callable[..., Any], **arguments: Any) -> Any:
    """Call ``task(**arguments)`` in a fresh process; arguments are plain values."""
    command = [sys.executable, "-m", "benchmarks.processes", task.__name__, json.dumps(arguments)]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{task.__name__} with {arguments} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(device: str) -> int:
    """Bytes: of the card's memory, or the largest resident size of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    # ru_maxrss starts at the parent's, so it is useless for a child of a large process
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _our_step(
    device: str, quick: bool, y: torch.Tensor, x0: torch.Tensor, settings: dict[str, Any]
) -> Row:
    config = TrainConfig(batch_size=len(y), epochs=1000, **settings)
    pairs = TensorDataset(y, x0)
    folder = Path(tempfile.gettempdir())  # a step writes nothing
    trainer = Trainer(networks.build(device, quick), networks.BRIDGE, config, pairs, None, folder)

    def step() -> None:
        loss = trainer.train_step(Example(y, x0))
        assert math.isfinite(loss), loss

    return step


def _peer_step(device: str, quick: bool, y: torch.Tensor, x0: torch.Tensor) -> Row:
    from benchmarks.peers import sde_bbdm

    unet = networks.build(device, quick)
    # ``unet`` itself is dropped here
    return sde_bbdm.train_step(unet, y.contiguous(), x0.contiguous())


def train(settings: dict[str, Any] | None, batch: int, steps: int, device: str, quick: bool) -> Any:
    """Seconds of each training step after the first, and the peak memory; settings None for sde-bbdm."""
    y = networks.images(batch, device, quick).to(memory_format=torch.channels_last)
    x0 = y.flip(-1).contiguous(memory_format=torch.channels_last)
    step = (
        _peer_step(device, quick, y, x0)
        if settings is None
        else _our_step(device, quick, y, x0, settings)
    )
    step()
    return {"seconds": [seconds_of(step) for _ in range(steps)], "peak_bytes": peak_memory(device)}


def train_volume(row: str, size: list[int], steps: int, device: str, quick: bool) -> Any:
    """Seconds of each training step on one volume after the first, and the peak memory.

    ``row`` is "plain" for a loop of PyTorch alone, with Adam, bfloat16 and an average of weights as ours, or
    whether activations are kept: "kept" or "checkpointed".
    """
    unet = networks.build_volume(device, quick)
    y = networks.volumes(tuple(size), device)
    x0 = y.flip(-1).contiguous()
    half = best_dtype(torch.device(device)) == torch.bfloat16
    if row == "plain":
        step = _plain_step(unet, y, x0, half)
    else:
        unet.gradient_checkpointing = row == "checkpointed"
        config = TrainConfig(
            batch_size=1, epochs=1000, loss="l2", precision="bf16" if half else "fp32"
        )
        bridge = BrownianBridge(objective="pinned")
        trainer = Trainer(
            unet,
            bridge,
            config,
            TensorDataset(y.cpu(), x0.cpu()),
            None,
            Path(tempfile.gettempdir()),
        )
        step = partial(trainer.train_step, Example(y, x0))
    step()
    return {"seconds": [seconds_of(step) for _ in range(steps)], "peak_bytes": peak_memory(device)}


def _plain_step(unet: UNet, y: torch.Tensor, x0: torch.Tensor, half: bool) -> Row:
    optimizer = torch.optim.Adam(unet.parameters(), 1e-4)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.995))

    def step() -> float:
        t = torch.randint(1, 1000, (len(y),), device=y.device)
        share = (t / 1000).view(-1, 1, 1, 1, 1)
        x_t = (1 - share) * x0 + share * y + (share * (1 - share)).sqrt() * torch.randn_like(y)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=half):
            loss = F.mse_loss(unet(x_t, t, {"source": y}).float(), x0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(unet)
        return loss.item()

    return step


EPOCHS = 2  # of a process that is timed in epochs, the first of which is not


def _demo_network(device: str) -> UNet:
    """The preset demo-residual's, without a condition."""
    torch.manual_seed(0)
    return UNet.from_config(replace(UNETS["demo-residual"], condition_channels=0)).to(device)


def peer_epochs(data: str, device: str) -> Any:
    """Seconds a step of sde-bbdm's training from files, the mean of each epoch after the first."""
    from benchmarks.peers import sde_bbdm

    return sde_bbdm.train_epochs(_demo_network(device), Path(data) / "train", BATCH, EPOCHS)[1:]


def bare_steps(data: str, device: str, compiled: bool) -> Any:
    """Seconds of each of our steps with that network, on one batch in memory, after the first two."""
    pairs = Pairs(read_rows("edge2shoes", data), Spec(size=64))
    flags = [
        "edge2shoes",
        data,
        "model.pt",
        "--preset",
        "demo-residual",
        *(["--compile"] * compiled),
    ]
    config = from_command(TrainConfig, train_script.Train.parse(flags))
    trainer = Trainer(
        _demo_network(device), networks.BRIDGE, config, pairs, None, Path(tempfile.gettempdir())
    )
    batch = next(trainer.batches(range(BATCH)))
    seconds = [
        seconds_of(lambda: trainer.train_step(batch)) for _ in range(len(pairs) // BATCH + 2)
    ]
    return seconds[2:]


def script_epochs(data: str, device: str, *flags: str, cached: bool = False) -> list[float]:
    """Seconds a step of `bbdm train`, the mean of each epoch after the first."""
    with tempfile.TemporaryDirectory() as folder:
        cache = ["--cache_images", f"{folder}/cache"] if cached else []
        command = [sys.executable, "-m", "bbdm", "train", "edge2shoes", data, f"{folder}/model.pt"]
        command += [
            "--preset",
            "demo-residual",
            "--source_as",
            "none",
            "-e",
            str(EPOCHS),
            "--device",
            device,
        ]
        command += [*cache, *flags]
        subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        records = (Path(folder) / "model.run" / "metrics.jsonl").read_text().splitlines()
    return [BATCH / json.loads(record)["images_per_second"] for record in records[1:]]


if __name__ == "__main__":
    tasks = (train, train_volume, bare_steps, peer_epochs)
    function = {task.__name__: task for task in tasks}[sys.argv[1]]
    print(json.dumps(function(**json.loads(sys.argv[2]))))
