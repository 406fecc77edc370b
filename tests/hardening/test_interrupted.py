"""Scripts that are stopped, and run again: bitwise the files of an undisturbed run, and nothing torn or lost.

A row of ``MOMENTS`` is what happens at a chosen moment of a run in this process. SIGKILL ends processes of
their own, at random moments, 210 times every night.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from bbdm.base.scripts import TERMINATED, StoppedError
from bbdm.cli import train
from bbdm.training.trainer import Trainer
from tests.conftest import ROOT, SavePicture, sweep, wait_until
from tests.hardening.scripts import (
    SCRIPTS,
    assert_content,
    content,
    kill_at_random,
    make_place,
    make_small,
)
from tests.training.launching import ALONE, TRAIN

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="no signals as these, and no full device there"
)
Undisturbed = Callable[[str], dict[str, Any]]
RESUMED = [name for name, script in SCRIPTS.items() if script.resumes]


def terminate(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """What Ctrl-C raises stands for the end of the process: nothing of the run may answer it."""
    raise KeyboardInterrupt


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
    act: Callable[[Trainer, pytest.MonkeyPatch], object]
    message: str | None = None  # of the error; None where the process is killed
    status: int = 1


def resumes(step: int) -> str:
    return rf"the same command resumes from step {step}, "


# With --save_every 5 and 6 steps an epoch, the state is written after steps 5, 6 (before and after its
# validation), 10, 12 (twice), 15 and 18.
MOMENTS: dict[str, Moment] = {
    "SIGTERM in a step": Moment(
        "train_step", 9, terminate, "^asked to end; " + resumes(9), TERMINATED
    ),
    "SIGTERM in validation": Moment(
        "validate", 2, terminate, "^asked to end; " + resumes(12), TERMINATED
    ),
    "killed in validation": Moment("validate", 1, kill),
    "killed before an epoch is saved": Moment("_save", 4, kill),
    "not finite": Moment("_save", 3, diverge, "not finite at step 10.*grad_clip; " + resumes(6)),
    "a full disk": Moment(
        "train_step", 8, fill_disk, "No space left on device.* Make room on the disk; " + resumes(6)
    ),
}
DAILY = [("train", moment) for moment in MOMENTS if "in validation" not in moment]


def interrupt(script: str, place: Path, folder: Path, moment: Moment, *flags: str) -> Any:
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
        kind = StoppedError if moment.message else KeyboardInterrupt
        with pytest.raises(kind, match=moment.message) as caught:
            SCRIPTS[script].main(
                [*SCRIPTS[script].argv(place, folder), *SCRIPTS[script].before, *flags]
            )
    assert not list(folder.rglob(".*.tmp"))
    return caught.value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    return make_place(tmp_path_factory.mktemp("place"), save_picture)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """undisturbed(script): the files of a run that nothing stops."""

    @cache
    def of(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("undisturbed")
        SCRIPTS[name].main(SCRIPTS[name].argv(place, folder))
        return content(folder)

    return of


@pytest.mark.parametrize(("script", "moment"), sweep(product(RESUMED, MOMENTS), DAILY))
def test_interrupted(
    script: str, moment: str, place: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    expected, before = undisturbed(script), signal.getsignal(signal.SIGTERM)
    error = interrupt(script, place, tmp_path / "run", MOMENTS[moment])
    assert "\n" not in str(error)
    assert getattr(error, "status", MOMENTS[moment].status) == MOMENTS[moment].status
    assert signal.getsignal(signal.SIGTERM) == before
    SCRIPTS[script].main(SCRIPTS[script].argv(place, tmp_path / "run"))
    assert_content(tmp_path / "run", expected)


def test_what_undisturbed_runs_leave(undisturbed: Undisturbed) -> None:
    """The newest two checkpoints, grids of each second epoch and of the last, and one record of the pairs."""
    names = ["best.pt", "config.json", "metrics.jsonl", "step_00000012.png"]
    names += ["step_00000015.pt", "step_00000018.png", "step_00000018.pt"]
    files = [*undisturbed("train")]
    record = [name for name in files if name.startswith("model.run/records/")]
    assert len(record) == 1
    assert sorted({*files} - {*record}) == sorted(
        ["model.pt", *(f"model.run/{name}" for name in names)]
    )


def test_damaged_checkpoints(
    place: Path, undisturbed: Undisturbed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest one is skipped; where all are damaged, an error says so."""
    argv, run = SCRIPTS["train"].argv(place, tmp_path), tmp_path / "model.run"
    interrupt("train", place, tmp_path, Moment("train_step", 14, kill))
    newer, older = run / "step_00000012.pt", run / "step_00000010.pt"
    changed, kept = bytearray(newer.read_bytes()), older.read_bytes()
    changed[len(changed) // 2] ^= 1
    newer.write_bytes(changed)
    older.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .*model\.run can be read: all 2 are damaged"
    ):
        train.main(argv)
    older.write_bytes(kept)
    train.main(argv)
    assert re.search(
        rf"skipped a damaged checkpoint: cannot read .*{newer.name} as a checkpoint: .*",
        caplog.text,
    )
    newer.with_name(f"{newer.name}.damaged").unlink()
    assert_content(tmp_path, undisturbed("train"))


# Processes


@pytest.mark.nightly
def test_sigterm_of_a_process_group(place: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As schedulers send it: to the processes that read pictures too. One line, and status 143."""
    argv = SCRIPTS["train"].argv(place, tmp_path)
    command = [*ALONE, TRAIN, *argv, "--quiet", "--workers", "2"]
    settings: Any = {
        "env": {**os.environ, "PAUSE": "0.5", "LEVELS": "1"},
        "text": True,
        "start_new_session": True,
    }
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **settings) as process:
        wait_until((tmp_path / "model.run" / "step_00000005.pt").exists, "step 5")
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == TERMINATED, errors
    assert errors.splitlines()[-1].startswith(
        "stopped: asked to end; the same command resumes from step "
    )
    assert "Traceback" not in errors
    train.main(argv)
    assert_content(tmp_path, undisturbed("train"))


@pytest.mark.parametrize("page", ["docs/weights.md", "docs/training.md"])
def test_as_many_kills_as_the_documentation_claims(page: str) -> None:
    claimed = re.findall(r"(\d+) kills", (ROOT / page).read_text("utf-8"))
    assert claimed == [str(sum(script.kills for script in SCRIPTS.values()))]


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, script in SCRIPTS.items() if script.kills])
def test_killed_at_random_moments(name: str, place: Path, tmp_path: Path) -> None:
    """So many that some fall into a write."""
    kills = SCRIPTS[name].kills
    assert kill_at_random(name, kills, place, tmp_path) or kills < 20, "no kill fell into a write"
