"""Training on two nodes: two agents of torchrun on this machine, with a process each (gloo)."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from bbdm.execution.processes import Processes
from bbdm.training.run_folder import RunFolder
from tests.conftest import ROOT, MakeTrainer, wait_until
from tests.training.launching import ALONE, arguments, assert_close

Agent = subprocess.Popen[str]


AGAIN = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh"]  # a command in a loop


class Nodes:
    """Agents that meet at a port of this machine."""

    def __init__(self, command: list[str], nodes: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "1"]
        options = ["--nnodes", nodes, "--nproc_per_node", "1", *meeting, "--max_restarts", "3"]
        options += ["--local_addr", "localhost", "--monitor_interval", "0.1"]
        self.launcher = [*ALONE, "torch.distributed.run", *options]
        self.command = command
        self.pause = "0.2"  # seconds of a step
        self.agents: list[Agent] = []

    def start(self, *flags: str, host: bool = False) -> Agent:
        """A node that begins; the host has the port."""
        meeting = f"last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=5,is_host={int(host)}"
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PAUSE": self.pause}
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        about: dict[str, Any] = {"cwd": ROOT, "env": variables, "text": True, "start_new_session": True}
        about |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [*self.launcher, "--rdzv_conf", meeting, "-m", *self.command, *flags]
        self.agents.append(subprocess.Popen(command, **about))
        return self.agents[-1]

    def lose(self, node: Agent, how: int = signal.SIGKILL) -> None:
        """Send all processes of a node a signal at once."""
        for pid in family(node.pid):
            os.kill(pid, how)


def family(pid: int) -> list[int]:
    """A process, and those that it has started, and they."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def ended(agents: list[Agent]) -> str:
    """What agents wrote, all of which ended well."""
    output = "".join(agent.communicate(timeout=200)[0] for agent in agents)
    assert [agent.returncode for agent in agents] == [0] * len(agents), output
    return output


@pytest.fixture
def nodes(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Nodes to train on 20 steps, as many as the parameter says."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    found = Nodes(["tests.training.tiny_train", *arguments(data, tmp_path / "model.pt")], request.param)
    yield found
    for agent in found.agents:
        if agent.poll() is None:
            found.lose(agent)
        agent.communicate()


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", ["2"], indirect=True)
def test_two_nodes_are_one_process(nodes: Nodes, alone: Path, tmp_path: Path) -> None:
    assert ended([nodes.start(host=True), nodes.start()]).count("weights after epoch 4") == 1
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("nodes", "lost", "how"),
    [
        pytest.param("2", 1, signal.SIGKILL, id="second process"),
        pytest.param("2", 0, signal.SIGKILL, id="first process, which writes"),
        pytest.param("2", 1, signal.SIGSTOP, id="says nothing"),
        pytest.param("1:2", 0, signal.SIGKILL, id="the other goes on alone"),
    ],
    indirect=["nodes"],
)
def test_a_lost_node_comes_back(nodes: Nodes, lost: int, how: int, alone: Path, tmp_path: Path) -> None:
    """The node that holds no store of the rendezvous. Ranks are in the order in which agents began."""
    run, both = tmp_path / "model.run", nodes.launcher[nodes.launcher.index("--nnodes") + 1] == "2"
    nodes.pause = "0.2" if both else "1"  # time to come back
    agents = [nodes.start(host=lost == 1), nodes.start(host=lost == 0)]
    wait_until((run / "step_00000006.pt").exists, "a checkpoint")
    before = (run / "metrics.jsonl").read_text()
    nodes.lose(agents[lost], how)
    if not both:
        wait_until((run / "step_00000009.pt").exists, "a checkpoint")
    assert ended([agents[1 - lost], nodes.start()]).count("weights after epoch 4") == 1
    assert (run / "metrics.jsonl").read_text().startswith(before)  # it has resumed, not begun anew
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", ["2"], indirect=True)
def test_in_a_loop_nodes_outlive_the_host(nodes: Nodes, alone: Path, tmp_path: Path) -> None:
    """The node that holds the store is lost: the other agent ends, and is started until the host is back."""
    nodes.launcher = [*AGAIN, *nodes.launcher]
    host, other = nodes.start(host=True), nodes.start()
    wait_until((tmp_path / "model.run" / "step_00000006.pt").exists, "a checkpoint")
    before = (tmp_path / "model.run" / "metrics.jsonl").read_text()
    nodes.lose(host)
    assert ended([other, nodes.start(host=True)]).count("weights after epoch 4") == 1
    assert (tmp_path / "model.run" / "metrics.jsonl").read_text().startswith(before)
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.parametrize("shared", [True, False])
def test_all_must_see_a_folder(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Path]] = []

    def gather(values: list[object]) -> list[object]:
        found.append(list(tmp_path.iterdir()))
        return [*values, ("other", shared)]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    team: Any = SimpleNamespace(wait_for_everyone=lambda: None)  # of which the other has a disk of its own, or not
    first = Processes(torch.device("cpu"), 0, 2, team)
    folder = tmp_path / "not" / "yet"
    if shared:
        first.check_shared(folder)
    else:
        with pytest.raises(ValueError, match=r"yet must be on a disk that all nodes share: .* not seen on other$"):
            first.check_shared(folder)
    assert [len(files) for files in found] == [0, 1]
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_differently_are_refused(make_trainer: MakeTrainer, monkeypatch: Any) -> None:
    def gather(_: Processes, start: dict[str, Any]) -> list[dict[str, Any]]:
        return [start, {**start, "step": 4, "names": "b" * 64}]

    trainer = make_trainer()
    monkeypatch.setattr(Processes, "gather", gather)
    message = r"process 1 differs from process 0, and all must begin alike: step 4, not 0, names bbbbbbbb, not \w{8}$"
    with pytest.raises(ValueError, match=message):
        trainer.fit()


def test_a_run_waits_for_the_lock_of_a_lost_one(tmp_path: Path) -> None:
    other = FileLock(tmp_path / ".lock", thread_local=False)
    other.acquire()
    with pytest.raises(ValueError, match="another run works in"), RunFolder(tmp_path, 2, patience=0.1).locked():
        pass
    threading.Timer(0.3, other.release).start()
    with RunFolder(tmp_path, 2, patience=60).locked():
        pass
