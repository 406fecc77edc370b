"""Guidance moves predictions as the formulas say: on windows, in distributions, of networks of diffusers."""

from __future__ import annotations

from typing import Any

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
DRAWS = torch.Generator().manual_seed(0)
SOURCE = torch.rand(2, 3, 8, 8, generator=DRAWS) * 2 - 1
TEXT = torch.rand(3, 5, generator=DRAWS) * 2 - 1
NONE = torch.zeros(1, 5)
SEEN: dict[str, Any] = {"style": 1, "text": TEXT}
TABLE = solvers.build(BRIDGE, "dpm2m", None, STEPS)


def network() -> Network:
    return tiny_unet(classes={"style": 3}, tokens={"text": 5}, drop={"style": 0.1, "text": 0.1}).eval()


def test_the_first_estimate_is_that_of_the_formulas():
    """Ho and Salimans, equation 6 with w = g - 1; Liu et al.: a difference for each condition by itself."""
    net = network()

    def predicted(style: int, text: torch.Tensor) -> torch.Tensor:
        conditions = {"style": torch.full((2,), style), "text": text.expand(2, -1, -1)}
        with torch.no_grad():
            return net(SOURCE, torch.full((1,), float(TABLE.network_times[0])), conditions)

    full, none, no_style, no_text = (predicted(*each) for each in ((1, TEXT), (3, NONE), (3, TEXT), (1, NONE)))
    assert (full - none).abs().max() > 1e-3
    p_x, p_y, p = TABLE.prediction[0].tolist()
    for guidance, expected in (
        (0.0, none),
        (0.5, none + 0.5 * (full - none)),
        (3.0, none + 3 * (full - none)),
        ({"text": 4}, full + 3 * (full - no_text)),
        ({"style": 2.5, "text": 4}, full + 1.5 * (full - no_style) + 3 * (full - no_text)),
    ):
        step = next(BridgeSampler(net, BRIDGE, steps=STEPS).stream(SOURCE, 0, conditions=SEEN, guidance=guidance))
        torch.testing.assert_close(step.x0hat, (p_x + p_y) * SOURCE + p * expected, rtol=0, atol=1e-5)


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


class Convolutions(nn.Module):
    """Two convolutions of three pixels, whose features a class shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.style = nn.Embedding(4, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        shift = self.style(conditions["style"])[:, :, None, None] + t.to(x.dtype)[:, None, None, None] / 50
        return self.last(torch.tanh(self.first(torch.cat([x, conditions["source"]], 1)) + shift))


def test_windows_of_a_guided_call_are_those_of_the_whole_picture():
    """With a margin of the network's reach."""
    source = torch.rand(1, 3, 24, 20) * 2 - 1
    net = bbdm.wrap(Convolutions(), condition_channels=3, classes={"style": 3}, drop={"style": 0.1})
    sampler, settings = BridgeSampler(net, BRIDGE, steps=STEPS), {"style": 2, "guidance": 3.0}
    whole = sampler(source, 0, **settings)
    cut = sampler(source, 0, window=12, margin=2, **settings)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    both = sampler(torch.cat([source, source]), [0, 0], batch_size=1, window=12, margin=2, **settings)
    torch.testing.assert_close(both[1:], cut, rtol=0, atol=1e-5)


def test_samples_of_a_distribution_are_guided():
    sampler = BridgeSampler(network(), BRIDGE, "sde-dpm2m", steps=STEPS)
    options: dict[str, Any] = {"style": [0, 1], "text": None, "guidance": 2.0}
    found = sampler.distribution(SOURCE, 3, 5, **options)
    samples = [sampler(SOURCE, 5 + 2 * j, **options) for j in range(3)]
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

    expected, before = SOURCE.double(), torch.zeros_like(SOURCE)
    with torch.no_grad():
        for index, t in enumerate(TABLE.network_times.tolist()):
            i_x, i_y = TABLE.inputs[index].tolist()
            shown, times = (i_x * expected + i_y * SOURCE).float(), torch.tensor([t] * 2)
            uncond, cond = (model(shown, times, (TEXT * k).expand(2, -1, -1)).sample.double() for k in (0, 1))
            noise_pred = uncond + 2.5 * (cond - uncond)
            p_x, p_y, p = TABLE.prediction[index].tolist()
            x0 = p_x * expected + p_y * SOURCE + p * noise_pred
            c_x, c_y, c_0, c_h, c_z = TABLE.coefficients[index].tolist()
            z = normal(torch.tensor([0, 1]), index, (3, 8, 8)).double() if c_z else 0
            expected, before = c_x * expected + c_y * SOURCE + c_0 * x0 + c_h * before + c_z * z, x0
    net = bbdm.wrap(model, stride=2, call=call, tokens={"text": 5}, drop={"text": 0.1})
    *_, last = BridgeSampler(net, BRIDGE, steps=STEPS).stream(SOURCE, 0, text=TEXT, guidance=2.5)
    scale = expected.abs().max().item()
    torch.testing.assert_close(last.x.double(), expected, rtol=0, atol=1e-5 * max(1.0, scale))
