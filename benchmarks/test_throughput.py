"""Training from files: images a second of `bbdm train`, of sde-bbdm's manager, and of the bare step.

The preset demo-residual without a condition (sde-bbdm's A-Bridge shows the network none), 64 x 64, batch 16,
on the pairs of ``--pairs``: each row in its own processes, which take turns, A B C A B C. The first epoch of
a process is not timed. The bare step is the trainer's step on one batch in memory, without the loop around
it, reading, decoding and scaling. Rows: sde-bbdm as its users run it (float32, Adam, L1, as many reading
processes as cores); ours as the preset has it (bfloat16, mirrored pairs, moving average of weights).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bbdm import demo
from benchmarks import peers
from benchmarks.conftest import DEVICE, Record
from benchmarks.processes import BATCH, bare_steps, peer_epochs, run, script_epochs
from benchmarks.timing import Comparison

BASELINE = "sde-bbdm, from files"
MINUTES = {"bare step, compiled", "train.py, compiled"}  # which compile
ROWS: dict[str, Callable[[str], list[float]]] = {  # seconds of steps on a folder of pairs
    BASELINE: lambda data: run(peer_epochs, data=data, device=DEVICE.type),
    "bare step": lambda data: run(bare_steps, data=data, device=DEVICE.type, compiled=False),
    "train.py, from files": lambda data: script_epochs(data, DEVICE.type),
    "train.py, from cached pictures": lambda data: script_epochs(data, DEVICE.type, cached=True),
    "bare step, compiled": lambda data: run(
        bare_steps, data=data, device=DEVICE.type, compiled=True
    ),
    "train.py, compiled": lambda data: script_epochs(data, DEVICE.type, "--compile"),
}


@pytest.fixture(scope="module")
def pairs(
    request: pytest.FixtureRequest, quick: bool, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder ``train`` of drawings side by side: those of --pairs, or the bundled ones over and over."""
    given = request.config.getoption("--pairs")
    drawings = sorted((Path(given) / "train" if given else demo.FOLDER / "val").glob("*.png"))
    folder = tmp_path_factory.mktemp("pairs") / "train"
    folder.mkdir()
    for index in range((2 if quick else 40) * BATCH):
        shutil.copyfile(drawings[index % len(drawings)], folder / f"{index:04d}.png")
    return folder.parent


@pytest.fixture(scope="module")
def measured(pairs: Path, quick: bool) -> Comparison:
    comparison = Comparison(f"Training at 64 x 64, batch {BATCH}", BASELINE, {})
    for row in ROWS:
        missing = peers.why_missing("sde_bbdm") if row == BASELINE else None
        missing = "only without --quick" if quick and row in MINUTES else missing
        if missing:
            comparison.missing[row] = missing
        else:
            comparison.seconds[row], comparison.info[row] = [], {}
    rounds = 1 if quick else 3
    for _ in range(rounds):
        for row, samples in comparison.seconds.items():
            samples += ROWS[row](str(pairs))
    for row, info in comparison.info.items():
        info |= {"images_per_s": BATCH / comparison.median(row), "processes": rounds}
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_throughput(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
