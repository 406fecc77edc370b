"""Resuming from a checkpoint: bit for bit the undisturbed run, and refused for another run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler
from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.data.pairs import PairedDataset
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint
from bbdm.training import bridge as step_module
from bbdm.training.config import TrainConfig
from bbdm.training.losses import bridge_loss
from bbdm.training.resume import OtherCodecError
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, SIZE, MakeTrainer, MakeUNet, metrics_of, newest, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan


class InterruptedRunError(Exception):
    pass


def interrupt_once(monkeypatch: pytest.MonkeyPatch, saved: Callable[[Trainer], bool]) -> None:
    """The process ends once a checkpoint of which ``saved`` is true is on the disk."""
    original = Trainer._save

    def save(self: Trainer, best: bool = False) -> None:
        original(self, best)
        self.writing.wait()
        if saved(self):
            raise InterruptedRunError

    monkeypatch.setattr(Trainer, "_save", save)


def interrupt_after_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends once epoch 2 is on the disk."""
    interrupt_once(monkeypatch, lambda trainer: (trainer.step, trainer.epoch) == (4, 2))


def interrupt_after_save_inside_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends once the state between the two steps of epoch 3 is on the disk."""
    interrupt_once(monkeypatch, lambda trainer: trainer.step == 5)


def interrupt_before_validation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when the steps of epoch 2 are on the disk, and its validation is not done."""
    validate = Trainer.validate

    def broken(self: Trainer) -> float:
        if self.step == 4:
            raise InterruptedRunError
        return validate(self)

    monkeypatch.setattr(Trainer, "validate", broken)


def interrupt_before_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when epoch 3 is done but its checkpoint is not written."""

    def save(path: Path, *arguments: Any, **keywords: Any) -> None:
        if path.name == "step_00000006.pt" and keywords["training"]["epoch"] == 3:
            raise InterruptedRunError
        save_checkpoint(path, *arguments, **keywords)

    monkeypatch.setattr(step_module, "save_checkpoint", save)


def interrupt_inside_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends after one of the two optimizer steps of epoch 3."""
    calls = 0

    def loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 6:
            raise InterruptedRunError
        return bridge_loss(*arguments, **keywords)

    monkeypatch.setattr(step_module, "bridge_loss", loss)


class TestResume:
    @pytest.mark.parametrize(
        ("interrupt", "epoch", "step"),
        [
            (interrupt_before_validation_ends, 1, 4),
            (interrupt_inside_epoch, 2, 5),
            pytest.param(interrupt_after_save, 2, 4, marks=pytest.mark.nightly),
            pytest.param(interrupt_after_save_inside_epoch, 2, 5, marks=pytest.mark.nightly),
            pytest.param(interrupt_before_save, 2, 6, marks=pytest.mark.nightly),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_is_bitwise_the_undisturbed_run(
        self,
        interrupt: Callable[[pytest.MonkeyPatch], None],
        epoch: int,
        step: int,
        make_trainer: MakeTrainer,
        make_unet: MakeUNet,
        pairs: PairedDataset,
    ) -> None:
        settings: dict[str, Any] = {
            "validation": pairs,
            "epochs": 4,
            "learning_rate": 1e-2,
            "lr_schedule": "cosine",
            "warmup_steps": 3,
            "flip": True,
            "preview_every": 4,
            "save_every": 5,
        }
        straight = make_trainer("straight", **settings)
        straight.fit()
        broken = make_trainer("resumed", **settings)
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt(monkeypatch)
            with pytest.raises(InterruptedRunError):
                broken.fit()
        resumed = make_trainer("resumed", unet=make_unet(seed=5, condition_channels=3), **settings)
        assert resumed.resume_newest()
        assert (resumed.epoch, resumed.step) == (epoch, step)
        resumed.fit()

        ours, theirs = load_checkpoint(newest(resumed)), load_checkpoint(newest(straight))
        for got, wanted in ((ours.unet.weights, theirs.unet.weights), (ours.unet.ema, theirs.unet.ema)):
            assert got is not None
            assert wanted is not None
            assert all(torch.equal(got[key], wanted[key]) for key in wanted)
        assert ours.training is not None
        assert theirs.training is not None
        assert (ours.training["epoch"], ours.training["step"]) == (4, 8)
        for index, moments in theirs.training["optimizer"]["state"].items():
            for key, value in moments.items():
                assert torch.equal(ours.training["optimizer"]["state"][index][key], value)

        untimed = [[{**record, "images_per_second": 0} for record in metrics_of(t)] for t in (resumed, straight)]
        assert untimed[0] == untimed[1]
        preview = "epoch_0004.png"
        assert (resumed.folder / preview).read_bytes() == (straight.folder / preview).read_bytes()

    @pytest.mark.nightly
    def test_a_compiled_run_is_bitwise_the_undisturbed_one(self, make_trainer: MakeTrainer) -> None:
        settings: dict[str, Any] = {"compile": True, "epochs": 3, "save_every": 1, "precision": "bf16"}
        straight = make_trainer("straight", **settings)
        straight.fit()
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt_inside_epoch(monkeypatch)
            with pytest.raises(InterruptedRunError):
                make_trainer("resumed", **settings).fit()
        resumed = make_trainer("resumed", **settings)
        assert resumed.resume_newest()
        assert (resumed.epoch, resumed.step) == (2, 5)
        resumed.fit()
        for mine, theirs in zip(resumed.unet.parameters(), straight.unet.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    def test_more_epochs(self, make_trainer: MakeTrainer) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        second = make_trainer(epochs=3)
        second.resume(newest(first))
        second.fit()
        assert [(record["epoch"], record["step"]) for record in metrics_of(second)] == [(1, 2), (2, 4), (3, 6)]

    def test_of_a_finished_run_changes_nothing(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(epochs=1)
        trainer.fit()
        before = newest(trainer).read_bytes()
        again = make_trainer(epochs=1)
        again.resume(newest(again))
        again.fit()
        assert newest(again).read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"seed": 4}, "trained with seed=0"),
            ({"loss": "l2"}, "trained with loss=l1"),
            ({"batch_size": 4}, "trained with batch_size=2"),
        ],
        ids=["seed", "loss", "batch"],
    )
    def test_refuses_other_settings(self, change: dict[str, Any], reason: str, make_trainer: MakeTrainer) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        with pytest.raises(ValueError, match=reason):
            make_trainer(epochs=2, **change).resume(newest(first))

    @pytest.mark.parametrize(
        ("size", "direction", "reason"),
        [
            (2 * SIZE, "AtoB", "image_size=8 of the pairs, not 16: resume with the same"),
            (SIZE, "BtoA", "direction=AtoB of the pairs, not BtoA: resume with the same"),
        ],
    )
    def test_refuses_other_pairs(
        self, size: int, direction: str, reason: str, make_trainer: MakeTrainer, pairs: PairedDataset
    ) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        other = make_trainer(epochs=2, train=PairedDataset(pairs.pairs, size, direction))
        with pytest.raises(ValueError, match=rf"step_00000002\.pt was trained with {reason}"):
            other.resume(newest(first))

    def test_refuses_pairs_of_other_names(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        renamed = [replace(pair, name=f"{pair.name}-2") for pair in pairs.pairs]
        other = make_trainer(epochs=2, train=PairedDataset(renamed, SIZE))
        with pytest.raises(ValueError, match=r"step_00000002\.pt was trained with pairs of other names: resume with"):
            other.resume(newest(first))

    def test_needs_training_state(self, make_trainer: MakeTrainer, make_unet: MakeUNet, tmp_path: Path) -> None:
        unet = make_unet(condition_channels=3)
        save_checkpoint(tmp_path / "a.pt", unet, BRIDGE, ema=unet)
        with pytest.raises(ValueError, match=r"a\.pt holds no training state"):
            make_trainer().resume(tmp_path / "a.pt")

    @pytest.mark.parametrize(
        ("channels", "bridge", "reason"),
        [
            (0, BRIDGE, "condition_channels=0"),
            (3, ABridge(60), "num_steps=60"),
            (3, BrownianBridge(50), "kind=brownian"),
        ],
        ids=["network", "steps", "bridge"],
    )
    def test_refuses_another(
        self, channels: int, bridge: Bridge, reason: str, make_trainer: MakeTrainer, make_unet: MakeUNet
    ) -> None:
        other = make_trainer("other", unet=make_unet(condition_channels=channels), bridge=bridge, epochs=1)
        other.fit()
        trainer = make_trainer()
        before = copy.deepcopy(trainer.unet.state_dict())
        with pytest.raises(ValueError, match=rf"2\.pt was trained with .*{reason}"):
            trainer.resume(newest(other))
        assert all(torch.equal(value, before[key]) for key, value in trainer.unet.state_dict().items())

    @pytest.mark.parametrize(
        ("before", "after", "reason"),
        [
            ({"density": "high"}, {}, "density=high"),
            ({}, {"density": "high"}, "density=uniform"),
            ({"num_heads": 2}, {}, "num_heads=2"),
            ({}, {"num_heads": 2}, "num_heads=None"),
        ],
    )
    def test_refuses_what_changes_no_weight(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        reason: str,
        make_trainer: MakeTrainer,
        make_unet: MakeUNet,
    ) -> None:
        def trainer(density: Any = "uniform", num_heads: int | None = None) -> Trainer:
            unet = make_unet(condition_channels=3, num_heads=num_heads)
            return make_trainer(unet=unet, bridge=replace(BRIDGE, density=density), epochs=1)

        trained = trainer(**before)
        trained.fit()
        with pytest.raises(ValueError, match=rf"was trained with {reason}: resume"):
            trainer(**after).resume(newest(trained))

    def test_other_validation_pairs_begin_a_new_best(
        self, make_trainer: MakeTrainer, pairs: PairedDataset, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_trainer(validation=pairs, epochs=1).fit()
        for kept, best in ((4, 1), (3, None)):
            trainer = make_trainer(validation=PairedDataset(pairs.pairs[:kept], SIZE), epochs=2)
            assert trainer.resume_newest()
            assert (None if trainer.best is None else trainer.best["epoch"]) == best
        assert "the validation pairs have changed" in caplog.text

    def test_keeps_the_best_epoch_of_before(
        self, make_trainer: MakeTrainer, pairs: PairedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses = iter([3.0, 1.0, 2.0, 2.0])
        monkeypatch.setattr(Trainer, "validate", lambda self: next(losses))
        broken = make_trainer(validation=pairs, epochs=4)
        with pytest.MonkeyPatch.context() as interruption:
            interrupt_after_save(interruption)
            with pytest.raises(InterruptedRunError):
                broken.fit()
        best = broken.run.best.read_bytes()
        resumed = make_trainer(validation=pairs, epochs=4)
        assert resumed.resume_newest()
        resumed.fit()
        assert [record["validation_loss"] for record in metrics_of(resumed)] == [3.0, 1.0, 2.0, 2.0]
        summary = json.loads((resumed.folder / "summary.json").read_text())
        assert summary["best"] == {"epoch": 2, "step": 4, "validation_loss": 1.0}
        assert resumed.run.best.read_bytes() == best


class TestCodec:
    """Checkpoints of a run in latent space."""

    @pytest.fixture
    def make(self, pairs: PairedDataset, tmp_path: Path) -> MakeTrainer:
        """make(folder="run", vqgan seed=0): an epoch of 2 steps on latents."""

        def make(folder: str = "run", seed: int = 0, epochs: int = 1) -> Trainer:
            codec = VQGANCodec(tiny_vqgan(seed=seed))
            config = TrainConfig(epochs=epochs, batch_size=2)
            return Trainer(tiny_unet(), BRIDGE, config, pairs, None, tmp_path / folder, codec)

        return make

    def test_weights_of_the_codec_are_in_the_final_file_alone(self, make: MakeTrainer, tmp_path: Path) -> None:
        trainer = make()
        trainer.fit()
        trainer.save(tmp_path / "final.pt")
        step, final = load_checkpoint(newest(trainer)), load_checkpoint(tmp_path / "final.pt")
        assert step.codec is not None
        assert step.codec.weights is None
        assert step.codec.sha256 == VQGANCodec(tiny_vqgan()).digest()
        image = torch.zeros(1, 3, SIZE, SIZE)
        results = [
            BridgeSampler(loaded.build_unet(), loaded.bridge, codec=loaded.build_codec(), steps=2)(image, seed=0)
            for loaded in (final, load_checkpoint(newest(trainer), codec=VQGANCodec(tiny_vqgan())))
        ]
        assert torch.equal(*results)

    def test_another_codec_is_refused(self, make: MakeTrainer) -> None:
        make().fit()
        with pytest.raises(OtherCodecError, match="only in the space where it began: with the same codec, without"):
            make(seed=1, epochs=2).resume_newest()

    def test_resumes_from_a_checkpoint_that_holds_the_weights(self, make: MakeTrainer, tmp_path: Path) -> None:
        """As they were written before the reference; the weights are then those of a run from a reference."""
        make("now").fit()
        make("before").fit()
        path = newest(make("before"))
        content = torch.load(path, weights_only=True)
        del content["codec"]["sha256"]
        content["codec"]["weights"] = tiny_vqgan().state_dict()
        torch.save(content, path)
        with pytest.raises(OtherCodecError, match="only in the space where it began"):
            make("before", seed=1, epochs=2).resume_newest()
        runs = [make(name, epochs=2) for name in ("now", "before")]
        for trainer in runs:
            assert trainer.resume_newest()
            trainer.fit()
        for mine, theirs in zip(*(trainer.unet.parameters() for trainer in runs), strict=True):
            assert torch.equal(mine, theirs)
