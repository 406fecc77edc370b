"""Scripts that are stopped at a chosen moment, and run again: bitwise the files of an undisturbed run.

A row is a script, a moment, and what happens there. What ends by SIGKILL is in :mod:`.test_kills`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from bbdm.base.scripts import TERMINATED, StoppedError
from bbdm.cli import train
from bbdm.training.trainer import Trainer
from tests.conftest import ROOT, SavePicture, wait_until
from tests.hardening.killing import assert_content, content
from tests.hardening.scripts import SCRIPTS, STEPS, make_place, make_small, training
from tests.training.launching import ALONE, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no signals as these, and no full device there")
Undisturbed = Callable[[str], dict[str, Any]]
RESUMED = [name for name, script in SCRIPTS.items() if script.resumes]


class KilledError(BaseException):
    """Stands for the end of the process."""


def terminate(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    raise KilledError


def diverge(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """The loss is finite, its gradient was not."""
    with torch.no_grad():
        next(trainer.task.network.parameters()).fill_(torch.nan)


def fill_disk(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """What torch makes of a device that is full."""
    save = torch.save

    def full(content: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        with Path("/dev/full").open("wb", buffering=0) as device:
            save(content, device)

    patch.setattr(torch, "save", full)


@dataclass(frozen=True)
class Moment:
    """Before call number ``call`` of a method of the loop, ``act`` is called with the run, and may patch."""

    method: str
    call: int
    act: Callable[[Trainer, pytest.MonkeyPatch], None]
    error: type[BaseException] = StoppedError
    message: str | None = None


def resumes(step: int) -> str:
    return rf"the same command resumes from step {step}, "


# With --save_every 5 and 6 steps an epoch, the state is written after steps 5, 6 (before and after its
# validation), 10, 12 (twice), 15 and 18.
FULL = r"No space left on device.* Make room on the disk; " + resumes(6)
MOMENTS: dict[str, Moment] = {
    "SIGTERM in a step": Moment("train_step", 9, terminate, message="^asked to end; " + resumes(9)),
    "SIGTERM in validation": Moment("validate", 2, terminate, message="^asked to end; " + resumes(2 * STEPS)),
    "killed in a step": Moment("train_step", 12, kill, KilledError),
    "killed in validation": Moment("validate", 1, kill, KilledError),
    "killed before an epoch is saved": Moment("_save", 6, kill, KilledError),
    "not finite": Moment("_save", 4, diverge, message="not finite at step 10.*grad_clip; " + resumes(6)),
    "a full disk": Moment("train_step", 8, fill_disk, message=FULL),
}
DAILY = {"SIGTERM in a step", "killed before an epoch is saved", "not finite", "a full disk"}  # of one script


def interrupt(script: str, place: Path, folder: Path, moment: Moment) -> pytest.ExceptionInfo[BaseException]:
    """Run a script, which ends at the moment; returns the error."""
    original, left = getattr(Trainer, moment.method), moment.call
    with pytest.MonkeyPatch.context() as patch:

        def watched(self: Trainer, *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                moment.act(self, patch)
            return original(self, *arguments)

        patch.setattr(Trainer, moment.method, watched)
        with pytest.raises(moment.error, match=moment.message) as caught:
            SCRIPTS[script].main([*SCRIPTS[script].argv(place, folder), *SCRIPTS[script].before])
    assert not list(folder.rglob(".*.tmp"))
    return caught


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    return make_place(tmp_path_factory.mktemp("place"), save_picture)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(tmp_path / "small", monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """undisturbed(script): the files of a run that nothing stops."""
    found: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            SCRIPTS[name].main(SCRIPTS[name].argv(place, folder))
            found[name] = content(folder)
        return found[name]

    return of


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        pytest.param(script, moment, marks=() if script == "train" and moment in DAILY else pytest.mark.nightly)
        for script in RESUMED
        for moment in MOMENTS
    ],
)
def test_interrupted(script: str, moment: str, place: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    wanted, before = undisturbed(script), signal.getsignal(signal.SIGTERM)
    error = interrupt(script, place, tmp_path / "run", MOMENTS[moment]).value
    assert "\n" not in str(error)
    status = TERMINATED if "SIGTERM" in moment else None if moment.startswith("killed") else 1
    assert getattr(error, "status", None) == status
    assert signal.getsignal(signal.SIGTERM) == before
    SCRIPTS[script].main(SCRIPTS[script].argv(place, tmp_path / "run"))
    assert_content(tmp_path / "run", wanted)


def test_what_undisturbed_runs_leave(undisturbed: Undisturbed) -> None:
    """The newest two checkpoints, and grids of each second epoch and of the last."""
    found = undisturbed("train")
    names = ["best.pt", "config.json", "epoch_0002.png", "epoch_0003.png", "metrics.jsonl"]
    names += ["step_00000015.pt", "step_00000018.pt"]
    assert [*found] == ["model.pt", *(f"model.run/{name}" for name in names)]


def test_damaged_checkpoints(
    place: Path, undisturbed: Undisturbed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest one is skipped; where all are damaged, an error says so."""
    interrupt("train", place, tmp_path / "a", Moment("train_step", 14, kill, KilledError))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b" / "model.run").glob("step_*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .*model\.run can be read: all 2 are damaged"):
        train.main(training(place, tmp_path / "b"))
    newer = tmp_path / "a" / "model.run" / "step_00000012.pt"
    whole = bytearray(newer.read_bytes())
    whole[len(whole) // 2] ^= 1
    newer.write_bytes(whole)
    caplog.clear()
    train.main(training(place, tmp_path / "a"))
    (warning,) = (record.message for record in caplog.records if record.message.startswith("skipped"))
    assert re.fullmatch(rf"skipped a damaged checkpoint: cannot read .*{newer.name} as a checkpoint: .*", warning)
    newer.with_name(f"{newer.name}.damaged").unlink()
    assert_content(tmp_path / "a", undisturbed("train"))


@pytest.mark.parametrize(
    ("fault", "workers"), [(b"broken", "1"), pytest.param(b"", "0", marks=pytest.mark.nightly)], ids=str
)
def test_a_picture_that_cannot_be_read(
    fault: bytes, workers: str, place: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """What was trained before it is saved."""
    shutil.copytree(place / "data", tmp_path / "data")
    victim, argv = tmp_path / "data" / "train" / "03.png", training(tmp_path, tmp_path / "run", "--workers", workers)
    original, epoch = victim.read_bytes(), Trainer._epoch

    def damaged(self: Trainer) -> None:
        if self.epoch == 1:
            victim.unlink() if not fault else victim.write_bytes(fault)
        epoch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_epoch", damaged)
        with pytest.raises(StoppedError, match=r"^[^\n]*train/03\.png[^\n]*\. Repair the file; the same command res"):
            train.main(argv)
    victim.write_bytes(original)
    train.main(argv)
    found, wanted = content(tmp_path / "run"), undisturbed("train")
    for name in ("model.pt", "model.run/best.pt", "model.run/metrics.jsonl", "model.run/epoch_0003.png"):
        assert found[name] == wanted[name]


# Processes, of which each has readers


@pytest.mark.nightly
def test_sigterm_of_a_process_group(place: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As schedulers send it: to the processes that read pictures too. One line, and status 143."""
    argv = training(place, tmp_path, "--workers", "2", "--quiet")
    command, variables = [*ALONE, "tests.training.tiny_train", *argv], {**os.environ, "PAUSE": "0.5"}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until((tmp_path / "model.run" / "step_00000005.pt").exists, "step 5")
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == TERMINATED, errors
    assert errors.splitlines()[-1].startswith("stopped: asked to end; the same command resumes from step ")
    assert "Traceback" not in errors
    train.main(training(place, tmp_path))
    assert_content(tmp_path, undisturbed("train"))


@pytest.mark.nightly
def test_an_error_ends_the_process_and_its_readers(place: Path, tmp_path: Path) -> None:
    done = run([*ALONE, "tests.training.tiny_train", *training(place, tmp_path, "--workers", "1")], FAIL="0,4")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "RuntimeError: of a test")


@pytest.mark.nightly
def test_a_broken_validation_picture_is_one_line(place: Path, tmp_path: Path) -> None:
    picture = next((Path(shutil.copytree(place / "data", tmp_path / "data")) / "val").iterdir())
    picture.write_bytes(b"no picture")
    argv = training(tmp_path, tmp_path, "--workers", "1", "--quiet")
    done = run([*ALONE, "tests.training.tiny_train", *argv])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: cannot read the picture {picture}")
