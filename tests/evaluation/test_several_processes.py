"""translate and eval in two processes on CPUs (gloo): the files and the scores of one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bbdm import ABridge, save_checkpoint
from bbdm.cli import eval as eval_script
from bbdm.cli import translate
from bbdm.evaluation import perceptual
from tests.conftest import SavePicture, save_random_pairs, tiny_unet
from tests.evaluation.test_metrics import put_backbone
from tests.training.launching import TORCHRUN, run
from tests.training.watched_script import Features

pytestmark = pytest.mark.nightly
SIZE = 24  # the least that LPIPS takes
METRICS = ["--metrics", *("fid", "lpips", "psnr", "ssim", "energy"), "--lpips_net", "squeeze"]
FLAGS = ["--steps", "3", "-r", "2", "-b", "3", "--device", "cpu"]  # 10 results in batches of 3, 3, 3 and 1
NAMES = [f"{i:02d}_{j}.png" for i in range(5) for j in range(2)]
SHARES = {NAMES[i]: str(i // 3 % 2) for i in range(10)}  # the rank that makes each of them


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> None:
    """Five pairs in the layout of edge2shoes, a checkpoint, a network for LPIPS, and none for FID."""
    save_random_pairs(tmp_path / "data", 0, 5, save_picture, SIZE)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    put_backbone("squeeze", tmp_path, monkeypatch)
    monkeypatch.setattr(perceptual, "inception", Features)


def words(folder: Path, output: str) -> list[str]:
    return ["edge2shoes", str(folder / "data"), str(folder / "c.pt"), str(folder / output)]


def in_two(script: str, *flags: str, status: int = 0) -> tuple[str, list[tuple[str, str]]]:
    """What a script prints in two processes, of which the second is slow, and (rank, event), sorted."""
    log = Path(flags[3]).parent / "watched"
    log.unlink(missing_ok=True)
    done = run([*TORCHRUN, "tests.training.watched_script", script, *flags], WATCH=str(log), SLOW="1")
    assert (done.returncode != 0) == (status != 0), done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    return done.stderr if status else done.stdout, sorted((line[0], line[2:]) for line in lines)


def wrote(events: list[tuple[str, str]], suffix: str = ".png") -> dict[str, str]:
    """The rank that wrote each file with this suffix; none is written twice."""
    found = [(event, rank) for rank, event in events if event.endswith(suffix)]
    assert max(Counter(name for name, _ in found).values(), default=1) == 1
    return dict(found)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


def test_generate_makes_the_files_of_one_process(tmp_path: Path):
    """They replace existing ones, or those that exist are not made again."""
    translate.main([*words(tmp_path, "one"), *FLAGS])
    (tmp_path / "two").mkdir()
    for name in NAMES:
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "two" / name)
    out, events = in_two("translate", *words(tmp_path, "two"), *FLAGS, "--overwrite")
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert wrote(events) == {**SHARES, "grid.png": "0"}
    assert out.splitlines()[1:] == [f"to look at: {tmp_path}/two/grid.png"]
    assert out.startswith(f"10 results in {tmp_path}/two (")
    shares = {"00_1.png": "0", "01_0.png": "0", "02_0.png": "0", "03_1.png": "1", "04_0.png": "1"}
    for name in shares:
        (tmp_path / "two" / name).unlink()
    out, events = in_two("translate", *words(tmp_path, "two"), *FLAGS)
    assert wrote(events, "_0.png") | wrote(events, "_1.png") == shares
    assert pictures(tmp_path / "two").keys() == pictures(tmp_path / "one").keys()
    assert out.startswith(f"5 results in {tmp_path}/two, and 5 that were there (")


def test_eval_has_the_scores_of_one_process(tmp_path: Path):
    """In a folder of other results, which are refused and then replaced; then a sweep of one batch."""
    flags = [*FLAGS, *METRICS]
    eval_script.main([*words(tmp_path, "one"), *flags])
    eval_script.main([*words(tmp_path, "two"), *flags, "--seed", "7"])
    out, events = in_two("eval", *words(tmp_path, "two"), *flags, status=1)
    assert f"error: {tmp_path}/two holds results of other settings (seed 7, now 0)" in out
    assert events == []
    out, events = in_two("eval", *words(tmp_path, "two"), *flags, "--overwrite")
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert wrote(events) == SHARES
    assert [event for event in events if "scored" in event[1]] == [("0", "scored 1")] * 3 + [("1", "scored 1")] * 2
    assert wrote(events, ".json") == {"settings.json": "0", "scores.json": "0"}
    report: dict[str, Any]
    report, one = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("two", "one"))
    torch.testing.assert_close(report["scores"], one["scores"], rtol=1e-6, atol=1e-12)  # sums in another order
    assert report["environment"] == {**one["environment"], "processes": 2}
    changing = {"scores", "environment", "seconds_per_picture"}
    assert {**report, **dict.fromkeys(changing)} == {**one, **dict.fromkeys(changing)}
    assert out.count("| dpm2m |") == out.count("results and scores.json") == 1
    sweep = [*words(tmp_path, "sweep"), "--metrics", "psnr", "--device", "cpu", "--sweep", "dpm2m:2", "ddim:2"]
    out, events = in_two("eval", *sweep)
    assert {rank for rank, _ in events} == {"0"}
    scored = [event for _, event in events if event.startswith(("quality", "scored"))]
    assert scored == ["quality_nfe.png", "scored 5", "scored 5"]
    assert [line.count("|") for line in out.splitlines()] == [6, 6, 6, 6, 0]
