"""Commands with a network of two directions, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.cli import distill, eval, train, translate
from bbdm.cli.eval import Calibrate
from bbdm.cli.files import Info
from tests.conftest import SavePicture, noise, save_random_pairs, tiny_unet

SIZE = 16
FLAGS = ["--steps", "2", "--device", "cpu", "--quiet"]
BACK = ["--direction", "BtoA"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture, tiny_demo: None) -> Path:
    """Four training pairs, three for validation, and a network whose direction counts."""
    save_random_pairs(tmp_path / "data", 4, 3, save_picture)
    monkeypatch.chdir(tmp_path)
    unet = tiny_unet(condition_channels=3, classes={"direction": ("AtoB", "BtoA")})
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_checkpoint("m.pt", unet, ABridge(num_steps=100), image_size=SIZE)
    return tmp_path


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_results_go_the_way_of_the_flag(place: Path, save_picture: SavePicture) -> None:
    sampler, pair = BridgeSampler.from_checkpoint("m.pt", steps=2), pixels("data/val/04.png")
    save_picture(place / "alone" / "x.png", noise(3))
    for way, source in {"AtoB": pair[:, :SIZE], "BtoA": pair[:, SIZE:]}.items():
        translate.main(["edge2shoes", "data", "m.pt", way, *FLAGS, "--direction", way])
        wanted = sampler(np.ascontiguousarray(source), 0, direction=way)
        assert np.array_equal(pixels(f"{way}/04.png"), wanted)
        translate.main(["folder", "alone", "m.pt", f"alone-{way}", *FLAGS, "--direction", way])
    assert not np.array_equal(pixels("alone-AtoB/x.png"), pixels("alone-BtoA/x.png"))
    with pytest.raises(ValueError, match=r"holds results of other settings \(direction"):
        translate.main(["edge2shoes", "data", "m.pt", "AtoB", *FLAGS, *BACK])
    with pytest.raises(ValueError, match="direction is a setting of its own, and no condition"):
        translate.main(["edge2shoes", "data", "m.pt", "x", "--condition", "direction=BtoA", *FLAGS])


def test_scores_intervals_and_what_a_file_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval.main(["edge2shoes", "data", "m.pt", "scores", "--metrics", "psnr", *BACK, *FLAGS])
    assert json.loads(Path("scores/scores.json").read_text())["settings"]["direction"] == "BtoA"
    Calibrate.main(["m.pt", "edge2shoes", "data", "--samples", "2", "--bound", "conformal", "--alpha", "0.5", *BACK,
                    *FLAGS])  # fmt: skip
    maps = ["edge2shoes", "data", "m.pt", "low", "--device", "cpu", "--quiet", "--maps", "low", "--direction"]
    translate.main([*maps, "BtoA"])
    with pytest.raises(ValueError, match=r"calibrated for another sampler \(direction"):
        translate.main([*maps, "AtoB"])
    capsys.readouterr()
    Info.main(["m.pt"])
    assert "AtoB; with BtoA, the values of sources and targets change places" in capsys.readouterr().out


def test_it_is_trained_resumed_and_distilled(place: Path) -> None:
    argv = ["edge2shoes", "data", "t.pt", "--preset", "demo", "-b", "2", "--image_size", str(SIZE), "--device", "cpu"]
    argv += ["--lr_schedule", "constant", "--direction", "both", "--quiet", "-e"]
    train.main([*argv, "1"])
    train.main([*argv, "2"])
    known = load_checkpoint("t.pt")
    assert known.unet.config.two_way
    assert len(Path("t.run/metrics.jsonl").read_text().splitlines()) == 2
    message = "the network has two directions, and trains on both; got direction 'AtoB'"
    with pytest.raises(ValueError, match=message):
        train.main([*argv, "2", "--direction", "AtoB"])
    student = ["t.pt", "data", "s.pt", "-b", "2", "-e", "1", "--device", "cpu", "--quiet"]
    distill.main([*student, "--direction", "both"])
    assert load_checkpoint("s.pt").unet.config.two_way
    with pytest.raises(ValueError, match=message):
        distill.main(student)
