"""Runs of train.py in processes of their own, and what they have in common with a run in one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bbdm
from tests.conftest import ROOT

ALONE = [sys.executable, "-m"]
TORCHRUN = [*ALONE, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
TRAIN = "tests.training.tiny_train"


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The result of a command, with one thread in each process."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def launch(launcher: list[str], argv: list[str], **environment: str) -> None:
    """A run of tiny_train that ends well."""
    done = run([*launcher, TRAIN, *argv], **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights after epoch") == 1


def arguments(data: Path, output: Path, *flags: str) -> list[str]:
    """5 steps an epoch, 20 in all."""
    common = (
        "--preset demo --image_size 16 -b 4 -e 4 -t 50 --device cpu --precision fp32 --save_every 3"
    )
    return ["edge2shoes", str(data), str(output), *common.split(), *flags]


def assert_close(got: Path, wanted: Path, start: str = "") -> None:
    """Weights and their average are equal to 1e-6, metrics whose names begin so to 1e-5."""
    ours, theirs = (bbdm.load_checkpoint(path).unet for path in (got, wanted))
    for mine, other in ((ours.weights, theirs.weights), (ours.ema, theirs.ema)):
        assert mine is not None
        assert other is not None
        for key in other:
            torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-6)
    for pair in zip(metrics(got), metrics(wanted), strict=True):
        mine, other = (
            {name: each[name] for name in each if name.startswith(start)} for each in pair
        )
        assert mine == pytest.approx(other, rel=1e-5)


def metrics(output: Path) -> list[dict[str, Any]]:
    text = (output.with_suffix(".run") / "metrics.jsonl").read_text()
    return [{**json.loads(line), "images_per_second": 0} for line in text.splitlines()]
