"""What goes into a sampler comes out in its type."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.sampling.options import UNIT
from bbdm.sampling.sources import Scale, Sources, read_sources

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
FLOATS = (COLOUR / 127.5 - 1).astype(np.float32)
Kind = type[Any]  # of a sampler's arrays
KINDS = pytest.mark.parametrize("kind", [np.ndarray, torch.Tensor], ids=["numpy", "torch"])


def given(source: Any, kind: Kind, channels: int, range: tuple[float, float] = UNIT) -> Sources:
    return read_sources(source, kind, "an array", Scale(channels, range))


def echo(source: Any, kind: Kind, channels: int = 3, range: tuple[float, float] = UNIT) -> Any:
    """What a sampler that changes nothing returns."""
    got = given(source, kind, channels, range)
    return got.restore(got.groups)


@KINDS
@pytest.mark.parametrize(
    "array", [COLOUR, COLOUR[:, :, 0], FLOATS, FLOATS.astype(np.float64)], ids=lambda a: str(a.dtype)
)
def test_an_array_comes_back(kind: Kind, array: np.ndarray):
    made = echo(array, kind)
    expected = array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
    assert (type(made), made.dtype) == (np.ndarray, array.dtype)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


@KINDS
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 5)])
def test_floats_of_another_range(kind: Kind, low: float, high: float):
    values = (FLOATS + 1) / 2 * (high - low) + low
    got = given(values, kind, 3, (low, high))
    np.testing.assert_allclose(np.asarray(got.groups[0][1])[0], FLOATS.transpose(2, 0, 1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(echo(values, kind, range=(low, high)), values, rtol=1e-5, atol=1e-4)
    batch = values.transpose(2, 0, 1)[None]
    np.testing.assert_allclose(np.asarray(echo(batch, kind, range=(low, high))), batch, rtol=1e-5, atol=1e-4)


def test_grey_networks():
    assert echo(COLOUR, np.ndarray, 1).shape == (6, 8, 1)
    assert echo(COLOUR[:, :, 0], np.ndarray, 1).shape == (6, 8)
    np.testing.assert_array_equal(echo(COLOUR[:, :, :1], np.ndarray, 1), COLOUR[:, :, :1])
    np.testing.assert_allclose(echo(FLOATS[:, :, 1], np.ndarray, 1), FLOATS[:, :, 1], atol=1e-6)
    clear = np.dstack([COLOUR, np.zeros((6, 8), np.uint8)])  # transparent pixels are white
    np.testing.assert_array_equal(echo(clear, np.ndarray), np.full((6, 8, 3), 255))


def test_a_mixed_list_keeps_order_and_types(tmp_path: Path):
    picture, file = Image.fromarray(COLOUR), tmp_path / "a.png"
    picture.save(file)
    tensor = torch.from_numpy(FLOATS.transpose(2, 0, 1).copy()).double()
    made = echo([FLOATS, file, picture.resize((4, 4)), tensor, str(file), COLOUR], torch.Tensor)
    kinds = [np.ndarray, Image.Image, Image.Image, torch.Tensor, Image.Image, np.ndarray]
    assert [type(result) for result in made] == kinds
    np.testing.assert_allclose(made[0], FLOATS, atol=1e-6)
    assert made[2].size == (4, 4)
    for result in (made[1], made[4], *(echo(source, np.ndarray)[0] for source in (file, str(file), picture)), made[5]):
        np.testing.assert_array_equal(np.asarray(result), COLOUR)
    assert made[3].dtype == torch.float64
    torch.testing.assert_close(made[3], tensor, rtol=0, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*none\.png"):
        given([COLOUR, tmp_path / "none.png"], np.ndarray, 3)
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"source\[1\]: cannot read the picture .*a\.png"):
        given([COLOUR, file], np.ndarray, 3)


@KINDS
def test_floats_that_look_like_zero_to_one_are_warned_of(kind: Kind):
    unit = (FLOATS + 1) / 2
    for source in (unit, unit.transpose(2, 0, 1)[None], [unit, unit]):
        with pytest.warns(UserWarning, match=r"pass range=\(0, 1\)") as record:
            given(source, kind, 3)
        assert len(record) == 1
    paper = np.full((6, 8, 3), 0.97, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (FLOATS, paper, COLOUR, [FLOATS, Image.fromarray(COLOUR)]):
            given(fine, kind, 3)
        given(unit, kind, 3, (0, 1))
