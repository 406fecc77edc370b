"""Sampling on a card: the CPU's pictures, and the host waits where it must."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbdm import ABridge, BridgeSampler, wrap
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.execution.compiled import Compiled
from tests.conftest import TINY, tiny_dit, tiny_unet
from tests.cuda.card import Card, off_the_card
from tests.execution.test_compiled import Short
from tests.networks.test_base import Own
from tests.networks.test_vqgan import tiny_vqgan

SOURCE = torch.rand(3, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1  # off the stride
PICTURES = SOURCE[:2].repeat(1, 1, 2, 3)[..., :8, :8]
MASK = torch.zeros(3, 1, 7, 5)
MASK[..., 2:5] = 1
CALL = [
    "sampling.inputs._padded: to the card",
    "sampling.inputs.seeds: to the card",
    "sampling.sampler._run: to the CPU",
]
ROUNDING = 1e-5
GRAPHED = {"compile": True, "dtype": "fp32"}


def uncompiled(self: Compiled, *_: Any) -> Callable[..., Tensor]:
    """In place of the compiled network: the function itself."""
    return lambda *arguments: self.function(*arguments)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "_compile", uncompiled)


def vqgan_codec() -> Codec:
    codec = VQGANCodec(tiny_vqgan())
    count = codec.channels
    return codec.with_statistics(LatentStatistics((0.1,) * count, (2.0,) * count, (0.2,) * count, (1.5,) * count))


def sampler(
    device: str = "cpu", solver: str = "sde-dpm2m", condition_channels: int = 3, unet: Any = None, **settings: Any
) -> Any:
    """A sampler of 3 steps, by default of the short network."""
    torch.manual_seed(0)
    unet = unet or Short(**{**TINY, "channel_mult": (1, 1), "condition_channels": condition_channels}).eval()
    return BridgeSampler(unet, ABridge(), solver, 3, device=device, **settings)


def check(
    card: Card, call: Callable[[BridgeSampler], Tensor], waits: list[str], tolerance: float = ROUNDING, **settings: Any
) -> None:
    """A call on the card gives the CPU's pictures, and the host waits so."""
    with off_the_card():
        wanted = call(sampler(**settings))
    made = sampler("cuda", **settings)
    card.waits.clear()
    found = call(made)
    assert card.waits == waits
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "posterior"])
@pytest.mark.parametrize("condition_channels", [0, 3])
def test_eager(card: Card, solver: str, condition_channels: int):
    check(card, lambda s: s(SOURCE, seed=1), CALL, solver=solver, condition_channels=condition_channels)


@pytest.mark.parametrize("settings", [{}, {"compile": True}], ids=["eager", "graphed"])
def test_a_whole_unet_and_bfloat16(card: Card, settings: dict[str, Any]):
    """Three calls in bfloat16, whose rounding is that of other kernels."""
    captured = ["execution.graph._capture: synchronize"] if settings else []
    waits = [*CALL[:2], *captured, CALL[2]]
    unet = tiny_unet(condition_channels=3).eval()
    check(card, lambda s: s(SOURCE, seed=1), waits, unet=unet, dtype="fp32", **settings)
    check(card, lambda s: s(SOURCE, seed=1), waits, 0.05, dtype="bf16", **settings)


@pytest.mark.parametrize("settings", [{}, GRAPHED], ids=["eager", "graphed"])
def test_a_source_of_other_channels(card: Card, settings: dict[str, Any]):
    """Three channels in, one out: the mean is taken on the card."""
    captured = ["execution.graph._capture: synchronize"] if settings else []
    unet = Short(**{**TINY, "channel_mult": (1, 1), "in_channels": 1, "out_channels": 1, "condition_channels": 3})
    check(card, lambda s: s(SOURCE, seed=1), [*CALL[:2], *captured, CALL[2]], unet=unet.eval(), **settings)


@pytest.mark.parametrize("settings", [{}, GRAPHED], ids=["eager", "graphed"])
def test_a_further_image(card: Card, settings: dict[str, Any]):
    """It is copied once a call, and each replay of a graph has its own."""
    captured = ["execution.graph._capture: synchronize"] if settings else []
    network = wrap(
        nn.Conv2d(3 + 3 + 2, 3, 3, padding=1),
        condition_channels=3,
        images={"sar": 2},
        call=lambda conv, x, t, conditions: conv(torch.cat([x, conditions["source"], conditions["sar"]], 1)),
    )
    sar = torch.rand(len(SOURCE), 2, *SOURCE.shape[2:], generator=torch.Generator().manual_seed(1))
    waits = [CALL[0], CALL[0], CALL[1], *captured, CALL[2]]
    check(card, lambda s: s(SOURCE, seed=1, conditions={"sar": sar}), waits, unet=network.eval(), **settings)
    with off_the_card():
        wanted = sampler(unet=network, **settings)(SOURCE, seed=1, conditions={"sar": -sar})
    made = sampler("cuda", unet=network, **settings)
    made(SOURCE, seed=1, conditions={"sar": sar})
    torch.testing.assert_close(made(SOURCE, seed=1, conditions={"sar": -sar}), wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("settings", [{}, GRAPHED], ids=["eager", "graphed"])
def test_windows(card: Card, settings: dict[str, Any]):
    """All windows of all steps are in one graph; their weights are copied to the card before."""
    large = torch.rand(2, 3, 14, 11, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weights = ["networks.windowed.on_device: to the card"] * 2
    captured = ["execution.graph._capture: synchronize"] if settings else []
    waits = [*CALL[:2], *weights, *captured, CALL[2]]
    check(card, lambda s: s(large, seed=1, window=8, batch_size=3), waits, **settings)
    assert len(card.graphs) == len(captured)
    with off_the_card():
        wanted = sampler(**settings)(-large, seed=2, window=8, batch_size=3)
    made = sampler("cuda", **settings)
    made(large, seed=1, window=8, batch_size=3)
    torch.testing.assert_close(made(-large, seed=2, window=8, batch_size=3), wanted, rtol=0, atol=ROUNDING)


def test_a_transformer(card: Card):
    check(card, lambda s: s(SOURCE, seed=1), CALL, unet=tiny_dit(condition_channels=3))


@pytest.mark.parametrize("settings", [{}, GRAPHED], ids=["eager", "no graph"])
def test_a_mask_given_noise_and_each_step(card: Card, settings: dict[str, Any]):
    """What no graph takes."""
    noise = torch.randn(3, 3, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    mask = [*CALL[:2], "sampling.inputs.mask: to the card", CALL[2]]
    check(card, lambda s: s(SOURCE, seed=1, mask=MASK), mask, **settings)
    check(card, lambda s: s(SOURCE, noise=noise), ["sampling.sampler._states: to the card", *CALL], **settings)
    each = [*CALL[:2], "test: to the CPU"]
    check(card, lambda s: [step.x for step in s.stream(SOURCE, seed=1)][-1].cpu(), each, **settings)
    assert card.graphs == []


def test_a_mask_for_a_source_on_the_card(card: Card):
    with off_the_card():
        wanted = sampler()(SOURCE, seed=1, mask=MASK)
    for mask in (MASK, MASK[0, 0].numpy(), MASK.to("cuda")):
        found = sampler("cuda")(SOURCE.to("cuda"), seed=1, mask=mask)
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=ROUNDING)
    made, source = sampler("cuda"), SOURCE.to("cuda")
    card.waits.clear()
    made(source, seed=1)
    checks = ["pictures.images.check: item", "sampling.scale.warn_if_positive: item"]  # of the range of values
    assert card.waits == [*checks, CALL[1]]


def test_a_network_whose_time_has_weights(card: Card):
    torch.manual_seed(0)
    network = Own()
    with off_the_card():
        wanted = BridgeSampler(network, ABridge(), steps=3)(SOURCE, seed=1)
    found = BridgeSampler(network.to("cuda"), ABridge(), steps=3)(SOURCE, seed=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)


def test_previews_of_each_step(card: Card):
    def call(sampler: BridgeSampler) -> Tensor:
        pictures = [step.preview()[0].tobytes() for step in sampler.stream(SOURCE, seed=1)]
        return torch.tensor([[*picture] for picture in pictures]) / 255

    check(card, call, [*CALL[:2], *["sampling.tensors._to_numpy: to the CPU"] * 3])
