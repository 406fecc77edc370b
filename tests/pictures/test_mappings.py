"""Values by a mapping: what -1, 0 and 1 stand for, there and back, on arrays, tensors, maps and intervals."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import BridgeSampler, BrownianBridge
from bbdm.data import MappedDataset, Spec
from bbdm.evaluation.intervals import Intervals
from bbdm.pictures import Picture
from bbdm.pictures.values import Values, from_config, read_values
from tests.conftest import tiny_unet

MIDDLES = {
    "log:0.1:1000": 10,
    "sqrt:0:100": 25,
    "sqrt:4:64": 25,
    "asinh:-10:10:2": 0,
    "asinh:0:11013:1": 74.20243,
}


@pytest.mark.parametrize(("text", "middle"), MIDDLES.items())
def test_ends_and_middle_are_those_of_the_mapping(text: str, middle: float):
    values = read_values(text)
    assert isinstance(values, Values)
    stored = np.array([[[np.min(values.low), middle, np.max(values.high)]]], np.float32)
    np.testing.assert_allclose(values.scaled(stored)[0, 0], [-1, 0, 1], atol=1e-5)
    floats = values.stored_like(np.dtype("float32"))
    back = floats.stored(np.array([[[-1.0, 0.0, 1.0]]]))
    np.testing.assert_allclose(back, stored, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "text", [*MIDDLES, "log:1:10,0.1:5", "log:0.1:1e4:W/m2", "asinh:-5:500:2:e-", "0:4095:HU"]
)
def test_text_and_settings_say_the_same_values(text: str):
    values = read_values(text)
    assert read_values(str(values)) == values
    assert from_config(values.config()) == values


def test_settings_without_a_mapping_are_as_they_were():
    assert read_values("0:255").config() == {
        "low": 0.0,
        "high": 255.0,
        "unit": "",
        "dtype": "uint8",
    }
    assert from_config({"low": 0, "high": 9, "unit": "", "dtype": "uint8"}) == Values(0, 9)


def test_values_outside_become_the_ends():
    values = Values(1, 100, mapping="log")
    stored = np.array([[[-5.0, 0.0, 0.5, 1e9]]])
    assert values.scaled(stored).tolist() == [[[-1, -1, -1, 1]]]
    assert values.stored(np.array([[[-2.0, 3.0]]])).tolist() == [[[1, 100]]]


@pytest.mark.parametrize("text", ["log:1:65535", "sqrt:0:65535", "asinh:0:65535:20"])
def test_levels_of_16_bits_come_back(text: str):
    values = read_values(text)
    assert isinstance(values, Values)
    assert values.dtype == "uint16"
    levels = np.arange(1, 65536, dtype=np.uint16).reshape(1, 255, 257)
    assert (values.stored(values.scaled(levels)) == levels).all()


@pytest.mark.parametrize("text", MIDDLES)
def test_tensors_are_scaled_as_arrays(text: str):
    values = read_values(text)
    assert isinstance(values, Values)
    array = np.linspace(np.min(values.low), np.max(values.high), 60, dtype=np.float32).reshape(
        1, 6, 10
    )
    np.testing.assert_allclose(
        values.scaled(torch.from_numpy(array)).numpy(), values.scaled(array), atol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("log:0:5", "the logarithm needs values above 0, and the lowest is 0"),
        ("log:1:5,-1:5", "the logarithm needs values above 0, and the lowest is -1"),
        ("sqrt:-1:5", "the square root needs values of at least 0, and the lowest is -1"),
        ("asinh:0:5", "asinh:LOW:HIGH:SOFT"),
        ("asinh:0:5:0", "soft must be above 0, got 0.0"),
        ("asinh:0:5:1,0:5:1", "asinh:LOW:HIGH:SOFT"),
        ("cube:0:5", "values are written as LOW:HIGH"),
        ("log:5:1", "low below high"),
    ],
)
def test_what_has_no_mapping_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_values(text)


def sampler_of(text: str) -> BridgeSampler:
    """A random network whose results have values by a mapping."""
    sampler = BridgeSampler(
        tiny_unet(in_channels=1, out_channels=1), BrownianBridge(50), "sde-dpm2m", 2
    )
    values = read_values(text)
    assert isinstance(values, Values)
    sampler.pictures = Spec(source=values, target=values.stored_like(np.dtype("float32")))
    return sampler


def source() -> Picture:
    random = np.random.default_rng(0)
    return Picture(np.exp(random.normal(2, 1, (1, 16, 16))).astype(np.float32))


def test_results_and_maps_are_in_stored_values():
    sampler = sampler_of("log:0.1:1000")
    samples = sampler.distribution([source()], 4, seed=0)
    each = np.stack([np.asarray(result[0]) for result in samples.samples])
    assert each.min() >= 0.1
    assert each.max() <= 1000
    logs = np.log(each)
    (mean,), (std,) = samples.mean, samples.std
    np.testing.assert_allclose(np.log(np.asarray(mean)), logs.mean(0), atol=1e-4)
    middle, spread = logs.mean(0), logs.std(0, ddof=1)
    inside = (middle + spread < np.log(1000)) & (middle - spread > np.log(0.1))
    half = (np.exp(middle + spread) - np.exp(middle - spread)) / 2
    np.testing.assert_allclose(np.asarray(std)[inside], half[inside], rtol=1e-3)


@pytest.mark.parametrize("by", ["quantiles", "std"])
def test_intervals_are_around_results(by: Any):
    sampler = sampler_of("asinh:-10:1000:3")
    pairs = MappedDataset([(np.asarray(source()), np.asarray(source()))] * 3, spec=sampler.pictures)
    intervals = Intervals.calibrate(sampler, pairs, alpha=0.4, delta=0.4, samples=4, by=by)
    low, high = intervals([source()], seed=0)
    mean = sampler.distribution([source()], 4, seed=0).mean
    assert (np.asarray(low[0]) <= np.asarray(mean[0])).all()
    assert (np.asarray(high[0]) >= np.asarray(mean[0])).all()
    assert np.asarray(high[0]).max() <= 1000
