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
CONTEXT = multiprocessing.get_context("forkserver")  # which imports once, and forks for each


def begin(name: str, folder: Path, argv: list[str], changes: Any, at: int = 0, later: float = 0) -> BaseProcess:
    """A script in a process of its own, from when its imports are done.

    ``changes`` counts those of files below the folder; number ``at`` kills it, some seconds ``later``. Its
    output is appended to a file beside the folder.
    """
    CONTEXT.set_forkserver_preload([scripts.__name__])
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_run, args=(name, folder, argv, changes, at, later, started))
    process.start()
    assert started.wait(120)
    return process


def _run(name: str, folder: Path, argv: list[str], changes: Any, at: int, later: float, started: Any) -> None:
    scripts.make_small(folder)
    output = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    changes.value = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            changes.value += 1
            if changes.value == at:
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
            found[name] = _comparable(json.loads(path.read_text().replace(str(folder), "")))
        elif path.suffix == ".jsonl":  # which grows by lines
            lines = path.read_text().splitlines(keepends=True)
            found[name] = [_comparable(json.loads(line)) for line in lines if line.endswith("\n")]
        else:
            found[name] = file_sha256(path)
    return found


def _comparable(value: Any) -> Any:
    """Tensors as their bytes, and no times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.flatten().contiguous().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _comparable(each) for key, each in value.items() if key not in TIMES}
    return [_comparable(each) for each in value] if isinstance(value, list | tuple) else value


def assert_content(folder: Path, expected: dict[str, Any]) -> None:
    """The content of a folder is the expected one, and no temporary file is left."""
    found = content(folder)
    differing = [name for name in expected | found if found.get(name) != expected.get(name)]
    assert not differing, f"{differing} are not those of the undisturbed run"
    assert not list(folder.rglob(".*.tmp"))


def _step(names: Any) -> int:
    """The newest checkpoint of a run."""
    return max((int(each) for name in names for each in re.findall(r"/step_(\d+)\.pt$", name)), default=0)


def check_left(folder: Path, before: dict[str, Any], undisturbed: dict[str, Any]) -> dict[str, Any]:
    """What a kill left: nothing torn, and nothing lost of what was there ``before`` or was reported."""
    found = content(folder)
    kept = {name: each for name, each in found.items() if not AGAIN.fullmatch(name)}
    torn = [name for name, each in kept.items() if undisturbed.get(name, each) != each]
    assert not torn, f"{torn} are others"
    lost = [name for name in before if name not in found and not AGAIN.fullmatch(name)]
    assert not lost, f"{lost} are lost"
    reported = re.findall(r"checkpoint: (.*)", folder.with_suffix(".log").read_text())
    assert _step(found) >= _step([*before, *reported]), "the newest checkpoint is lost"
    return found


def kill_at_random_moments(name: str, kills: int, place: Path, tmp_path: Path) -> int:
    """Runs that are killed, as often as asked for in all, and repeated, have the undisturbed run's files.

    Half of the kills come at a random time, and half just after a random change of a file. It returns how
    many left a file half-written.
    """
    moments, argv, changes = random.Random(kills), partial(scripts.SCRIPTS[name].argv, place), CONTEXT.Value("i", 0)
    folder, began = tmp_path / "undisturbed", time.monotonic()
    process = begin(name, folder, argv(folder), changes)
    process.join()
    assert process.exitcode == 0, folder.with_suffix(".log").read_text()[-2000:]
    seconds, count, undisturbed = time.monotonic() - began, changes.value, content(folder)
    runs = inside = done = 0
    while done < kills:
        runs += 1
        folder, left, killed = tmp_path / str(runs), dict[str, Any](), True
        while killed:
            at = moments.randint(1, count) if moments.random() < 0.5 and done < kills else 0
            process = begin(name, folder, argv(folder), changes, at, moments.uniform(0, LATER))
            process.join(None if at or done >= kills else moments.uniform(0, seconds))
            if process.exitcode is None:
                process.kill()
                process.join()
            killed = process.exitcode == -signal.SIGKILL
            done += killed
            inside += killed and bool(list(folder.rglob(".*.tmp")))
            left = check_left(folder, left, undisturbed)
        assert process.exitcode == 0, folder.with_suffix(".log").read_text()[-2000:]
        assert_content(folder, undisturbed)
    return inside
