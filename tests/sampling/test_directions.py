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
from tests.conftest import tiny_unet

WAYS = ("AtoB", "BtoA")
HU = Values(-1000, 1000, "HU", dtype="int16")
MR = Values(0, 400, dtype="uint16")
PRECONDITIONED = DDBM(sigma_data=0.3, sigma_source=0.6, cov=0.1)
SOURCE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(**settings: Any) -> UNet:
    found = tiny_unet(in_channels=1, out_channels=1, **{"classes": {"direction": WAYS}, **settings})
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(0, 0.2)
    return found


def sampler_of(bridge: Bridge = PRECONDITIONED) -> BridgeSampler:
    return BridgeSampler(network(), bridge, steps=3)


@pytest.mark.parametrize("bridge", [ABridge(), PRECONDITIONED])
def test_a_call_goes_the_way_it_says(bridge: Bridge) -> None:
    sampler = sampler_of(bridge)
    forward, back = (sampler(SOURCE, seed=3, direction=way) for way in WAYS)
    assert sampler.last_seeds == (3, 4)
    assert torch.equal(sampler(SOURCE, seed=3), forward)
    assert not torch.equal(forward, back)
    for same in (1, torch.tensor([1, 1]), np.ones(2), ["BtoA"] * 2):
        assert torch.equal(sampler(SOURCE, seed=3, conditions={"direction": same}), back)
    *_, last = sampler.stream(SOURCE, seed=3, direction="BtoA")
    assert torch.equal(last.x.clip(-1, 1), back)
    drawn = sampler.distribution(SOURCE, 2, [[3, 5], [4, 6]], direction="BtoA")
    torch.testing.assert_close(drawn.samples[0], back)
    turned = sampler.towards("BtoA")
    assert torch.equal(turned(SOURCE, seed=3), back)
    assert torch.equal(turned(SOURCE, seed=3, direction="AtoB"), forward)
    assert turned.towards("AtoB") is sampler


def test_statistics_of_both_ends_change_places() -> None:
    """BtoA is what a sampler of the other bridge makes with the other class."""
    turned = replace(PRECONDITIONED, sigma_data=0.6, sigma_source=0.3)
    assert PRECONDITIONED.turned == turned
    assert ABridge(sigma_data=0.3, sigma_source=0.6).turned == ABridge(sigma_data=0.3, sigma_source=0.6)
    unet: Any = network()
    back = BridgeSampler(unet, PRECONDITIONED, steps=3)(SOURCE, seed=3, direction="BtoA")
    with torch.no_grad():
        weight = unet.condition_embedding.classes["_direction"].weight
        weight.copy_(weight.flip(0))
    assert torch.equal(BridgeSampler(unet, turned, steps=3)(SOURCE, seed=3), back)


def test_the_way_back_of_encode() -> None:
    sampler, target = sampler_of(), SOURCE.flip(0) / 2
    noise = sampler.encode(target, SOURCE, steps=20, direction="BtoA")
    assert torch.equal(noise, sampler.towards("BtoA").encode(target, SOURCE, steps=20))
    assert not torch.equal(noise, sampler.encode(target, SOURCE, steps=20))


def test_values_and_files_follow_the_direction(tmp_path: Path) -> None:
    sampler = sampler_of()
    sampler.pictures = Spec(source=MR, target=HU)
    array = np.random.default_rng(0).integers(0, 400, (1, 8, 8))
    (ct,) = sampler(Picture(array.astype(np.uint16)), seed=0)
    (mr,) = sampler(Picture((array - 200).astype(np.int16)), seed=0, direction="BtoA")
    assert (ct.dtype, ct.unit, mr.dtype, mr.unit) == (np.int16, "HU", np.uint16, "")
    assert np.ptp(np.asarray(mr).astype(float)) <= 400
    sampler.towards("BtoA").save_pretrained(tmp_path / "model")
    again = BridgeSampler.from_pretrained(tmp_path / "model")
    assert (again.pictures, again.bridge) == (sampler.pictures, sampler.bridge)
    assert load_checkpoint(tmp_path / "model" / "model.safetensors").unet.config.two_way
    for way in WAYS:
        assert torch.equal(again(SOURCE, seed=1, direction=way), sampler(SOURCE, seed=1, direction=way))


@pytest.mark.parametrize("direction", [["AtoB", "BtoA"], "forward", None, 2, {}, []])
def test_a_call_has_one_direction(direction: Any) -> None:
    with pytest.raises(ValueError, match=r"direction must be AtoB or BtoA, one for all of a call, got .*"):
        sampler_of()(SOURCE, direction=direction)


def test_other_networks_have_none() -> None:
    sampler = BridgeSampler(network(classes={"direction": 2}), ABridge(), steps=2)
    assert sampler.direction is None
    sampler(SOURCE, direction=[0, 1])  # a class of that name, of one's own
    with pytest.raises(ValueError, match="this network has one direction, got 'BtoA'"):
        sampler.towards("BtoA")
