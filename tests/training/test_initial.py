"""What a run begins with: trained weights, and the statistics of its pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import ABridge, BrownianBridge, UNet, load_checkpoint, save_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.training.initial import PAIRS, copy_weights, fitted, used
from tests.conftest import TINY, tiny_unet

BRIDGE = BrownianBridge(objective="pinned")


def checkpoint(path: Path, unet: UNet, ema: UNet | None = None) -> Checkpoint:
    save_checkpoint(path, unet, ABridge(), ema=ema)
    return load_checkpoint(path)


@pytest.mark.parametrize("average", [False, True])
def test_weights_are_those_of_the_file_and_averaged_ones_first(average: bool, tmp_path: Path):
    first, second, unet = (tiny_unet(seed) for seed in range(3))
    assert copy_weights(unet, checkpoint(tmp_path / "a.pt", first, second if average else None)) == []
    wanted = (second if average else first).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in unet.state_dict().items())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in unet.parameters() if p.ndim == 4)


@pytest.mark.parametrize("before", [{}, {"condition_channels": 3}, {"condition_channels": 3, "images": {"dem": 1}}])
def test_new_conditions_change_nothing_at_first(before: dict[str, Any], tmp_path: Path):
    """With patches too; a class begins without influence."""
    now = {**before, "images": {**before.get("images", {}), "sar": 2}, "patch": 2, "classes": {"style": 3}}
    trained, unet = tiny_unet(0, **before, patch=2), UNet(**TINY, **now)
    names = copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    assert names == ["condition_embedding.classes._style.weight"]
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    channels = {"source": trained.condition_channels, **trained.images}
    seen = {name: torch.randn(2, count, 8, 8) for name, count in channels.items() if count}
    conditions = {**seen, "sar": torch.randn(2, 2, 8, 8), "style": torch.tensor([0, 2])}
    torch.testing.assert_close(unet(x, t, conditions), trained(x, t, seen))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"condition_channels": 3, "images": {"sar": 2}}, {"condition_channels": 3, "images": {"dem": 1, "sar": 2}}),
        ({"condition_channels": 3}, {"in_channels": 1, "condition_channels": 1}),
        ({"condition_channels": 3}, {"condition_channels": 0}),
        ({"in_channels": 1}, {"in_channels": 3}),
        ({}, {"attention_resolutions": ()}),
    ],
    ids=["an image before others", "grey", "no condition", "colour", "other layers"],
)
def test_what_does_not_fit_is_named_and_stays(before: dict[str, Any], now: dict[str, Any], tmp_path: Path):
    trained, unet = tiny_unet(0, **before), tiny_unet(1, **now)
    initial = {key: value.clone() for key, value in unet.state_dict().items()}
    names = copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    theirs = trained.state_dict()
    assert names == sorted(key for key, value in initial.items() if theirs.get(key, value[:0]).shape != value.shape)
    assert names
    for key, value in unet.state_dict().items():
        assert torch.equal(value, initial[key] if key in names else theirs[key])


def test_another_network_is_refused_and_changes_nothing(tmp_path: Path):
    unet = tiny_unet(1)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(ValueError, match=r"init_from: only \d+ of \d+ weights fit: .* another network \(preset\)"):
        copy_weights(unet, checkpoint(tmp_path / "a.pt", tiny_unet(0, model_channels=16)))
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def network(**settings: Any) -> UNet:
    torch.manual_seed(0)
    kind = {"condition_channels": 3, "model_channels": 32, "channel_mult": (1,), "head_channels": 32}
    return UNet(**{**kind, **settings})


def drawn(count: int = 40) -> list[dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(0)
    sources = 0.3 + 0.2 * torch.randn(count, 3, 8, 8, generator=draws)
    targets = sources + 0.05 * torch.randn(count, 3, 8, 8, generator=draws) + 0.02
    return [{"source": s.clamp(-1, 1), "target": t.clamp(-1, 1)} for s, t in zip(sources, targets, strict=True)]


def test_statistics_are_those_of_the_pairs() -> None:
    items = drawn()
    x, y = (torch.stack([item[side] for item in items]).double().flatten().numpy() for side in ("target", "source"))
    cov = np.cov(x, y, bias=True)
    found = fitted(BRIDGE, network(), items)
    assert found.spread == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-5)
    assert (found.sigma_data, found.sigma_source) == pytest.approx(np.sqrt(np.diag(cov)), rel=1e-5)
    assert found.cov == pytest.approx(cov[0, 1], rel=1e-4)
    assert found.max_variance == BRIDGE.max_variance


@pytest.mark.parametrize("case", ["mask", "other channels"])
def test_statistics_are_within_masks_and_of_the_endpoint(case: str) -> None:
    items, settings, rows = drawn(8), {}, slice(None)
    for item in items:
        if case == "mask":
            item["mask"] = torch.zeros(1, 8, 8)
            item["mask"][:, :4], item["target"][:, 4:], rows = 1, 1.0, slice(4)
        else:
            item["source"], settings = item["source"][:1], {"condition_channels": 1, "endpoint": (0, 0, 0)}
    x, y = (torch.stack([item[side][:, rows] for item in items]).double() for side in ("target", "source"))
    found = fitted(BRIDGE, network(**settings), items)
    assert found.spread == pytest.approx((x - y).square().mean().sqrt().item(), rel=1e-5)


def test_equal_sides_are_refused_and_of_many_pairs_some_are_read() -> None:
    with pytest.raises(ValueError, match="sources equal targets in 4 training pairs"):
        fitted(BRIDGE, network(), [{"source": torch.ones(3, 8, 8), "target": torch.ones(3, 8, 8)}] * 4)
    read = []

    class Counted:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(index)
            return torch.zeros(3, 8, 8), torch.ones(3, 8, 8)

    fitted(BRIDGE, network(), Counted())
    assert PAIRS <= len(read) < 2 * PAIRS


def test_a_residual_of_uniform_times_needs_no_statistics() -> None:
    assert [used(bridge) for bridge in (BrownianBridge(), BRIDGE, BrownianBridge(density="high"))] == [0, 1, 1]
