"""Sources that are made of targets: lines, greys, rectangles, and one of them for each picture."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from bbdm.data import degradations
from bbdm.data.degradations import Degradation
from tests.conftest import noise


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_edges_are_dark_where_brightness_changes(mode: str) -> None:
    levels = np.full((8, 8), 50, np.uint8)
    levels[:, 4:] = 200
    lines = Degradation("edges").picture(Image.fromarray(levels).convert(mode), "a")
    assert (lines.mode, lines.size) == (mode, (8, 8))
    values = np.asarray(lines.convert("L"))
    assert (values[:, 3:5] == 0).all()
    assert (np.delete(values, [3, 4], axis=1) == 255).all()
    plain = Degradation("edges").picture(Image.new(mode, (8, 8)), "a")
    assert np.asarray(plain).min() == 255


def test_grey_has_the_brightness_alone() -> None:
    picture = noise(0, 8, 8)
    values = np.asarray(Degradation("grey").picture(picture, "a"))
    expected = np.asarray(picture.convert("L"))
    for channel in range(3):
        np.testing.assert_array_equal(values[..., channel], expected)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_a_mask_is_one_rectangle(name: str) -> None:
    picture = Image.fromarray(np.zeros((40, 20, 3), np.uint8))
    hidden = np.asarray(Degradation("masked").picture(picture, name))[..., 0] == 128
    rows, columns = np.nonzero(hidden.any(1))[0], np.nonzero(hidden.any(0))[0]
    assert hidden.sum() == len(rows) * len(columns)
    for places, side in ((rows, 40), (columns, 20)):
        assert side / 4 - 0.5 <= len(places) <= 3 * side / 4 + 0.5
        assert places[-1] - places[0] + 1 == len(places)


def test_any_takes_each_kind_by_the_pictures_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 names about a fifth each: 4.5 standard deviations are allowed, for all seeds 1 in 30,000."""
    taken = Counter[str]()

    def counted(kind: str) -> object:
        return lambda picture, *_: taken.update([kind]) or picture

    for kind in ("edges", "grey", "masked", "blur"):
        monkeypatch.setattr(degradations, kind, counted(kind))
    picture = noise(0, 8, 8)
    small = 0
    for number in range(600):
        before = taken.total()
        result = Degradation("any").picture(picture, f"{number}")
        small += taken.total() == before
        assert result.size == picture.size
    for count in (*taken.values(), small):
        assert abs(count - 120) < 4.5 * (600 * 0.2 * 0.8) ** 0.5
    monkeypatch.undo()
    one, again, other = (
        Degradation("any", seed).picture(picture, "x").tobytes() for seed in (0, 0, 3)
    )
    assert one == again
    assert one != other
