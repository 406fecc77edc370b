"""Statistics of latents, and training on latents that are cached or computed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import ABridge, Callback
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.data.examples import Example
from bbdm.data.latents import LatentDataset, measure
from bbdm.data.pairs import PairedDataset
from bbdm.training import bridge as bridge_module
from bbdm.training.config import TrainConfig
from bbdm.training.loop import Training
from bbdm.training.losses import bridge_loss
from bbdm.training.trainer import Trainer
from tests.conftest import SIZE, metrics_of, tiny_unet
from tests.data.conftest import COUNT
from tests.networks.test_vqgan import tiny_vqgan


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentDataset, "in_block", 2)
    monkeypatch.setattr(LatentDataset, "at_once", 2)


@pytest.fixture
def codec() -> VQGANCodec:
    return VQGANCodec(tiny_vqgan())


@pytest.mark.parametrize("flip", [False, True])
def test_statistics_from_the_cache_are_those_of_the_pictures(
    flip: bool, pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path
):
    cached = measure(LatentDataset(pairs, codec, tmp_path / "cache", flip), codec)
    sources, targets = (
        torch.cat([codec.latents(torch.stack([v, v.flip(-1)] if flip else [v])) for v in side])
        for side in zip(*(pairs[i] for i in range(COUNT)), strict=True)
    )
    torch.testing.assert_close(torch.tensor(cached.source_mean), sources.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(cached.target_std), targets.std((0, 2, 3), correction=0))
    plain = measure(pairs, codec, flip)
    for name, value in asdict(cached).items():
        torch.testing.assert_close(torch.tensor(getattr(plain, name)), torch.tensor(value))


class Killed(Callback):
    def after_step(self, trainer: Training, loss: float) -> None:
        if trainer.step == 9:
            raise KeyError("killed")


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_training_on_the_cache_is_training_on_the_pictures(
    flip: bool, pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path
):
    """And bit for bit the run on the cache that was killed within an epoch and resumes."""
    codec.statistics = LatentStatistics((0.1,) * 3, (2.0,) * 3, (-0.1,) * 3, (0.5,) * 3)
    config = TrainConfig(epochs=2, batch_size=1, flip=flip, save_every=2)
    cached = LatentDataset(pairs, codec, tmp_path / "cache", flip)
    start = torch.cat([p.flatten() for p in tiny_unet().parameters()])
    weights, losses = [], []
    for folder, data in {"pictures": pairs, "straight": cached, "killed": cached}.items():
        run = tiny_unet(), ABridge(), config, data, pairs, tmp_path / folder, codec
        trainer = Trainer(*run)
        if folder == "killed":
            with pytest.raises(KeyError):
                Trainer(*run, callbacks=[Killed()]).fit()
            assert trainer.resume_newest()
            assert (trainer.epoch, trainer.step) == (1, 8)
        trainer.fit()
        weights.append(torch.cat([p.flatten() for p in trainer.unet.parameters()]))
        losses.append(metrics_of(trainer)[-1]["validation_loss"])
        assert (trainer.folder / "epoch_0002.png").exists()
    apart, trained = (weights[0] - weights[1]).norm(), (weights[0] - start).norm()
    assert apart < 1e-3 * trained  # Adam divides by gradients, of some weights as small as rounding
    assert (weights[0] - start).abs().max() > 1e-5
    assert torch.equal(weights[1], weights[2])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1] == losses[2]


@pytest.mark.parametrize("flip", [False, True])
def test_latents_of_another_codec_or_flip_are_not_trained_on(
    flip: bool, pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path
):
    cached = LatentDataset(pairs, codec, tmp_path / "cache", flip)

    def train(codec: VQGANCodec | None, flip: bool) -> None:
        Trainer(tiny_unet(), ABridge(), TrainConfig(batch_size=2, flip=flip), cached, None, tmp_path / "run", codec)

    train(codec, flip)
    with pytest.raises(ValueError, match=rf"flip must be that of the latents in .*cache, {flip}, got {not flip}"):
        train(codec, not flip)
    for other, given in (
        (None, "none"),
        (VQGANCodec(tiny_vqgan(seed=1)), "another one"),
        (VQGANCodec(tiny_vqgan(), before_quant_conv=True), "another one"),
    ):
        with pytest.raises(ValueError, match=rf"codec must be the one that made the latents in .*cache, got {given}"):
            train(other, flip)


@pytest.mark.parametrize("cached", [False, True], ids=["pictures", "cache"])
def test_sources_and_targets_are_normalised_each_by_their_own(
    cached: bool, pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The inputs of the loss in a training step and in validation, against latents normalised by hand."""
    latents = [torch.cat([codec.latents(pairs[i][side][None]) for i in (0, 1)]) for side in (0, 1)]
    data = LatentDataset(pairs, codec, tmp_path / "cache") if cached else pairs
    statistics = LatentStatistics((0.1, 0.2, 0.3), (2.0, 3.0, 4.0), (-0.1, -0.2, -0.3), (0.5, 0.25, 0.125))
    means = torch.tensor([[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])[:, None, :, None, None]
    spreads = torch.tensor([[2.0, 3.0, 4.0], [0.5, 0.25, 0.125]])[:, None, :, None, None]
    wanted = (torch.stack(latents) - means) / spreads
    seen: list[torch.Tensor] = []

    def loss(unet: Any, bridge: Any, x0: torch.Tensor, y: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(torch.stack([y, x0]))
        return bridge_loss(unet, bridge, x0, y, *rest, **more)

    monkeypatch.setattr(bridge_module, "bridge_loss", loss)
    two, codec = PairedDataset(pairs.pairs[:2], SIZE), codec.with_statistics(statistics)
    trainer = Trainer(tiny_unet(), ABridge(), TrainConfig(batch_size=2), data, two, tmp_path / "run", codec)
    source, target = (torch.stack(side) for side in zip(data[0], data[1], strict=True))
    trainer.train_step(Example(source, target))
    trainer.validate()
    assert len(seen) == 1 + len(bridge_module.VALIDATION_STEPS)
    for given in seen:
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_a_run_resumes_with_its_codec(pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path):
    statistics = LatentStatistics((0.1,) * 3, (2.0,) * 3, (-0.1,) * 3, (0.5,) * 3)
    config = TrainConfig(epochs=1, batch_size=2)
    first = Trainer(tiny_unet(), ABridge(), config, pairs, None, tmp_path / "run", codec.with_statistics(statistics))
    first.fit()

    def resumed(codec: Codec | None) -> Trainer:
        trainer = Trainer(tiny_unet(), ABridge(), config, pairs, None, tmp_path / "again", codec)
        trainer.resume(first.run.checkpoint(first.step))
        return trainer

    near = LatentStatistics((0.1000001,) * 3, (2.0,) * 3, (-0.1,) * 3, (0.5,) * 3)
    taken = resumed(codec.with_statistics(near)).codec
    assert taken is not None
    assert taken.statistics == statistics
    others = VQGANCodec(tiny_vqgan(seed=1)), VQGANCodec(tiny_vqgan(), before_quant_conv=True)
    for other in (codec, None, *(each.with_statistics(statistics) for each in others)):
        with pytest.raises(ValueError, match="in the space where it began"):
            resumed(other)


def test_sizes_and_channels_must_fit(pairs: PairedDataset, codec: VQGANCodec, tmp_path: Path):
    multiples = "image_size 8 is not a multiple of 16, the network's 8 times the autoencoder's 2"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"channel_mult": (1, 1, 1, 1)}, multiples),
        ({"in_channels": 4, "out_channels": 4}, "takes 4 channels, and the latents have 3"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            Trainer(tiny_unet(**settings), ABridge(), TrainConfig(batch_size=2), pairs, None, tmp_path, codec)
