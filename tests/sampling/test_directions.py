"""A network of two directions: which way a call goes, and what follows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import DDBM, ABridge, BridgeSampler, UNet, load_checkpoint
from bbdm.bridges import Bridge
from bbdm.data import Spec
from bbdm.pictures import Picture
from bbdm.pictures.values import Values

WAYS = ("AtoB", "BtoA")
HU = Values(-1000, 1000, "HU", dtype="int16")
MR = Values(0, 400, dtype="uint16")


def network(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    found = UNet(
        1, 1, model_channels=32, channel_mult=(1,), head_channels=32, condition_channels=1,
        classes={"direction": WAYS},
    )  # fmt: skip
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(0, 0.1)
    return found


@pytest.fixture(scope="module")
def source() -> torch.Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


PRECONDITIONED = DDBM(sigma_data=0.3, sigma_source=0.6, cov=0.1)


@pytest.mark.parametrize("bridge", [ABridge(), PRECONDITIONED])
def test_a_call_goes_the_way_it_says(bridge: Bridge, source: torch.Tensor) -> None:
    sampler = BridgeSampler(network(), bridge, steps=3)
    forward, back = (sampler(source, seed=3, direction=way) for way in WAYS)
    assert sampler.last_seeds == (3, 4)
    assert torch.equal(sampler(source, seed=3), forward)
    assert not torch.equal(forward, back)
    for same in (1, torch.tensor([1, 1]), np.ones(2), ["BtoA"] * 2):
        assert torch.equal(sampler(source, seed=3, conditions={"direction": same}), back)
    *_, last = sampler.stream(source, seed=3, direction="BtoA")
    assert torch.equal(last.x.clip(-1, 1), back)
    drawn = sampler.distribution(source, 2, [[3, 5], [4, 6]], direction="BtoA")
    torch.testing.assert_close(drawn.samples[0], back)
    turned = sampler.towards("BtoA")
    assert torch.equal(turned(source, seed=3), back)
    assert torch.equal(turned(source, seed=3, direction="AtoB"), forward)
    assert turned.towards("AtoB") is sampler


def test_statistics_of_both_ends_change_places(source: torch.Tensor) -> None:
    """BtoA is what a sampler of the other bridge makes with the other class."""
    turned = replace(PRECONDITIONED, sigma_data=0.6, sigma_source=0.3)
    assert PRECONDITIONED.turned == turned
    assert ABridge(sigma_data=0.3, sigma_source=0.6).turned == ABridge(sigma_data=0.3, sigma_source=0.6)
    unet = network()
    back = BridgeSampler(unet, PRECONDITIONED, steps=3)(source, seed=3, direction="BtoA")
    with torch.no_grad():
        weight: Any = unet.condition_embedding.classes["_direction"].weight
        weight.copy_(weight.flip(0))
    assert torch.equal(BridgeSampler(unet, turned, steps=3)(source, seed=3), back)


def test_the_way_back_of_encode(source: torch.Tensor) -> None:
    sampler = BridgeSampler(network(), PRECONDITIONED, steps=3)
    target = source.flip(0) / 2
    noise = sampler.encode(target, source, steps=20, direction="BtoA")
    assert torch.equal(noise, sampler.towards("BtoA").encode(target, source, steps=20))
    assert not torch.equal(noise, sampler.encode(target, source, steps=20))


def test_values_of_results_are_those_of_the_other_end() -> None:
    sampler = BridgeSampler(network(), ABridge(), steps=2)
    sampler.pictures = Spec(source=MR, target=HU)
    array = np.random.default_rng(0).integers(0, 400, (1, 8, 8))
    (ct,) = sampler(Picture(array.astype(np.uint16)), seed=0)
    (mr,) = sampler(Picture((array - 200).astype(np.int16)), seed=0, direction="BtoA")
    assert (ct.dtype, ct.unit, mr.dtype, mr.unit) == (np.int16, "HU", np.uint16, "")
    assert np.ptp(np.asarray(mr).astype(float)) <= 400


def test_a_file_keeps_both_ways(tmp_path: Path, source: torch.Tensor) -> None:
    sampler = BridgeSampler(network(), PRECONDITIONED, steps=3)
    sampler.pictures = Spec(source=MR, target=HU)
    sampler.towards("BtoA").save_pretrained(tmp_path / "model")
    again = BridgeSampler.from_pretrained(tmp_path / "model")
    assert (again.pictures, again.bridge) == (sampler.pictures, sampler.bridge)
    assert load_checkpoint(tmp_path / "model" / "model.safetensors").unet.config.two_way
    for way in WAYS:
        assert torch.equal(again(source, seed=1, direction=way), sampler(source, seed=1, direction=way))


@pytest.mark.parametrize("direction", [["AtoB", "BtoA"], "forward", None, 2, {}, []])
def test_a_call_has_one_direction(direction: Any, source: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"direction must be AtoB or BtoA, one for all of a call, got .*"):
        BridgeSampler(network(), ABridge())(source, direction=direction)


def test_other_networks_have_none(source: torch.Tensor) -> None:
    unet = UNet(1, 1, model_channels=32, channel_mult=(1,), head_channels=32, classes={"direction": 2})
    sampler = BridgeSampler(unet, ABridge(), steps=2)
    assert sampler.direction is None
    sampler(source, direction=[0, 1])  # a class of that name, of one's own
    with pytest.raises(ValueError, match="this network has one direction, got 'BtoA'"):
        sampler.towards("BtoA")
