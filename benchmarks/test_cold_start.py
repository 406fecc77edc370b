"""From the start of a Python process to its first image, and the steady speed of what was loaded.

Each sample is a fresh process with a user's few lines, from its start until it prints that it has the image.
Its folder for inductor's cache is empty; checkpoint and package were just written, so that they are in the
system's file cache.

Rows: eager float32; ``compile=True``; from a saved package. The steady rows are calls in this
process, in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, UNet, save_checkpoint
from benchmarks import processes
from benchmarks.conftest import Record
from benchmarks.networks import BRIDGE, STEPS, images, relative_error
from benchmarks.timing import Comparison, interleaved

SCRIPT = """
import json, sys
import torch
from bbdm import BridgeSampler

folder, device, settings = sys.argv[1:]
sampler = BridgeSampler.from_checkpoint(f"{folder}/unet.safetensors", device=device, **json.loads(settings))
image = sampler(torch.load(f"{folder}/source.pt"), seed=0)
torch.save(image, f"{folder}/image.pt")
print("first image", flush=True)
"""
ROWS = ["eager float32", "compiled, empty cache", "from package"]
STEADY = ["compiled", "package"]


def first_image(folder: Path, device: str, settings: dict[str, Any]) -> float:
    """Seconds from the start of a process until it has its first image."""
    command = [sys.executable, "-c", SCRIPT, str(folder), device, json.dumps(settings)]
    environment = processes.environment(TORCHINDUCTOR_CACHE_DIR=tempfile.mkdtemp(dir=folder))
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if line != "first image\n":
        raise RuntimeError(f"no image with {settings}")
    return seconds


@pytest.fixture(scope="module")
def folder(
    unet: UNet, sampler: BridgeSampler, quick: bool, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint, a source, and the package of its shape."""
    folder = tmp_path_factory.mktemp("cold")
    save_checkpoint(folder / "unet.safetensors", unet, BRIDGE)
    source = images(1, "cpu", quick)
    torch.save(source, folder / "source.pt")
    sampler(source, seed=0)
    height, width = source.shape[-2:]
    sampler.save_compiled(folder / "unet.pt2", size=(height, width))
    return folder


@pytest.fixture(scope="module")
def cold(folder: Path, unet: UNet, sampler: BridgeSampler, quick: bool) -> Comparison:
    device = sampler.device.type
    settings: dict[str, dict[str, Any]] = {
        "eager float32": {"steps": STEPS},
        "compiled, empty cache": {"steps": STEPS, "compile": True},
        "from package": {"steps": STEPS, "compiled": str(folder / "unet.pt2")},
    }
    expected = BridgeSampler(unet, BRIDGE, steps=STEPS)(
        images(1, sampler.device, quick), seed=0
    ).cpu()
    comparison = Comparison("Cold start to the first image", ROWS[0], {row: [] for row in ROWS})
    rounds = 1 if quick else 3
    for turn in range(rounds):
        for row, setting in settings.items():
            if row == "compiled, empty cache" and turn:
                continue  # the compiler's minute is measured once
            comparison.seconds[row].append(first_image(folder, device, setting))
            error = relative_error(torch.load(folder / "image.pt"), expected)
            assert error < 0.1, f"{row}: relative error {error:.3g}"
            comparison.info[row] = {
                "relative_error": error,
                "processes": len(comparison.seconds[row]),
            }
    package = folder / "unet.pt2"
    comparison.info["from package"]["package_bytes"] = package.stat().st_size
    return comparison


@pytest.fixture(scope="module")
def steady(folder: Path, sampler: BridgeSampler, quick: bool) -> Comparison:
    source = images(1, sampler.device, quick)
    loaded = BridgeSampler.from_checkpoint(
        folder / "unet.safetensors",
        device=sampler.device,
        steps=STEPS,
        compiled=folder / "unet.pt2",
    )
    rows: dict[str, Callable[[], torch.Tensor]] = {
        "compiled": lambda: sampler(source, seed=0),
        "package": lambda: loaded(source, seed=0),
    }
    error = relative_error(rows["package"](), rows["compiled"]())
    assert error < 0.1, f"relative error {error:.3g}"
    seconds = interleaved(rows, rounds=3 if quick else 5, settle=False)
    return Comparison(
        "Steady translation of one image",
        "compiled",
        seconds,
        {"package": {"relative_error": error}},
    )


@pytest.mark.parametrize("row", ROWS)
def test_first_image(cold: Comparison, row: str, record: Record) -> None:
    record(cold, row)


@pytest.mark.parametrize("row", STEADY)
def test_steady(steady: Comparison, row: str, record: Record) -> None:
    record(steady, row)
