"""Conditions of a call: guidance by its formulas, and a network of two directions, which goes either way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import bbdm
from bbdm import DDBM, ABridge, BridgeSampler, load_checkpoint, solvers
from bbdm.bridges import Bridge
from bbdm.data import Spec
from bbdm.networks.base import Conditions, Network
from bbdm.pictures import Picture
from bbdm.pictures.values import Values
from tests.conftest import tiny_unet
from tests.sampling.test_windows import REACH, Convolutions

BRIDGE = ABridge(50)
STEPS = 3
DRAWS = torch.Generator().manual_seed(0)
SOURCE = torch.rand(2, 3, 8, 8, generator=DRAWS) * 2 - 1
TEXT = torch.rand(3, 5, generator=DRAWS) * 2 - 1
NONE = torch.zeros(1, 5)
SEEN: dict[str, Any] = {"style": 1, "text": TEXT}
TABLE = solvers.build(BRIDGE, "dpm2m", None, STEPS)


def network() -> Network:
    return tiny_unet(
        classes={"style": 3}, tokens={"text": 5}, drop={"style": 0.1, "text": 0.1}
    ).eval()


def test_the_estimates_of_all_steps_are_those_of_the_formulas():
    """Ho and Salimans, equation 6 with w = g - 1; Liu et al.: a difference for each condition by itself."""
    net = network()

    def predicted(x: torch.Tensor, index: int, style: int, text: torch.Tensor) -> torch.Tensor:
        (i_x, i_y), t = TABLE.inputs[index].tolist(), float(TABLE.network_times[index])
        conditions = {"style": torch.full((2,), style), "text": text.expand(2, -1, -1)}
        with torch.no_grad():
            return net(i_x * x + i_y * SOURCE, torch.full((1,), t), conditions)

    # no text, and 3 is no style
    seen: list[tuple[int, torch.Tensor]] = [(1, TEXT), (3, NONE), (3, TEXT), (1, NONE)]
    cases: list[tuple[Any, Any]] = [
        (0.0, lambda full, none, no_style, no_text: none),
        (0.5, lambda full, none, no_style, no_text: none + 0.5 * (full - none)),
        (3.0, lambda full, none, no_style, no_text: none + 3 * (full - none)),
        ({"text": 4}, lambda full, none, no_style, no_text: full + 3 * (full - no_text)),
        (
            {"style": 2.5, "text": 4},
            lambda f, _, no_style, no_text: f + 1.5 * (f - no_style) + 3 * (f - no_text),
        ),
    ]
    for guidance, formula in cases:
        x = SOURCE
        for step in BridgeSampler(net, BRIDGE, steps=STEPS).stream(
            SOURCE, 0, conditions=SEEN, guidance=guidance
        ):
            full, none, no_style, no_text = (predicted(x, step.index, *each) for each in seen)
            assert (full - none).abs().max() > 1e-3
            p_x, p_y, p = TABLE.prediction[step.index].tolist()
            expected = p_x * x + p_y * SOURCE + p * formula(full, none, no_style, no_text)
            torch.testing.assert_close(step.x0hat, expected, rtol=1e-5, atol=1e-5)
            x = step.x


def test_a_step_is_one_batch_of_all_evaluations():
    net, sizes = network(), list[int]()
    first = net.get_submodule("input_blocks.0")
    first.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    sampler = BridgeSampler(net, BRIDGE, steps=STEPS)
    plain = sampler(SOURCE, 0, conditions=SEEN)
    assert torch.equal(sampler(SOURCE, 0, conditions=SEEN, guidance=1), plain)
    assert sizes == [2] * 2 * STEPS
    sizes.clear()
    assert not torch.equal(sampler(SOURCE, 0, conditions=SEEN, guidance=2), plain)
    sampler(SOURCE, 0, conditions=SEEN, guidance={"style": 2, "text": 2})
    assert sizes == [4] * STEPS + [6] * STEPS


def test_windows_of_a_guided_call_are_those_of_the_whole_picture():
    """With a margin of the network's reach."""
    source = torch.rand(1, 3, 24, 20) * 2 - 1

    def call(module: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return module(x, t + 300 * c["style"], c["source"])

    net = bbdm.wrap(
        Convolutions(), condition_channels=3, call=call, classes={"style": 3}, drop={"style": 0.1}
    )
    sampler, settings = BridgeSampler(net, BRIDGE, steps=STEPS), {"style": 2, "guidance": 3.0}
    whole = sampler(source, 0, **settings)
    cut = sampler(source, 0, window=12, margin=REACH, **settings)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    both = sampler(
        torch.cat([source, source]), [0, 0], batch_size=1, window=12, margin=REACH, **settings
    )
    torch.testing.assert_close(both[1:], cut, rtol=0, atol=1e-5)


def test_samples_of_a_distribution_are_guided():
    sampler = BridgeSampler(network(), BRIDGE, "sde-dpm2m", steps=STEPS)
    options: dict[str, Any] = {"style": [0, 1], "text": None, "guidance": 2.0}
    found = sampler.distribution(SOURCE, 3, 5, **options)
    samples = [sampler(SOURCE, 5 + 2 * j, **options) for j in range(3)]
    torch.testing.assert_close(found.mean, torch.stack(samples).mean(0), rtol=0, atol=1e-5)


WAYS = ("AtoB", "BtoA")
HU = Values(-1000, 1000, "HU", dtype="int16")
MR = Values(0, 400, dtype="uint16")
PRECONDITIONED = DDBM(sigma_data=0.3, sigma_source=0.6, cov=0.1)
GREY = SOURCE[:, :1]


def sampler_of(bridge: Bridge = PRECONDITIONED, classes: Any = WAYS) -> BridgeSampler:
    unet = tiny_unet(in_channels=1, out_channels=1, classes={"direction": classes})
    with torch.no_grad():
        for weight in unet.parameters():
            weight.normal_(0, 0.2)
    return BridgeSampler(unet, bridge, steps=3)


@pytest.mark.parametrize("bridge", [ABridge(), PRECONDITIONED])
def test_a_call_goes_the_way_it_says(bridge: Bridge) -> None:
    sampler = sampler_of(bridge)
    forward, back = (sampler(GREY, seed=3, direction=way) for way in WAYS)
    assert torch.equal(sampler(GREY, seed=3), forward)
    assert not torch.equal(forward, back)
    for same in (1, torch.tensor([1, 1]), np.ones(2), ["BtoA"] * 2):
        assert torch.equal(sampler(GREY, seed=3, conditions={"direction": same}), back)
    *_, last = sampler.stream(GREY, seed=3, direction="BtoA")
    assert torch.equal(last.x.clip(-1, 1), back)
    drawn = sampler.distribution(GREY, 2, [[3, 5], [4, 6]], direction="BtoA")
    torch.testing.assert_close(drawn.samples[0], back)
    turned = sampler.towards("BtoA")
    assert torch.equal(turned(GREY, seed=3), back)
    assert torch.equal(turned(GREY, seed=3, direction="AtoB"), forward)
    assert torch.equal(turned.towards("AtoB")(GREY, seed=3), forward)
    assert turned.towards("BtoA") is turned


def test_statistics_of_both_ends_change_places() -> None:
    """BtoA is what a sampler of the other bridge makes with the other class."""
    turned = replace(PRECONDITIONED, sigma_data=0.6, sigma_source=0.3)
    assert PRECONDITIONED.turned == turned
    assert ABridge(sigma_data=0.3, sigma_source=0.6).turned == ABridge(
        sigma_data=0.3, sigma_source=0.6
    )
    sampler = sampler_of()
    back, unet = sampler(GREY, seed=3, direction="BtoA"), cast(Any, sampler.unet)
    with torch.no_grad():
        weight = unet.condition_embedding.classes["_direction"].weight
        weight.copy_(weight.flip(0))
    assert torch.equal(BridgeSampler(unet, turned, steps=3)(GREY, seed=3), back)


def test_the_way_back_of_encode() -> None:
    sampler, target = sampler_of(), GREY.flip(0) / 2
    noise = sampler.encode(target, GREY, steps=20, direction="BtoA")
    assert torch.equal(noise, sampler.towards("BtoA").encode(target, GREY, steps=20))
    assert not torch.equal(noise, sampler.encode(target, GREY, steps=20))


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
        assert torch.equal(again(GREY, seed=1, direction=way), sampler(GREY, seed=1, direction=way))


@pytest.mark.parametrize("direction", [["AtoB", "BtoA"], "forward", None, 2, {}, []])
def test_a_call_has_one_direction(direction: Any) -> None:
    with pytest.raises(
        ValueError, match=r"direction must be AtoB or BtoA, one for all of a call, got .*"
    ):
        sampler_of()(GREY, direction=direction)


def test_other_networks_have_none() -> None:
    sampler = sampler_of(classes=2)
    assert sampler.direction is None
    sampler(GREY, direction=[0, 1])  # a class of that name, of one's own
    with pytest.raises(ValueError, match="this network has one direction, got 'BtoA'"):
        sampler.towards("BtoA")
