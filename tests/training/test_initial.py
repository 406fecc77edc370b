"""What a run begins with: trained weights, and the statistics of its pairs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bbdm import ABridge, BrownianBridge, load_checkpoint, save_checkpoint, wrap
from bbdm.codec import wrap_codec
from bbdm.data.pairs import Pairs
from bbdm.training.initial import PAIRS, copy_weights, fitted, round_trip_error, used
from tests.conftest import tiny_dit, tiny_unet

BRIDGE = BrownianBridge(objective="pinned")


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {}),
        ({}, {"classes": {"style": 3}}),
        ({"in_channels": 1}, {"in_channels": 3}),
        ({}, {"attention_resolutions": ()}),
    ],
    ids=["all", "a class", "colour", "other layers"],
)
def test_averaged_weights_are_copied_and_what_does_not_fit_is_named(
    before: Any, now: Any, average: bool, tmp_path: Path
) -> None:
    first, second, unet = tiny_unet(0, **before), tiny_unet(1, **before), tiny_unet(2, **now)
    initial = {key: value.clone() for key, value in unet.state_dict().items()}
    save_checkpoint(tmp_path / "a.pt", first, ABridge(), ema=second if average else None)
    names = copy_weights(unet, load_checkpoint(tmp_path / "a.pt")).initialised

    stored = second.state_dict() if average else first.state_dict()
    fitting = {
        key for key, value in initial.items() if key in stored and stored[key].shape == value.shape
    }
    assert names == sorted(initial.keys() - fitting)
    assert bool(names) == bool(now)
    for key, value in unet.state_dict().items():
        expected = stored if key in fitting else initial
        assert torch.equal(value, expected[key])
    assert all(
        p.is_contiguous(memory_format=torch.channels_last) for p in unet.parameters() if p.ndim == 4
    )


def test_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    unet = tiny_unet(1)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    save_checkpoint(tmp_path / "a.pt", tiny_unet(0, model_channels=16), ABridge())
    with pytest.raises(
        ValueError, match=r"init_from: only \d+ of \d+ weights fit: .* another network \(preset\)"
    ):
        copy_weights(unet, load_checkpoint(tmp_path / "a.pt"))
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_network_of_which_half_of_the_weights_fit_begins_with_them(tmp_path: Path) -> None:
    trained, network = (wrap(nn.Conv2d(3, 3, side), 3) for side in (3, 1))
    save_checkpoint(tmp_path / "a.pt", trained, ABridge())
    assert copy_weights(network, load_checkpoint(tmp_path / "a.pt")) == (["module.weight"], None)
    assert torch.equal(network.state_dict()["module.bias"], trained.state_dict()["module.bias"])


@pytest.mark.parametrize("kind", ["unet", "patched unet", "dit"])
def test_a_network_that_is_shown_more_begins_as_the_trained_one(kind: str, tmp_path: Path) -> None:
    """Whatever neighbouring frames and further images are."""
    build = {
        "unet": tiny_unet,
        "patched unet": partial(tiny_unet, patch=2),
        "dit": tiny_dit,
    }[kind]
    trained = build(0, condition_channels=3)
    save_checkpoint(tmp_path / "a.pt", trained, ABridge())
    network = build(1, condition_channels=15, endpoint=(6, 7, 8), images={"edges": 1})
    copied = copy_weights(network, load_checkpoint(tmp_path / "a.pt"))
    assert copied == ([], network.first_layer)

    x, source = torch.randn(2, 3, 16, 16), torch.randn(2, 15, 16, 16)
    t = torch.tensor([10, 900])
    edges = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        expected = trained.eval()(x, t, {"source": source[:, 6:9]})
        outputs = network.eval()(x, t, {"source": source, "edges": edges})
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


def drawn(count: int = 40) -> list[dict[str, torch.Tensor]]:
    sources = 0.3 + 0.2 * torch.randn(count, 3, 8, 8)
    targets = sources + 0.05 * torch.randn(count, 3, 8, 8) + 0.02
    return [
        {"source": s.clamp(-1, 1), "target": t.clamp(-1, 1)}
        for s, t in zip(sources, targets, strict=True)
    ]


@pytest.mark.parametrize("case", ["plain", "mask", "other channels"])
def test_statistics_are_those_of_the_pairs(case: str) -> None:
    """Within masks, and of the endpoint."""
    items, settings, rows = drawn(), {"condition_channels": 3}, slice(None)
    for item in items:
        if case == "mask":
            item["mask"] = torch.zeros(1, 8, 8)
            item["mask"][:, :4], item["target"][:, 4:], rows = 1, 1.0, slice(4)
        elif case == "other channels":
            item["source"] = item["source"][:1]
            settings = {"condition_channels": 1, "endpoint": (0, 0, 0)}
    x, y = (
        torch.stack([item[side][:, rows] for item in items]).double()
        for side in ("target", "source")
    )
    x, y = x.flatten().numpy(), y.expand_as(x).flatten().numpy()
    found, cov = fitted(BRIDGE, tiny_unet(**settings), items), np.cov(x, y, bias=True)
    assert found.spread == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-5)
    assert (found.sigma_data, found.sigma_source) == pytest.approx(np.sqrt(np.diag(cov)), rel=1e-5)
    assert found.cov == pytest.approx(cov[0, 1], rel=1e-4)
    assert found.max_variance == BRIDGE.max_variance


@pytest.mark.parametrize("slope", [0.25, 1.7, -0.9])
def test_pairs_that_are_exactly_linear_have_a_bridge(slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sources = [torch.rand(3, 8, 8, generator=generator).double() - 0.5 for _ in range(8)]
    bridge = fitted(
        BRIDGE, tiny_unet(), [{"source": y.float(), "target": (slope * y).float()} for y in sources]
    )
    product = bridge.sigma_data * bridge.sigma_source
    assert abs(bridge.cov) < product
    assert bridge.cov == pytest.approx(np.sign(slope) * product, rel=1e-4)


def test_pairs_of_which_no_pixel_counts_are_refused() -> None:
    items = [{**item, "mask": torch.zeros(1, 8, 8)} for item in drawn(2)]
    with pytest.raises(
        ValueError,
        match="no pixel counts in 2 training pairs: masks must have pixels that are not 0",
    ):
        fitted(BRIDGE, tiny_unet(), items)


def test_equal_sides_are_refused_and_of_many_pairs_some_are_read() -> None:
    with pytest.raises(ValueError, match="sources equal targets in 4 training pairs"):
        fitted(
            BRIDGE,
            tiny_unet(),
            [{"source": torch.ones(3, 8, 8), "target": torch.ones(3, 8, 8)}] * 4,
        )
    read = []

    class Counted:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(index)
            return torch.zeros(3, 8, 8), torch.ones(3, 8, 8)

    fitted(BRIDGE, tiny_unet(), Counted())
    assert PAIRS <= len(read) < 2 * PAIRS
    assert [
        used(bridge) for bridge in (BrownianBridge(), BRIDGE, BrownianBridge(density="high"))
    ] == [0, 1, 1]


def test_what_an_autoencoder_loses_is_in_levels_of_8_bits(pairs: Pairs) -> None:
    """A decoder that takes half off loses half of the targets' root mean square, and 127.5 levels are 1."""
    values = torch.stack([pairs[index][1] for index in range(len(pairs))])
    codec = wrap_codec(
        nn.Conv2d(1, 1, 1), lambda _, image: image, lambda _, z: z / 2, channels=3, stride=1
    )
    expected = 127.5 * (values / 2).square().mean().sqrt().item()
    assert round_trip_error(pairs, codec, torch.device("cpu")) == pytest.approx(expected, rel=1e-5)
