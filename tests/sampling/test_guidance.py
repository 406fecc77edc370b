"""Guidance moves predictions as the formulas say: on windows, compiled, of networks of diffusers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, solvers
from bbdm.kernels.philox import normal
from bbdm.networks.base import Conditions, Network
from tests.conftest import tiny_unet
from tests.networks.test_every_network import SIZES

BRIDGE = ABridge(50)
STEPS = 3


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


SOURCE = drawn(2, 3, 8, 8)
TEXT = drawn(3, 5, seed=1)
TABLE = solvers.build(BRIDGE, "dpm2m", None, STEPS)


def network(**settings: Any) -> Network:
    told = {"classes": {"style": 3}, "tokens": {"text": 5}, "drop": {"style": 0.1, "text": 0.1}}
    return tiny_unet(**told, **settings).eval()


def predicted(net: Network, x: torch.Tensor, t: float, style: int, text: torch.Tensor) -> torch.Tensor:
    told = {"style": torch.full((len(x),), style), "text": text.expand(len(x), -1, -1)}
    with torch.no_grad():
        return net(x, torch.full((1,), t), told)


NONE = torch.zeros(1, 5)


def first_estimate(net: Network, **guidance: Any) -> torch.Tensor:
    """The estimate of the target of the first step."""
    sampler = BridgeSampler(net, BRIDGE, steps=STEPS)
    return next(sampler.stream(SOURCE, 0, conditions={"style": 1, "text": TEXT}, **guidance)).x0hat


def estimate(prediction: torch.Tensor) -> torch.Tensor:
    p_x, p_y, p = TABLE.prediction[0].tolist()
    return p_x * SOURCE + p_y * SOURCE + p * prediction


T = float(TABLE.network_times[0])


def close(made: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)


def test_a_number_moves_away_from_the_prediction_without_conditions():
    """Ho and Salimans, equation 6 with w = g - 1."""
    net = network()
    told, without = predicted(net, SOURCE, T, 1, TEXT), predicted(net, SOURCE, T, 3, NONE)
    assert (told - without).abs().max() > 1e-3
    for scale in (0.0, 0.5, 3.0):
        close(first_estimate(net, guidance=scale), estimate(without + scale * (told - without)))


def test_each_condition_has_its_own():
    """Liu et al.: a difference for each condition, of what is told without it."""
    net = network()
    told = predicted(net, SOURCE, T, 1, TEXT)
    no_style, no_text = predicted(net, SOURCE, T, 3, TEXT), predicted(net, SOURCE, T, 1, NONE)
    wanted = told + 1.5 * (told - no_style) + 3 * (told - no_text)
    close(first_estimate(net, guidance={"style": 2.5, "text": 4}), estimate(wanted))
    close(first_estimate(net, guidance={"text": 4}), estimate(told + 3 * (told - no_text)))


def test_rescaling_restores_the_standard_deviation():
    """Lin et al., equations 15 and 16, each image by itself."""
    net = network()
    told, without = predicted(net, SOURCE, T, 1, TEXT), predicted(net, SOURCE, T, 3, NONE)
    guided = without + 4 * (told - without)
    ratio = told.flatten(1).std(1, correction=0) / guided.flatten(1).std(1, correction=0)
    wanted = 0.7 * guided * ratio[:, None, None, None] + 0.3 * guided
    close(first_estimate(net, guidance=4, guidance_rescale=0.7), estimate(wanted))


def test_no_guidance_has_the_bits_of_a_call_and_none_of_a_condition_is_warned_of():
    sampler = BridgeSampler(network(), BRIDGE, steps=STEPS)
    told = {"style": 1, "text": TEXT}
    plain = sampler(SOURCE, 0, conditions=told)
    assert torch.equal(sampler(SOURCE, 0, conditions=told, guidance=1), plain)
    assert not torch.equal(sampler(SOURCE, 0, conditions=told, guidance=2), plain)
    without = sampler(SOURCE, 0, style=None, text=None)
    torch.testing.assert_close(sampler(SOURCE, 0, conditions=told, guidance=0), without, rtol=0, atol=1e-4)
    with pytest.warns(UserWarning, match="guidance has nothing to guide to: 'style', 'text' is None"):
        sampler(SOURCE, 0, style=None, text=None, guidance=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(SOURCE, 0, style=1, text=None, guidance=2)


def counted(net: Network) -> list[int]:
    """The sizes of the batches that a network is called on."""
    sizes: list[int] = []
    first = net.get_submodule("input_blocks.0")
    first.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    return sizes


def test_steps_in_the_interval_alone_cost_two():
    """Times of 4 steps of a bridge of 50, as shares of the first: 1, 0.75, 0.5, 0.25."""
    net = network()
    sizes = counted(net)
    sampler = BridgeSampler(net, BRIDGE, "ddim", timesteps=[48, 36, 24, 12])
    told = {"style": 1, "text": TEXT}
    sampler(SOURCE, 0, conditions=told, guidance=2, guidance_interval=(0.4, 0.8))
    assert sizes == [2, 4, 4, 2]
    sizes.clear()
    sampler(SOURCE, 0, conditions=told, guidance={"style": 2, "text": 2})
    assert sizes == [6] * 4
    first = next(sampler.stream(SOURCE, 0, conditions=told, guidance=2, guidance_interval=(0.4, 0.8)))
    assert torch.equal(first.x0hat, next(sampler.stream(SOURCE, 0, conditions=told)).x0hat)


class Convolutions(nn.Module):
    """Two convolutions of three pixels, whose features a class shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.told = (
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
            nn.Embedding(4, 8),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        shift = self.told(conditions["style"])[:, :, None, None] + t.to(x.dtype)[:, None, None, None] / 50
        return self.last(torch.tanh(self.first(torch.cat([x, conditions["source"]], 1)) + shift))


def local() -> Network:
    torch.manual_seed(0)
    module = Convolutions()
    return bbdm.wrap(module, condition_channels=3, classes={"style": 3}, drop={"style": 0.1})


def test_windows_of_a_guided_call_are_those_of_the_whole_picture():
    """With a margin of the network's reach."""
    source, calls = drawn(1, 3, 24, 20), []
    settings: dict[str, Any] = {"style": 2, "guidance": 3.0, "guidance_rescale": 0.5}
    sampler = BridgeSampler(local(), BRIDGE, steps=STEPS)
    whole = sampler(source, 0, **settings)
    cut = sampler(source, 0, window=12, margin=2, progress=lambda *done: calls.append(done), **settings)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    assert calls[-1][0] == calls[-1][1] == len(calls)
    both = sampler(torch.cat([source, source]), [0, 0], batch_size=1, window=12, margin=2, **settings)
    torch.testing.assert_close(both[1:], cut, rtol=0, atol=1e-5)


def test_samples_of_a_distribution_are_guided():
    sampler = BridgeSampler(network(), BRIDGE, "sde-dpm2m", steps=STEPS)
    told: dict[str, Any] = {"style": [0, 1], "text": None, "guidance": 2.0}
    found = sampler.distribution(SOURCE, 3, 5, **told)
    samples = [sampler(SOURCE, 5 + 2 * j, **told) for j in range(3)]
    torch.testing.assert_close(found.mean, torch.stack(samples).mean(0), rtol=0, atol=1e-5)


def test_a_guided_network_of_diffusers_gives_what_its_own_loop_gives():
    """Its loop as pipelines have it: a call without, a call with, and the sum; then a row of the table."""
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    model: Any = UNet2DConditionModel(**{**SIZES, "in_channels": 3}, **blocks, cross_attention_dim=5)  # pyright: ignore

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return m(x, t, c["text"]).sample

    wanted, before = SOURCE.double(), torch.zeros_like(SOURCE)
    with torch.no_grad():
        for index, t in enumerate(TABLE.network_times.tolist()):
            i_x, i_y = TABLE.inputs[index].tolist()
            shown, times = (i_x * wanted + i_y * SOURCE).float(), torch.tensor([t] * 2)
            uncond, cond = (model(shown, times, (TEXT * k).expand(2, -1, -1)).sample.double() for k in (0, 1))
            noise_pred = uncond + 2.5 * (cond - uncond)
            p_x, p_y, p = TABLE.prediction[index].tolist()
            x0 = p_x * wanted + p_y * SOURCE + p * noise_pred
            c_x, c_y, c_0, c_h, c_z = TABLE.coefficients[index].tolist()
            z = normal(torch.tensor([0, 1]), index, (3, 8, 8)).double() if c_z else 0
            wanted, before = c_x * wanted + c_y * SOURCE + c_0 * x0 + c_h * before + c_z * z, x0
    net = bbdm.wrap(model, stride=2, call=call, tokens={"text": 5}, drop={"text": 0.1})
    *_, last = BridgeSampler(net, BRIDGE, steps=STEPS).stream(SOURCE, 0, text=TEXT, guidance=2.5)
    scale = wanted.abs().max().item()
    torch.testing.assert_close(last.x.double(), wanted, rtol=0, atol=1e-5 * max(1.0, scale))
