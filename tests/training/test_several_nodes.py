"""Training on two nodes: two agents of torchrun on this machine, with a process each (gloo)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from bbdm.execution.processes import Processes
from bbdm.training import resume
from bbdm.training.run_folder import FolderInUseError, RunFolder
from tests.conftest import ROOT
from tests.training.launching import ALONE
from tests.training.test_several_processes import alone, arguments, assert_close, data  # noqa: F401  (fixtures)

pytest.importorskip("accelerate")
Agent = subprocess.Popen[str]


class Nodes:
    """Agents that meet at a port of this machine."""

    def __init__(self, command: list[str], nodes: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "1"]
        options = ["--nnodes", nodes, "--nproc_per_node", "1", *meeting, "--max_restarts", "3"]
        options += ["--local_addr", "localhost", "--monitor_interval", "0.1"]
        self.launcher = [*ALONE, "torch.distributed.run", *options]
        self.command, self.environment = command, environment
        self.agents: list[Agent] = []

    def start(self, *flags: str, first: bool = False) -> Agent:
        """A node that begins; the first one has the port."""
        conf = ["--rdzv_conf", f"last_call_timeout=2,is_host={int(first)}", "-m"]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        about: dict[str, Any] = {"cwd": ROOT, "env": variables, "text": True, "start_new_session": True}
        about |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.agents.append(subprocess.Popen([*self.launcher, *conf, *self.command, *flags], **about))
        return self.agents[-1]

    def lose(self, node: Agent) -> None:
        """End all processes of a node at once."""
        for pid in [node.pid, *children(node.pid)]:
            os.kill(pid, signal.SIGKILL)
        node.communicate()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def nodes(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Iterator[Nodes]:  # noqa: F811
    """Nodes to train on 20 steps, as many as the parameter says."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    command = ["tests.training.tiny_train", *arguments(data, tmp_path / "model.pt")]
    found = Nodes(command, request.param, PAUSE="0.2")
    yield found
    for agent in found.agents:
        if agent.poll() is None:
            found.lose(agent)


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", ["2"], indirect=True)
def test_two_nodes_are_one_process(nodes: Nodes, alone: Path, tmp_path: Path) -> None:  # noqa: F811
    agents = [nodes.start(first=True), nodes.start()]
    output = "".join(agent.communicate(timeout=200)[0] for agent in agents)
    assert [agent.returncode for agent in agents] == [0, 0], output
    assert output.count("weights after epoch 4") == 1
    assert_close(tmp_path / "model.pt", alone)


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", ["2"], indirect=True)
def test_a_folder_that_one_node_does_not_see(nodes: Nodes, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    nodes.launcher[nodes.launcher.index("--max_restarts") + 1] = "0"
    agents = [nodes.start("--experiment", str(place), first=place is places[0]) for place in places]
    output = "".join(agent.communicate(timeout=200)[0] for agent in agents)
    assert all(agent.returncode for agent in agents)
    assert "must be on a disk that all nodes share: what the first process writes there on " in output
    assert not [file for place in places for file in place.iterdir()]


class Team:
    """Stands for accelerate in one of two processes: the other has a disk of its own, or not."""

    def __init__(self, other: bool) -> None:
        self.other = other

    def wait_for_everyone(self) -> None:
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_all_must_see_a_folder(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Path]] = []

    def gather(values: list[object]) -> list[object]:
        found.append(list(tmp_path.iterdir()))
        return [*values, ("other", shared)]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    first = Processes(torch.device("cpu"), 0, 2, Team(shared))  # pyright: ignore[reportArgumentType]
    folder = tmp_path / "not" / "yet"
    if shared:
        first.check_shared(folder)
    else:
        with pytest.raises(ValueError, match=r"yet must be on a disk that all nodes share: .* not seen on other$"):
            first.check_shared(folder)
    assert [len(files) for files in found] == [0, 1]
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_differently_are_refused() -> None:
    alike = {"step": 5, "names": "a" * 64}
    resume.check_alike([alike, alike])
    message = "process 1 differs from process 0, and all must begin alike: step 4, not 5, names bbbbbbbb, not aaaaaaaa"
    with pytest.raises(ValueError, match=message):
        resume.check_alike([alike, {"step": 4, "names": "b" * 64}])


def test_a_run_waits_for_the_lock_of_a_lost_one(tmp_path: Path) -> None:
    other = FileLock(tmp_path / ".lock", thread_local=False)
    other.acquire()
    with pytest.raises(FolderInUseError):
        RunFolder(tmp_path, 2, patience=0.1).begin(0, {})
    threading.Timer(0.3, other.release).start()
    patient = RunFolder(tmp_path, 2, patience=60)
    patient.begin(0, {})
    patient.end()
