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


def run(*words: str | Path) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    about = {"cwd": ROOT / "examples", "env": variables, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, *map(str, words)], **about)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("latent", [[], ["-vq", "vqgan.pt"]], ids=["image", "latent"])
def test_train_and_generate(latent: list[str], save_picture: SavePicture, tmp_path: Path) -> None:
    data, model = save_random_pairs(tmp_path / "edges2shoes", 4, 1, save_picture, 80), tmp_path / "model.pt"
    bbdm.save_vqgan(tmp_path / "vqgan.pt", bbdm.VQGAN.from_preset("demo"))
    flags = [word if word == "-vq" else tmp_path / word for word in latent]
    small = ["--preset", "demo", "--image_size", "64", "-b", "2", "-e", "1", "--show_verbose", "-use_multi_gpus"]
    output = run("train.py", "edge2shoes", data, model, *flags, *small)
    assert re.search(r"^epoch 1/1: loss .*, validation ", output, re.MULTILINE)
    checkpoint = bbdm.load_checkpoint(model)
    assert (checkpoint.codec is not None, checkpoint.image_size) == (bool(latent), 64)
    run("generate.py", "edge2shoes", data, model, tmp_path / "results", "--fast_sampling")
    assert Image.open(tmp_path / "results/04.png").size == (64, 64)
