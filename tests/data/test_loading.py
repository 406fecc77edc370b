"""Batches on a device: copied as uint8, with the same floats as the data set."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.pairs import PairedDataset
from tests.conftest import ROOT, wait_until
from tests.data.conftest import COUNT
from tests.kernels.triton_aot import on_a_gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_examples_in_the_order(workers: int, pairs: PairedDataset):
    batches = Batches(pairs, 2, CPU, workers)
    for order in ([4, 0, 3, 1], [2], None, [1, 1, 2]):
        wanted = [pairs[i] for i in (range(COUNT) if order is None else order)]
        found = list(batches(order))
        assert [len(batch.source) for batch in found] == [2] * (len(wanted) // 2) + [1] * (len(wanted) % 2)
        for side in (0, 1):
            parts = [(batch.source, batch.target)[side] for batch in found]
            assert torch.equal(torch.cat(parts), torch.stack([pair[side] for pair in wanted]))
            assert all(v.is_contiguous(memory_format=torch.channels_last) for v in parts)
        assert {batch.source.dtype for batch in batches.stored(order)} == {torch.uint8}  # what is copied


class ProcessIds(PairedDataset):
    """A stand-in for the pictures is the worker's process id."""

    def read(self, index: int, seed: int = 0) -> Example:
        return Example(torch.tensor(os.getpid()), torch.tensor(index))


def test_workers_persist_from_pass_to_pass(pairs: PairedDataset):
    batches = Batches(ProcessIds(pairs.pairs, 8), 1, CPU, workers=1)
    first, second = ({int(batch.source) for batch in batches()} for _ in range(2))
    assert first == second
    assert first != {os.getpid()}


READ_AND_DIE = """
import multiprocessing, os, signal, sys, torch
from bbdm.data.loading import Batches
from bbdm.data.pairs import load_dataset
from tests.data.test_loading import ProcessIds

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    pairs = ProcessIds(load_dataset("paired", sys.argv[2]).pairs, 8)
    batches = Batches(pairs, 1, torch.device("cpu"), workers=2)
    print(*{int(batch.source) for batch in batches()}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_readers_end_with_a_process_that_is_killed(start: str, pairs: PairedDataset, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(READ_AND_DIE)
    command = [sys.executable, str(tmp_path / "script.py"), start, f"{tmp_path}/A,{tmp_path}/B"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    readers = [int(word) for word in done.stdout.split()]
    assert len(readers) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in readers), "the ends of readers", 60)


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is not only waiting for its parent to look."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_an_abandoned_pass_leaves_nothing(pairs: PairedDataset):
    for workers in (0, 1):
        batches = Batches(pairs, 1, CPU, workers)
        left: Any = batches([4, 3, 2, 1])
        next(left)
        left.close()
        again = [batch.source for batch in batches([0, 2])]
        assert torch.equal(torch.cat(again), torch.stack([pairs[0][0], pairs[2][0]]))


@on_a_gpu
def test_on_a_gpu_the_floats_are_the_same(pairs: PairedDataset):
    for workers in (0, 1):
        for batch in Batches(pairs, COUNT, torch.device("cuda"), workers)():
            assert batch.source.device.type == "cuda"
            for side, v in enumerate((batch.source, batch.target)):
                assert torch.equal(v.cpu(), torch.stack([pairs[i][side] for i in range(COUNT)]))
