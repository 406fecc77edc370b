import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.pictures import values
from bbdm.pictures.values import EIGHT_BIT, Percentiles, Values, check_finite, read_values, scaled_present

TWO = Values((0, -10), (4, 10), dtype="float32")


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [((0, 255), "uint8"), ((0, 65535), "uint16"), ((-1024, 3071), "int16"), ((-(2**23), 2**23), "int32")],
    ids=str,
)
def test_every_level_of_an_integer_type_comes_back(levels: tuple[int, int], dtype: str) -> None:
    made = Values(*levels, dtype=dtype)
    step = max(1, (levels[1] - levels[0]) // 100_000)
    stored = np.arange(levels[0], levels[1] + 1, step, dtype=dtype).reshape(1, 1, -1)
    scaled = made.scaled(stored)
    assert (scaled.dtype, scaled[0, 0, 0]) == (np.float32, -1)
    np.testing.assert_allclose(scaled, 2 * (stored.astype(float) - levels[0]) / (levels[1] - levels[0]) - 1, atol=1e-6)
    np.testing.assert_array_equal(made.stored(scaled), stored)
    np.testing.assert_array_equal(made.stored(torch.from_numpy(scaled)), stored)
    assert torch.equal(made.scaled(torch.from_numpy(stored.astype(np.int32))), torch.from_numpy(scaled))


@pytest.mark.parametrize("axes", [2, 3])
def test_each_channel_has_its_own_range_and_values_outside_are_clipped(axes: int) -> None:
    array = np.array([2.0, 5.0], np.float32).reshape(2, *[1] * axes)
    assert TWO.scaled(np.stack([array, array]), axes).flatten().tolist() == [0, 0.5] * 2
    assert TWO.stored(TWO.scaled(array, axes), axes).flatten().tolist() == [2, 5]
    assert Values(0, 4).scaled(np.array([[[-9, 0, 2, 4, 9]]])).tolist() == [[[-1, -1, 0, 1, 1]]]
    assert Values(0, 4).stored(np.array([[[-3.0, 0.5, 3.0]]], np.float32)).tolist() == [[[0, 3, 4]]]


def test_percentiles_are_those_of_numpy_and_one_value_is_the_middle() -> None:
    array = np.random.default_rng(0).normal(size=(2, 30, 40)) * [[[1]], [[50]]]
    made, flat = Percentiles(1, 90).of(array), np.full((1, 4, 4), 7.0)
    np.testing.assert_allclose(made.low, np.percentile(array.reshape(2, -1), 1, axis=1))
    np.testing.assert_allclose(made.high, np.percentile(array.reshape(2, -1), 90, axis=1))
    assert (Percentiles().of(flat).scaled(flat) == 0).all()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0:4095", Values(0, 4095, dtype="int16")),
        ("0:65535", Values(0, 65535, dtype="uint16")),
        ("-1024:3071:HU", Values(-1024, 3071, "HU", "int16")),
        ("0:255", EIGHT_BIT),
        ("0:0.5", Values(0, 0.5, dtype="float32")),
        ("0:3000,-1:1:reflectance", Values((0, -1), (3000, 1), "reflectance", "int16")),
        ("p0.5:99.5", Percentiles(0.5, 99.5)),
    ],
)
def test_values_of_text_and_of_plain_values(text: str, wanted: Any) -> None:
    assert read_values(text) == read_values(str(wanted)) == wanted
    assert values.from_config(json.loads(json.dumps(wanted.config()))) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: read_values("4095"), "written as LOW:HIGH, LOW:HIGH:UNIT or pLOW:HIGH"),
        (lambda: read_values("p5"), "written as LOW:HIGH"),
        (lambda: read_values("5:5"), "must have low below high, got 5:5"),
        (lambda: read_values("0:inf"), "high must be finite"),
        (lambda: read_values("p-1:50"), "0 <= low < high <= 100, got -1 and 50"),
        (lambda: read_values("0:100000000"), "more than 16777216 levels"),
        (lambda: Values((0, 1), (2, 3, 4)), "as many low as high levels, got 2 and 3"),
        (lambda: Values(-1, 255), "do not fit into uint8, which ends at 0 and 255"),
        (lambda: Values(0, 1, dtype="complex64"), "stored as real numbers, got complex64"),
        (lambda: Values("a", 1), "low must be a number, or one for each channel, got 'a'"),  # pyright: ignore
        (lambda: TWO.scaled(np.zeros((3, 1, 1))), "has 3 channels, and there are values of 2"),
        (lambda: TWO.scaled(torch.zeros(1, 1, 1)), "has 1 channels, and there are values of 2"),
        (lambda: values.from_config({"low": 0}), "values must have low, high, unit and dtype, or percentiles"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_with_its_channel_where_it_has_a_value(bad: float) -> None:
    array, absent = np.zeros((2, 3, 4)), np.zeros((3, 4), bool)
    array[1, 2, 3] = bad
    with pytest.raises(ValueError, match=f"{bad} stands in channel 1, where"):
        check_finite(array, absent)
    absent[2, 3] = True
    array[0, 2, 3], array[1, 0, 0] = 2, 1
    scaled = scaled_present(Values(-2, 2, dtype="float32"), array, absent)
    assert scaled.dtype == np.float32
    assert scaled[:, [2, 0], [3, 0]].tolist() == [[-1, 0], [-1, 0.5]]
