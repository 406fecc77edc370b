"""The guarantee of intervals, of values as files store them: simulated calibrations whose risk is known.

A world is a population of pictures, each with 16 samples of a network that is too sure. Calibrations draw
pairs of it, and the risk of the ends that they return is that of the whole population. What is inside is said
here by ends of infinity in place of those at the end of the range.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from bbdm import ABridge, BridgeSampler, Intervals, Values, wrap
from bbdm.data.mapped import MappedDataset
from bbdm.data.spec import Spec
from bbdm.evaluation import intervals
from bbdm.pictures import Geometry, Picture
from bbdm.pictures.values import EIGHT_BIT
from bbdm.translation import record
from tests.gaussian import Ideal

ALPHA = DELTA = 0.1
FALSE_ALARM = 1e-4  # the share of seeds for which a test fails although the guarantee holds
PICTURES, SIDE, SAMPLES, PAIRS = 120, 8, 16, 40
PADDING = -3024
# spread of what whole pictures differ from their samples by, of the range: so losses vary most
SHIFT = 0.1
HU = Values(-1024, 3071, "HU", "int16")
NUMBER = Values(0, 1000, dtype="uint16")  # a source is the number of its picture
Array = np.ndarray[Any, Any]


@dataclass
class World:
    """A population of pictures (N, 1, H, W)."""

    values: Values
    targets: Array  # stored values
    samples: Array  # (N, S, 1, H, W) in [-1, 1]
    masks: Array  # not 0 where values count
    nodata: float | None = None  # of sources, and so of results

    def items(self, numbers: Array) -> MappedDataset:
        """Some pictures as a data set."""
        items: list[dict[str, Any]] = []
        for number in numbers:
            source = np.full((1, SIDE, SIDE), number, np.uint16)
            items.append(
                {"source": source, "target": self.targets[number], "mask": self.masks[number]}
            )
        return MappedDataset(items, spec=Spec(source=NUMBER, target=self.values))

    def distribution(self, numbers: Array, **_: Any) -> Any:
        """What a sampler's distribution has, of some pictures."""
        samples = self.samples[numbers]
        return SimpleNamespace(
            count=SAMPLES,
            scaled_mean=samples.mean(1),
            scaled_std=samples.std(1, ddof=1),
            scaled_quantile=cache(lambda q: np.quantile(samples, q, axis=1)),
            restored=self.restored,
        )

    def restored(self, images: Array, down: bool = False) -> Array:
        """Images as a sampler returns them of pictures, all of which have values."""
        spec = Spec(target=self.values)
        return np.stack(
            [spec.result(image, Geometry(nodata=self.nodata), down=down) for image in images]
        )

    @property
    def sampler(self) -> Any:
        """What a calibration uses of a sampler."""

        def distribution(source: Array, *_: Any, **options: Any) -> Any:
            numbers = np.rint((source[:, 0, 0, 0] + 1) * 500).astype(int)
            return self.distribution(numbers, **options)

        shapes = SimpleNamespace(conditions=SimpleNamespace(each={}))
        pictures = Spec(target=self.values)
        return SimpleNamespace(
            origin=None, direction=None, pictures=pictures, shapes=shapes, distribution=distribution
        )

    def risk(self, found: Intervals, everything: Any) -> float:
        """The share of stored values outside of what is returned, the mean over pictures that have values."""
        low, high = (end.astype(float) for end in found.of(everything))
        low[low <= self.values.low] = -np.inf
        high[high >= self.values.high] = np.inf
        counts = self.masks != 0
        outside = ((self.targets < low) | (self.targets > high)) & counts
        valued = counts.any((1, 2, 3))
        return float((outside.sum((1, 2, 3))[valued] / counts.sum((1, 2, 3))[valued]).mean())


def drawn(values: Values, means: Array, rng: np.random.Generator) -> World:
    """Targets around means (N, 1, H, W), shifted as a whole, of which samples know nothing."""
    low, high = (float(np.max(end)) for end in (values.low, values.high))
    width = high - low
    shifts = SHIFT * width * rng.standard_normal((PICTURES, 1, 1, 1))
    targets = means + shifts + 0.02 * width * rng.standard_normal(means.shape)
    samples = means[:, None] + 0.02 * width * rng.standard_normal(
        (PICTURES, SAMPLES, *means.shape[1:])
    )
    scaled = (2 * (samples - low) / width - 1).clip(-1, 1).astype(np.float32)
    return World(values, targets, scaled, np.ones(means.shape, np.uint8))


def ct(rng: np.random.Generator) -> World:
    """Tissue in a circle, and padding of -3024 around it; targets are floats, and results integers."""
    means = rng.normal(50, 300, (PICTURES, 1, SIDE, SIDE))
    world = drawn(HU, means, rng)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    outside = np.broadcast_to(np.hypot(y, x) > 3.7, means.shape)
    world.targets = np.where(outside, PADDING, world.targets).astype(np.float32)
    world.samples[np.broadcast_to(outside[:, None], world.samples.shape)] = -1
    return world


def paper(rng: np.random.Generator) -> World:
    """Strokes on white paper, of 8 bits."""
    means = np.where(rng.random((PICTURES, 1, SIDE, SIDE)) < 0.8, 255.0, 60.0)
    world = drawn(EIGHT_BIT, means, rng)
    world.targets = np.rint(world.targets.clip(0, 255)).astype(np.uint8)
    return world


def masked(rng: np.random.Generator) -> World:
    """Tissue within masks of several sizes; every tenth picture has none, and values elsewhere are others."""
    world = drawn(HU, rng.normal(50, 300, (PICTURES, 1, SIDE, SIDE)), rng)
    inside = rng.random(world.targets.shape) < rng.choice([0.05, 0.5, 0.9], (PICTURES, 1, 1, 1))
    inside[::10] = False
    world.targets = np.rint(np.where(inside, world.targets, 3000)).astype(np.int16)
    world.masks = inside.astype(np.uint8)
    return world


def scaled_level(level: int) -> float:
    """A level of 8 bits in [-1, 1]."""
    return EIGHT_BIT.scaled(np.full((1, 1, 1), level, np.uint8)).item()


def water(rng: np.random.Generator) -> World:
    """Lakes of exactly 100 among land, of which sources say by 100 where they have no value."""
    world = drawn(EIGHT_BIT, rng.normal(120, 20, (PICTURES, 1, SIDE, SIDE)), rng)
    lakes = rng.random(world.targets.shape) < 0.15
    world.targets = np.where(lakes, 100, np.rint(world.targets.clip(0, 255))).astype(np.uint8)
    world.samples[np.broadcast_to(lakes[:, None], world.samples.shape)] = scaled_level(100)
    world.nodata = 100
    return world


WORLDS = [ct, paper, masked, water]


@pytest.fixture(autouse=True)
def a_stub_is_not_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "describe", lambda sampler: {})


def failures(make: Callable[[np.random.Generator], World], by: Any, count: int) -> int:
    """How many of some calibrations have a risk above ALPHA."""
    rng = np.random.default_rng(7)
    world = make(rng)
    everything = world.distribution(np.arange(PICTURES))
    risks: list[float] = []
    risks_of_half: list[float] = []  # of half the lambda
    for _ in range(count):
        pairs = world.items(rng.integers(0, PICTURES, PAIRS))
        found = Intervals.calibrate(world.sampler, pairs, ALPHA, DELTA, SAMPLES, by)
        risks.append(world.risk(found, everything))
        risks_of_half.append(world.risk(replace(found, lambda_=found.lambda_ / 2), everything))
    assert np.median(risks_of_half) > ALPHA  # so that failures would be seen
    return int((np.array(risks) > ALPHA).sum())


@pytest.mark.parametrize(
    ("make", "by"), [(ct, "quantiles"), (paper, "quantiles"), (masked, "quantiles"), (water, "std")]
)
def test_the_guarantee_is_of_stored_values(make: Any, by: Any):
    """At most delta of 60 calibrations fail, but for chance: each case fails for FALSE_ALARM of all seeds.

    The samples of lakes have no spread, so that lambda does not widen their intervals ``by`` it.
    """
    assert failures(make, by, 60) <= binom.ppf(1 - FALSE_ALARM, 60, DELTA)


@pytest.mark.nightly
@pytest.mark.parametrize("by", ["quantiles", "std"])
@pytest.mark.parametrize("make", WORLDS)
def test_the_guarantee_holds_in_2000_calibrations(make: Any, by: Any):
    """At most delta of them fail: 1 - delta is what the coverage of stored values must reach."""
    assert failures(make, by, 2000) <= DELTA * 2000


def calibrated(
    world: World, by: Any = "quantiles", alpha: float = ALPHA
) -> tuple[Intervals, Array, Array]:
    """Intervals of all pictures of a world, and their ends, as they are returned."""
    numbers = np.arange(PICTURES)
    found = Intervals.calibrate(
        world.sampler, world.items(numbers), alpha, samples=SAMPLES, by=by, bound="conformal"
    )
    return found, *found.of(world.distribution(numbers))


@pytest.mark.parametrize("by", ["quantiles", "std"])
def test_padding_beyond_the_range_is_inside_and_length_is_that_of_what_is_returned(by: Any):
    """Padding lies below the range, whose ends are open. Integers are rounded by half a level at most."""
    world = ct(np.random.default_rng(0))
    found, low, high = calibrated(world, by)
    padded = world.targets == PADDING
    assert padded.mean() > 0.2
    assert (low[padded] == HU.low).all()
    inside = [
        intervals.inside_intervals(*each, HU) for each in zip(world.targets, low, high, strict=True)
    ]
    assert np.stack(inside)[padded].all()
    assert 1 - np.mean(inside) == pytest.approx(found.loss, abs=1e-3)
    lengths = (high.astype(float) - low) / 4095
    assert found.length == pytest.approx(lengths.mean(), abs=0.5 / 4095)


def test_ends_at_nodata_are_open_too():
    """A result has no nodata among its values: its low end is the next value, and means that or less."""
    zero = Geometry(nodata=0)
    low = Picture(np.array([[[1, 1, 2]]], np.uint8), zero)
    high = Picture(np.array([[[1, 254, 255]]], np.uint8), zero)
    target = np.array([[[-5, 256, 999]]])
    assert intervals.inside_intervals(target, low, high, EIGHT_BIT).tolist() == [
        [[True, False, True]]
    ]


def test_a_target_at_an_end_is_inside():
    low = np.array([[[10, 10, 10, 10]]])
    high = np.array([[[20, 20, 20, 20]]])
    target = np.array([[[9, 10, 20, 21]]])
    inside = intervals.inside_intervals(target, low, high, EIGHT_BIT)
    assert inside.flatten().tolist() == [False, True, True, False]


def test_each_channel_has_the_open_ends_of_its_own_range():
    values = Values((0, 0), (10, 100))
    low = np.array([0.0, 0.0, 1.0, 20.0]).reshape(2, 2, 1)
    high = np.array([9.0, 10.0, 90.0, 100.0]).reshape(2, 2, 1)
    target = np.array([-1.0, 11.0, 0.0, 101.0]).reshape(2, 2, 1)
    inside = intervals.inside_intervals(target, low, high, values)
    assert inside.flatten().tolist() == [True, True, False, True]


@pytest.mark.parametrize(("nodata", "low", "high"), [(100, 99, 101), (0, 1, 1), (255, 254, 254)])
def test_ends_that_meet_a_nodata_move_apart(nodata: int, low: int, high: int):
    """A flat target has the value by which the source says none: a low end above it would miss all of it."""
    bridge = ABridge(num_steps=100)
    network = Ideal(
        bridge,
        lambda y: torch.full_like(y, scaled_level(nodata)),
        lambda y: torch.full_like(y, 1e-9),
    )
    sampler = BridgeSampler(wrap(network, 1, 1), bridge, "sde-dpm2m", 2)
    source = np.full((1, SIDE, SIDE), 50, np.uint8)
    target = np.full((1, SIDE, SIDE), nodata, np.uint8)
    found = Intervals.calibrate(sampler, [(source, target)] * 9, samples=2, bound="conformal")
    assert found.loss == 0
    lows, highs = found([Picture(source, Geometry(nodata=nodata))], seed=0)
    assert (lows[0] == low).all()
    assert (highs[0] == high).all()
    assert intervals.inside_intervals(target, lows[0], highs[0], EIGHT_BIT).all()


def test_targets_between_integers_stay_inside_of_rounded_ends():
    """Samples of 4.9 miss a target of 4.7 by 0.2, and an end of 4.7 would be returned as 5."""
    shape = (PICTURES, 1, SIDE, SIDE)
    samples = np.full((PICTURES, SAMPLES, 1, SIDE, SIDE), 2 * (4.9 + 1024) / 4095 - 1, np.float32)
    world = World(HU, np.full(shape, 4.7, np.float32), samples, np.ones(shape, np.uint8))
    found, low, high = calibrated(world)
    assert found.loss == 0
    assert ((low <= world.targets) & (world.targets <= high)).all()


def test_targets_of_floats_beyond_1_are_inside_of_an_end_at_1():
    """Results are within [-1, 1], so a lambda that would reach 1.2 widens other intervals for nothing."""
    bridge = ABridge(num_steps=100)
    network = Ideal(bridge, lambda y: torch.ones_like(y), lambda y: torch.full_like(y, 1e-4))
    sampler = BridgeSampler(wrap(network, 1, 1), bridge, "sde-dpm2m", 2)
    pairs = [(torch.zeros(1, SIDE, SIDE), torch.full((1, SIDE, SIDE), 1.2))] * 9
    assert Intervals.calibrate(sampler, pairs, samples=2, bound="conformal").lambda_ < 0.01
