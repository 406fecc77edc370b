"""Batches on a device: copied as they are stored, with the same floats as the data set."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm.data.examples import BadPicturesError, Example
from bbdm.data.loading import Batches, with_short_errors
from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from tests.data.making import damage, load, pictures

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
COUNT = 5


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return load(pictures(tmp_path, COUNT), size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_examples_in_the_order(workers: int, pairs: Pairs) -> None:
    """Also after a pass that was abandoned."""
    batches = Batches(pairs, 2, CPU, workers)
    left: Any = batches([4, 3, 2, 1])
    next(left)
    left.close()
    for order in ([4, 0, 3, 1], [2], None, [1, 1, 2]):
        wanted = [pairs[i] for i in (range(COUNT) if order is None else order)]
        found = list(batches(order))
        assert [len(batch.source) for batch in found] == [2] * (len(wanted) // 2) + [1] * (len(wanted) % 2)
        for side in (0, 1):
            parts: list[Any] = [batch[side] for batch in found]
            assert torch.equal(torch.cat(parts), torch.stack([pair[side] for pair in wanted]))
            assert all(v.is_contiguous(memory_format=torch.channels_last) for v in parts)
        assert {batch.source.dtype for batch in batches.stored(order)} == {torch.uint8}  # what is copied
    batches.close()


class ProcessIds(Pairs):
    """A stand-in for the pictures is the worker's process id."""

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        return Example(torch.tensor(os.getpid()), torch.tensor(index))


def test_workers_persist_from_pass_to_pass(pairs: Pairs) -> None:
    batches = Batches(ProcessIds(pairs.rows), 1, CPU, workers=1)
    first, second = ({int(batch.source) for batch in batches()} for _ in range(2))
    assert first == second
    assert first != {os.getpid()}
    batches.close()
    assert {int(batch.source) for batch in batches()} != first


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_said_in_one_line_or_left_out(
    workers: int, pairs: Pairs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(tmp_path / "A/3.png")
    batches = Batches(pairs, 1, CPU, workers)
    with pytest.raises(BadPicturesError, match=r"\Acannot read the picture .*A/3\.png[^\n]*\Z"):
        list(batches())
    batches.close()
    batches = Batches(load(f"{tmp_path}/A,{tmp_path}/B", size=8, skip_bad=True), 2, CPU, workers)
    for _ in range(2):
        assert [name for batch in batches() for name in batch.name] == ["0", "1", "2", "4", "4"]
    batches.close()
    (record,) = caplog.records  # once
    assert "A/3.png" in record.getMessage()

    def fails() -> Any:
        yield 1
        raise OSError("first\nlast")

    with pytest.raises(ValueError, match=r"^last$"):
        list(with_short_errors(fails()))


READ_AND_DIE = """
import multiprocessing, os, signal, sys, torch
from bbdm.data.loading import Batches
from bbdm.data.rows import read_rows
from tests.data.test_loading import ProcessIds

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    batches = Batches(ProcessIds(read_rows("paired", sys.argv[2])), 1, torch.device("cpu"), workers=2)
    print(*{int(batch.source) for batch in batches()}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_process_that_is_killed(start: str, pairs: Pairs, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(READ_AND_DIE)
    command = [sys.executable, str(tmp_path / "script.py"), start, f"{tmp_path}/A,{tmp_path}/B"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    workers = done.stdout.split()
    assert len(workers) == 2
    end = time.monotonic() + 60
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < end, "workers live on"
        time.sleep(0.05)


def is_alive(pid: str) -> bool:
    """Whether a process runs, and is not only waiting for its parent to look."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
