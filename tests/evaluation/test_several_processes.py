"""translate and eval in two processes on CPUs (gloo): the files and the scores of one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bbdm import ABridge, save_checkpoint
from bbdm.cli import eval as eval_script
from bbdm.cli import translate
from bbdm.evaluation import perceptual
from tests.conftest import tiny_unet
from tests.training.launching import TORCHRUN, run
from tests.training.watched_script import Features

pytestmark = pytest.mark.nightly
SIZE = 24  # the least that LPIPS takes
METRICS = ["--metrics", *("fid", "lpips", "psnr", "ssim", "energy"), "--lpips_net", "squeeze"]
FLAGS = ["--steps", "3", "-r", "2", "-b", "3", "--device", "cpu"]  # 10 results in batches of 3, 3, 3 and 1
NAMES = [f"{name}_{j}.png" for name in "abcde" for j in range(2)]
SHARES = {NAMES[i]: str(i // 3 % 2) for i in range(10)}  # the rank that makes each of them


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs in the layout of edge2shoes, a checkpoint, and a network for LPIPS."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data" / "val").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in "abcde":
        pixels = generator.integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / "val" / f"{name}.png")
    save_checkpoint(folder / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), folder / "squeeze.pth")
    return folder


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "inception", Features)


def words(place: Path, output: Path) -> list[str]:
    return ["edge2shoes", str(place / "data"), str(place / "c.pt"), str(output)]


class Two:
    """A script in two processes, of which the second is slow."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "watched"

    def __call__(self, script: str, *flags: str) -> str:
        """Its output."""
        self.log.unlink(missing_ok=True)
        done = run([*TORCHRUN, "tests.training.watched_script", script, *flags], WATCH=str(self.log), SLOW="1")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(self) -> list[tuple[str, str]]:
        """(rank, event), sorted."""
        lines = (line.split(" ", 1) for line in self.log.read_text().splitlines())
        return sorted((rank, event) for rank, event in lines)

    def wrote(self, suffix: str) -> dict[str, str]:
        """The rank that wrote each file with this suffix; none is written twice."""
        found = [(event, rank) for rank, event in self.lines() if event.endswith(suffix)]
        assert max(Counter(name for name, _ in found).values(), default=1) == 1
        return dict(found)


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.png") if not path.name.startswith("quality")}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def assert_same_report(mine: dict[str, Any], other: dict[str, Any]) -> None:
    """Except for the seconds and the number of processes."""
    torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-6, atol=1e-12)  # sums in another order
    assert mine["environment"] == {**other["environment"], "processes": 2}
    for key in mine.keys() - {"scores", "environment", "seconds_per_picture"}:
        assert mine[key] == other[key]
    assert mine.keys() == other.keys()


def test_generate_makes_the_files_of_one_process(place: Path, two: Two, tmp_path: Path):
    """They replace existing ones, or those that exist are not made again."""
    translate.main([*words(place, tmp_path / "one"), *FLAGS])
    (tmp_path / "two").mkdir()
    for name in NAMES:
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "two" / name)
    out = two("translate", *words(place, tmp_path / "two"), *FLAGS, "--overwrite")
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert two.wrote(".png") == {**SHARES, "grid.png": "0"}
    assert out.splitlines()[1:] == [f"to look at: {tmp_path}/two/grid.png"]
    assert out.startswith(f"10 results in {tmp_path}/two (")
    shares = {"a_1.png": "0", "b_0.png": "0", "c_0.png": "0", "d_1.png": "1", "e_0.png": "1"}
    for name in shares:
        (tmp_path / "one" / name).unlink()
        (tmp_path / "two" / name).unlink()
    translate.main([*words(place, tmp_path / "one"), *FLAGS])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*_?.png")}
    out = two("translate", *words(place, tmp_path / "two"), *FLAGS)
    assert two.wrote("_0.png") | two.wrote("_1.png") == shares
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert out.startswith(f"5 results in {tmp_path}/two, and 5 that were there (")


def test_eval_has_the_scores_of_one_process(place: Path, two: Two, tmp_path: Path):
    """In a folder of other results, which --overwrite deletes; then a sweep of one batch."""
    flags = [*FLAGS, *METRICS, "--lpips_weights", str(place / "squeeze.pth"), "--overwrite"]
    eval_script.main([*words(place, tmp_path / "one"), *flags])
    eval_script.main([*words(place, tmp_path / "two"), *flags, "--seed", "7"])
    out = two("eval", *words(place, tmp_path / "two"), *flags)
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert two.wrote(".png") == SHARES
    assert [line for line in two.lines() if "scored" in line[1]] == [("0", "scored 1")] * 3 + [("1", "scored 1")] * 2
    assert {line for line in two.lines() if line[1].endswith(".json")} == {("0", "settings.json"), ("0", "scores.json")}
    report = read(tmp_path / "two" / "scores.json")
    assert_same_report(report, read(tmp_path / "one" / "scores.json"))
    assert out.count("| dpm2m |") == out.count("results and scores.json") == 1
    sweep = [*words(place, tmp_path / "sweep"), "--metrics", "psnr", "--device", "cpu", "--sweep", "dpm2m:2", "ddim:2"]
    out = two("eval", *sweep)
    assert {rank for rank, _ in two.lines()} == {"0"}
    assert [event for _, event in two.lines() if event.startswith(("quality", "scored"))] == [
        *("quality_nfe.png", "scored 5", "scored 5"),
    ]
    assert [line.count("|") for line in out.splitlines()] == [6, 6, 6, 6, 0]


def test_results_of_other_settings_are_refused(place: Path, two: Two, tmp_path: Path):
    flags = [*words(place, tmp_path / "two"), *FLAGS, "--metrics", "psnr"]
    eval_script.main(flags)
    before = {path: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    done = run([*TORCHRUN, "tests.training.watched_script", "eval", *flags, "--seed", "1"], WATCH=str(two.log))
    assert done.returncode != 0
    assert f"error: {tmp_path}/two holds results of other settings (seed 0, now 1)" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "two").iterdir()} == before
    assert not two.log.exists()
