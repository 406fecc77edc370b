"""Checkpoints that a run writes between its steps, and writes that fail."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm.base import atomic
from bbdm.base.scripts import StoppedError
from bbdm.bridges import ABridge
from bbdm.files import weights
from bbdm.files.content import Checkpoint, NetworkState
from tests.conftest import MakePairs, MakeTrainer, tiny_unet

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ROOM = r"No space left on device\. Make room on the disk; "


def test_what_a_file_holds(tmp_path: Path) -> None:
    """Contiguous tensors, each with memory of its own, whatever they were; training state as it was."""
    unet, moment, row = tiny_unet(), torch.arange(4.0).view(2, 2).T, torch.arange(6.0)
    state = {**unet.state_dict(), "tied": row, "again": row, "part": row[2:4]}
    network = replace(NetworkState.of(unet), weights=state)
    snapshot = Checkpoint(network, ABridge(), training={"moments": (moment,), "step": 3}).snapshot()
    weights.write(tmp_path / "a.pt", snapshot)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    found = content["states"]["weights"]
    for key, value in state.items():
        assert torch.equal(found[key], value)
        assert found[key].is_contiguous()
        assert found[key].untyped_storage().nbytes() == found[key].nbytes
    assert len({value.data_ptr() for value in found.values()}) == len(found)
    assert content["training"]["moments"][0].tolist() == [[0, 2], [1, 3]]
    assert content["training"]["step"] == 3


@pytest.mark.parametrize(
    ("name", "error", "expected", "message", "saved"),
    [
        ("step_00000002.pt", FULL, StoppedError, ROOM + "nothing is saved yet", []),
        ("step_00000008.pt", FULL, StoppedError, ROOM + "the same command resumes from step 6", [2, 4, 6]),
        ("best.pt", FULL, StoppedError, ROOM + "the same command resumes from step 8", [2, 4, 6, 8]),
        ("step_00000004.pt", KeyboardInterrupt(), KeyboardInterrupt, None, [2]),
    ],
    ids=["at a step", "at the end", "of the best", "Ctrl-C"],
)
def test_a_write_that_fails_ends_the_run(
    name: str,
    error: BaseException,
    expected: Any,
    message: str | None,
    saved: list[int],
    make_trainer: MakeTrainer,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the step of that write, with the checkpoints of before it and no part of its file."""
    train, validation = make_pairs(tmp_path / "16", 16), make_pairs(tmp_path / "1", 1)
    run = make_trainer(train=train, validation=validation, epochs=1, save_every=2, keep=9)

    def write_atomically(path: Path, write: Any) -> None:
        def fail(temporary: Path) -> None:
            temporary.write_bytes(b"half")
            raise error

        atomic.write_atomically(path, fail if path.name == name else write)

    monkeypatch.setattr(weights, "write_atomically", write_atomically)
    with pytest.raises(expected, match=message):
        run.fit()
    assert run.step == (8 if name == "best.pt" else int(name[5:13]))
    assert sorted(run.run.checkpoints()) == saved
    assert sorted(path.name for path in run.folder.glob(".*")) == [".lock"]
    assert not run.run.best.exists()
