"""`bbdm calibrate` and `bbdm translate --maps` as a user runs them, with networks too small to be good."""

import json
from pathlib import Path
from typing import Any

import pytest

from bbdm import ABridge, BridgeSampler, Intervals, save_checkpoint
from bbdm.cli import calibrate
from bbdm.data.pairs import load_dataset
from bbdm.data.survey import survey
from bbdm.evaluation.calibration import IntervalsExistError, SeenPairsError
from tests.conftest import MakeTrainer, SavePicture, newest, save_random_pairs, tiny_unet

SIZE = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> Path:
    """Ten pairs for validation and two for training in the layout of edge2shoes, and a checkpoint."""
    save_random_pairs(tmp_path / "data", 2, 10, save_picture)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["--samples", "3", "--bound", "conformal", "--steps", "2", "--solver", "sde-dpm2m", "--quiet"]


def run(*flags: str) -> dict[str, Any]:
    calibrate.main(["c.pt", "edge2shoes", "data", *FLAGS, *flags])
    return json.loads(Path("c.intervals.json").read_text())


def test_the_file_has_the_intervals_of_the_library(place: Path, capsys: pytest.CaptureFixture[str]):
    made = run("--alpha", "0.2", "--seed", "5")
    sampler = BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)
    pairs = load_dataset("edge2shoes", "data", "val", SIZE)
    wanted = Intervals.calibrate(sampler, pairs, 0.2, samples=3, bound="conformal", seed=5)
    assert vars(Intervals.load("c.intervals.json", sampler)) == vars(wanted)
    assert made["pairs"] == 10
    assert not Path("c.intervals.json.parts").exists()
    assert capsys.readouterr().out.startswith("10 pairs: ")
    with pytest.raises(IntervalsExistError, match=r"c.intervals.json exists already"):
        run()
    assert run("--overwrite")["alpha"] == 0.1


def test_an_interrupted_command_resumes(place: Path, monkeypatch: pytest.MonkeyPatch):
    made, original = [], BridgeSampler.distribution

    def interrupted(self: BridgeSampler, *args: Any, **settings: Any) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(1)
        return original(self, *args, **settings)

    monkeypatch.setattr(BridgeSampler, "distribution", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not Path("c.intervals.json").exists()
    made[:] = [0] * 5
    run()
    assert len(made) == 5 + 6


def test_pairs_that_were_in_training_are_refused(place: Path):
    """By their content in the part train; by what the run's folder keeps of it."""
    data = place / "data"
    copied = data / "train" / "copy.png"
    copied.write_bytes((data / "val" / "05.png").read_bytes())
    with pytest.raises(SeenPairsError, match=r"val/05.png has the content of data/train/copy.png, a training pair"):
        run()
    copied.unlink()
    Path("c.run").mkdir()
    survey(load_dataset("edge2shoes", "data", "val", SIZE), kept=Path("c.run/pictures_train.json"))
    with pytest.raises(SeenPairsError, match=r"these 10 pairs were in training, by c.run/pictures_train.json"):
        run()


def test_pairs_of_a_checkpoint_that_training_resumes_from(place: Path, make_trainer: MakeTrainer):
    trainer = make_trainer(epochs=1)
    trainer.fit()
    file = newest(trainer)
    with pytest.raises(SeenPairsError, match=r"these 4 pairs were in training, by their names"):
        calibrate.main([str(file), "paired", f"{place}/pairs/A,{place}/pairs/B", *FLAGS, "--alpha", "0.4"])


def test_too_few_pairs_are_said_before_any_network_call(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BridgeSampler, "distribution", None)
    with pytest.raises(ValueError, match=r"alpha 0.05 and delta 0.1 need at least 19 pairs.*, got 10"):
        run("--alpha", "0.05")
