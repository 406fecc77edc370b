"""Training in two processes on CPUs (gloo): the same run as in one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import eval_miou
import pytest
import torch

from bbdm.cli import eval, train, translate
from bbdm.execution.processes import Processes
from tests.conftest import ROOT, SavePicture, wait_until
from tests.hardening.scripts import from_tars, make_place
from tests.training.launching import ALONE, TORCHRUN, arguments, assert_close, metrics, run

TRAIN = "tests.training.tiny_train"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("flags", "in_two"),
    [
        ("", "--grad_accumulation 2"),
        ("--compile", ""),
        ("--grad_clip 0.1", ""),
        ("--direction both --objective preconditioned --loss l2", "--grad_accumulation 2"),
        ("--gradient_checkpointing", ""),
        ("--workers 1", "a table"),
    ],
)
def test_two_processes_are_one(flags: str, in_two: str, data: Path, tmp_path: Path, save_picture: SavePicture) -> None:
    for name, launcher in {"one": ALONE, "two": TORCHRUN}.items():
        argv = arguments(data, tmp_path / f"{name}.pt", *flags.split())
        if in_two == "a table":
            place = make_place(tmp_path / "place", save_picture) if name == "one" else tmp_path / "place"
            argv[:2] = from_tars(place, tmp_path, layout="hub")[:2]
        elif name == "two":
            argv += in_two.split()
        done = run([*launcher, TRAIN, *argv])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("weights after epoch 4") == 1
    assert_close(tmp_path / "two.pt", tmp_path / "one.pt")
    files = [{path.name for path in (tmp_path / f"{name}.run").iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


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
        command = [TRAIN, "edge2shoes", str(data), str(tmp_path / f"{name}.pt"), *flags, "-e", "2"]
        done = run([*launcher, *command], COMMAND="train-vqgan")
        assert done.returncode == 0, done.stderr
        state = torch.load(tmp_path / f"{name}.run" / "step_00000002.pt", weights_only=True)["training"]
        optimizers = [each["state"].values() for each in (state["optimizer"], state["critic_optimizer"])]
        moments[name] = [torch.cat([weight["exp_avg"].flatten() for weight in each]) for each in optimizers]
    for mine, theirs in zip(moments["two"], moments["one"], strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()
    for mine, theirs in zip(metrics(tmp_path / "two.pt"), metrics(tmp_path / "one.pt"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("launcher", "how", "again"),
    [
        pytest.param(TORCHRUN, {"DIE": "1,7"}, TORCHRUN, id="killed, in two"),
        pytest.param(TORCHRUN, {"DIE": "1,7"}, ALONE, id="killed, in one"),
        pytest.param(TORCHRUN, {"TERM_AT": "1,7"}, TORCHRUN, id="SIGTERM to one, in two"),
        pytest.param(TORCHRUN, {"TERM_AT": "1,7"}, ALONE, id="SIGTERM to one, in one"),
        pytest.param(ALONE, {"DIE": "0,7"}, TORCHRUN, id="killed in one, in two"),
    ],
)
def test_it_resumes(
    launcher: list[str], how: dict[str, str], again: list[str], data: Path, alone: Path, tmp_path: Path
) -> None:
    """A process that dies, or is asked to end, ends all; the next run goes on from what was saved."""

    def started(launcher: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return run([*launcher, TRAIN, *arguments(data, tmp_path / "model.pt")], **environment)

    done = started(launcher, PAUSE="0.5", **how)  # in which the first writes step 6 while the other does step 7
    assert done.returncode != 0
    assert launcher is ALONE or "DIE" not in how or "Signal 9 (SIGKILL)" in done.stderr
    saved = "step_00000008.pt" if "TERM_AT" in how else "step_00000006.pt"
    assert (tmp_path / "model.run" / saved).exists()
    done = started(again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights after epoch 4") == 1
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
def test_sigterm_to_torchrun_saves(data: Path, alone: Path, tmp_path: Path) -> None:
    command = [*TORCHRUN, TRAIN, *arguments(data, tmp_path / "model.pt", "--save_every", "100")]
    folder, variables = tmp_path / "model.run", {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE) as process:
        wait_until((folder / "step_00000005.pt").exists, "step 5")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode != 0
    newest = max(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.pt"))
    assert newest > 5
    assert newest % 5 != 0  # within an epoch
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.usefixtures("tiny_demo")
def test_a_batch_must_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "join", lambda device: Processes(torch.device(device), count=2))
    message = "batch_size 3 does not split into equal parts for 2 processes"
    with pytest.raises(ValueError, match=message):
        train.main(arguments(data, tmp_path / "model.pt", "-b", "3"))


def test_one_process_asks_no_device_for_a_sum() -> None:
    """Which is asked for at each step: a card would be waited for, and not every device has float64."""
    assert Processes(torch.device("meta")).sum(2.5) == 2.5


COMMANDS = {"train": (train, "edge2shoes"), "translate": (translate, "edge2shoes"), "eval": (eval, "edge2shoes")}
COMMANDS["eval_miou"] = (eval_miou, "deeplab.pt")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--use_multi_gpus", "-use_multi_gpus"])
def test_each_gpu_gets_a_process(flag: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        calls.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    module, first = COMMANDS[name]
    argv = [first, "DATA", "model.pt", flag]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "bbdm", "--import", "own", name, *argv])
    with pytest.raises(SystemExit):
        (eval_miou.Miou if module is eval_miou else module).main(argv)
    assert calls[0][1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    assert calls[0][6:] == ["-m", "bbdm", "--import", "own", name, *argv]


@pytest.mark.usefixtures("tiny_demo")
def test_without_a_second_gpu_one_process_trains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
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
