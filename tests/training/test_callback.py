"""Callbacks: when they are called, and that they change no weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm import BridgeSampler, Callback
from bbdm.base.scripts import StoppedError
from bbdm.data.pairs import Pairs
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import Values
from bbdm.training.previews import ValidationScores
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, MakeTrainer, load_pairs, metrics_of, same_weights, tiny_unet


def picture(pairs: Pairs, index: int, side: str) -> Image.Image:
    return Image.open(pairs.rows[index][side])


class Diary(Callback):
    """Records the calls; raises an error at a step, if one is given."""

    def __init__(self, last: int | None = None, error: type[Exception] = StoppedError) -> None:
        self.entries: list[Any] = []
        self.last, self.error = last, error

    def begin(self, trainer: Trainer) -> None:
        self.entries.append(("begin", trainer.step))

    def after_step(self, trainer: Trainer, loss: float) -> None:
        self.entries.append((trainer.step, loss))
        if trainer.step == self.last:
            raise self.error("enough")

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.entries.append(("epoch", trainer.epoch))
        metrics["entries"] = len(self.entries)

    def end(self, trainer: Trainer) -> None:
        self.entries.append("end")


def test_order(make_trainer: MakeTrainer) -> None:
    diary = Diary()
    trainer = make_trainer(callbacks=[diary])
    trainer.fit()
    calls = [entry[0] if isinstance(entry[0], int) else entry for entry in diary.entries]
    assert calls == [("begin", 0), 1, 2, ("epoch", 1), 3, 4, ("epoch", 2), "end"]
    losses = [entry[1] for entry in diary.entries if isinstance(entry[0], int)]
    records = metrics_of(trainer)
    assert [record["loss"] for record in records] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert [record["entries"] for record in records] == [4, 7]


@pytest.mark.parametrize("error", [StoppedError, KeyError])
def test_one_that_ends_the_run_ends_all(error: type[Exception], make_trainer: MakeTrainer) -> None:
    diaries = [Diary(3, error), Diary()]
    trainer = make_trainer(callbacks=diaries)
    with pytest.raises(error, match="enough"):
        trainer.fit()
    assert diaries[0].entries[-1] == diaries[1].entries[-1] == "end"
    assert len(diaries[1].entries) == len(diaries[0].entries) - 1  # the step that ended it
    assert list(trainer.run.checkpoints()) == [2]


class Ends(Callback):
    """Ends the run in its first epoch, by an error or a request."""

    def __init__(self, how: str) -> None:
        self.how = how

    def after_step(self, trainer: Trainer, loss: float) -> None:
        if self.how == "stop in a step":
            trainer.stop("enough")

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        if self.how == "StoppedError":
            raise StoppedError("enough")
        trainer.stop("enough")


@pytest.mark.parametrize("how", ["stop", "stop in a step", "StoppedError"])
def test_an_early_stop_keeps_its_epoch(
    how: str, make_trainer: MakeTrainer, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    """Its metrics, its best and its checkpoint; a run that resumes goes on to the undisturbed end."""
    diary, trainer = Diary(), make_trainer(validation=pairs, callbacks=[Ends(how)])
    trainer.callbacks.append(diary)
    caplog.set_level("INFO", "bbdm")
    if how == "StoppedError":
        with pytest.raises(StoppedError, match="enough"):
            trainer.fit()
    else:
        assert trainer.fit()
        assert "ended after epoch 1: enough" in caplog.text
        assert (trainer.folder / "summary.json").is_file()
    (record,) = metrics_of(trainer)
    assert trainer.best == {"epoch": 1, "step": 2, "validation_loss": record["validation_loss"]}
    assert trainer.run.best.is_file()
    assert diary.entries[-2:] == [("epoch", 1), "end"]
    assert list(trainer.run.checkpoints()) == [2]
    resumed, whole = make_trainer(validation=pairs), make_trainer("whole", validation=pairs)
    assert resumed.resume_newest()
    for each in (resumed, whole):
        each.fit()
    assert same_weights(resumed.network, whole.network)
    assert resumed.best == whole.best


def test_a_resumed_run_begins_again(make_trainer: MakeTrainer) -> None:
    with pytest.raises(StoppedError):
        make_trainer(callbacks=[Diary(3)]).fit()
    diary = Diary()
    trainer = make_trainer(callbacks=[diary])
    assert trainer.resume_newest()
    trainer.fit()
    assert diary.entries[0] == ("begin", 2)


def test_they_change_nothing(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    runs = [
        make_trainer("plain", validation=pairs),
        make_trainer("watched", validation=pairs, preview_every=1, callbacks=[Diary(), Callback()]),
    ]
    for trainer in runs:
        trainer.fit()
    assert same_weights(*(trainer.network for trainer in runs))
    records = [[{**each, "images_per_second": 0, "entries": 0} for each in metrics_of(trainer)] for trainer in runs]
    assert [{**each, "entries": 0} for each in records[0]] == records[1]


class TestValidationScores:
    def test_are_those_of_the_sampler(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        """PSNR from its formula, of results that the sampler makes of pictures with seeds 0, 1, 2 and 3."""
        trainer = make_trainer(validation=pairs, callbacks=[ValidationScores(Scores(["psnr"]))], learning_rate=1e-2)
        trainer.fit()
        results = BridgeSampler(trainer.average, BRIDGE)([picture(pairs, i, "source") for i in range(4)], seed=0)
        wanted = []
        for i, result in enumerate(results):
            error = np.asarray(result) / 255 - np.asarray(picture(pairs, i, "target")) / 255
            wanted.append(10 * np.log10(1 / np.square(error).mean()))
        assert metrics_of(trainer)[-1]["psnr"] == pytest.approx(np.mean(wanted), rel=1e-3)

    def test_are_in_the_unit_of_the_values(self, make_trainer: MakeTrainer, tmp_path: Path) -> None:
        """MAE in HU within masks, of arrays of 16 bits."""
        random = np.random.default_rng(0)
        for folder, low, high in (("mr", 0, 4096), ("ct", -1024, 3072), ("body", 0, 2)):
            (tmp_path / folder).mkdir()
            for i in range(3):
                np.save(tmp_path / folder / f"{i}.npy", random.integers(low, high, (16, 16)).astype(np.int16))
        hu = Values(-1024, 3071, "HU", "int16")
        places = f"{tmp_path}/mr,{tmp_path}/ct,mask={tmp_path}/body"
        pairs = load_pairs("paired", places, source=Values(0, 4095, dtype="int16"), target=hu, size=16)
        scores = ValidationScores(Scores(["mae"], values=hu, channels=1, masked=True))
        unet = tiny_unet(in_channels=1, out_channels=1)
        trainer = make_trainer("hu", unet, train=pairs, validation=pairs, callbacks=[scores], epochs=1)
        trainer.fit()
        sampler = BridgeSampler(trainer.average, BRIDGE)
        sampler.pictures = pairs.spec
        wanted = []
        for i in range(3):
            (result,) = sampler(str(tmp_path / "mr" / f"{i}.npy"), seed=i)
            ct, body = (np.load(tmp_path / folder / f"{i}.npy") for folder in ("ct", "body"))
            wanted.append(np.abs(np.asarray(result, dtype=float)[0] - ct)[body != 0].mean())
        assert metrics_of(trainer)[-1]["mae"] == pytest.approx(np.mean(wanted), rel=1e-3)

    def test_come_with_the_grids_of_all_pictures_anew(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        found: list[list[dict[str, float]]] = []
        for every in (2, 3):
            scores = ValidationScores(Scores(["psnr", "ssim"]))
            trainer = make_trainer(f"{every}", validation=pairs, epochs=3, preview_every=every, callbacks=[scores])
            trainer.fit()
            found.append([{k: v for k, v in each.items() if k in ("psnr", "ssim")} for each in metrics_of(trainer)])
        assert [list(scores) for scores in found[0]] == [[], ["psnr", "ssim"], ["psnr", "ssim"]]
        assert found[0][2] == found[1][2]

    def test_stopped_while_they_are_computed(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        def trainer(name: str) -> Trainer:
            callbacks = [ValidationScores(Scores(["psnr"]))]
            return make_trainer(name, validation=pairs, epochs=2, preview_every=1, callbacks=callbacks)

        plain, first = trainer("a"), trainer("b")
        plain.fit()
        assert not first.fit(stop=lambda: first.epoch == 1)
        assert first.step == first.steps_per_epoch
        resumed = trainer("b")
        assert resumed.resume_newest()
        resumed.fit()
        records = [[{**each, "images_per_second": 0} for each in metrics_of(one)] for one in (plain, resumed)]
        assert records[0] == records[1]
        assert resumed.best == plain.best

    def test_need_validation_pairs(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(ValueError, match="psnr, ssim need 1 validation pairs, and there are 0"):
            make_trainer(callbacks=[ValidationScores(Scores(["psnr", "ssim"]))]).fit()
