"""Scores of restored photographs, against their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import BrownianBridge, UNet, save_checkpoint
from bbdm.data.spec import Spec
from benchmarks import photographs

NOISE = np.random.default_rng(0).integers(40, 200, (96, 130, 3), dtype=np.uint8)


def test_squares_are_those_of_the_picture() -> None:
    image = torch.arange(3 * 130 * 200).reshape(3, 130, 200).float()
    found = photographs.squares(image)
    assert found.shape == (6, 3, 64, 64)
    assert found[4].equal(image[:, 64:128, 64:128])


def test_scores_of_a_constant_error() -> None:
    target = torch.zeros(1, 3, 96, 130) / 127.5
    damaged = target[0] + 8 / 127.5  # a whole number of 8-bit steps from 128
    found = photographs.scores(lambda source, seed: source, damaged[None], target[0], seeds=2)
    error = (round((8 / 127.5 + 1) * 127.5) / 127.5 - 1) ** 2
    assert found["psnr"] == pytest.approx(10 * np.log10(4 / error), abs=0.02)
    assert found["energy"] == pytest.approx(np.sqrt(error * 3 * 64 * 64), rel=1e-3)


def test_samples_are_scored_together() -> None:
    draws = torch.Generator().manual_seed(0)
    target = torch.zeros(3, 64, 64)

    def restore(source: torch.Tensor, seed: int) -> torch.Tensor:
        return 0.1 * torch.randn(source.shape, generator=draws)

    found = photographs.scores(restore, target[None], target, seeds=2)
    size = 0.1 * np.sqrt(target.numel())  # the distance to the target; to each other it is larger by the root of 2
    assert found["energy"] == pytest.approx(size - size * np.sqrt(2) / 2, rel=0.05)


def test_it_prints_a_table_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(NOISE).save(tmp_path / "in" / f"{name}.png")
    unet = UNet(3, 3, condition_channels=3, model_channels=8, channel_mult=(1, 2), head_channels=8, num_groups=4)
    bridge = BrownianBridge(objective="pinned", spread=0.1)
    save_checkpoint(tmp_path / "c.pt", unet, bridge, image_size=96, pictures=Spec(crop=96))
    words = [str(tmp_path / "in"), str(tmp_path / "out.json"), "--checkpoint", str(tmp_path / "c.pt")]
    words += ["--damages", "jpeg:10", "--steps", "1", "--seeds", "1", "--regression", str(tmp_path / "c.pt")]
    photographs.main([*words, "--most", "1"])
    first = json.loads((tmp_path / "out.json").read_text())["jpeg:10|a"]
    photographs.main([*words, "--figure", str(tmp_path / "figure.png")])
    done = json.loads((tmp_path / "out.json").read_text())
    assert done["jpeg:10|a"] == first
    rows = capsys.readouterr().out.splitlines()
    names = ["damaged", "mean", "sde-dpm2m 1", "L1 regression", *["non-local means"] * photographs.has_opencv()]
    assert [row.split("|")[1].strip() for row in rows[-len(names) :]] == names
    shown = Image.open(tmp_path / "figure.png")
    assert shown.size == ((len(names) + 1) * 132 + 2, 2 * 98 + 2)  # all of 130 x 96, 2 pixels apart
    assert shown.crop((shown.width - 132, 2, shown.width - 2, 98)).tobytes() == NOISE.tobytes()
