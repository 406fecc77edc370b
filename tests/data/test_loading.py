"""Batches on a device: copied as they are stored, as the floats of the data set; and a look at its rows."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.data.examples import Example
from bbdm.data.loading import Batches, check_rows, first_look, with_short_errors
from bbdm.data.pairs import Pairs
from bbdm.data.rows import BadPicturesError, Row
from bbdm.data.spec import read_kinds
from bbdm.pictures.values import Percentiles, Values
from tests.conftest import ROOT, wait_until
from tests.data.making import SIZE, damage, folders, load, located, pictures, pixels, save, valued

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
        assert [len(batch.source) for batch in found] == [2] * (len(wanted) // 2) + [1] * (
            len(wanted) % 2
        )
        for side in (0, 1):
            parts: list[Any] = [batch[side] for batch in found]
            assert torch.equal(torch.cat(parts), torch.stack([pair[side] for pair in wanted]))
            assert all(v.is_contiguous(memory_format=torch.channels_last) for v in parts)
        # what is copied
        assert {batch.source.dtype for batch in batches.stored(order)} == {torch.uint8}
    batches.close()


class ProcessIds(Pairs):
    """A stand-in for the pictures is the worker's process id."""

    def read(
        self, index: int, seed: int = 0, row: Row | None = None, stored: bool = False
    ) -> Example:
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
@pytest.mark.skipif(sys.platform != "linux", reason="states of processes are read from /proc")
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_process_that_is_killed(
    start: str, pairs: Pairs, tmp_path: Path
) -> None:
    def alive(pid: str) -> bool:
        with suppress(OSError):
            # nor waits for its parent to look
            return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
        return False

    (tmp_path / "script.py").write_text(READ_AND_DIE)
    command = [sys.executable, str(tmp_path / "script.py"), start, f"{tmp_path}/A,{tmp_path}/B"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    first, second = done.stdout.split()
    wait_until(lambda: not alive(first) and not alive(second), "workers end")


class TestCheck:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_all_that_is_wrong_is_listed(self, workers: int, tmp_path: Path) -> None:
        data_dir = pictures(tmp_path, 6)
        assert check_rows(load(data_dir), workers) == {}
        pairs = load(data_dir)
        damage(tmp_path / "A/1.png")
        (tmp_path / "B/2.png").unlink()
        save(tmp_path / "B/3.png", pixels(0, 5, 5))
        save(tmp_path / "A/4.png", pixels(0, SIZE + 3, channels=1))
        found = check_rows(pairs, workers)
        reasons = [
            "A/1.png",
            "B/2.png",
            "different grids, 11 x 8 and 5 x 5",
            "A/4.png: its source has 1 channels, and",
        ]
        assert list(found) == [1, 2, 3, 4]
        assert all(part in reason for part, reason in zip(reasons, found.values(), strict=True))
        assert not any("\n" in reason for reason in found.values())
        assert check_rows(pairs.without(found)) == {}
        # grey becomes colours
        assert list(check_rows(load(f"{tmp_path}/A,{tmp_path}/A", channels=3))) == [1]

    def test_values_conditions_and_whole_volumes_are_read_too(self, tmp_path: Path) -> None:
        data_dir = f"{folders(tmp_path)},style={tmp_path}/c.csv"
        array = np.ones((1, 20, 24), np.float32)
        array[0, 3, 4] = np.nan
        save(tmp_path / "B/1.npy", array)
        (tmp_path / "c.csv").write_text("0,a\n1,b\n2,c")
        pairs = valued(data_dir, conditions=read_kinds("style=class"))
        (tmp_path / "c.csv").write_text("0,a\n1,b\n2,z")
        found = check_rows(valued(data_dir, conditions=pairs.spec.conditions))
        assert list(found) == [1, 2]
        assert "B/1.npy: nan stands in channel 0" in found[1]  # the target's file
        assert "A/2.npy: 'z' is no class of 'style'" in found[2]
        volumes = folders(tmp_path / "volumes", ".nii.gz", 3, (4, 5, 6))
        assert check_rows(valued(volumes, slices="axial", neighbours=1)) == {}
        pairs = valued(volumes, axes=3, crop=2)
        damage(tmp_path / "volumes/B/2.nii.gz")
        assert list(check_rows(pairs)) == [2]


def test_first_rows_say_what_is_clipped_and_flat(tmp_path: Path) -> None:
    """Of 480 values, 48 are above the source's range, and of the next 480 none is."""
    assert first_look(load(pictures(tmp_path / "pictures"))) == []
    assert (
        first_look(valued(folders(tmp_path / "volumes", ".nii", size=(3, 4, 5)), slices="axial"))
        == []
    )
    for number, most in enumerate((480, 100)):
        save(tmp_path / f"C/{number}.npy", located(0, (1, 20, 24)) % most)
    values: dict[str, Any] = {
        "source": Values(0, 431, dtype="int16"),
        "target": Values(0, 480, "m", "int16"),
    }
    line = "5 % of the values of the first 2 sources are outside of their range, 0:431, and clipped to it"
    assert first_look(load(f"{tmp_path}/C,{tmp_path}/C", **values)) == [line]
    data_dir = folders(tmp_path, count=2)
    save(
        tmp_path / "A/1.npy", np.full((1, 20, 24), 7, np.int16) + np.arange(24, dtype=np.int16) % 3
    )
    (line,) = first_look(valued(data_dir))
    assert "A/1.npy is nearly constant within 0:4000: give the range" in line
    assert first_look(valued(data_dir, source=Percentiles())) == []


def test_pictures_that_are_stretched_are_named_once(tmp_path: Path) -> None:
    """11 x 8 to 8 x 8; those that fit, or are cropped, keep their shape."""
    data_dir = pictures(tmp_path)
    (line,) = first_look(load(data_dir, size=8))
    assert line.endswith(
        "A/0.png is stretched from 11 x 8 to 8 x 8, 1.4 times wider: --crop keeps the shape of pictures"
    )
    kept: list[dict[str, Any]] = [{"size": 8, "resize": "fit"}, {"size": (22, 16)}, {"crop": 8}]
    for settings in kept:
        assert first_look(load(data_dir, **settings)) == []


def test_a_number_that_is_none_is_of_its_own_file(tmp_path: Path) -> None:
    data_dir = folders(tmp_path)
    array = np.full((1, 20, 24), np.nan, np.float32)
    save(tmp_path / "B/1.npy", array)
    pairs = valued(data_dir, skip_bad=True)
    assert f"{tmp_path}/B/1.npy: nan stands in channel 0" in pairs.read(1).left_out
    assert "A/1.npy" not in pairs.read(1).left_out
