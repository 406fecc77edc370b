"""How a case runs: in a fresh folder, with fixed seeds, and with all that it prints and writes recorded."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bbdm import cli
from tests.recording.describing import KEY, file_of, normal, sha, value_of

Record = dict[str, Any]
Case = Callable[[], Any] | tuple[str, ...]  # a call, or lines of commands


DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
# in lines: digests follow from a folder's path, or a header without order
UNSTEADY = (" hub ", "c.safetensors")


def tried(call: Callable[[], Any]) -> Any:
    """The result of a call as JSON, or its error."""
    try:
        return value_of(call())
    except Exception as error:
        return value_of(error)


def _cut(path: str) -> None:
    """Cut off the second half of a file."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def _remove(path: str) -> None:
    """Delete a file or a folder."""
    if Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink()


def _move(path: str, new: str) -> None:
    """Rename a file."""
    Path(path).rename(new)


def _touch(path: str) -> None:
    """Make an empty file."""
    Path(path).touch()


def _runtime(*words: str) -> None:
    """Run ``python -m bbdm.runtime``."""
    before = sys.argv
    sys.argv = ["bbdm.runtime", *words]
    try:
        runpy.run_module("bbdm.runtime", run_name="__main__")
    finally:
        sys.argv = before


STEPS: dict[str, Callable[..., None]] = {
    "cut": _cut,
    "remove": _remove,
    "move": _move,
    "touch": _touch,
    "runtime": _runtime,
}


def command(line: str) -> Record:
    """Run a line: a command of bbdm without the word bbdm, or a step of :data:`STEPS`.

    Returns the exit status, and what was printed.
    """
    first, *words = shlex.split(line)
    out = io.StringIO()
    err = io.StringIO()
    status: Any = 0
    _reset()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if first in STEPS:
                STEPS[first](*words)
            else:
                cli.main([first, *words])
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):  # which Python prints
                print(status, file=sys.stderr)
                status = 1
        except Exception as error:
            status = f"{type(error).__name__}: {error}"
    return {"line": line, "status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}


def _reset() -> None:
    """Make what follows independent of what ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files, by their paths below a folder."""
    stats = {
        path.relative_to(folder).as_posix(): path.stat()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@contextmanager
def _captured() -> Any:
    """Standard streams as text, all warnings of users, and no progress of other libraries."""
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield out, err


def run_case(case: Case, world: Path, folder: Path) -> Record:
    """Run a case in a copy of the world, and return what it did.

    Args:
        case: a function, or lines of commands.
        world: the folder of files that cases use.
        folder: the working directory, deleted before and after.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder)
    before = _snapshot(folder)
    home = Path.cwd()
    os.chdir(folder)
    _reset()
    record: Record = {}
    try:
        with _captured() as (out, err):
            if callable(case):
                record["result"] = tried(case)
            else:
                record["commands"] = [command(line) for line in case]
        record |= {"stdout": out.getvalue(), "stderr": err.getvalue()}
        after = _snapshot(folder)
        changed = [name for name in sorted(after) if before.get(name) != after[name]]
        record["files"] = _files(folder, changed)
        record["deleted"] = sorted(before.keys() - after.keys())
    finally:
        os.chdir(home)
        logging.captureWarnings(False)
        shutil.rmtree(folder, ignore_errors=True)
    folders = sorted(
        {str(folder), str(folder.resolve()), str(folder.parent)}, key=len, reverse=True
    )
    content = normal(
        {name: each for name, each in record.items() if each or name == "result"}, folders
    )
    steady = callable(case) or not any(word in line for line in case for word in UNSTEADY)
    return content if steady else json.loads(DIGEST.sub("<digest>", json.dumps(content)))


def _files(folder: Path, names: Sequence[str]) -> Record:
    """Files below a folder as JSON, by names that no time, machine or folder decides."""
    found: Record = {}
    for name in names:
        about = file_of(folder / name)
        before, mark, _ = name.partition("events.out.tfevents.")
        steady = f"{before}{mark}" if mark else name
        if KEY.search(steady):  # of a cache, whose keys follow from paths: named by their content
            steady = KEY.sub(f"<key> {sha(json.dumps(about, sort_keys=True).encode())}", steady)
        found[steady] = about
    return found


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """What differs in two records: where, the old and the new value; None for a missing one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        parts = [
            differences(old.get(name), new.get(name), f"{path}/{name}" if path else name)
            for name in names
        ]
        return [each for part in parts for each in part]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [
            differences(*pair, f"{path}/{index}")
            for index, pair in enumerate(zip(old, new, strict=True))
        ]
        return [each for part in parts for each in part]
    if old == new and type(old) is type(new):
        return []
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        return [(path, *_first_lines(old, new))]
    return [(path, old, new)]


def _first_lines(old: str, new: str) -> tuple[str, str]:
    """The first line in which two texts differ, of each."""
    one = old.split("\n")
    other = new.split("\n")
    count = min(len(one), len(other))
    index = next((index for index in range(count) if one[index] != other[index]), count)
    return "\n".join(one[index : index + 2]), "\n".join(other[index : index + 2])
