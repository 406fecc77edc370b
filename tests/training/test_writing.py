"""Checkpoints that are written while training goes on."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import bbdm
from bbdm.base import atomic
from bbdm.base.scripts import StoppedError
from bbdm.bridges import ABridge
from bbdm.data.examples import Example
from bbdm.files import weights
from bbdm.files.content import Checkpoint, NetworkState
from bbdm.files.weights import copied
from bbdm.training.trainer import Trainer
from bbdm.training.writing import Writing
from tests.conftest import MakePairs, MakeTrainer, tiny_unet


def test_errors_are_raised_once_in_the_thread_that_asks(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("of a test")

    writing = Writing()
    for ask in (writing.wait, lambda: writing.start(int)):
        writing.start(fail)
        with pytest.raises(OSError, match="of a test"):
            ask()
        writing.wait()
    writing.start(fail)
    writing.settle()
    assert caplog.messages == ["of a test"]
    writing.check()


def test_a_copy_is_of_before(tmp_path: Path) -> None:
    """What changes after a snapshot is not in a file that is written later."""
    unet, moment = tiny_unet(), torch.arange(4.0).view(2, 2).T
    wanted = {key: value.clone() for key, value in unet.state_dict().items()}
    training = {"moments": [moment], "step": 3}
    snapshot = Checkpoint(NetworkState.of(unet), ABridge(), training=training).snapshot()
    with torch.no_grad():
        for value in (*unet.parameters(), moment):
            value.zero_()
    training["step"] = 4
    weights.write(tmp_path / "a.pt", snapshot)
    found = bbdm.load_checkpoint(tmp_path / "a.pt")
    assert found.unet.weights is not None
    assert found.training is not None
    for key, value in wanted.items():
        assert torch.equal(found.unet.weights[key], value)
    assert found.training["moments"][0].tolist() == [[0, 2], [1, 3]]
    assert found.training["moments"][0].stride() == (1, 2)
    assert found.training["step"] == 3
    plain = copied({"a": (1, [torch.ones(2, requires_grad=True)]), "b": None, "c": "text"})
    assert plain["a"][0] == 1
    assert not plain["a"][1][0].requires_grad
    assert (plain["b"], plain["c"]) == (None, "text")


class Held:
    """Stands for write_atomically, and holds checkpoints of one step, or fails there.

    It holds them until it is let go, or for some seconds.
    """

    def __init__(self, step: int, error: OSError | None = None, seconds: float | None = None) -> None:
        self.name, self.error, self.seconds, self.gate = f"step_{step:08d}.pt", error, seconds, threading.Event()
        self.most = self.now = 0  # writes at a time

    def __call__(self, path: Path, write: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if path.name == self.name:
            if self.error is not None:
                raise self.error
            if self.seconds is not None:
                threading.Timer(self.seconds, self.gate.set).start()
            assert self.gate.wait(60)
        atomic.write_atomically(path, write)
        self.now -= 1


@pytest.fixture
def run(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path) -> Trainer:
    """8 steps, a checkpoint each second."""
    return make_trainer(train=make_pairs(tmp_path / "16", 16), epochs=1, save_every=2, keep=9)


def steps(run: Trainer) -> list[int]:
    return sorted(run.run.checkpoints())


def test_steps_go_on_while_a_file_is_written(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of step 2 lasts until step 4 is done, and that of step 4 begins after it."""
    held = Held(2)
    monkeypatch.setattr(weights, "write_atomically", held)

    def watched(self: Trainer, batch: Example) -> float:
        loss = original(self, batch)
        if self.step == 4:
            assert steps(run) == []
            held.gate.set()
        return loss

    original = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", watched)
    run.fit()
    assert steps(run) == [2, 4, 6, 8]
    assert held.most == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [(3, "asked to end; the same command resumes from step 3, "), (2, r"the loss is nan .* resumes from step 2, ")],
)
def test_the_end_of_a_run_waits_for_the_file(step: int, message: str, run: Trainer, monkeypatch: Any) -> None:
    """A request to end, and a loss that is not finite: what is being written is saved before the message."""
    held = Held(step, seconds=0.3)
    monkeypatch.setattr(weights, "write_atomically", held)
    original = Trainer.train_step
    if step == 2:
        monkeypatch.setattr(
            Trainer, "train_step", lambda self, batch: torch.nan if self.step == 2 else original(self, batch)
        )
    with pytest.raises(StoppedError, match=message):
        run.fit(stop=lambda: run.step == 3)
    assert held.gate.is_set()
    assert steps(run)[-1] == step


@pytest.mark.parametrize("failing", [2, 8], ids=["at a step", "at the end"])
def test_an_error_of_the_thread_ends_the_run(failing: int, run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(failing, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(weights, "write_atomically", held)
    saved = {2: "nothing is saved yet", 8: "the same command resumes from step 6"}[failing]
    with pytest.raises(StoppedError, match=rf"No space left on device\. Make room on the disk; {saved}"):
        run.fit()
    assert run.step in {2: (2, 3, 4), 8: (8,)}[failing]
