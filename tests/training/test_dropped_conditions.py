"""Training on conditions: their effect is learned, dropped ones are learned as "none", and losses say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler
from bbdm.networks.base import Conditions, Network
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer

EFFECT = torch.tensor([-0.5, 0.1, 0.4])  # of a class on the target; their mean is 0
SHARE = 0.3  # of examples that lack it


class Law(torch.utils.data.Dataset[Any]):
    """Targets that are half the source and the effect of a class."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.sources = random.uniform(-1, 1, (count, 1, 4, 4)).astype(np.float32)
        self.classes = random.integers(0, 3, count)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        style = int(self.classes[index])
        target = 0.5 * self.sources[index] + EFFECT[style].item()
        return {"source": self.sources[index], "target": target, "conditions": {"style": torch.tensor(style)}}


class Linear(nn.Module):
    """All that the law needs: weights of state and source, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.effect = nn.Conv2d(2, 1, 1), nn.Embedding(4, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return self.seen(torch.cat([x, conditions["source"]], 1)) + self.effect(conditions["style"])[:, :, None, None]


def network() -> Network:
    torch.manual_seed(0)
    return bbdm.wrap(Linear(), channels=1, condition_channels=1, classes={"style": 3}, drop={"style": SHARE})


def test_the_effect_of_a_class_is_learned_and_guidance_moves_it(tmp_path: Path):
    """The mean in one call, at the top, where the network learns the conditional mean.

    Without the class, the mean over the data's classes is the best. Guidance by g gives the mean and g times
    the class's difference to it.
    """
    data = Law(1536, 0)
    rate = {"learning_rate": 0.05, "warmup_steps": 0, "lr_schedule": "cosine"}
    config = TrainConfig(epochs=6, batch_size=16, precision="fp32", loss="l2", **rate)
    bridge = ABridge(50, density="top", objective="pinned")
    trainer = Trainer(network(), bridge, config, data, Law(64, 1), tmp_path)  # pyright: ignore
    trainer.fit()
    sampler = BridgeSampler(trainer.average, bridge, "mean")
    source = torch.zeros(1, 1, 4, 4)
    mean = EFFECT[torch.from_numpy(data.classes)].mean().item()

    def effect(**conditions: Any) -> float:
        return sampler(source, 0, **conditions).mean().item()

    for style, wanted in enumerate(EFFECT.tolist()):
        assert effect(style=style) == pytest.approx(wanted, abs=0.05 * EFFECT.abs().max().item())
    assert effect(style=None) == pytest.approx(mean, abs=0.05 * EFFECT.abs().max().item())
    moved = [effect(style=2, guidance=g) for g in (0, 0.5, 1, 1.5, 2)]
    assert moved == sorted(moved)
    assert moved[4] - moved[0] == pytest.approx(2 * (EFFECT[2].item() - mean), rel=0.1)
    losses = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert losses["validation_without_style"] > 4 * losses["validation_loss"]
