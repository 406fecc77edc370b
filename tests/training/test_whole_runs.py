"""Whole runs, and what they learn: of a class, both ways, from tables of tars."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, BrownianBridge, TrainConfig, Trainer
from bbdm.base.scripts import StoppedError
from bbdm.cli import train
from bbdm.data.config import Crops
from bbdm.data.examples import collate
from bbdm.data.kinds import Condition
from bbdm.data.mapped import MappedDataset
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.networks.base import Conditions
from tests.conftest import SIZE, MakeTrainer, SavePicture, metrics_of, newest
from tests.hardening.scripts import assert_content, content, from_tars, make_place, make_small

NOISE = torch.rand(16, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 0.5
HALVES = MappedDataset([(source, source / 2) for source in NOISE], spec=Spec(direction="both"))


class Ways(nn.Module):
    """A layer for each direction, which sees state and source."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2, 1, 1) for _ in range(2))

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        there, back = (layer(torch.cat([x, conditions["source"]], 1)) for layer in self.layers)
        return torch.where(conditions["direction"][:, None, None, None] == 1, back, there)


def test_one_network_learns_both_ways(tmp_path: Path) -> None:
    """In 100 steps."""
    torch.manual_seed(0)
    network = bbdm.wrap(
        Ways(), channels=1, condition_channels=1, classes={"direction": ("AtoB", "BtoA")}
    )
    config = TrainConfig(
        epochs=25, batch_size=4, learning_rate=0.05, loss="l2", ema_decay=0.9, preview_every=25
    )
    run = Trainer(network, ABridge(50), config, HALVES, HALVES, tmp_path)
    run.fit()
    sampler = BridgeSampler(run.average, run.bridge, steps=5)
    batch = collate([HALVES.read(index) for index in range(4)])
    for source, target, way in (
        (batch.source, batch.target, "AtoB"),
        (batch.target, batch.source, "BtoA"),
    ):
        assert (sampler(source, seed=0, direction=way) - target).abs().max() < 0.1
    last = metrics_of(run)[-1]
    for kind in ("loss", "validation_loss"):
        assert last[kind] == pytest.approx((last[f"{kind}_AtoB"] + last[f"{kind}_BtoA"]) / 2)


def test_pairs_that_were_trained_on_are_known_both_ways() -> None:
    """By their names: intervals of either direction are not calibrated on them."""
    condition = Condition("class", size=("AtoB", "BtoA"), label="BtoA")
    back = Pairs(HALVES.rows, Spec(direction="BtoA", conditions={"direction": condition}))
    assert back.names_digest() == HALVES.names_digest()
    assert back.settings() != HALVES.settings()


# A class

EFFECT = torch.tensor([-0.5, 0.1, 0.4])  # of a class on the target; their mean is 0


def law(classes: torch.Tensor) -> list[dict[str, Any]]:
    """Pairs whose targets are half the source and the effect of a class."""
    sources = torch.rand(len(classes), 1, 4, 4) * 2 - 1
    rows = zip(sources, classes, strict=True)
    return [
        {"source": y, "target": y / 2 + EFFECT[style], "conditions": {"style": style}}
        for y, style in rows
    ]


class Linear(nn.Module):
    """All that the law needs: weights of state and source, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.effect = nn.Conv2d(2, 1, 1), nn.Embedding(4, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return (
            self.seen(torch.cat([x, conditions["source"]], 1))
            + self.effect(conditions["style"])[:, :, None, None]
        )


def test_the_effect_of_a_class_is_learned_and_guidance_moves_it(tmp_path: Path) -> None:
    """The mean in one call, at the top, where the network learns the conditional mean.

    Without the class, the mean over the data's classes is the best. Guidance by g gives the mean and g times
    the class's difference to it.
    """
    torch.manual_seed(0)
    network = bbdm.wrap(
        Linear(), channels=1, condition_channels=1, classes={"style": 3}, drop={"style": 0.3}
    )
    classes, rate = torch.randint(3, (1024,)), {"learning_rate": 0.05, "lr_schedule": "cosine"}
    config = TrainConfig(epochs=5, batch_size=16, loss="l2", **rate)
    bridge = ABridge(50, density="top", objective="pinned")
    trainer = Trainer(network, bridge, config, law(classes), law(classes[:64]), tmp_path)
    trainer.fit()
    sampler, mean = BridgeSampler(trainer.average, bridge, "mean"), EFFECT[classes].mean().item()

    def effect(**conditions: Any) -> float:
        return sampler(torch.zeros(1, 1, 4, 4), 0, **conditions).mean().item()

    for style, wanted in {**dict(enumerate(EFFECT.tolist())), None: mean}.items():
        assert effect(style=style) == pytest.approx(wanted, abs=0.025)
    moved = [effect(style=2, guidance=g) for g in (0, 0.5, 1, 1.5, 2)]
    assert moved == sorted(moved)
    assert moved[4] - moved[0] == pytest.approx(2 * (EFFECT[2].item() - mean), rel=0.1)
    losses = metrics_of(trainer)[-1]
    assert losses["validation_without_style"] > 4 * losses["validation_loss"]


def test_a_network_trained_at_the_top_is_called_there(make_trainer: MakeTrainer) -> None:
    """Its file says so: what reads it makes one call, of the source alone."""
    bridge = BrownianBridge(20, objective="pinned", density="top")
    trainer = make_trainer(bridge=bridge, epochs=1)
    trainer.fit()
    sampler = BridgeSampler.from_checkpoint(newest(trainer))
    source = -torch.ones(1, 3, SIZE, SIZE)
    assert (sampler.solver, sampler.table.timesteps.tolist()) == ("mean", [bridge.top])
    assert sampler(source, seed=0).equal(sampler(source, seed=1))


def test_the_preset_asks_for_crops_of_volumes() -> None:
    about: dict[str, Any] = {
        "dataset": "paired",
        "data_dir": "A,B",
        "output_model": "m.pt",
        "preset": "volume",
    }
    assert train.Train.of(**about).crop == Crops((64, 96, 96))
    with pytest.raises(ValueError, match="vqgan_path is for pictures"):
        train.Train.of(**about, vqgan_path="vqgan.pt")


# Tables of tars; that interrupted runs resume exactly is in tests/hardening


@pytest.fixture
def place(tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(monkeypatch)
    return make_place(tmp_path / "place", save_picture)


def test_tables_that_changed_are_another_run(place: Path, tmp_path: Path) -> None:
    train.main(from_tars(place, tmp_path, "-e", "1"))
    (place / "tars/train/100000.tar").write_bytes((place / "tars/val/000000.tar").read_bytes())
    with pytest.raises(ValueError, match=r"was trained with pairs\.number 12, now 14"):
        train.main(from_tars(place, tmp_path))


def test_a_bad_row_stops_the_run_or_is_skipped(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    victim = place / "tars" / "train" / "000006.tar"
    whole = victim.read_bytes()
    victim.write_bytes(whole.replace(b"IDAT", b"IDAX", 1))  # of the source of 06
    named = r"cannot read the picture 06\.source\.png of .*000006\.tar"
    with pytest.raises(ValueError, match=named):  # before the run, when pairs are measured
        train.main(from_tars(place, tmp_path / "measured", "-e", "1"))
    known = "-e", "1", "--spread", "0.5"
    with pytest.raises(
        StoppedError, match=rf"{named}.*Repair the file; the same command resumes from step \d"
    ):
        train.main(from_tars(place, tmp_path / "stopped", *known))
    train.main(from_tars(place, tmp_path / "skipped", "-e", "1", "--skip_bad", "--workers", "1"))
    assert "left out: " in caplog.text
    assert re.search(named, caplog.text)
    victim.write_bytes(whole)
    train.main(from_tars(place, tmp_path / "stopped", *known))  # from where it was
    train.main(from_tars(place, tmp_path / "whole", *known))
    assert_content(tmp_path / "stopped", content(tmp_path / "whole"))
