"""translate and eval in two processes on CPUs (gloo), of which one is slow: the files and scores of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, save_checkpoint
from bbdm.cli import eval as eval_script
from bbdm.cli import translate
from tests.conftest import SavePicture, save_random_pairs, tiny_unet
from tests.evaluation.test_metrics import put_backbone
from tests.training.launching import TORCHRUN, TRAIN, run

pytestmark = pytest.mark.nightly
SIZE = 24  # the least that LPIPS takes
METRICS = ["--metrics", *("lpips", "psnr", "ssim", "energy"), "--lpips_net", "squeeze"]
# 10 results in batches of 3, 3, 3 and 1
FLAGS = ["--steps", "3", "-r", "2", "-b", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> None:
    """Five pairs in the layout of edge2shoes, a checkpoint, and a network for LPIPS."""
    save_random_pairs(tmp_path / "data", 0, 5, save_picture, SIZE)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    put_backbone("squeeze", tmp_path, monkeypatch)


def words(folder: Path, output: str) -> list[str]:
    return ["edge2shoes", str(folder / "data"), str(folder / "c.pt"), str(folder / output)]


def in_two(command: str, *flags: str, status: int = 0) -> str:
    """What a command prints."""
    done = run([*TORCHRUN, TRAIN, *flags], COMMAND=command, SLOW="1")
    assert (done.returncode != 0) == (status != 0), done.stderr
    return done.stderr if status else done.stdout


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.png")}


def assert_same_pictures(folder: Path, other: Path) -> None:
    """To a level: a process of other threads rounds float32 differently."""
    assert names(folder) == names(other)
    for name in names(other):
        found, wanted = (
            np.asarray(Image.open(place / name), dtype=int) for place in (folder, other)
        )
        assert np.abs(found - wanted).max() <= 1, name


def test_translate_makes_the_files_of_one_process(tmp_path: Path):
    """They replace those of other settings, or those that exist are not made again."""
    translate.main([*words(tmp_path, "one"), *FLAGS])
    translate.main([*words(tmp_path, "two"), *FLAGS, "--seed", "9"])
    made = [f"{i:02d}_{j}.png" for i in range(5) for j in range(2)]
    out = in_two("translate", *words(tmp_path, "two"), *FLAGS, "--overwrite")
    assert_same_pictures(tmp_path / "two", tmp_path / "one")
    assert out.startswith(f"10 results in {tmp_path}/two (")
    for name in made[1:6]:
        (tmp_path / "two" / name).unlink()
    out = in_two("translate", *words(tmp_path, "two"), *FLAGS)
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert out.startswith(f"5 results in {tmp_path}/two, and 5 that were there (")
    lines = [
        (tmp_path / folder / "results.jsonl").read_text().splitlines() for folder in ("one", "two")
    ]
    about = [{line["name"]: line["item"] for line in map(json.loads, each)} for each in lines]
    assert about[0] == about[1]
    assert about[0].keys() == {*made}
    assert not list((tmp_path / "two").glob(".*"))


def test_eval_has_the_scores_of_one_process(tmp_path: Path):
    """In a folder of other results, which are refused and then replaced; then a sweep of one batch."""
    flags = [*FLAGS, *METRICS]
    eval_script.main([*words(tmp_path, "one"), *flags])
    eval_script.main([*words(tmp_path, "two"), *flags, "--seed", "7"])
    out = in_two("eval", *words(tmp_path, "two"), *flags, status=1)
    assert f"error: {tmp_path}/two holds results of other settings (seed 7, now 0)" in out
    out = in_two("eval", *words(tmp_path, "two"), *flags, "--overwrite")
    assert_same_pictures(tmp_path / "two", tmp_path / "one")
    report: dict[str, Any]
    report, one = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("two", "one")
    )
    # sums in another order
    torch.testing.assert_close(report["scores"], one["scores"], rtol=1e-6, atol=1e-12)
    assert report["environment"] == {**one["environment"], "processes": 2}
    changing = {"scores", "environment", "seconds_per_picture"}
    assert {**report, **dict.fromkeys(changing)} == {**one, **dict.fromkeys(changing)}
    assert out.count("| dpm2m |") == out.count("results and scores.json") == 1
    sweep = [
        *words(tmp_path, "sweep"),
        "--metrics",
        "psnr",
        "--device",
        "cpu",
        "--sweep",
        "dpm2m:2",
        "ddim:2",
    ]
    assert [line.count("|") for line in in_two("eval", *sweep).splitlines()] == [6, 6, 6, 6, 0]
    assert (tmp_path / "sweep" / "quality_nfe.png").is_file()
