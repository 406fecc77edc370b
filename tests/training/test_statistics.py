"""The statistics that a run measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bbdm import BrownianBridge, UNet
from bbdm.training.statistics import PAIRS, fitted, used

BRIDGE = BrownianBridge(objective="pinned")


def network(**settings: Any) -> UNet:
    return UNet(**{"model_channels": 32, "channel_mult": (1,), "head_channels": 32, **settings})


def drawn(count: int = 40) -> list[dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(0)
    sources = 0.3 + 0.2 * torch.randn(count, 3, 8, 8, generator=draws)
    targets = sources + 0.05 * torch.randn(count, 3, 8, 8, generator=draws) + 0.02
    return [{"source": s.clamp(-1, 1), "target": t.clamp(-1, 1)} for s, t in zip(sources, targets, strict=True)]


def test_they_are_those_of_the_pairs() -> None:
    items = drawn()
    x, y = (torch.stack([item[side] for item in items]).double().flatten().numpy() for side in ("target", "source"))
    cov = np.cov(x, y, bias=True)
    found = fitted(BRIDGE, network(), items)
    assert found.spread == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-5)
    assert (found.sigma_data, found.sigma_source) == pytest.approx(np.sqrt(np.diag(cov)), rel=1e-5)
    assert found.cov == pytest.approx(cov[0, 1], rel=1e-4)
    assert found.max_variance == BRIDGE.max_variance


def test_only_the_pixels_of_masks_count() -> None:
    items = drawn(4)
    for item in items:
        item["mask"] = torch.zeros(1, 8, 8)
        item["mask"][:, :4] = 1
        item["target"][:, 4:] = 1.0
    x, y = (torch.stack([item[side][:, :4] for item in items]).double() for side in ("target", "source"))
    assert fitted(BRIDGE, network(), items).spread == pytest.approx((x - y).square().mean().sqrt().item(), rel=1e-5)


def test_sources_of_other_channels_are_brought_to_the_endpoint() -> None:
    items = [{"source": item["source"][:1], "target": item["target"]} for item in drawn(8)]
    x, y = (torch.stack([item[side] for item in items]).double() for side in ("target", "source"))
    found = fitted(BRIDGE, network(condition_channels=1, endpoint=(0, 0, 0)), items)
    assert found.spread == pytest.approx((x - y).square().mean().sqrt().item(), rel=1e-5)


def test_equal_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="sources equal targets in 4 training pairs"):
        fitted(BRIDGE, network(), [{"source": torch.ones(3, 8, 8), "target": torch.ones(3, 8, 8)}] * 4)


def test_of_many_pairs_some_are_looked_at() -> None:
    read = []

    class Counted:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(index)
            return torch.zeros(3, 8, 8), torch.ones(3, 8, 8)

    fitted(BRIDGE, network(), Counted())
    assert PAIRS <= len(read) < 2 * PAIRS


def test_a_residual_of_uniform_times_needs_none() -> None:
    assert not used(BrownianBridge())
    assert used(BRIDGE)
    assert used(BrownianBridge(density="high"))
