"""Training on pairs both ways, by one network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bbdm
from bbdm import DDBM, ABridge, BridgeSampler
from bbdm.bridges import Bridge
from bbdm.codec import wrap_codec
from bbdm.data.examples import collate
from bbdm.data.latents import measure
from bbdm.data.pairs import MappedDataset, Pairs
from bbdm.data.spec import Condition, Spec
from bbdm.networks.base import Conditions, Network
from bbdm.pictures.values import Percentiles
from bbdm.training.batches import drawn_back, sample_seeds, turned
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import DistillConfig, TrainConfig
from bbdm.training.distillation import StudentTask
from bbdm.training.trainer import Trainer
from tests.conftest import same_weights, tiny_unet

COUNT, SIZE = 16, 8
CLASSES = {"direction": ("AtoB", "BtoA")}
PRECONDITIONED = DDBM(sigma_data=0.2, sigma_source=0.4, cov=0.05)


class Halves:
    """Pictures, and half of each."""

    def __init__(self, channels: tuple[int, int] = (1, 1)) -> None:
        self.channels = channels

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index)) - 0.5
        first, second = self.channels
        return {"source": image[:first], "target": image[:second] / 2}


def both(**about: Any) -> MappedDataset:
    return MappedDataset(Halves(), spec=Spec(direction="both", **about))


class Reader(nn.Module):
    """A layer for each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2, 1, 1) for _ in range(2))

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        seen, back = torch.cat([x, conditions["source"]], 1), conditions["direction"][:, None, None, None] == 1
        return torch.where(back, self.layers[1](seen), self.layers[0](seen))


def reader() -> Network:
    torch.manual_seed(0)
    return bbdm.wrap(Reader(), channels=1, condition_channels=1, classes=CLASSES)


def unet() -> Network:
    return tiny_unet(in_channels=1, out_channels=1, condition_channels=1, classes=CLASSES)


def trainer(folder: Path, network: Network, bridge: Bridge, **settings: Any) -> Trainer:
    config = TrainConfig(**{"epochs": 3, "batch_size": 4, "loss": "l2", "ema_start": 0, **settings})
    return Trainer(network, bridge, config, both(), both(), folder)


def test_one_network_learns_both_ways(tmp_path: Path) -> None:
    settings: Any = {"epochs": 40, "learning_rate": 0.05, "ema_decay": 0.9, "preview_every": 40, "save_every": 1000}
    run = trainer(tmp_path / "run", reader(), ABridge(50), **settings)
    run.fit()
    sampler, batch = BridgeSampler(run.average, run.bridge, steps=5), collate([both().read(i) for i in range(4)])
    for source, target, way in ((batch.source, batch.target, "AtoB"), (batch.target, batch.source, "BtoA")):
        assert (sampler(source, seed=0, direction=way) - target).abs().max() < 0.1
    assert (run.folder / "epoch_0040.png").is_file()
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for kind in ("loss", "validation_loss"):
        assert last[kind] == pytest.approx((last[f"{kind}_AtoB"] + last[f"{kind}_BtoA"]) / 2)
    assert run.best is not None
    assert run.best["validation_loss"] < 1e-2


@pytest.mark.parametrize("bridge", [ABridge(50), PRECONDITIONED])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(bridge: Bridge, tmp_path: Path) -> None:
    straight, broken, resumed = (
        trainer(tmp_path / name, unet(), bridge, flip=True, grad_accumulation=2) for name in ("a", "b", "b")
    )
    straight.fit()
    assert not broken.fit(stop=lambda: broken.step == 5)
    assert resumed.resume_newest()
    resumed.fit()
    assert same_weights(resumed.network, straight.network)
    assert same_weights(resumed.average, straight.average)


def test_half_of_each_batch_goes_back() -> None:
    """Of two neighbours one; which is drawn, and no function of how the batch is shared."""
    seeds = sample_seeds(5, 0, 8, torch.device("cpu"))
    drawn = torch.stack([drawn_back(seeds, step) for step in range(200)])
    assert (drawn[:, 0::2] != drawn[:, 1::2]).all()
    assert 0.4 < drawn[:, ::2].float().mean() < 0.6
    assert torch.equal(drawn_back(seeds[2:4], 7), drawn[7, 2:4])


@pytest.mark.parametrize("bridge", [ABridge(50), PRECONDITIONED])
def test_losses_are_those_of_each_direction(bridge: Bridge) -> None:
    """Of a task of one direction with the other's bridge, and the class as a condition of the pairs."""
    network, seeds = unet(), sample_seeds(0, 0, 4, torch.device("cpu"))
    config = TrainConfig(batch_size=4, loss="l2")
    task = BridgeTask(network, bridge, config, total=10)
    batch = collate([both().read(i) for i in range(4)])
    back = torch.tensor([False, True, True, False])
    losses, reported = task.losses(network, turned(batch, back), seeds, 3)
    for name, way, own in (("AtoB", batch, bridge), ("BtoA", turned(batch, ~torch.zeros_like(back)), bridge.turned)):
        alone = BridgeTask(network, own, config, total=10)
        alone.two_way = False
        wanted = alone.losses(network, way, seeds, 3)[0][back == (name == "BtoA")]
        torch.testing.assert_close(losses[back == (name == "BtoA")], wanted)
        torch.testing.assert_close(reported[f"loss_{name}"], wanted.mean())


def test_pairs_that_were_trained_on_are_known_both_ways() -> None:
    """By their names: intervals of either direction are not calibrated on them."""
    condition = Condition("class", size=("AtoB", "BtoA"), label="BtoA")
    back = Pairs(both().rows, Spec(direction="BtoA", conditions={"direction": condition}))
    assert back.names_digest() == both().names_digest()
    assert back.settings() != both().settings()


def test_latents_of_both_ends_are_normalised_alike() -> None:
    """By the mean and the standard deviation of all, whatever is source and target."""
    codec = wrap_codec(nn.Linear(1, 1), encode=lambda _, image: image, decode=lambda _, latent: latent, channels=1,
                       stride=1, image_channels=1)  # fmt: skip
    found = measure(both(), codec)
    assert (found.source_mean, found.source_std) == (found.target_mean, found.target_std)
    values = torch.cat([side.flatten() for pair in both() for side in pair])
    assert found.source_std[0] == pytest.approx(values.std(correction=0).item(), rel=1e-5)
    alone = measure(MappedDataset(Halves()), codec)
    assert alone.source_std[0] == pytest.approx(2 * alone.target_std[0], rel=1e-5)


def test_what_cannot_go_both_ways_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source of 3 and a target of 1 channels, and one network of direction 'both'"):
        MappedDataset(Halves((3, 1)), spec=Spec(direction="both"))
    with pytest.raises(ValueError, match=r"they need values LOW:HIGH and no neighbours, got p0\.5:99\.5"):
        Spec(direction="both", source=Percentiles())
    config = TrainConfig(batch_size=4)
    plain = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    for network, pairs in ((plain, both()), (unet(), MappedDataset(Halves()))):
        with pytest.raises(ValueError, match=r"direction 'both' and a network with classes=.* need each other; got"):
            Trainer(network, ABridge(50), config, pairs, None, tmp_path)
    bridge = replace(PRECONDITIONED)
    with pytest.raises(ValueError, match="a student of two directions takes the same steps both ways"):
        StudentTask(unet(), bridge, DistillConfig(batch_size=4), both())
