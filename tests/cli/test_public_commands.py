"""The commands of sde-bbdm's README, run in the folder of the examples.

At the paper's size they need a GPU, so ``--preset demo --image_size 64 -b 2 -e 1`` is added.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import bbdm
from tests.conftest import ROOT, SavePicture, save_random_pairs

SMALL = ["--preset", "demo", "--image_size", "64", "-b", "2", "-e", "1"]


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, script, *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=ROOT / "examples", env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("space", ["image", "latent"])
def test_train_and_generate(space: str, save_picture: SavePicture, tmp_path: Path) -> None:
    data = save_random_pairs(tmp_path / "edges2shoes", 4, 1, save_picture, 80)
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
    with Image.open(tmp_path / "results" / "04.png") as result:
        assert result.size == (64, 64)
