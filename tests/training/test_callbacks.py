"""Callbacks: when they are called, that they change no weights, and what the package's own show and write."""

import json
import logging
import math
import re
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bbdm import Callback
from bbdm.base import progress
from bbdm.base.scripts import StoppedError
from bbdm.data.pairs import Pairs
from bbdm.training import callbacks, optimization
from bbdm.training.callbacks import Forecast
from bbdm.training.trainer import Trainer
from tests.conftest import MakeTrainer, metrics_of, newest, same_weights, tiny_unet


class Diary(Callback):
    """Records the calls; raises an error at a step, if there is one."""

    def __init__(self, last: int | None = None, error: type[BaseException] = StoppedError) -> None:
        self.entries: list[Any] = []
        self.last, self.error = last, error

    def begin(self, trainer: Trainer) -> None:
        self.entries.append(("begin", trainer.step))

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        self.entries.append((trainer.step, float(loss)))
        if trainer.step == self.last:
            raise self.error("enough")

    def after_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self.entries.append(("epoch", trainer.epoch))
        metrics["entries"] = len(self.entries)

    def end(self, trainer: Trainer) -> None:
        self.entries.append("end")


def test_order_and_that_they_change_nothing(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    diary = Diary()
    trainer = make_trainer(callbacks=[diary, Callback()], validation=pairs, preview_every=1)
    plain = make_trainer("plain", validation=pairs)
    for each in (trainer, plain):
        each.fit()
    steps = {entry[0]: entry[1] for entry in diary.entries if isinstance(entry[0], int)}
    calls = [entry[0] if entry[0] in steps else entry for entry in diary.entries]
    assert calls == [("begin", 0), 1, 2, ("epoch", 1), 3, 4, ("epoch", 2), "end"]
    losses, records = [*steps.values()], metrics_of(trainer)
    assert [record["loss"] for record in records] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    )
    assert [record.pop("entries") for record in records] == [4, 7]
    assert same_weights(trainer.network, plain.network)
    for one, other in zip(records, metrics_of(plain), strict=True):
        assert {**one, "images_per_second": 0} == {**other, "images_per_second": 0}


class Ends(Callback):
    """Ends the run in its first epoch, by an error or a request."""

    def __init__(self, in_a_step: bool, error: bool = False) -> None:
        self.in_a_step, self.error = in_a_step, error

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        if self.in_a_step:
            trainer.stop("enough")

    def after_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        if self.error:
            raise StoppedError("enough")
        trainer.stop("enough")


@pytest.mark.parametrize(
    "ends", [Ends(False), Ends(True), Ends(False, True)], ids=["stop", "in a step", "an error"]
)
def test_an_early_stop_keeps_its_epoch(
    ends: Ends, make_trainer: MakeTrainer, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    """Its metrics, its best and its checkpoint, from which a run resumes."""
    diary, again, logger = Diary(), Diary(), logging.getLogger("bbdm")
    trainer = make_trainer(validation=pairs, callbacks=[ends, diary])
    caplog.set_level("INFO", "bbdm")
    with pytest.raises(StoppedError, match="enough") if ends.error else nullcontext():
        assert trainer.fit(progress=True)
    assert (logger.level, logger.handlers) == (logging.INFO, [])  # as before
    assert ("ended after step 2: enough" in caplog.text) != ends.error
    assert trainer.run_folder.grid(2).is_file() != ends.error  # as after the last step
    (record,) = metrics_of(trainer)
    assert trainer.best == {"epoch": 1, "step": 2, "validation_loss": record["validation_loss"]}
    assert trainer.run_folder.best.is_file()
    assert diary.entries[-2:] == [("epoch", 1), "end"]
    resumed = make_trainer(validation=pairs, callbacks=[again])
    assert resumed.resume_newest()
    assert (resumed.epoch, resumed.best) == (1, trainer.best)
    resumed.fit()
    assert [entry if isinstance(entry, str) else entry[0] for entry in again.entries] == [
        "begin",
        3,
        4,
        "epoch",
        "end",
    ]


def test_a_stop_waits_for_a_validation_of_several_epochs(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(callbacks=[Ends(True)], epochs=6, validate_every="2e")
    assert trainer.fit()
    assert (
        [record["step"] for record in metrics_of(trainer)],
        [*trainer.run_folder.checkpoints()],
    ) == ([4], [4])


class Score(Callback):
    """A score of equal pictures."""

    def after_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        metrics["psnr"] = math.inf


def test_lines_of_metrics_are_json_whatever_is_infinite(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(callbacks=[Score()])
    trainer.fit()
    for line in trainer.run_folder.metrics.read_text().splitlines():
        record = json.loads(line, parse_constant=pytest.fail)
        assert float(record["psnr"]) == math.inf


class Broken(Callback):
    """Fails in one of its methods, as a bug does."""

    def __init__(self, method: str) -> None:
        self.method = method

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        if self.method == "after_step" and trainer.step == 3:
            raise ValueError("not mine")

    def after_validation(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        if self.method == "after_validation":
            raise ValueError("not mine")


@pytest.mark.parametrize("method", ["after_step", "after_validation"])
def test_an_error_of_a_callback_is_the_callers_own(method: str, make_trainer: MakeTrainer) -> None:
    """With its place in the traceback; the validation that it was called after is saved."""
    trainer = make_trainer(callbacks=[Broken(method)])
    with pytest.raises(ValueError, match=r"^not mine$") as caught:
        trainer.fit()
    assert caught.traceback[-1].name == method
    assert [*trainer.run_folder.checkpoints()] == [2]
    assert [record["step"] for record in metrics_of(trainer)] == [2]


def test_a_method_that_is_never_called_is_refused() -> None:
    with pytest.raises(
        TypeError,
        match=r"after_epoch is never called: a Callback has after_step, after_validation$",
    ):
        type("Mine", (Callback,), {"after_epoch": lambda self, trainer, metrics: None})


# On a terminal


def test_a_run_shows_what_it_trains_and_writes(
    make_trainer: MakeTrainer, pairs: Pairs, capsys: Any, monkeypatch: Any
) -> None:
    """With a bar of the whole run on a terminal; in a file, lines are enough."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    first = make_trainer(epochs=1)
    trainer = make_trainer(epochs=3, validation=pairs, preview_every=3)
    first.fit()
    assert capsys.readouterr().err == ""
    file = newest(first)
    trainer.resume_newest()
    trainer.fit(progress=True)
    shown = capsys.readouterr().err
    assert (
        f"4 training pairs of 8 x 8, 4 for validation\n6 steps, batch 2; files: {trainer.folder}\n"
        in shown
    )
    assert f"\nresumed from {file}: step 2 of 6\n" in shown
    assert re.findall(r"checkpoint: (.*)", shown) == [
        f"{trainer.run_folder.checkpoint(step)}" for step in (4, 6)
    ]
    assert re.findall(r"grid: (.*)", shown) == [f"{trainer.run_folder.grid(6)}"]
    assert re.findall(
        r"epoch (\d), step \d of 6: loss \S+, validation_loss \S+, images_per_se", shown
    ) == ["2", "3"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make_trainer("bar", epochs=1).fit(progress=True)
    assert re.search(r"training: 0 of 2 steps +0%\|", capsys.readouterr().err)


def test_the_log_of_a_cluster_has_the_loss_each_minute(
    make_trainer: MakeTrainer, capsys: Any, monkeypatch: Any
) -> None:
    """Of 4 steps of 40 seconds: after the second, and the fourth."""
    now = [0.0]

    class Slow(Callback):
        def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
            now[0] += 40

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(progress, "clock", lambda: now[0])
    make_trainer(callbacks=[Slow()]).fit(progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert re.fullmatch(
        r"training: 2 of 4 steps, epoch 1, loss \d\.\d{4}; about 80 s left", lines[0]
    )
    assert re.fullmatch(
        r"training: 4 of 4 steps, epoch 2, loss \d\.\d{4}; about 0 s left", lines[1]
    )


# In TensorBoard


def test_a_forecast_is_of_the_median_step_but_the_first(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of steps of 100 (it compiles), 2, 2, 50 (a validation) and 2 seconds: 2 s, 3600 steps of it 2 hours."""
    clock = iter([0.0, 100.0, 102.0, 104.0, 154.0, 156.0])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    unet = tiny_unet(condition_channels=3)
    for weight in [*unet.parameters()][:-1]:
        weight.requires_grad_(False)
    trainer = make_trainer(unet=unet, callbacks=[Forecast()], max_steps=3600)
    trainer.fit(stop=lambda: trainer.step == 8)
    count = sum(weight.numel() for weight in unet.parameters()) / 1e6
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"trains 3e-06 M of {count:.3g} M weights; 2 s a step; ")
    assert line.endswith(
        " GB of memory at most so far; 3600 steps take 2 hours, and validation more"
    )


def test_tensorboard(
    make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points every 2 steps. Killed after step 7, a run resumes from step 4; none is shown twice."""
    import tensorboard.backend.event_processing.event_accumulator as accumulators

    for module in (callbacks, optimization):
        monkeypatch.setattr(module, "SHOWN_EVERY", 2)
    settings: dict[str, Any] = {
        "validation": pairs,
        "epochs": 3,
        "preview_every": 1,
        "batch_size": 1,
    }
    killed = make_trainer(callbacks=[Diary(7, KeyboardInterrupt)], **settings)
    trainer = make_trainer(**settings)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    time.sleep(1.01 - time.time() % 1)  # TensorBoard orders its files by the second
    assert trainer.resume_newest()
    assert trainer.step == 4
    trainer.fit()
    events = accumulators.EventAccumulator(str(trainer.run_folder.events)).Reload()
    scalars = {
        "loss",
        "gradient_norm",
        "learning_rate",
        "validation_loss",
        "images_per_second",
        "mean loss",
    }
    assert set(events.Tags()["scalars"]) - {"entries"} == scalars
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [point.step for point in events.Scalars(name)] == [2, 4, 6, 8, 10, 12]
        assert all(math.isfinite(point.value) and point.value > 0 for point in events.Scalars(name))
    wanted = [record["validation_loss"] for record in metrics_of(trainer)]
    assert [point.value for point in events.Scalars("validation_loss")] == pytest.approx(wanted)
    assert [image.step for image in events.Images("source, result, target")] == [4, 8, 12]


def test_nan_in_a_grid_ends_no_run(
    make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of the averaged weights: the loss says whether training goes on."""
    trainer = make_trainer(validation=pairs, epochs=1)
    nowhere = torch.full((1, 3, 8, 8), torch.nan)
    monkeypatch.setattr(trainer.task, "columns", lambda _: {"result": nowhere})
    callbacks.Previews().after_validation(trainer, {})
    assert trainer.images["result"].size[0] > 8
