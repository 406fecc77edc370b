"""The commands of sde-bbdm's README, run in the folder of the examples.

At the paper's size they need a GPU, so ``--preset demo --image_size 64 -b 2 -e 1`` is added.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bbdm
from tests.conftest import ROOT, SavePicture

SMALL = ["--preset", "demo", "--image_size", "64", "-b", "2", "-e", "1"]


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    folder = tmp_path_factory.mktemp("edges2shoes")
    generator = np.random.default_rng(0)
    for name in ("train/1.jpg", "train/2.jpg", "train/3.jpg", "train/4.jpg", "val/5.jpg"):
        pixels = generator.integers(0, 256, (80, 160, 3), dtype=np.uint8)
        save_picture(folder / name, Image.fromarray(pixels))
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("space", ["image", "latent"])
def test_train_and_generate(space: str, data: Path, tmp_path: Path) -> None:
    model, vqgan = tmp_path / "model.pt", tmp_path / "vqgan.pt"
    latent: list[str | Path] = []
    if space == "latent":
        bbdm.save_vqgan(vqgan, bbdm.VQGAN.from_preset("demo"))
        latent = ["-vq", vqgan]
    output = run("train.py", "edge2shoes", data, model, *latent, *SMALL, "--show_verbose", "-use_multi_gpus")
    assert re.search(r"^epoch 1/1: loss .*, validation ", output, re.MULTILINE)
    checkpoint = bbdm.load_checkpoint(model)
    assert (checkpoint.codec is not None) == (space == "latent")
    assert checkpoint.image_size == 64
    run("generate.py", "edge2shoes", data, model, tmp_path / "results", "--fast_sampling")
    with Image.open(tmp_path / "results" / "5.png") as result:
        assert result.size == (64, 64)
