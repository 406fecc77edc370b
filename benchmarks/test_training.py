"""One training step at 3 x 64 x 64, each row in its own processes, with their peak memory.

Processes take turns, A B C A B C, since the memory of all three at once is more than many machines have.
Rows: sde-bbdm as its users run it (float32, Adam, L1, gradients clipped); ours in bfloat16 autocast with
Adam, L1 and the moving average of weights that sde-bbdm leaves out; the same compiled. The first step of each
process is not timed: it runs the compiler and allocates the optimizer's state.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bbdm import UNet
from benchmarks import peers, processes
from benchmarks.conftest import DEVICE, Record
from benchmarks.machine import Peaks
from benchmarks.networks import gflop, images
from benchmarks.timing import Comparison

BASELINE = "sde-bbdm float32"
ROWS: dict[str, dict[str, Any] | None] = {  # fields of TrainConfig, None for sde-bbdm
    BASELINE: None,
    "eager bfloat16": {"precision": "bf16"},
    "compiled bfloat16": {"precision": "bf16", "compile": True},
}


@pytest.fixture(scope="module", params=[2, 8], ids="batch{}".format)
def measured(request: pytest.FixtureRequest, unet: UNet, peaks: Peaks, quick: bool) -> Comparison:
    batch: int = request.param
    if batch > 2 and quick:
        pytest.skip("only without --quick")
    rounds, steps = (1, 5) if quick else (2, 10 if DEVICE.type == "cuda" else 2)
    comparison = Comparison(f"Training step, batch {batch}", BASELINE, {})
    for row in ROWS:
        missing = peers.why_missing("sde_bbdm") if row == BASELINE else None
        if missing:
            comparison.missing[row] = missing
        else:
            comparison.seconds[row], comparison.info[row] = [], {"peak_bytes": 0}
    for _ in range(rounds):
        for row, samples in comparison.seconds.items():
            done = processes.run(
                processes.train,
                settings=ROWS[row],
                batch=batch,
                steps=steps,
                device=DEVICE.type,
                quick=quick,
            )
            samples += done["seconds"]
            info = comparison.info[row]
            info["peak_bytes"] = max(info["peak_bytes"], done["peak_bytes"])
    # the call, and backward to its inputs and to its weights
    work = 3 * gflop(unet, images(batch, DEVICE, quick))
    for row, info in comparison.info.items():
        info |= {"images_per_s": batch / comparison.median(row), "processes": rounds}
        info |= peaks.rates(
            work, comparison.median(row), torch.float32 if row == BASELINE else torch.bfloat16
        )
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_training(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
