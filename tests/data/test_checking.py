"""A look at rows before training: all that cannot be read, and what values show at a glance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm.data.checking import check_rows, first_look
from bbdm.data.spec import read_conditions
from bbdm.pictures.values import Percentiles, Values
from tests.data.making import SIZE, damage, folders, load, located, pictures, pixels, save, valued


@pytest.mark.parametrize("workers", [0, 1])
def test_all_that_is_wrong_is_listed(workers: int, tmp_path: Path) -> None:
    data_dir = pictures(tmp_path, 6)
    assert check_rows(load(data_dir), workers) == {}
    pairs = load(data_dir)
    damage(tmp_path / "A/1.png")
    (tmp_path / "B/2.png").unlink()
    save(tmp_path / "B/3.png", pixels(0, 5, 5))
    save(tmp_path / "A/4.png", pixels(0, SIZE + 3, channels=1))
    found = check_rows(pairs, workers)
    assert list(found) == [1, 2, 3, 4]
    reasons = ["A/1.png", "B/2.png", "different grids, 11 x 8 and 5 x 5", "A/4.png: its source has 1 channels, and"]
    assert all(part in reason for part, reason in zip(reasons, found.values(), strict=True))
    assert not any("\n" in reason for reason in found.values())
    assert check_rows(pairs.without(found)) == {}
    assert list(check_rows(load(f"{tmp_path}/A,{tmp_path}/A", channels=3))) == [1]  # grey becomes colours


def test_values_and_conditions_are_read_too(tmp_path: Path) -> None:
    data_dir = folders(tmp_path)
    array = np.ones((1, 20, 24), np.float32)
    array[0, 3, 4] = np.nan
    save(tmp_path / "B/1.npy", array)
    (tmp_path / "c.csv").write_text("0,a\n1,b\n2,c")
    pairs = valued(f"{data_dir},style={tmp_path}/c.csv", conditions=read_conditions("style=class"))
    (tmp_path / "c.csv").write_text("0,a\n1,b\n2,z")
    found = check_rows(valued(f"{data_dir},style={tmp_path}/c.csv", conditions=pairs.spec.conditions))
    assert list(found) == [1, 2]
    assert "A/1.npy: nan stands in channel 0 at (3, 4)" in found[1]
    assert "A/2.npy: 'z' is no class of 'style'" in found[2]


def test_volumes_are_read_whole(tmp_path: Path) -> None:
    data_dir = folders(tmp_path, ".nii.gz", 3, (4, 5, 6))
    assert check_rows(valued(data_dir, slices="axial", neighbours=1)) == {}
    pairs = valued(data_dir, axes=3, crop=2)
    damage(tmp_path / "B/2.nii.gz")
    assert list(check_rows(pairs)) == [2]


class TestFirstLook:
    """Lines are of the first 8 rows that can be read."""

    def test_good_pictures_need_none(self, tmp_path: Path) -> None:
        assert first_look(load(pictures(tmp_path), size=SIZE)) == []
        assert first_look(valued(folders(tmp_path / "volumes", ".nii", size=(3, 4, 5)), slices="axial")) == []

    def test_values_outside_of_their_range(self, tmp_path: Path) -> None:
        """Of 480 values, 48 are above the source's range, and of the next 480 none is."""
        for number, most in enumerate((480, 100)):
            save(tmp_path / f"{number}.npy", located(0, (1, 20, 24)) % most)
        values: dict[str, Any] = {"source": Values(0, 431, dtype="int16"), "target": Values(0, 480, "m", "int16")}
        line = "5 % of the values of the first 2 sources are outside of their range, 0:431, and clipped to it"
        assert first_look(load(f"{tmp_path},{tmp_path}", **values)) == [line]

    def test_sources_without_contrast(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, count=2)
        save(tmp_path / "A/1.npy", np.full((1, 20, 24), 7, np.int16) + np.arange(24, dtype=np.int16) % 3)
        (line,) = first_look(valued(data_dir))
        assert "A/1.npy is nearly constant within 0:4000: give the range" in line
        assert first_look(valued(data_dir, source=Percentiles())) == []

    def test_sides_that_are_stretched(self, tmp_path: Path) -> None:
        for name, width in {"a": 8, "b": 80, "c": 87, "d": 90, "e": 40}.items():
            save(tmp_path / f"A/{name}.png", pixels(0))
            save(tmp_path / f"B/{name}.png", pixels(1, 8 if name == "a" else 80, width))
        data_dir = f"{tmp_path}/A,{tmp_path}/B"
        line = "2 of the first pairs have sides of different shapes, first 'd': each side is stretched to one size"
        assert first_look(load(data_dir, size=8)) == [line]
        (tmp_path / "B/e.png").write_bytes(b"no picture")
        assert [line.partition(" sides")[0] for line in first_look(load(data_dir, size=8))] == ["1 pair has"]
