"""200 SIGKILLs over the scripts that write: nothing torn, nothing lost, bitwise the undisturbed result."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import SavePicture
from tests.hardening.killing import Left, content, kill_at_random_moments
from tests.hardening.scripts import SCRIPTS, make_place

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
EVERY_NIGHT = [(name, script.kills) for name, script in SCRIPTS.items() if script.kills]


def test_as_many_as_are_claimed() -> None:
    assert sum(kills for _, kills in EVERY_NIGHT) == 200


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda folder: (folder / "a.png").write_bytes(b"pic"), "a.png is another one"),
    "torn JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "Expecting property name"),
    "torn weights": (lambda folder: (folder / "m.run" / "step_00000002.pt").write_bytes(b"PK"), "Weights only load"),
    "lost": (lambda folder: (folder / "a.png").unlink(), "a.png'. are lost"),
    "lost step": (lambda folder: (folder / "m.run" / "step_00000002.pt").unlink(), "the newest checkpoint is lost"),
    "never saved": (
        lambda folder: folder.with_suffix(".log").open("a").write("checkpoint: m.run/step_00000003.pt\n"),
        "a checkpoint is lost that was reported saved",
    ),
    "made again": (lambda folder: os.utime(folder / "0.safetensors", (1, 1)), "0.safetensors again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "m.run").mkdir(parents=True)
    for name in ("a.png", "0.safetensors"):
        (folder / name).write_bytes(b"picture")
    (folder / "manifest.json").write_text(json.dumps({"version": 2}))
    torch.save({"weights": torch.zeros(3)}, folder / "m.run" / "step_00000002.pt")
    (tmp_path / "run.log").write_text("checkpoint: m.run/step_00000002.pt\n")
    left, leftover = Left(folder, content(folder)), folder / ".b.png.0123abcd.tmp"
    leftover.mkdir()
    (leftover / "b.png").write_bytes(b"pic")
    left.check()
    shutil.rmtree(leftover)  # by the next run, which is no loss
    left.check()
    make, message = FAULTS[fault]
    make(folder)
    with pytest.raises((AssertionError, ValueError, pickle.UnpicklingError), match=message):
        left.check()


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "kills"), EVERY_NIGHT)
def test_killed_at_random_moments(name: str, kills: int, tmp_path: Path, save_picture: SavePicture) -> None:
    """So many that some fall into a write."""
    count = kill_at_random_moments(name, kills, make_place(tmp_path / "place", save_picture), tmp_path)
    print(name, count)
    assert count.inside or kills < 20, "no kill fell into a write"
