"""Translations by windows: the whole picture's where that can be, each pixel once, and what is refused."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bbdm import ABridge, BridgeSampler, wrap
from bbdm.codec import wrap_codec
from bbdm.data.spec import Spec
from bbdm.networks.base import Wrapped
from bbdm.networks.windows import Windows

REACH = 3  # pixels around one that three convolutions of 3 x 3 see
SOURCE = torch.rand(2, 3, 50, 77, generator=torch.Generator().manual_seed(1)) * 2 - 1
MASK = (torch.rand(2, 1, 50, 77, generator=torch.Generator().manual_seed(2)) > 0.5).float()


class Convolutions(nn.Module):
    """Three convolutions, which know nothing but what is near; with a stride, on cells of pixels."""

    def __init__(self, stride: int = 1, width: int = 8) -> None:
        super().__init__()
        cell = 6 * stride**2
        self.layers = nn.ModuleList(
            nn.Conv2d(*channels, 3, padding=1)
            for channels in ((cell, width), (width, width), (width, cell // 2))
        )
        self.stride = stride

    def forward(self, x: Tensor, t: Tensor, source: Tensor) -> Tensor:
        h = torch.cat([x, source], 1)
        h = nn.functional.pixel_unshuffle(h, self.stride)
        for layer in self.layers:
            h = layer(torch.tanh(h)) + t.view(-1, 1, 1, 1) / 1000
        return nn.functional.pixel_shuffle(h, self.stride)


def network(stride: int = 1) -> Wrapped:
    torch.manual_seed(0)
    return wrap(Convolutions(stride), condition_channels=3, stride=stride).eval()


def sampler(solver: str = "sde-dpm2m", stride: int = 1) -> BridgeSampler:
    return BridgeSampler(network(stride), ABridge(), solver, steps=4)


def same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@given(
    size=st.integers(1, 300),
    length=st.integers(1, 60),
    overlap=st.integers(0, 59),
    unit=st.integers(1, 8),
)
def test_windows_cover_a_side_and_overlap_by_what_is_asked(
    size: int, length: int, overlap: int, unit: int
):
    size *= unit
    windows = Windows.spread(size, length, overlap, unit)
    assert windows.starts[0] == 0
    assert windows.starts[-1] + windows.length == size
    assert all(start % unit == 0 for start in windows.starts)
    least = min(-(-overlap // unit) * unit, windows.length - unit)
    for one, other in pairwise(windows.starts):
        assert 0 < other - one <= windows.length - max(least, 0)


def test_weights_are_a_gaussian_of_an_eighth_of_the_side():
    """That of MONAI's sliding windows: where two overlap, shares are as the Gaussians, above a floor."""
    first, second = Windows(96, 64, (0, 32)).gaussians()
    bells = [
        np.maximum(np.exp(-((np.arange(32, 64) - shift - 31.5) ** 2) / (2 * 8**2)), 1e-3)
        for shift in (0, 32)
    ]
    np.testing.assert_allclose(first[32:] / second[:32], bells[0] / bells[1], rtol=1e-9)


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "posterior", "consistency"])
@pytest.mark.parametrize("masked", [False, True])
def test_with_the_networks_reach_as_margin_windows_are_the_whole(solver: str, masked: bool):
    settings: dict[str, Any] = {"seed": 3, "mask": MASK if masked else None}
    made = sampler(solver)
    whole = made(SOURCE, **settings)
    # dpm2m weighs x by 33 near T
    same(made(SOURCE, window=(24, 32), margin=REACH, **settings), whole, 2e-5)
    # a window's edge is seen
    assert (made(SOURCE, window=(24, 32), **settings) - whole).abs().max() > 1e-4


def test_a_network_of_a_stride_on_a_picture_off_it():
    """Cells of 4 pixels, a picture of 50 x 77, which is padded; given noise."""
    made = sampler(stride=4)
    noise = torch.randn(4, 2, 3, 52, 80, generator=torch.Generator().manual_seed(4))
    same(made(SOURCE, noise=noise, window=32, margin=4 * REACH), made(SOURCE, noise=noise))


def test_batch_size_changes_nothing():
    """In float64: processors round float32 differently in batches of another size."""
    made = BridgeSampler(network().double(), ABridge(), "sde-dpm2m", steps=4)
    source = SOURCE.double()
    first = made(source, seed=3, window=24)
    for batch_size in (1, 3, 64):
        same(made(source, seed=3, window=24, batch_size=batch_size), first, 1e-12)


def test_every_step_is_one_of_the_whole_picture():
    """Noise has no seams: a network that predicts nothing leaves the state what it is without windows."""
    nothing = wrap(nn.Conv2d(3, 3, 1), call=lambda conv, x, t, conditions: 0 * conv(x))
    made = BridgeSampler(nothing, ABridge(), "posterior", steps=5)
    steps = zip(made.stream(SOURCE, 1), made.stream(SOURCE, 1, window=16, overlap=0.5), strict=True)
    assert all(torch.equal(whole.x, windows.x) for whole, windows in steps)


class Recorder(nn.Module):
    """Predicts its input, and notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x * self.weight


def test_windows_in_a_call_and_of_training_crops():
    """100 x 40 has 4 x 2 windows of 32 at overlap 0.25; a shorter side is one window."""
    module = Recorder()
    made = BridgeSampler(wrap(module).eval(), ABridge(), "ddim", steps=2)
    made.pictures = Spec(crop=(16, 24))
    for shape, settings, expected in (
        (
            (1, 3, 100, 40),
            {"window": 32, "batch_size": 3},
            [(3, 3, 32, 32), (3, 3, 32, 32), (2, 3, 32, 32)] * 2,
        ),
        ((2, 3, 100, 40), {"window": 32, "batch_size": 5}, [(4, 3, 32, 32)] * 8),
        ((1, 3, 30, 30), {}, [(6, 3, 16, 24)] * 2),
        ((1, 3, 40, 40), {"window": None}, [(1, 3, 40, 40)] * 2),
        ((1, 3, 12, 20), {}, [(1, 3, 12, 20)] * 2),
        ((1, 3, 20, 50), {"window": 32}, [(2, 3, 20, 32)] * 2),
    ):
        module.shapes.clear()
        made(torch.full(shape, -0.5), seed=0, **settings)
        assert module.shapes == expected


def test_latents_are_seen_by_windows():
    """A codec of single cells of 4 x 4 pixels: windows of 32 pixels are 8 x 8 latents."""
    down, up, module = nn.PixelUnshuffle(4), nn.PixelShuffle(4), Recorder()
    holder = nn.ModuleList([nn.Conv2d(1, 1, 1)])
    codec = wrap_codec(
        holder,
        channels=48,
        stride=4,
        encode=lambda _, image: down(image),
        decode=lambda _, z: up(z),
    )
    made = BridgeSampler(
        wrap(module, channels=48).eval(), ABridge(), "sde-dpm2m", steps=2, codec=codec
    )
    whole = made(SOURCE, seed=1)
    module.shapes.clear()
    same(made(SOURCE, seed=1, window=32), whole)
    assert {shape[1:] for shape in module.shapes} == {(48, 8, 8)}


def test_bfloat16_is_blended_in_float32():
    """A third of a prediction of 1/2 cannot be written in bfloat16: sums of such would be off by 1 %."""
    half = wrap(nn.Conv2d(3, 3, 1), call=lambda conv, x, t, conditions: 0 * conv(x) + 0.5)
    made = BridgeSampler(half, ABridge(), "ddim", steps=2, dtype="bf16")
    same(made(SOURCE, seed=0, window=16, overlap=0.8), made(SOURCE, seed=0), 1e-6)


class Prepared(Wrapped):
    """Sees the square of its source, which it computes once for each call, of whole pictures."""

    def prepared(self, conditions: Mapping[str, Tensor], sides: Sequence[int]) -> dict[str, Tensor]:
        assert tuple(sides) == tuple(conditions["source"].shape[2:])
        return {"source": conditions["source"].square()}


def of_square() -> Prepared:
    own = network()
    return Prepared(own.module, own.network_config, None).eval()


def test_what_a_network_prepares_is_the_same_on_windows():
    made = BridgeSampler(of_square(), ABridge(), "sde-dpm2m", steps=4)
    whole = made(SOURCE, seed=3)
    same(made(SOURCE, seed=3, window=24, margin=REACH), whole)
    assert (sampler()(SOURCE, seed=3) - whole).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"window": side}, f"multiple of the network's stride 4, got {side}")
            for side in (30, 0)
        ),
        *(
            ({"window": side}, "must be a side, .height, width., 'auto' or None, got")
            for side in ("32", (4, 4, 4), True)
        ),
        *(
            ({"overlap": share}, f"above 0 and at most 0.9, got '?{share}")
            for share in (0, 0.95, "a quarter")
        ),
        ({"margin": -1}, "margin must be an integer of at least 0, got -1"),
        (
            {"window": 32, "margin": 15},
            "margin must leave at least 4 pixels of a window of 32, got 15",
        ),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sampler(stride=4)(SOURCE, **settings)
