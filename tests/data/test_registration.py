"""Whether sources and targets lie on each other: known shifts are found, and none where there is none."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bbdm.base import optional
from bbdm.cli import train
from bbdm.data.registration import SHIFTED, shift
from tests.data.making import load

SIDE = 64
SHIFTS = [(3, 0), (0, 3), (-3, 0), (0, -3), (2, -2), (3, 3)]


def drawing(seed: int, down: int = 0, right: int = 0) -> tuple[Image.Image, Image.Image]:
    """Black outlines on white, and the same figures in colours on black, moved by some pixels."""
    random = np.random.default_rng(seed)
    lines = Image.new("RGB", (SIDE, SIDE), "white")
    colours = Image.new("RGB", (SIDE, SIDE))
    for _ in range(3):
        left, top = random.integers(6, 30, 2)
        width, height = random.integers(12, 26, 2)
        box = [left, top, left + width, top + height]
        moved = [left + right, top + down, left + width + right, top + height + down]
        figure = ("ellipse", "rectangle")[random.integers(2)]
        getattr(ImageDraw.Draw(lines), figure)([int(side) for side in box], outline="black")
        colour = tuple(int(value) for value in random.integers(60, 255, 3))
        getattr(ImageDraw.Draw(colours), figure)([int(side) for side in moved], fill=colour)
    return lines, colours


def arrays(*pictures: Image.Image) -> list[Any]:
    return [np.asarray(picture).transpose(2, 0, 1) for picture in pictures]


@pytest.mark.parametrize("expected", SHIFTS)
def test_shifts_between_outlines_and_colours_are_found(expected: tuple[int, int]):
    for seed in range(10):
        assert shift(*arrays(*drawing(seed, *expected))) == pytest.approx(expected, abs=1)


def test_pairs_that_lie_on_each_other_have_no_shift():
    for seed in range(20):
        assert np.linalg.norm(shift(*arrays(*drawing(seed)))) < SHIFTED


def test_a_constant_picture_has_no_shift():
    source, _ = arrays(*drawing(0))
    assert shift(source, np.zeros_like(source)) == (0, 0)


def test_volumes_have_a_shift_along_each_axis():
    source = np.zeros((1, 12, 20, 24))
    source[:, 3:8, 5:12, 6:16] = 1
    target = 1000 - 500 * np.roll(source, (2, -3, 4), (1, 2, 3))
    assert shift(source, target) == pytest.approx((2, -3, 4), abs=0.5)


def folders(place: Path, down: int) -> str:
    for name in ("A", "B"):
        (place / name).mkdir()
    for seed in range(4):
        for folder, picture in zip("AB", drawing(seed, down), strict=True):
            picture.save(place / folder / f"{seed}.png")
    return f"{place}/A,{place}/B"


def check(place: Path, data_dir: str) -> None:
    """One epoch of four pairs, after a check."""
    flags = [
        "--preset",
        "demo",
        "--check",
        "--device",
        "cpu",
        "-e",
        "1",
        "-b",
        "4",
        "--image_size",
        str(SIDE),
    ]
    train.main(["paired", data_dir, str(place / "model.pt"), *flags])


@pytest.mark.usefixtures("tiny_demo")
@pytest.mark.parametrize("down", [0, 4])
def test_the_check_before_training_says_how_far_targets_lie_off(
    down: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert len(load(folders(tmp_path, down)).rows) == 4
    check(tmp_path, f"{tmp_path}/A,{tmp_path}/B")
    line = "the targets of 4 of 4 pairs seem to lie off their sources by more than 1.5 pixels: by "
    said = re.findall(f"train: {line}(.*) \\(down, right\\) in the median", capsys.readouterr().out)
    assert len(said) == (1 if down else 0)


@pytest.mark.usefixtures("tiny_demo")
def test_without_the_extra_the_check_says_what_to_install(
    tmp_path: Path, monkeypatch: Any, capsys: Any
):
    package = optional.package

    def missing(name: str, needed_by: str) -> Any:
        return package(name.replace("skimage", "skimage_missing"), needed_by)

    monkeypatch.setattr(optional, "package", missing)
    check(tmp_path, folders(tmp_path, 4))
    assert "the shift between sources and targets needs skimage_missing" in capsys.readouterr().out
