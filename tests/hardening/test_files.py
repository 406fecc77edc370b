"""Mutated files, pictures, and further formats: the right content or a ValueError, and nothing else.

No code of a file runs, no read takes more than twice the file's size and 200 MB of memory, and none hangs. A
picture may take what the largest takes that Pillow opens.
"""

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hardening.mutations import CALL
from tests.hardening.subjects import SUBJECTS, run
from tests.hardening.watch import ROOM, Watch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
    pytest.mark.filterwarnings("ignore"),  # odd settings are as good as none here
]
DAILY = {
    "our .pt": 30,
    "our .safetensors": 30,
    "our .safetensors, settings": 20,
    "PNG": 50,
    "NIfTI": 200,
    "npy": 200,
}
DAILY |= {"NIfTI, a bit": 100, "MetaImage, a bit": 100, "NRRD, a bit": 100}
EVERY_NIGHT = [
    pytest.param(kind, count, marks=pytest.mark.nightly) for kind, (_, count) in SUBJECTS.items()
]


@pytest.mark.parametrize(("kind", "count"), [*DAILY.items(), *EVERY_NIGHT])
def test_mutated(kind: str, count: int, tmp_path: Path) -> None:
    found = run(kind, count, 1, tmp_path / "file")
    print(kind, found)
    assert not found.faults
    assert found.read + found.refused == count
    assert found.refused > count / 20


def test_as_many_as_are_claimed() -> None:
    claimed = re.search(
        r"([\d,]+) files of (\d+) kinds are read", (ROOT / "docs" / "weights.md").read_text()
    )
    assert claimed is not None
    counts = [count for _, count in SUBJECTS.values()]
    message = "docs/weights.md says how many files of how many kinds are read"
    assert (int(claimed[1].replace(",", "")), int(claimed[2])) == (sum(counts), len(counts)), (
        message
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: False, "another content"),
        (lambda: pickle.loads(CALL) is None, "called import"),
        (lambda: bool(b"x" * (2 * ROOM)), "MiB for a file of 10 bytes"),
        (lambda: {}["x"], "KeyError"),
        (lambda: int("x") > 0, "does not name it"),
    ],
)
def test_faults_are_found(fault: Any, message: str) -> None:
    (watch := Watch()).judge("planted", fault, 10, place="a/b")
    assert message in "".join(watch.faults)
