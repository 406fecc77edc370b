"""A run that is killed, terminated or stopped by an error ends with the weights of an undisturbed run."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

import bbdm
from bbdm.base.scripts import TERMINATED, StoppedError
from bbdm.cli import train
from bbdm.networks.unet_config import PRESETS, UNetConfig
from bbdm.training.bridge import BridgeTask
from bbdm.training.trainer import Trainer
from tests.cli.test_train import assert_same
from tests.conftest import ROOT, TINY, SavePicture, save_random_pairs
from tests.hardening.killing import Script, begin
from tests.nightly import sweep
from tests.training import tiny_train

PAIRS, BATCH, EPOCHS = 12, 2, 3
SAVES = "5"  # steps between checkpoints: in the middle of an epoch of 6, and not always in the same place
DELAY = 0.1  # seconds that a write of a checkpoint is stretched by

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    return save_random_pairs(tmp_path_factory.mktemp("data"), PAIRS, 2 * BATCH, save_picture)


@pytest.fixture(autouse=True)
def tiny_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))


def arguments(data: Path, output: Path, *flags: str) -> list[str]:
    common = ["--preset", "demo", "--image_size", "16", "-b", str(BATCH), "-e", str(EPOCHS), "--device", "cpu"]
    return ["edge2shoes", str(data), str(output), *common, "-t", "50", "--save_every", SAVES, *flags]


def run_undisturbed(argv: Callable[[Path], list[str]], folder: Path) -> Path:
    """The folder, with model.pt and model.run/ of a run that nothing stops."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))
        train.main(argv(folder / "model.pt"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of these pairs."""
    return run_undisturbed(lambda output: arguments(data, output), tmp_path_factory.mktemp("undisturbed"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "model.run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def assert_undisturbed(folder: Path, undisturbed: Path) -> None:
    """Weights, their average, the best weights and the metrics are those of the run that nothing stopped."""
    for name in ("model.pt", "model.run/best.pt"):
        assert_same(*(bbdm.load_checkpoint(each / name).unet for each in (folder, undisturbed)))
    assert metrics(folder) == metrics(undisturbed)
    assert not list(folder.rglob(".*.tmp"))


# SIGKILL


def _slow_save(content: Any, file: IO[bytes]) -> None:
    """As torch.save, with a pause when half of the file is written."""
    buffer = io.BytesIO()
    _save(content, buffer)
    written = buffer.getvalue()
    file.write(written[: len(written) // 2])
    file.flush()
    time.sleep(DELAY)
    file.write(written[len(written) // 2 :])


_save, _fsync = torch.save, os.fsync


def _slow_fsync(file: int) -> None:
    _fsync(file)
    time.sleep(DELAY)  # the whole file has its temporary name still


def slow_writes(_: Path) -> None:
    """Tiny networks, whose checkpoints are written slowly."""
    tiny_train.set_up()
    torch.save, os.fsync = _slow_save, _slow_fsync


@pytest.mark.nightly
@pytest.mark.parametrize("moment", ["half written", "written under a temporary name"])
def test_killed_while_a_checkpoint_is_written(moment: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second checkpoint is being written; the run resumes from the first."""
    run = tmp_path / "model.run"
    script = Script(train.main, lambda folder: arguments(data, folder / "model.pt"), slow_writes)
    process = begin(script, tmp_path)
    deadline = time.monotonic() + 60
    written = 0.0  # part of the second checkpoint
    while not (0 < written < 0.9 if moment == "half written" else written >= 0.9):
        assert time.monotonic() < deadline
        assert process.exitcode is None
        time.sleep(0.002)
        whole, parts = list(run.glob("step_*.pt")), list(run.glob(".step_*.tmp"))
        written = parts[0].stat().st_size / whole[0].stat().st_size if whole and parts else 0
    process.kill()
    process.join()
    assert list(run.glob(".*.tmp"))
    train.main(arguments(data, tmp_path / "model.pt"))
    assert_undisturbed(tmp_path, undisturbed)


# Checkpoints that are damaged, and those that are kept


def test_newest_checkpoints_are_kept(undisturbed: Path) -> None:
    """Of 18 steps: each fifth and each sixth."""
    assert sorted(path.name for path in (undisturbed / "model.run").glob("step_*")) == [
        "step_00000015.pt",
        "step_00000018.pt",
    ]


def interrupted(data: Path, folder: Path, step: int, error: BaseException) -> None:
    """A run in which the optimizer step after ``step`` raises."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.train_step

        def train_step(self: Trainer, *pair: torch.Tensor) -> float:
            if self.step == step:
                raise error
            return original(self, *pair)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(type(error)):
            train.main(arguments(data, folder / "model.pt"))


@pytest.mark.parametrize(
    "damage", ["a flipped bit", *(pytest.param(damage, marks=pytest.mark.nightly) for damage in ("cut off", "empty"))]
)
def test_a_damaged_newest_checkpoint_is_skipped(
    damage: str, data: Path, undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(data, tmp_path, 13, KeyError("killed"))
    older, newer = (tmp_path / "model.run" / f"step_{step:08d}.pt" for step in (10, 12))
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes({"a flipped bit": content, "cut off": content[:-100], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        train.main(arguments(data, tmp_path / "model.pt"))
    assert "skipped a damaged checkpoint" in caplog.text
    assert newer.name in caplog.text
    assert older.name not in caplog.text
    assert_undisturbed(tmp_path, undisturbed)


def test_damaged_checkpoints_alone_are_an_error(data: Path, tmp_path: Path) -> None:
    interrupted(data, tmp_path, 6, KeyError("killed"))
    for path in (tmp_path / "model.run").glob("step_*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .*model\.run can be read: all 2 are damaged"):
        train.main(arguments(data, tmp_path / "model.pt"))


# SIGTERM


class Terminate:
    """Wraps a function, and sends SIGTERM to this process at its n-th call."""

    def __init__(self, function: Callable[..., Any], call: int) -> None:
        self.function, self.left = function, call

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.function(*arguments, **keywords)


@pytest.mark.parametrize(
    ("owner", "method", "call", "step"),
    [(Trainer, "train_step", 9, 9), (BridgeTask, "encode", 2 * 6 + 1, 6)],
    ids=["a step", "validation"],
)
def test_sigterm_saves_and_says_how_to_resume(
    owner: type, method: str, call: int, step: int, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as monkeypatch:
        terminate = Terminate(getattr(owner, method), call)
        monkeypatch.setattr(owner, method, lambda *arguments: terminate(*arguments))
        with pytest.raises(StoppedError, match=rf"the same command resumes from step {step}, ") as caught:
            train.main(arguments(data, tmp_path / "model.pt"))
    assert caught.value.status == TERMINATED
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "model.run" / f"step_{step:08d}.pt").exists()
    train.main(arguments(data, tmp_path / "model.pt"))
    assert_undisturbed(tmp_path, undisturbed)


@pytest.mark.nightly
def test_sigterm_of_a_process_group_with_workers(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """As schedulers send it: to the processes that read pictures too. One line, and status 143."""
    command = [
        sys.executable,
        "-m",
        "tests.training.tiny_train",
        *arguments(data, tmp_path / "model.pt", "--workers", "2"),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PAUSE": "0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "model.run" / "step_00000005.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == TERMINATED, errors
    assert errors.splitlines()[-1].startswith("stopped: asked to end; the same command resumes from step ")
    assert "Traceback" not in errors
    train.main(arguments(data, tmp_path / "model.pt"))
    assert_undisturbed(tmp_path, undisturbed)


# Errors that stop a run


def full_at_torch_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch reports it: a RuntimeError, raised while the reason was."""

    def save(content: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # noqa: B904

    monkeypatch.setattr(torch, "save", save)


def full_at_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    "fill",
    sweep([full_at_torch_save, full_at_fsync], daily=[full_at_torch_save]),
    ids=lambda function: function.__name__,
)
def test_a_full_disk(fill: Callable[[pytest.MonkeyPatch], None], data: Path, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.train_step

        def train_step(self: Trainer, *pair: torch.Tensor) -> float:
            if self.step == 7:
                fill(monkeypatch)
            return original(self, *pair)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        message = r"No space left on device.* Make room on the disk; .* resumes from step 6, .*model\.run$"
        with pytest.raises(StoppedError, match=message) as caught:
            train.main(arguments(data, tmp_path / "model.pt"))
        assert "\n" not in str(caught.value)
    assert_kept_and_resumes(data, undisturbed, tmp_path)


def assert_kept_and_resumes(data: Path, undisturbed: Path, folder: Path) -> None:
    """Steps 5 and 6 are whole, no half-written file is left, and the same command finishes the run."""
    kept = sorted((folder / "model.run").glob("step_*"))
    assert [path.name for path in kept] == ["step_00000005.pt", "step_00000006.pt"]
    for path in kept:
        assert bbdm.load_checkpoint(path).training is not None
    assert not list(folder.rglob(".*.tmp"))
    train.main(arguments(data, folder / "model.pt"))
    assert_undisturbed(folder, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills(data: Path, undisturbed: Path, small_disk: Path) -> None:
    """A real one: what else is on it grows until there is room for half a checkpoint."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.train_step

        def train_step(self: Trainer, *pair: torch.Tensor) -> float:
            if self.step == 7:
                size = self.run.checkpoint(6).stat().st_size
                status = os.statvfs(small_disk)
                with (small_disk / "other").open("wb") as file:
                    file.write(bytes(status.f_bavail * status.f_frsize - size // 2))
            return original(self, *pair)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(StoppedError, match=r"No space left on device.* Make room on the disk; .* from step 6, "):
            train.main(arguments(data, small_disk / "model.pt"))
    (small_disk / "other").unlink()
    assert_kept_and_resumes(data, undisturbed, small_disk)


@pytest.mark.parametrize(
    ("fault", "workers"),
    [
        ("broken", "1"),
        pytest.param("broken", "0", marks=pytest.mark.nightly),
        pytest.param("missing", "0", marks=pytest.mark.nightly),
        pytest.param("missing", "1", marks=pytest.mark.nightly),
    ],
)
def test_a_picture_that_cannot_be_read(fault: str, workers: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """What was trained before it is saved."""
    pictures = shutil.copytree(data, tmp_path / "pictures")
    victim = pictures / "train" / "03.png"
    content = victim.read_bytes()
    begin = Trainer._run_epoch

    def run_epoch(self: Trainer) -> None:
        if self.epoch == 1:
            victim.unlink()
            if fault == "broken":
                victim.write_bytes(b"broken")
        begin(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "_run_epoch", run_epoch)
        with pytest.raises(StoppedError, match=r"train/03\.png.*\. Repair the file; the same command res") as caught:
            train.main(arguments(pictures, tmp_path / "model.pt", "--workers", workers))
    assert "\n" not in str(caught.value)
    victim.write_bytes(content)
    train.main(arguments(pictures, tmp_path / "model.pt"))
    assert_undisturbed(tmp_path, undisturbed)


def test_weights_that_are_no_numbers_are_not_saved(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The loss is finite, its gradient is not; what was saved before stays the newest."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.train_step

        def train_step(self: Trainer, *pair: torch.Tensor) -> float:
            loss = original(self, *pair)
            if self.step == 10:
                with torch.no_grad():
                    next(self.unet.parameters()).fill_(torch.nan)
            return loss

        monkeypatch.setattr(Trainer, "train_step", train_step)
        message = r"weights are not finite at step 10\. Lower learning_rate or set grad_clip; .* from step 6, "
        with pytest.raises(StoppedError, match=message):
            train.main(arguments(data, tmp_path / "model.pt"))
    train.main(arguments(data, tmp_path / "model.pt"))
    assert_undisturbed(tmp_path, undisturbed)


PLATEAU = "--lr_schedule plateau --plateau_patience 2 --optimizer adamw --grad_clip 0.5 --ema_start 6 --ema_every 4"


@pytest.mark.parametrize(
    "flags",
    [
        PLATEAU.split(),
        *(
            pytest.param(flags.split(), marks=pytest.mark.nightly)
            for flags in ("--gradient_checkpointing", "--no-flip", "--precision fp32", "--grad_accumulation 2")
        ),
    ],
    ids=lambda flags: flags[0],
)
def test_interrupted_with_other_flags(flags: list[str], data: Path, tmp_path: Path) -> None:
    train.main(arguments(data, tmp_path / "a" / "model.pt", *flags))
    with pytest.MonkeyPatch.context() as monkeypatch:
        terminate = Terminate(Trainer.train_step, 8)
        monkeypatch.setattr(Trainer, "train_step", lambda *pair: terminate(*pair))
        with pytest.raises(StoppedError):
            train.main(arguments(data, tmp_path / "b" / "model.pt", *flags))
    train.main(arguments(data, tmp_path / "b" / "model.pt", *flags))
    assert_undisturbed(tmp_path / "b", tmp_path / "a")


# Errors with reading processes, for which a process that ends waits


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.training.tiny_train", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.nightly
def test_an_error_ends_the_process_and_its_readers(data: Path, tmp_path: Path) -> None:
    done = ended(*arguments(data, tmp_path / "model.pt", "--workers", "1"), FAIL="0,4")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: of a test"


def test_a_broken_validation_picture_is_one_line(data: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    picture = next((broken / "val").iterdir())
    picture.write_bytes(b"no picture")
    done = ended(*arguments(broken, tmp_path / "model.pt", "--workers", "1"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: cannot read the picture {picture}")
