"""Restoration as a user runs it: training, translating and scoring from pictures alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bbdm
from bbdm.base import scripts
from bbdm.base.seeds import seed_of
from bbdm.cli import eval as eval_script
from bbdm.cli import train, translate
from bbdm.data.degradations import Degradation
from bbdm.pictures import images
from bbdm.translation.results import ResultsError
from tests.conftest import SavePicture, noise, tiny_unet

SIZE = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture, tiny_demo: None) -> Path:
    """Pictures in data/train and data/val, the latter wider than high; a checkpoint; a tiny preset."""
    for index, name in enumerate(("train/1", "train/2", "train/3", "train/4", "val/a", "val/b")):
        save_picture(tmp_path / "data" / f"{name}.png", noise(index, SIZE if index < 4 else 2 * SIZE, SIZE))
    bbdm.save_checkpoint(tmp_path / "c.pt", tiny_unet(), bbdm.ABridge(num_steps=50), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_on(data: str, output: str, *flags: str, degrade: str = "inpaint") -> None:
    small = ["--preset", "demo", "--image_size", str(SIZE), "-b", "2", "-e", "2", "--device", "cpu", "-t", "50"]
    train.main(["folder", data, output, *small, "--lr_schedule", "constant", "--degrade", degrade, *flags])


def weights(output: str) -> dict[str, torch.Tensor]:
    state = bbdm.load_checkpoint(Path(output)).unet.weights
    assert state is not None
    return state


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def run(*flags: str, degrade: str = "gray") -> None:
    translate.main(["folder", "data", "c.pt", "results", "--steps", "2", "--degrade", degrade, *flags])


class TestTrain:
    def test_resumes_as_if_undisturbed_and_refuses_others(self, place: Path) -> None:
        train_on("data", "straight.pt", "--cache_images", "cache")
        train_on("data", "resumed.pt", "-e", "1", "--cache_images", "cache")
        train_on("data", "resumed.pt")
        assert same(weights("resumed.pt"), weights("straight.pt"))  # from cached pictures too
        train_on("data", "masked.pt", degrade="inpaint@1")
        assert not same(weights("masked.pt"), weights("straight.pt"))
        lines = Path("straight.run/metrics.jsonl").read_text().splitlines()
        assert "validation_loss" in json.loads(lines[-1])
        assert json.loads(Path("straight.run/config.json").read_text())["pairs"]["degradation"] == "inpaint@0"
        message = "degradation=inpaint@0 of the pairs, not"
        with pytest.raises(ValueError, match=f"{message} blur:2@0: resume with the same"):
            train_on("data", "resumed.pt", degrade="blur")
        with pytest.raises(ValueError, match=f"{message} inpaint@1"):
            train_on("data", "resumed.pt", degrade="inpaint@1")
        with pytest.raises(ValueError, match=r"of other pictures \(.*degradation inpaint@0, now sr4@0"):
            train_on("data", "other.pt", "--cache_images", "cache", degrade="sr4")

    def test_a_folder_without_splits_has_no_validation(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        train_on("data/train", "model.pt", "-e", "1")
        assert "without validation pairs, no validation loss" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["folder", "data", "m.pt"], "the data set 'folder' has no targets: degrade makes sources"),
            (["edge2shoes", "data", "m.pt", "--degrade", "sr4"], "degrade is for pictures without targets"),
        ],
    )
    def test_one_line_for_what_cannot_be(self, words: list[str], message: str, place: Path) -> None:
        with pytest.raises(SystemExit) as caught:
            scripts.run(lambda: train.main([*words, "--preset", "demo", "--device", "cpu"]))
        assert str(caught.value).startswith(f"error: {message}")

    def test_a_degradation_that_there_is_not(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            train.Train.parse(["folder", "data", "m.pt", "--degrade", "fog"])
        assert "argument --degrade: degrade must be one of sr4, jpeg, " in capsys.readouterr().err


class TestGenerate:
    def test_grid_is_source_result_original(self, place: Path) -> None:
        """And results of another degradation are refused."""
        run()
        grid, gap = np.asarray(Image.open("results/grid.png"))[images.NAME_HEIGHT :], 2
        height, width = SIZE // 2, SIZE  # val pictures fit inside SIZE x SIZE with their shape
        cells = [grid[gap:, gap + i * (width + gap) :][:height, :width] for i in range(3)]
        original = np.asarray(Image.open("data/val/a.png").resize((width, height), Image.Resampling.BILINEAR))
        assert np.array_equal(cells[2], original)
        assert abs(cells[0] - (original @ [0.299, 0.587, 0.114])[..., None]).max() <= 1
        assert np.array_equal(cells[1], np.asarray(Image.open("results/a.png")))
        with pytest.raises(ResultsError, match="degradation gray@0, now sr4@0"):
            run(degrade="sr4")

    def test_results_are_of_the_degraded_pictures(self, place: Path) -> None:
        run("--size", "train", degrade="inpaint")
        for name in "ab":
            picture = Image.open(f"data/val/{name}.png").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            source = Degradation.read("inpaint").picture(picture, name)
            wanted = bbdm.BridgeSampler.from_checkpoint("c.pt", steps=2)(source, seed=seed_of(name))[0]
            made = np.asarray(Image.open(f"results/{name}.png"), dtype=int)
            assert abs(made - np.asarray(wanted, dtype=int)).max() <= 1


def test_scores_are_against_the_originals(place: Path) -> None:
    words = ["folder", "data", "c.pt", "scored", "--steps", "2", "--metrics", "psnr", "--degrade", "sr4"]
    eval_script.main(words)
    report = json.loads(Path("scored/scores.json").read_text())
    wanted = []
    for name in "ab":
        original = Image.open(f"data/val/{name}.png").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        result = np.asarray(Image.open(f"scored/{name}.png"), dtype=float)
        wanted.append(20 * np.log10(255 / np.sqrt(((result - np.asarray(original)) ** 2).mean())))
    assert report["scores"]["psnr"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert report["settings"]["degradation"] == "sr4@0"
