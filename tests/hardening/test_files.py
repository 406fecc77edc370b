"""Mutated files, pictures, and further formats: the right content or a ValueError, and nothing else.

No code of a file runs, no read takes more than twice the file's size and 200 MB of memory, and none hangs. A
picture may take what the largest takes that Pillow opens.
"""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hardening.mutations import CALL
from tests.hardening.subjects import SUBJECTS
from tests.hardening.watch import ROOM, Outcome, Watch, judge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
SEED = 1
EVERY_NIGHT = [(kind, count) for kind, (_, count) in SUBJECTS.items()]
DAILY = {"our .pt": 30, "our .safetensors, settings": 20, "PNG": 50, "NIfTI": 200, "npy": 200}


def check(counts: dict[str, int], folder: Path) -> None:
    """Mutated files of some kinds, read in a process of their own."""
    kinds, numbers = ";".join(counts), ";".join(map(str, counts.values()))
    command = [sys.executable, "-m", "tests.hardening.subjects", kinds, numbers, str(SEED), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()[-len(counts) :]]
    for (kind, count), found in zip(counts.items(), outcomes, strict=True):
        print(kind, found)
        assert not found["faults"]
        assert found["read"] + found["refused"] == count
        assert found["refused"] > count / 20


def test_as_many_as_are_claimed() -> None:
    claimed = re.search(r"([\d,]+) files of (\d+) kinds were read", (ROOT / "docs" / "weights.md").read_text())
    assert claimed is not None
    assert int(claimed[1].replace(",", "")) == sum(count for _, count in EVERY_NIGHT)
    assert int(claimed[2]) == len(EVERY_NIGHT)


def test_some_mutated_files(tmp_path: Path) -> None:
    check(DAILY, tmp_path / "file")


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "count"), EVERY_NIGHT)
def test_mutated(kind: str, count: int, tmp_path: Path) -> None:
    check({kind: count}, tmp_path / "file")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: False, "another content"),
        (lambda: pickle.loads(CALL) is None, "called import"),
        (lambda: bool(b"x" * (ROOM + 2**26)), "MiB for a file of 10 bytes"),
        (lambda: {}["x"], "KeyError"),
        (lambda: int("x") > 0, "does not name it"),
    ],
    ids=["wrong", "code", "memory", "another error", "no name"],
)
def test_faults_are_found(fault: Any, message: str) -> None:
    outcome = Outcome()
    judge(fault, 10, Watch(), outcome, "planted", place="a/b")
    assert any(message in fault for fault in outcome.faults)
