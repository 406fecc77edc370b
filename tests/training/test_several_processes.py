"""Training in two processes on CPUs (gloo): the same run as in one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bbdm.cli import eval, eval_miou, train, translate
from bbdm.execution.processes import Processes
from bbdm.networks.unet_config import PRESETS, UNetConfig
from tests.conftest import ROOT, TINY
from tests.training.launching import ALONE, TORCHRUN, arguments, assert_close, metrics, run

pytest.importorskip("accelerate")


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [[], ["--grad_accumulation", "2"]], ids=["", "parts"])
def test_two_processes_are_one(flags: list[str], data: Path, alone: Path, tmp_path: Path) -> None:
    done = run([*TORCHRUN, "tests.training.tiny_train", *arguments(data, tmp_path / "model.pt", *flags)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights after epoch 4") == 1
    assert_close(tmp_path / "model.pt", alone)
    names = [{path.name for path in output.with_suffix(".run").iterdir()} for output in (tmp_path / "model.pt", alone)]
    assert names[0] == names[1]


@pytest.mark.nightly
def test_two_compiled_processes_are_one(data: Path, tmp_path: Path) -> None:
    for name, command in {"one": ALONE, "two": TORCHRUN}.items():
        done = run([*command, "tests.training.tiny_train", *arguments(data, tmp_path / f"{name}.pt", "--compile")])
        assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two.pt", tmp_path / "one.pt")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_two_processes_train_an_autoencoder_as_one(kind: str, data: Path, tmp_path: Path) -> None:
    """Two steps with the adversary and restarted codes.

    It compares gradients, by Adam's first moments. Steps are tiny: where a gradient is rounding, they differ.
    """
    moments: dict[str, list[torch.Tensor]] = {}
    for name, launcher in {"one": ALONE, "two": TORCHRUN}.items():
        flags = ["--preset", "demo", "--kind", kind, "--image_size", "24", "-b", "20", "--device", "cpu", "--flip"]
        flags += ["--precision", "fp32", "--perceptual", "none", "--adversarial_start", "0"]
        flags += ["--lr_schedule", "constant", "-lr", "1e-6"]
        command = ["tests.training.tiny_train_vqgan", "edge2shoes", str(data), str(tmp_path / f"{name}.pt"), *flags]
        done = run([*launcher, *command, "-e", "2"])
        assert done.returncode == 0, done.stderr
        state = torch.load(tmp_path / f"{name}.run" / "step_00000002.pt", weights_only=True)["training"]
        optimizers = [each["optimizer"]["state"].values() for each in (state, state["adversary"])]
        moments[name] = [torch.cat([weight["exp_avg"].flatten() for weight in each]) for each in optimizers]
    for mine, theirs in zip(moments["two"], moments["one"], strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()
    for mine, theirs in zip(metrics(tmp_path / "two.pt"), metrics(tmp_path / "one.pt"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("again", [TORCHRUN, ALONE], ids=["in two", "in one"])
def test_a_process_that_dies_takes_the_job_down_and_it_resumes(
    again: list[str], data: Path, alone: Path, tmp_path: Path
) -> None:
    command = ["tests.training.tiny_train", *arguments(data, tmp_path / "model.pt")]
    began = time.monotonic()
    done = run([*TORCHRUN, *command], DIE="1,7")
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert (tmp_path / "model.run" / "step_00000006.pt").exists()
    done = run([*again, *command])
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
def test_sigterm_to_torchrun_saves(data: Path, alone: Path, tmp_path: Path) -> None:
    command = ["tests.training.tiny_train", *arguments(data, tmp_path / "model.pt", "--save_every", "100")]
    folder = tmp_path / "model.run"
    with subprocess.Popen(
        [*TORCHRUN, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": "0.3"},
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / "step_00000005.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.7)  # a step or two of the next epoch
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode != 0
    steps = [int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.pt")]
    assert max(steps) > 5
    assert max(steps) % 5 != 0  # within an epoch
    done = run([*TORCHRUN, *command])
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
@pytest.mark.parametrize("again", [1, 2])
def test_sigterm_to_one_process_ends_and_saves_all(
    again: int, data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed in one process or in two, the run has the weights and metrics of one process."""
    command = ["tests.training.tiny_train", *arguments(data, tmp_path / "model.pt", "--save_every", "100")]
    done = run([*TORCHRUN, *command], TERM_AT="1,7")
    assert done.returncode != 0
    assert (tmp_path / "model.run" / "step_00000008.pt").exists()
    if again == 1:
        monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))
        train.main(command[1:])
    else:
        done = run([*TORCHRUN, *command])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("weights after epoch 4") == 1
    assert_close(tmp_path / "model.pt", alone)


def test_a_batch_must_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))
    monkeypatch.setattr(Processes, "join", lambda device: Processes(torch.device(device), count=2))
    message = "batch_size 3 does not split into equal parts for 2 processes with grad_accumulation=1"
    with pytest.raises(ValueError, match=message):
        train.main(arguments(data, tmp_path / "model.pt", "-b", "3"))


SCRIPTS = {train: ["edge2shoes"], translate: ["edge2shoes"], eval: ["edge2shoes"], eval_miou: ["deeplab.pt"]}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("flag", ["--use_multi_gpus", "-use_multi_gpus"])
def test_each_gpu_gets_a_process(flag: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        calls.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    argv = [*SCRIPTS[script], "DATA", "model.pt", flag]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(SystemExit):
        script.main(argv)
    assert calls[0][1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    assert calls[0][6:] == ["-m", "bbdm", script.__name__.split(".")[-1].replace("_", "-"), *argv]


def test_without_a_second_gpu_one_process_trains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))
    train.main([*arguments(data, tmp_path / "model.pt", "-e", "1"), "--use_multi_gpus"])
    assert (tmp_path / "model.pt").exists()


def test_accelerate_is_needed_for_several(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"several processes need accelerate: pip install"):
        train.main(arguments(data, tmp_path / "model.pt"))


def test_processes_that_would_not_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate has them where no GPU is: each alone, and all of them the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here by 2 processes"):
        Processes.join("cuda")
