"""Training in two processes on CPUs (gloo), and on two nodes, two agents of torchrun: the run of one."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import eval_miou
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from filelock import FileLock

from bbdm.cli import eval, train, translate
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.training.task import mixed
from tests.conftest import ROOT, MakeTrainer, SavePicture, save_random_pairs, wait_until
from tests.files.test_pretrained import save
from tests.training.launching import (
    ALONE,
    TORCHRUN,
    TRAIN,
    arguments,
    assert_close,
    launch,
    metrics,
    run,
)

Agent = subprocess.Popen[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """20 training pairs, and 5 to validate: batches of 2, 2 and 1 in two processes."""
    return save_random_pairs(tmp_path_factory.mktemp("data"), 20, 5, save_picture)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    output = tmp_path_factory.mktemp("alone") / "model.pt"
    launch(ALONE, arguments(data, output))
    return output


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("flags", "in_two"),
    [
        ("", "--grad_accumulation 2"),
        ("--compile", ""),
        ("--grad_clip 0.1", ""),
        ("--direction both --objective preconditioned --loss l2", "--grad_accumulation 2"),
        ("--gradient_checkpointing", ""),
        ("--workers 1", ""),
    ],
)
def test_two_processes_are_one(flags: str, in_two: str, data: Path, tmp_path: Path) -> None:
    for name, launcher in {"one": ALONE, "two": TORCHRUN}.items():
        argv = arguments(data, tmp_path / f"{name}.pt", *flags.split())
        launch(launcher, [*argv, *(in_two.split() if name == "two" else [])])
    assert_close(tmp_path / "two.pt", tmp_path / "one.pt")
    files = [
        {path.name for path in (tmp_path / f"{name}.run").iterdir()} for name in ("one", "two")
    ]
    assert files[0] == files[1]


@pytest.mark.nightly
@pytest.mark.parametrize("flags", ["", "--lora 2"])
def test_two_processes_go_on_with_a_pretrained_network_as_one(
    flags: str, data: Path, tmp_path: Path
) -> None:
    """Two steps, then two more."""
    save(tmp_path / "pixels", DDPMScheduler())
    rate = ["--lr_schedule", "constant", "--warmup_steps", "0"]
    start = ["--init_from", f"{tmp_path}/pixels", *rate, *flags.split(), "--max_steps"]
    launch(ALONE, arguments(data, tmp_path / "one.pt", *start, "4"))
    for steps in ("2", "4"):
        launch(TORCHRUN, arguments(data, tmp_path / "two.pt", *start, steps))
    one, two = (
        torch.load(tmp_path / f"{name}.run" / "step_00000004.pt")["states"]
        for name in ("one", "two")
    )
    for name in ("weights", "ema"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)


def test_a_bad_picture_of_the_second_process_loses_no_step(
    data: Path, alone: Path, tmp_path: Path
) -> None:
    """The process that finds it saves, and both go on when it is repaired, as one process without it."""
    pairs = Pairs(read_rows("edge2shoes", str(data), "train"), Spec(size=16))
    # the first that the second reads in the third step
    (index,) = pairs.order(mixed(0, 0))(4 + 4 + 2, 4 + 4 + 3)
    file = Path(pairs.rows[index]["source"].path)
    whole = file.read_bytes()
    argv = arguments(data, tmp_path / "model.pt")
    done = run([*TORCHRUN, TRAIN, *argv], DAMAGE=f"1,1,{file}")
    file.write_bytes(whole)
    assert done.returncode != 0
    assert f"{file.name}" in done.stderr
    assert (tmp_path / "model.run" / "step_00000002.pt").exists()
    launch(TORCHRUN, argv)
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_two_processes_train_an_autoencoder_as_one(kind: str, data: Path, tmp_path: Path) -> None:
    """Two steps with the adversary and restarted codes.

    It compares gradients, by Adam's first moments. Steps are tiny: where a gradient is rounding, they differ.
    """
    flags = "--preset demo --image_size 24 -b 20 --device cpu --flip --precision fp32 --perceptual none -e 2 "
    flags += f"--kind {kind} --adversarial_start 0 --lr_schedule constant -lr 1e-6"
    moments: dict[str, list[torch.Tensor]] = {}
    for name, launcher in {"one": ALONE, "two": TORCHRUN}.items():
        argv = ["edge2shoes", str(data), str(tmp_path / f"{name}.pt"), *flags.split()]
        launch(launcher, argv, COMMAND="train-vqgan")
        state = torch.load(tmp_path / f"{name}.run" / "step_00000002.pt", weights_only=True)[
            "training"
        ]
        optimizers = [
            each["state"].values() for each in (state["optimizer"], state["critic_optimizer"])
        ]
        moments[name] = [
            torch.cat([weight["exp_avg"].flatten() for weight in each]) for each in optimizers
        ]
    for mine, theirs in zip(moments["two"], moments["one"], strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()
    for mine, theirs in zip(
        metrics(tmp_path / "two.pt"), metrics(tmp_path / "one.pt"), strict=True
    ):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("launcher", "how", "again"),
    [
        (TORCHRUN, {"DIE": "1,7"}, ALONE),
        (TORCHRUN, {"TERM_AT": "1,7"}, TORCHRUN),
        (ALONE, {"DIE": "0,7"}, TORCHRUN),
    ],
    ids=["killed in two, in one", "SIGTERM to one, in two", "killed in one, in two"],
)
def test_it_resumes(
    launcher: list[str],
    how: dict[str, str],
    again: list[str],
    data: Path,
    alone: Path,
    tmp_path: Path,
) -> None:
    """A process that dies, or is asked to end, ends all; the next run goes on from what was saved."""
    argv = arguments(data, tmp_path / "model.pt")
    # the first writes step 6 while the other does step 7
    done = run([*launcher, TRAIN, *argv], PAUSE="0.5", **how)
    assert done.returncode != 0
    assert launcher is ALONE or "DIE" not in how or "Signal 9 (SIGKILL)" in done.stderr
    saved = "step_00000008.pt" if "TERM_AT" in how else "step_00000006.pt"
    assert (tmp_path / "model.run" / saved).exists()
    launch(again, argv)
    assert_close(tmp_path / "model.pt", alone)


# Nodes


class Nodes:
    """Agents that meet at a port of this machine."""

    def __init__(self, command: list[str], nodes: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = [
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            f"localhost:{port}",
            "--rdzv_id",
            "1",
        ]
        options = ["--nnodes", nodes, "--nproc_per_node", "1", *meeting, "--max_restarts", "3"]
        options += ["--local_addr", "localhost", "--monitor_interval", "0.1"]
        self.launcher = [*ALONE, "torch.distributed.run", *options]
        self.command, self.both = command, nodes == "2"
        self.pause = "0.2" if self.both else "1"  # seconds of a step; time to come back
        self.agents: list[Agent] = []

    def start(self, host: bool = False) -> Agent:
        """A node that begins; the host has the port."""
        meeting = f"last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=5,is_host={int(host)}"
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": self.pause}
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        about: dict[str, Any] = {
            "cwd": ROOT,
            "env": variables,
            "text": True,
            "start_new_session": True,
        }
        about |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.agents.append(
            Agent([*self.launcher, "--rdzv_conf", meeting, "-m", *self.command], **about)
        )
        return self.agents[-1]

    def lose(self, node: Agent, how: int = signal.SIGKILL) -> None:
        """Send all processes of a node a signal at once."""
        for pid in family(node.pid):
            os.kill(pid, how)


def family(pid: int) -> list[int]:
    """A process, and those that it has started, and they."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def ended(agents: list[Agent]) -> None:
    """All agents end well, and one of them says so."""
    output = "".join(agent.communicate(timeout=200)[0] for agent in agents)
    assert [agent.returncode for agent in agents] == [0] * len(agents), output
    assert output.count("weights after epoch 4") == 1


@pytest.fixture
def nodes(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Nodes to train on 20 steps, as many as the parameter says."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    found = Nodes([TRAIN, *arguments(data, tmp_path / "model.pt")], request.param)
    yield found
    for agent in found.agents:
        if agent.poll() is None:
            found.lose(agent)
        agent.communicate()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("nodes", "lost", "how"),
    [
        ("2", 0, signal.SIGKILL),
        ("2", 1, signal.SIGSTOP),
        ("1:2", 0, signal.SIGKILL),
        ("2", -1, signal.SIGKILL),
    ],
    indirect=["nodes"],
    ids=[
        "the first process, which writes",
        "says nothing",
        "the other goes on alone",
        "the host, in a loop",
    ],
)
def test_a_lost_node_comes_back(
    nodes: Nodes, lost: int, how: int, alone: Path, tmp_path: Path
) -> None:
    """The node that holds no store of the rendezvous, or the host: then the other agent ends, and is started
    until the host is back. Ranks are in the order in which agents began."""
    run, host = tmp_path / "model.run", lost == -1
    if host:
        nodes.launcher = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh", *nodes.launcher]
        lost = 0
    agents = [nodes.start(host=host or lost == 1), nodes.start(host=not host and lost == 0)]
    wait_until((run / "step_00000006.pt").exists, "a checkpoint")
    before = (run / "metrics.jsonl").read_text()
    nodes.lose(agents[lost], how)
    if not nodes.both:
        wait_until((run / "step_00000009.pt").exists, "a checkpoint")
    ended([agents[1 - lost], nodes.start(host=host)])
    assert (run / "metrics.jsonl").read_text().startswith(before)  # it has resumed, not begun anew
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.parametrize("shared", [True, False])
def test_all_must_see_a_folder(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Path]] = []

    def gather(values: list[object]) -> list[object]:
        found.append(list(tmp_path.iterdir()))
        return [*values, ("other", shared)]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    # of which the other has a disk of its own, or not
    team: Any = SimpleNamespace(wait_for_everyone=lambda: None)
    first, folder = Processes(torch.device("cpu"), 0, 2, team), tmp_path / "not" / "yet"
    message = r"yet must be on a disk that all nodes share: it is not seen on other$"
    with nullcontext() if shared else pytest.raises(ValueError, match=message):
        first.check_shared(folder)
    assert [len(files) for files in found] == [0, 1]
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_differently_are_refused(
    make_trainer: MakeTrainer, monkeypatch: Any
) -> None:
    def gather(_: Processes, start: dict[str, Any]) -> list[dict[str, Any]]:
        return [start, {**start, "step": 4, "names": "b" * 64}]

    trainer = make_trainer()
    monkeypatch.setattr(Processes, "gather", gather)
    message = (
        r"process 1 must begin as process 0 does, .*: step 0, now 4, names \w{8}, now bbbbbbbb$"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit()


def test_a_step_of_several_processes_reduces_once_besides_gradients(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and whether a process asks to end go together. The other asks in the third of 4 steps."""
    reduced: list[torch.Tensor] = []

    def total(_: Processes, value: torch.Tensor) -> torch.Tensor:
        reduced.append(value)
        other = value.clone()
        if value.ndim:
            other[1] = len(reduced) > 3  # the first is before all steps
        return value + other

    monkeypatch.setattr(Processes, "total", total)
    monkeypatch.setattr(
        Processes, "sum", lambda self, value: float(self.total(torch.tensor(float(value))))
    )
    processes = Processes(torch.device("cpu"), count=2)
    trainer = make_trainer(further={"processes": processes}, validate_every="2e")
    assert not trainer.fit()
    assert trainer.step == 3
    assert len(reduced) == 1 + trainer.step
    assert [*trainer.run_folder.checkpoints()] == [3]


def test_several_wait_for_the_lock_of_a_lost_run(make_trainer: MakeTrainer) -> None:
    """One process does not; see test_two_runs_in_one_folder_are_refused."""
    trainer = make_trainer(epochs=1)
    other = FileLock(trainer.folder / ".lock", thread_local=False)
    trainer.folder.mkdir()
    other.acquire()
    threading.Timer(0.3, other.release).start()
    trainer.processes = replace(trainer.processes, count=2)
    assert trainer.fit()


# Commands


def test_a_batch_must_split(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="batch_size 2 does not split into 2 processes x 2 parts"):
        make_trainer(
            grad_accumulation=2, further={"processes": Processes(torch.device("cpu"), count=2)}
        )


COMMANDS: dict[str, Any] = {"train": train.main, "translate": translate.main, "eval": eval.main}
COMMANDS["eval_miou"] = eval_miou.Miou.main


@pytest.mark.parametrize("name", COMMANDS)
def test_each_gpu_gets_a_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second one; otherwise the command goes on, here to data that are not there."""
    execv = Mock(side_effect=SystemExit)
    monkeypatch.setattr(os, "execv", execv)
    for flag in ("--use_multi_gpus", "-use_multi_gpus"):
        argv = ["edge2shoes" if name != "eval_miou" else "deeplab.pt", "DATA", "model.pt", flag]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(
            sys, "orig_argv", ["python", "-m", "bbdm", "--import", "own", name, *argv]
        )
        with pytest.raises(SystemExit):
            COMMANDS[name](argv)
        _, command = execv.call_args.args
        assert command[1:6] == [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "3",
        ]
        assert command[6:] == ["-m", "bbdm", "--import", "own", name, *argv]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(FileNotFoundError):
            COMMANDS[name](argv)


def test_processes_that_would_not_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate has them where no GPU is: each alone, and all the first; or where it is missing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here by 2 processes"):
        Processes.join("cuda")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"several processes need accelerate: pip install"):
        Processes.join("cpu")
