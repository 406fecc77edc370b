"""Conditions in a whole run: further images, other channels, a class whose effect is learned and dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, BrownianBridge
from bbdm.data.examples import Example, collate
from bbdm.data.pairs import MappedDataset
from bbdm.networks.base import Conditions, Network
from bbdm.runtime import OnnxBridgeSampler
from bbdm.training.batches import sample_seeds
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import DistillConfig, TrainConfig
from bbdm.training.distillation import StudentTask
from bbdm.training.trainer import Trainer
from tests.conftest import TINY, newest, tiny_unet
from tests.onnx.exports import export

CPU = torch.device("cpu")
COUNT, SIZE = 16, 8


class Radar:
    """Pictures of 3 channels that say nothing of the target, and radar of 2, whose second is half of it."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        images = torch.rand(5, SIZE, SIZE, generator=torch.Generator().manual_seed(index)) - 0.5
        return {"source": images[:3], "target": 2 * images[4:], "conditions": {"sar": images[3:]}}


class Reader(nn.Module):
    """A network that sees all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1 + 3 + 2, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return self.layer(torch.cat([x, conditions["source"], conditions["sar"]], 1))


def reader() -> Network:
    torch.manual_seed(0)
    return bbdm.wrap(Reader(), channels=1, condition_channels=3, images={"sar": 2})


def batch_of(data: Radar, count: int) -> Example:
    return collate([MappedDataset(data).read(index) for index in range(count)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """100 steps, with previews, validation, workers' batches and a checkpoint."""
    config = TrainConfig(epochs=25, batch_size=4, learning_rate=0.05, loss="l2", flip=True, ema_start=0, ema_decay=0.9,
                         preview_every=25, save_every=1000)  # fmt: skip
    trainer = Trainer(reader(), ABridge(50), config, Radar(), Radar(), tmp_path_factory.mktemp("run") / "run")
    trainer.fit()
    return trainer


def test_the_network_learns_from_it(trained: Trainer):
    """The target is the radar's second channel twice, whatever the picture."""
    batch = batch_of(Radar(), 4)
    sampler = BridgeSampler(trained.average, trained.bridge, steps=5)
    outputs = sampler(batch.source, seed=0, conditions=batch.conditions)
    assert (outputs - batch.target).abs().max() < 0.1
    other = sampler(batch.source, seed=0, conditions={"sar": batch.conditions["sar"].flip(0)})
    assert (other - batch.target.flip(0)).abs().max() < 0.1
    assert (trained.folder / "epoch_0025.png").is_file()
    assert trained.best is not None
    assert trained.best["validation_loss"] < 1e-2


def test_it_is_exported_and_runs_without_torch(trained: Trainer, tmp_path: Path):
    folder = export(newest(trained), tmp_path / "onnx", "--steps", "3", "--check", network=reader())
    batch = batch_of(Radar(), 4)
    arrays = {name: value.numpy() for name, value in batch.conditions.items()}
    outputs = OnnxBridgeSampler(folder)(batch.source.numpy(), seed=0, conditions=arrays)
    assert np.abs(outputs - batch.target.numpy()).max() < 0.1


def test_a_condition_that_the_network_does_not_know_is_named():
    network = tiny_unet(in_channels=1, out_channels=1, condition_channels=3)
    task = BridgeTask(network, ABridge(50), TrainConfig(batch_size=4), total=10)
    with pytest.raises(ValueError, match=r"conditions of this network are 'source' \(3 channels\), got 'sar'"):
        task(batch_of(Radar(), 4), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition_channels": 1}, "takes 1 channels, and the pairs have sources of 3 and targets of 1 channels"),
        ({"images": {}}, r"takes the conditions \[\] besides the source, .* pairs have \['sar'\]"),
        ({"images": {"sar": 2, "dem": 1}}, r"takes the conditions \['dem', 'sar'\] besides the source, .* \['sar'\]"),
    ],
)
def test_a_network_of_other_pictures_than_the_pairs_is_refused(settings: Any, message: str, tmp_path: Path):
    network = tiny_unet(**{"in_channels": 1, "out_channels": 1, "condition_channels": 3, **settings})
    with pytest.raises(ValueError, match=message):
        Trainer(network, ABridge(50), TrainConfig(batch_size=4), Radar(), None, tmp_path)


@pytest.mark.parametrize("channels", [(3, 1), (2, 3)], ids=["3 to 1", "2 to 3"])
def test_sources_of_other_channels_are_trained_and_distilled(channels: tuple[int, int]):
    """The loss of a step is that of the batch by hand, with y in the target's channels."""
    seen, outputs = channels
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.rand(4, count, 8, 8, generator=generator) * 2 - 1 for count in channels)
    settings: dict[str, Any] = {**TINY, "in_channels": outputs, "out_channels": outputs, "condition_channels": seen}
    network = tiny_unet(**settings)
    bridge, seeds = ABridge(50), sample_seeds(0, 0, 4, CPU)
    task = BridgeTask(network, bridge, TrainConfig(batch_size=4), total=10)
    t = bridge.draw_times(seeds, 0)
    y = source.mean(1, keepdim=True).expand(-1, outputs, -1, -1)
    shown, wanted = bridge.add_noise(target, y.contiguous(), t, seeds=seeds, step=0)
    with torch.no_grad():
        expected = (network(shown, bridge.seen(t), {"source": source}) - wanted).abs().mean().item()
    assert task(Example(source, target), 0) == pytest.approx(expected, rel=1e-4)
    assert task.columns(Example(source, target))["result"].shape == target.shape

    student = StudentTask(tiny_unet(**settings), BrownianBridge(objective="pinned"), DistillConfig(batch_size=4),
                          total=10)  # fmt: skip
    before = torch.cat([p.detach().flatten() for p in student.network.parameters()])
    assert student(Example(source, target), 0) > 0
    assert not torch.equal(torch.cat([p.detach().flatten() for p in student.network.parameters()]), before)
    assert student.columns(Example(source, target))["result"].shape == target.shape


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
