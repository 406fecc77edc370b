"""Scripts that are killed at random moments, run again until they end, and what they leave each time."""

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from bbdm.base.atomic import file_sha256
from tests.hardening import scripts

CHANGES = {"os.rename", "os.remove", "os.chmod", "os.mkdir"}  # audit events of what changes in a folder, and "open"
TIMES = {"images_per_second", "seconds", "seconds_per_picture", "environment"}  # and where it ran
AGAIN = re.compile(r".*/(step_\d+\.pt|best\.pt|epoch_\d+\.png)|.*\.jsonl?")  # what a run replaces
LATER = 0.02  # the most seconds between a change and the kill that it causes


@dataclass
class Kills:
    """How many there were, and how many of them left a file half-written."""

    done: int = 0
    inside: int = 0
    runs: int = 0


def begin(name: str, argv: list[str], folder: Path, at: int = 0, later: float = 0, changes: Any = None) -> BaseProcess:
    """A script in a process of its own, from when its imports are done.

    Change number ``at`` of a file below the folder kills it, some seconds ``later``. ``changes`` counts them.
    Its output is appended to a file beside the folder.
    """
    context = multiprocessing.get_context("forkserver")  # which imports once, and forks for each
    context.set_forkserver_preload([scripts.__name__])
    started = context.Event()
    process = context.Process(target=_run, args=(name, argv, folder, at, later, changes, started))
    process.start()
    assert started.wait(120)
    return process


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _run(name: str, argv: list[str], folder: Path, at: int, later: float, changes: Any, started: Any) -> None:
    scripts.make_small(folder)
    output = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    number = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal number
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            number += 1
            if changes is not None:
                changes.value = number
            if number == at:
                threading.Timer(later, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(watch)
    started.set()
    scripts.SCRIPTS[name].main(argv)


def content(folder: Path) -> dict[str, Any]:
    """What is in a folder of results, without times; each file must be whole."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = "/." in f"/{name}"  # itself, or the temporary folder that it is in
        if not path.is_file() or hidden or "/tensorboard/" in name:
            continue
        if path.suffix == ".pt":
            found[name] = _comparable(torch.load(path, weights_only=True))
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text().replace(str(folder), "")))
        elif path.suffix == ".jsonl":  # which grows by lines
            lines = path.read_text().splitlines(keepends=True)
            found[name] = [_timeless(json.loads(line)) for line in lines if line.endswith("\n")]
        else:
            found[name] = file_sha256(path)
    return found


def assert_content(folder: Path, wanted: dict[str, Any], but: str = "") -> None:
    """The content of a folder is the one wanted, but for files of a name; and no temporary file is left."""
    found = content(folder)
    differing = [name for name in wanted | found if found.get(name) != wanted.get(name) and Path(name).name != but]
    assert not differing, f"{differing} are not those of the undisturbed run"
    assert not list(folder.rglob(".*.tmp"))


def _comparable(value: Any) -> Any:
    """Tensors as their bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.flatten().contiguous().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _comparable(each) for key, each in value.items()}
    return [_comparable(each) for each in value] if isinstance(value, list | tuple) else value


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _steps(names: dict[str, Any]) -> int:
    """The newest checkpoint of a run."""
    return max((int(each) for name in names for each in re.findall(r"/step_(\d+)\.pt$", name)), default=0)


class Left:
    """What is left after each kill: nothing torn, and nothing lost of what was there or was reported."""

    def __init__(self, folder: Path, whole: dict[str, Any]) -> None:
        self.folder = folder
        self.whole = whole
        self.found: dict[str, Any] = {}
        self.written: dict[Path, int] = {}  # when

    def check(self) -> None:
        """Look at the folder again."""
        found = content(self.folder)
        for name, each in found.items():
            if name in self.whole and not AGAIN.fullmatch(name):
                assert each == self.whole[name], f"{name} is another one"
        gone = [name for name in self.found.keys() - found.keys() if not AGAIN.fullmatch(name)]
        assert not gone, f"{gone} are lost"
        assert _steps(found) >= _steps(self.found), "the newest checkpoint is lost"
        said = re.findall(r"checkpoint: (.*)", _log(self.folder).read_text())
        assert _steps(found) >= _steps(dict.fromkeys(said)), "a checkpoint is lost that was reported saved"
        for path in self.folder.rglob("[!.]*.safetensors"):  # entries of a cache
            assert self.written.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, f"{path} again"
        self.found = found


def kill_at_random_moments(name: str, kills: int, place: Path, tmp_path: Path) -> Kills:
    """Runs that are killed, as often as asked for in all, and repeated, have the undisturbed run's files.

    Half of the kills come at a random time, and half just after a random change of a file.
    """
    moments, argv = random.Random(kills), partial(scripts.SCRIPTS[name].argv, place)
    changes = multiprocessing.get_context("forkserver").Value("i", 0)
    undisturbed, began = begin(name, argv(tmp_path / "whole"), tmp_path / "whole", changes=changes), time.monotonic()
    undisturbed.join()
    seconds = time.monotonic() - began
    assert undisturbed.exitcode == 0, _log(tmp_path / "whole").read_text()[-2000:]
    whole, count = content(tmp_path / "whole"), Kills()
    while count.done < kills:
        count.runs += 1
        folder = tmp_path / str(count.runs)
        left = Left(folder, whole)
        while True:
            at = moments.randint(1, changes.value) if moments.random() < 0.5 and count.done < kills else 0
            process = begin(name, argv(folder), folder, at, moments.uniform(0, LATER))
            process.join(None if at or count.done >= kills else moments.uniform(0, seconds))
            if process.exitcode is None:
                process.kill()
                process.join()
            killed = process.exitcode == -signal.SIGKILL
            count.done += killed
            count.inside += killed and bool(list(folder.rglob(".*.tmp")))
            left.check()
            if not killed:
                break
        assert process.exitcode == 0, _log(folder).read_text()[-2000:]
        assert_content(folder, whole)
    return count
