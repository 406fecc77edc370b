"""What a training run shows on a terminal."""

import logging
import re
import sys
from typing import Any

import pytest

from bbdm.data.pairs import Pairs
from bbdm.training import progress
from tests.conftest import MakeTrainer, newest


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error, without bars."""
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    return [line for line in lines if line.strip() and "pairs/s]" not in line and "?, ? pairs" not in line]


def test_a_run_shows_what_it_trains_and_writes(
    make_trainer: MakeTrainer, pairs: Pairs, capsys: pytest.CaptureFixture[str]
):
    trainer = make_trainer(validation=pairs, preview_every=2)
    trainer.fit(progress=True)
    lines = shown(capsys)
    assert re.fullmatch(r"device cpu; network of 0\.\d M parameters, fp32", lines[0])
    assert lines[1:4] == [
        "4 training pairs of 8 x 8, 4 for validation",
        "2 epochs of 2 steps, batch 2",
        f"losses, grids and checkpoints: {trainer.folder}",
    ]
    text = "\n".join(lines)
    for step in (2, 4):
        assert f"checkpoint: {trainer.folder / f'step_{step:08d}.pt'}" in text
    assert text.count("grid: ") == 1
    assert f"grid: {trainer.folder / 'epoch_0002.png'}" in text
    first, last = (line for line in lines if re.match(r"epoch \d/\d: loss", line))
    assert re.fullmatch(r"epoch 1/2: loss \S+, validation \S+, pairs/s \S+, \d\d:\d\d left", first)
    assert re.fullmatch(r"epoch 2/2: loss \S+, validation \S+, pairs/s \S+", last)


def test_the_time_left_is_that_of_the_steps_left(make_trainer: MakeTrainer, capsys: Any, monkeypatch: Any):
    """2 of 6 steps took 100 seconds: 200 are left. A run that resumes from there says so."""
    first = make_trainer(epochs=1)
    first.fit()
    file = newest(first)
    trainer = make_trainer("other", epochs=3)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 50.0 * trainer.step)
    trainer.fit(progress=True)
    lines = [line for line in shown(capsys) if re.match(r"epoch \d/\d: loss", line)]
    assert [line.rsplit(", ", 1)[-1] for line in lines[:2]] == ["03:20 left", "01:40 left"]
    assert "left" not in lines[2]
    monkeypatch.undo()
    resumed = make_trainer(epochs=3)
    resumed.resume_newest()
    resumed.fit(progress=True)
    assert f"resumed from {file}: step 2 of 6" in shown(capsys)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_of_the_whole_run(
    terminal: bool, make_trainer: MakeTrainer, capsys: Any, monkeypatch: Any
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    make_trainer(epochs=4).fit(progress=True)
    assert bool(re.search(r"\| +\d+/16 \[", capsys.readouterr().err)) == terminal  # pairs: 4 epochs of 4


def test_nothing_is_shown_without_progress_and_no_handler_is_left(
    make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
):
    def stop() -> bool:
        raise KeyboardInterrupt

    logger, trainer = logging.getLogger("bbdm"), make_trainer("other")
    level = logger.level
    make_trainer().fit()
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(progress=True, stop=stop)
    assert (logger.level, logger.handlers, trainer.callbacks) == (level, [], [])


@pytest.mark.parametrize(("steps", "expected"), [(4, True), (3, False)])
def test_a_run_shorter_than_its_warm_up_is_warned_of(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, steps: int, expected: bool
):
    make_trainer(warmup_steps=steps).fit()
    assert ("rises over warmup_steps=4 optimizer steps, and the run has 4" in caplog.text) == expected
