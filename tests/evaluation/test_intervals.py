"""Intervals of a sampler: calibrated on Gaussian pixels with the ideal denoiser, kept in a file, refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, Intervals, Values, save_checkpoint, wrap
from bbdm.data.mapped import MappedDataset
from bbdm.data.spec import Spec
from tests.conftest import tiny_unet
from tests.gaussian import Ideal

BRIDGE = ABridge(num_steps=100)
SIDE = 8
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def make_pairs(count: int, seed: int = 0) -> Pairs:
    """Targets of mean y / 2 and spread 0.1; a network that knows a spread of 0.05 is too sure."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.rand(count, 1, SIDE, SIDE, generator=generator) - 0.5
    targets = sources / 2 + 0.1 * torch.randn(sources.shape, generator=generator)
    return list(zip(sources, targets.clip(-1, 1), strict=True))


def make_sampler(spread: float = 0.05, steps: int = 4, solver: str = "sde-dpm2m") -> BridgeSampler:
    network = Ideal(BRIDGE, lambda y: y / 2, lambda y: torch.full_like(y, spread))
    network.weight.data.fill_(spread)
    return BridgeSampler(wrap(network, 1, 1), BRIDGE, solver, steps)


def outside(intervals: Intervals, pairs: Pairs) -> float:
    sources, targets = (torch.stack(side) for side in zip(*pairs, strict=True))
    low, high = intervals(sources, seed=10**6, batch_size=512)
    return float(((targets < low) | (targets > high)).float().mean())


@pytest.mark.parametrize("by", ["quantiles", "std"])
def test_intervals_of_a_network_that_is_too_sure_hold_new_targets(by: Any):
    """The least half length for 0.1 is 0.1645 of spread 0.1 around the mean, which samples know about."""
    new = make_pairs(32, seed=1)
    found = Intervals.calibrate(make_sampler(), make_pairs(48), samples=8, by=by)
    assert (found.pairs, found.loss <= 0.1) == (48, True)
    assert 0 < outside(found, new) < 0.1
    assert 0.1645 < found.length < 2 * 0.1645
    bare = replace(found, lambda_=0.0 if by == "quantiles" else 1.645)
    assert outside(bare, new) > 0.3


def test_ends_before_calibration_are_quantiles_of_half_of_alpha_on_each_side():
    sampler = make_sampler()
    source = make_pairs(1, seed=3)[0][0][None]
    found = replace(Intervals.calibrate(sampler, make_pairs(30), samples=8, alpha=0.1), lambda_=0.0)
    low, high = found(source, seed=1)
    samples = list(sampler.distribution(source, 8, seed=1).samples)
    expected = np.quantile(torch.stack(samples), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(low, expected[0], atol=1e-5)
    np.testing.assert_allclose(high, expected[1], atol=1e-5)


def test_a_file_and_what_it_refuses(tmp_path: Path):
    sampler = make_sampler()
    found = Intervals.calibrate(sampler, make_pairs(30), samples=4)
    found.save(tmp_path / "a.intervals.json")
    again = Intervals.load(tmp_path / "a.intervals.json", sampler)
    assert vars(again) == vars(found)
    usual = {"window": "auto", "overlap": 0.25, "margin": 0, "guidance": None}
    assert Intervals.load(tmp_path / "a.intervals.json", None).fixed == {
        "solver": "sde-dpm2m",
        "steps": 4,
        **usual,
    }
    source = make_pairs(2, seed=3)[0][0][None]
    for one, other in zip(again(source, seed=1), found(source, seed=1), strict=True):
        assert torch.equal(one, other)
    for other, message in (
        (make_sampler(solver="dpm2m"), "another sampler.*solver sde-dpm2m, now dpm2m"),
        (make_sampler(steps=5), "another sampler.*timesteps"),
        (make_sampler(spread=0.06), "another sampler .weights [0-9a-f]{8}, now [0-9a-f]{8}"),
    ):
        with pytest.raises(ValueError, match=message):
            Intervals.load(tmp_path / "a.intervals.json", other)
    sampler.pictures = Spec(target=Values(0, 4095, dtype="uint16"))
    with pytest.raises(
        ValueError,
        match=r"target_values.high 255.0, now 4095.0, target_values.dtype uint8, now uint16",
    ):
        Intervals.load(tmp_path / "a.intervals.json", sampler)
    sampler.pictures = Spec()
    for given in (
        {"solver": "dpm2m", "steps": 2},
        {"window": None},
        {"guidance": 2.0},
        {"mask": source},
    ):
        with pytest.raises(
            ValueError, match=f"as it was calibrated: {', '.join(given)} cannot be given"
        ):
            found(source, **given)
    with pytest.raises(ValueError, match="the intervals are of 4 samples, got 5"):
        found.of(sampler.distribution(source, 5))


def test_damaged_files(tmp_path: Path):
    path = tmp_path / "a.json"
    Intervals.calibrate(make_sampler(), make_pairs(9), samples=2, bound="conformal").save(path)
    content = json.loads(path.read_text())
    damage = {
        "format": "x",
        "version": 2,
        "lambda_": float("nan"),
        "alpha": "x",
        "k": 1,
        "options": {},
    }
    damage["sampled"] = {**content["sampled"], "timesteps": 5}
    for name, value in damage.items():
        path.write_text(json.dumps({**content, name: value}))
        with pytest.raises(ValueError, match=r"cannot read .*a.json: calibrate again"):
            Intervals.load(path, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": "conformal"}, "item 4 of the data set: nan stands in channel 0"),
        ({"alpha": 0}, "alpha must be above 0 and below 1, got 0"),
        ({"alpha": "0.1"}, "alpha must be above 0 and below 1, got '0.1'"),
        ({"delta": 1.0}, "delta must be above 0 and below 1, got 1.0"),
        ({"by": "mean"}, r"by must be one of \('quantiles', 'std'\), got 'mean'"),
        ({"windows": 8}, "calibrate takes guidance, .*, overlap, window, got windows"),
        ({"overlap": 2}, "overlap must be above 0 and at most 0.9, got 2"),
        (
            {},
            "alpha 0.1 and delta 0.1 need at least 22 pairs by the bound 'hoeffding-bentkus', got 12",
        ),
        (
            {"alpha": 0.05, "delta": 0.01},
            "alpha 0.05 and delta 0.01 need at least 90 pairs by the bound",
        ),
        (
            {"bound": "conformal", "alpha": 0.05},
            "alpha 0.05 needs at least 19 pairs by the bound 'conformal', got 12",
        ),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str):
    pairs = make_pairs(12)
    pairs[4][1][0, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=message):
        Intervals.calibrate(make_sampler(), pairs, **arguments)


def masked_pairs(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"source": y, "target": x.clone(), "mask": torch.ones(1, SIDE, SIDE)}
        for y, x in make_pairs(count)
    ]


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        (
            21,
            "need at least 22 pairs by the bound .*, got 1 that have values, and 21 that are wholly masked",
        ),
        (22, "all 22 pairs are wholly masked: they have no value that counts"),
    ],
)
def test_wholly_masked_pictures_do_not_count(masked: int, message: str):
    pairs = masked_pairs(22 + masked)
    for pair in pairs[:masked]:
        pair["mask"][:] = 0
    assert Intervals.calibrate(make_sampler(), pairs, samples=2).pairs == 22
    with pytest.raises(ValueError, match=message):
        Intervals.calibrate(make_sampler(), pairs[:22], samples=2)


def test_masked_values_do_not_count():
    """Where the targets of one half are elsewhere, the intervals without a mask are far wider."""
    pairs = masked_pairs(30)
    plain = Intervals.calibrate(make_sampler(), pairs, samples=4).lambda_
    for pair in pairs:
        pair["target"][..., 4:], pair["mask"][..., 4:] = 0.9, 0
    assert Intervals.calibrate(make_sampler(), pairs, samples=4).lambda_ == pytest.approx(
        plain, rel=0.2
    )
    for pair in pairs:
        pair["mask"][:] = 1
    assert Intervals.calibrate(make_sampler(), pairs, samples=4).lambda_ > 3 * plain


def test_pictures_get_pictures(tmp_path: Path):
    """8-bit pictures: ends are rounded, which moves no target of 8 bits out of its interval."""
    save_checkpoint(tmp_path / "c.pt", tiny_unet(condition_channels=3), BRIDGE, image_size=8)
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt", solver="sde-dpm2m", steps=2)
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)) for _ in range(12)]
    found = Intervals.calibrate(
        sampler, MappedDataset(pairs), samples=3, bound="conformal", alpha=0.2
    )
    sides: list[list[Any]] = [
        [Image.fromarray(side.transpose(1, 2, 0)) for side in each]
        for each in zip(*pairs, strict=True)
    ]
    seeds = [[i + 12 * j for j in range(3)] for i in range(12)]
    ends = [np.stack([np.asarray(each) for each in end]) for end in found(sides[0], seed=seeds)]
    targets = np.stack([np.asarray(each) for each in sides[1]])
    missed = ((targets < ends[0]) | (targets > ends[1])).mean()
    assert missed <= found.loss <= 0.2


class _Ways(torch.nn.Module):
    """Results of AtoB are all 0, and of BtoA all 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.result = torch.nn.Parameter(torch.tensor([0.0, 0.5]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        return x - self.result[conditions["direction"]][:, None, None, None]


def test_intervals_of_two_directions_are_of_the_samplers() -> None:
    """Of pairs that say no direction, and never of pairs of the other one."""
    network = wrap(_Ways(), 1, classes={"direction": ("AtoB", "BtoA")})
    sampler = BridgeSampler(network, BRIDGE, "mean")
    pairs = [(torch.zeros(1, SIDE, SIDE), torch.full((1, SIDE, SIDE), 0.5))] * 30
    back = Intervals.calibrate(sampler.towards("BtoA"), pairs, samples=2)
    assert (back.lambda_, back.sampled["direction"]) == (0, "BtoA")
    with pytest.raises(ValueError, match="as it was calibrated: direction cannot be given"):
        back(torch.zeros(1, 1, SIDE, SIDE), direction="AtoB")
    assert Intervals.calibrate(sampler, pairs, samples=2).lambda_ == pytest.approx(0.5, abs=1e-3)
    both = MappedDataset(pairs, spec=Spec(direction="both"))
    with pytest.raises(
        ValueError, match="pair 0 is of direction AtoB, and must be of the sampler's, BtoA"
    ):
        Intervals.calibrate(sampler.towards("BtoA"), both, samples=2)
