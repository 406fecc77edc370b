"""Volumes: a training step of the preset ``volume`` on 64 x 96 x 96, and one of 160 x 256 x 256 by windows.

Rows of training are a loop of PyTorch alone around the same network, with Adam, bfloat16 where the machine
has it and an average of weights, then ours with all activations kept, and with gradient checkpointing. Each
has its own processes, which take turns, with their peak memory. The first step of each is not timed.

Rows of windows are five network calls, by our windows and by MONAI's inferer around the same network in the
same loop, in turns. MONAI places windows a little otherwise; ``calls`` says how many there are. On a CPU the
network has a quarter of the preset's width, so that five calls take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from bbdm import BridgeSampler, BrownianBridge
from bbdm.execution.device import best_dtype
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.arrays import along
from bbdm.networks.base import Conditions
from benchmarks import networks, processes
from benchmarks.conftest import DEVICE, Record
from benchmarks.machine import Peaks
from benchmarks.timing import Comparison, Row, interleaved

TRAINING = {
    "plain PyTorch": "plain",
    "bbdm": "kept",
    "bbdm, gradient checkpointing": "checkpointed",
}
WINDOWS = ["MONAI", "bbdm"]
STEPS, OVERLAP = 5, 0.25


@pytest.fixture(scope="module")
def training(peaks: Peaks, quick: bool) -> Comparison:
    size = [4, 16, 16] if quick else [64, 96, 96]
    rounds, steps = (1, 2) if quick else (2, 10 if DEVICE.type == "cuda" else 3)
    rows: dict[str, dict[str, Any]] = {
        row: {"peak_bytes": 0, "processes": rounds} for row in TRAINING
    }
    comparison = Comparison(
        f"Training step on {size}", "plain PyTorch", {row: [] for row in TRAINING}, rows
    )
    for _ in range(rounds):
        for row, kind in TRAINING.items():
            done = processes.run(
                processes.train_volume,
                row=kind,
                size=size,
                steps=steps,
                device=DEVICE.type,
                quick=quick,
            )
            comparison.seconds[row] += done["seconds"]
            rows[row]["peak_bytes"] = max(rows[row]["peak_bytes"], done["peak_bytes"])
    return comparison


@pytest.fixture(scope="module")
def windows(quick: bool) -> Comparison:
    size, window = ((16, 24, 24), (8, 16, 16)) if quick else ((160, 256, 256), (64, 96, 96))
    unet = networks.build_volume(DEVICE, quick, narrow=DEVICE.type == "cpu").eval()
    sampler = BridgeSampler(
        unet, BrownianBridge(objective="pinned"), "dpm2m", STEPS, dtype=best_dtype(DEVICE)
    )
    source, calls = networks.volumes(size, DEVICE), dict.fromkeys(WINDOWS, 0)
    made: dict[str, torch.Tensor] = {}

    def by_windows() -> None:
        done = list[int]()
        counted = calling(
            sampler, lambda *arguments: done.append(1) or sampler.backend.body(*arguments)
        )
        made["bbdm"] = counted(source, seed=0, batch_size=1, window=window, overlap=OVERLAP)
        calls["bbdm"] = len(done)

    def by_monai() -> None:
        done: list[int] = []
        inferred = calling(sampler, of_monai(sampler, window, done.append))
        made["MONAI"] = inferred(source, seed=0, window=None)
        calls["MONAI"] = len(done)

    rows: dict[str, Row] = {"MONAI": by_monai, "bbdm": by_windows}
    comparison = Comparison(f"Volume of {size}, {STEPS} steps", "MONAI", {})
    if find_spec("monai") is None:
        del rows["MONAI"]
        comparison.missing["MONAI"] = "MONAI is not installed"
    for row in rows.values() if quick else ():  # a call is minutes long: nothing is warmed up
        row()
    comparison.seconds = interleaved(rows, 1 if quick else 2, settle=False)
    comparison.info = {row: {"calls": calls[row]} for row in rows}
    if "MONAI" in made:
        error = networks.relative_error(made["bbdm"], made["MONAI"].float())
        comparison.info["bbdm"]["relative_difference"] = error
    return comparison


def calling(sampler: BridgeSampler, body: Callable[..., Tensor]) -> BridgeSampler:
    """A sampler that calls another function in place of the network's body."""
    other = BridgeSampler(sampler.unet, sampler.bridge, sampler.solver, STEPS, dtype=sampler.dtype)
    other.backend.body = body
    return other


def of_monai(
    sampler: BridgeSampler,
    window: tuple[int, ...],
    report: Callable[[int], Any],
) -> Callable[..., Tensor]:
    """The network's body inside MONAI's inferer; ``report`` is called after each call of it with 1."""
    from monai.inferers.inferer import SlidingWindowInferer

    infer: Any = SlidingWindowInferer(along(window, sampler.axes), 1, OVERLAP, mode="gaussian")
    body = sampler.backend.body

    def network(x: Tensor, embedding: Tensor, conditions: Conditions) -> Tensor:
        names = list(conditions)
        together = torch.cat([x, *conditions.values()], 1)

        def predict(part: Tensor) -> Tensor:
            each = part.split([x.shape[1], *(conditions[name].shape[1] for name in names)], 1)
            state, *seen = (
                part.contiguous(memory_format=CHANNELS_LAST[part.ndim]) for part in each
            )
            prediction = body(state, embedding, dict(zip(names, seen, strict=True))).float()
            report(1)
            return prediction

        return infer(together, predict).contiguous(memory_format=CHANNELS_LAST[x.ndim])

    return network


@pytest.mark.parametrize("row", TRAINING)
def test_training(training: Comparison, row: str, record: Record) -> None:
    record(training, row)


@pytest.mark.parametrize("row", WINDOWS)
def test_windows(windows: Comparison, row: str, record: Record) -> None:
    record(windows, row)
