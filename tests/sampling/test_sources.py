"""What goes into a sampler comes out in its type: with a mask of zeros, results are the sources."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler
from tests.conftest import tiny_unet

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
FLOATS = (COLOUR / 127.5 - 1).astype(np.float32)


@cache
def sampler(channels: int = 3) -> BridgeSampler:
    return BridgeSampler(tiny_unet(in_channels=channels, out_channels=channels), ABridge(), steps=1)


def echo(source: Any, channels: int = 3, **options: Any) -> Any:
    return sampler(channels)(source, seed=0, mask=np.zeros((6, 8)), **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_an_array_comes_back(dtype: Any):
    colour = COLOUR if dtype == np.uint8 else FLOATS.astype(dtype)
    for array, channels in ((colour, 3), (colour[:, :, 0], 3), (colour[:, :, 0], 1), (colour[:, :, :1], 1)):
        made = echo(array, channels)
        grey = array.ndim == 2 and channels == 3
        assert (type(made), made.dtype) == (np.ndarray, array.dtype)
        np.testing.assert_allclose(made, np.repeat(array[:, :, None], 3, axis=2) if grey else array, rtol=0, atol=1e-6)
    assert echo(COLOUR, 1).shape == (6, 8, 1)
    clear = np.dstack([COLOUR, np.zeros((6, 8), np.uint8)])  # transparent pixels are white
    np.testing.assert_array_equal(echo(clear), np.full((6, 8, 3), 255))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 5)])
def test_floats_of_another_range(low: float, high: float):
    values = (FLOATS + 1) / 2 * (high - low) + low
    first = values.transpose(2, 0, 1)
    for source in (values, first[None], torch.from_numpy(first)[None]):
        np.testing.assert_allclose(echo(source, range=(low, high)), source, rtol=1e-5, atol=1e-4)
    tensor = torch.from_numpy(first)
    torch.testing.assert_close(echo([tensor], range=(low, high))[0], tensor, rtol=1e-5, atol=1e-4)
    plain = sampler()(FLOATS, seed=0)
    np.testing.assert_allclose(
        sampler()(values, seed=0, range=(low, high)), (plain + 1) / 2 * (high - low) + low, rtol=1e-4, atol=1e-3
    )


def test_a_mixed_list_keeps_order_and_types(tmp_path: Path):
    picture, file = Image.fromarray(COLOUR), tmp_path / "a.png"
    picture.save(file)
    tensor = torch.from_numpy(FLOATS.transpose(2, 0, 1).copy()).double()
    made = echo([FLOATS, file, picture, tensor, str(file), COLOUR])
    types = [np.ndarray, Image.Image, Image.Image, torch.Tensor, Image.Image, np.ndarray]
    assert [type(result) for result in made] == types
    np.testing.assert_allclose(made[0], FLOATS, atol=1e-6)
    for result in (made[1], made[2], made[4], made[5], *(echo(source)[0] for source in (file, str(file), picture))):
        np.testing.assert_array_equal(np.asarray(result), COLOUR)
    assert made[3].dtype == torch.float64
    torch.testing.assert_close(made[3], tensor, rtol=0, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*none\.png"):
        echo([COLOUR, tmp_path / "none.png"])
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"source\[1\]: cannot read the picture .*a\.png"):
        echo([COLOUR, file])


def test_floats_that_look_like_zero_to_one_are_warned_of():
    unit, paper = (FLOATS + 1) / 2, np.full((6, 8, 3), 0.97, np.float32)
    for source in (unit, unit.transpose(2, 0, 1)[None], [unit, unit]):
        with pytest.warns(UserWarning, match=r"pass range=\(0, 1\)") as record:
            echo(source)
        assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (FLOATS, paper, COLOUR, [FLOATS, Image.fromarray(COLOUR)]):
            echo(fine)
        echo(unit, range=(0, 1))
