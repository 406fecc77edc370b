from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.exc import Unsupported

from bbdm import bridges, images, tracking, train_config, training
from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.checkpoint import load_checkpoint, save_checkpoint
from bbdm.data import PairedDataset, load_dataset
from bbdm.ema import EMA
from bbdm.kernels import philox_numpy
from bbdm.kernels.noise_step import noise_step
from bbdm.networks.unet import UNet, UNetConfig
from bbdm.optimizers import Plateau, make_optimizer
from bbdm.scripts import StoppedError
from bbdm.train_config import TrainConfig
from bbdm.training import Trainer, bridge_loss
from tests.conftest import MakeUNet, SavePicture

SIZE = 8
BRIDGE = ABridge(num_steps=50)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> PairedDataset:
    """Four pairs: noise, and the same turned upside down in negative."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for index in range(4):
        source = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        save_picture(folder / "x" / f"{index}.png", Image.fromarray(source))
        save_picture(folder / "y" / f"{index}.png", Image.fromarray(255 - source[::-1]))
    return load_dataset("paired", f"{folder}/x,{folder}/y", image_size=SIZE)


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(make_unet: MakeUNet, pairs: PairedDataset, tmp_path: Path) -> MakeTrainer:
    """make_trainer(folder="run", unet=None, bridge=BRIDGE, validation=None, **config): 2 epochs of 2 steps."""

    def make(
        folder: str = "run",
        unet: UNet | None = None,
        bridge: Bridge = BRIDGE,
        validation: PairedDataset | None = None,
        train: PairedDataset = pairs,
        **config: Any,
    ) -> Trainer:
        settings = TrainConfig(**{"epochs": 2, "batch_size": 2, **config})
        unet = make_unet(condition_channels=3) if unet is None else unet
        return Trainer(unet, bridge, settings, train, validation, tmp_path / folder)

    return make


def metrics_of(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]


def newest(trainer: Trainer) -> Path:
    return next(iter(trainer.run.checkpoints().values()))


class TestTrainConfig:
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("epochs", 0, "epochs must be at least 1, got 0"),
            ("batch_size", 0, "batch_size must be at least 1, got 0"),
            ("preview_every", 0, "preview_every must be at least 1, got 0"),
            ("save_every", 0, "save_every must be at least 1, got 0"),
            ("keep", 0, "keep must be at least 1, got 0"),
            ("warmup_steps", -1, "warmup_steps must be at least 0, got -1"),
            ("seed", -1, "seed must be at least 0, got -1"),
            ("workers", -2, "workers must be at least 0, got -2"),
            ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
            ("learning_rate", math.nan, "learning_rate must be positive, got nan"),
            ("ema_decay", 1.0, r"ema_decay must be in \[0, 1\), got 1.0"),
            ("ema_decay", -0.1, r"ema_decay must be in \[0, 1\), got -0.1"),
            ("grad_accumulation", 0, "grad_accumulation must be at least 1, got 0"),
            ("grad_accumulation", 3, "batch_size 64 does not split into grad_accumulation=3 equal parts"),
            ("plateau_patience", 0, "plateau_patience must be at least 1, got 0"),
            ("ema_every", 0, "ema_every must be at least 1, got 0"),
            ("ema_start", -1, "ema_start must be at least 0, got -1"),
            ("weight_decay", -0.1, "weight_decay must be at least 0, got -0.1"),
            ("grad_clip", math.nan, "grad_clip must be at least 0, got nan"),
            ("optimizer", "sgd", r"optimizer must be one of \('adam', 'adamw'\), got 'sgd'"),
            ("loss", "l3", r"loss must be one of \('l1', 'l2', 'huber'\), got 'l3'"),
            ("lr_schedule", "step", r"lr_schedule must be one of \('constant', 'cosine', 'plateau'\), got 'step'"),
            ("precision", "fp16", r"precision must be one of \('fp32', 'bf16'\), got 'fp16'"),
        ],
        ids=lambda value: "" if isinstance(value, str) and " " in value else str(value),
    )
    def test_refuses(self, name: str, value: Any, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            TrainConfig(**{name: value})

    def test_is_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            TrainConfig().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]

    def test_warmup_rises_to_the_learning_rate(self) -> None:
        config = TrainConfig(learning_rate=8.0, warmup_steps=4)
        assert [config.lr_at(step, 100) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]

    def test_constant_without_warmup(self) -> None:
        config = TrainConfig(learning_rate=8.0)
        assert {config.lr_at(step, 100) for step in (0, 1, 50, 99, 100)} == {8.0}

    def test_cosine_falls_to_zero(self) -> None:
        """Half of 1 + cos at 0, 60, 90, 120 and 180 degrees."""
        config = TrainConfig(learning_rate=8.0, lr_schedule="cosine")
        rates = [config.lr_at(step, 12) for step in (0, 4, 6, 8, 12)]
        assert rates == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0], abs=1e-12)

    def test_warmup_and_cosine_multiply(self) -> None:
        config = TrainConfig(learning_rate=8.0, lr_schedule="cosine", warmup_steps=10)
        assert config.lr_at(4, 12) == pytest.approx(8 * 0.5 * 0.75)


class StandIn(torch.nn.Module):
    """Predicts 2 x_t - 0.9 and remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        self.t, self.condition = t, condition
        return (2 * x - 0.9).to(self.dtype)


class TestBridgeLoss:
    """T = 4, x0 = 0.2, y = 0.6, sigma eps = 0.1 at t = 2.

    Thus x_t is 0.2 / 2 + 0.6 / 2 + 0.1 = 0.5 at t = 2, where the stand-in says 0.1, and y = 0.6 at t = 4, where it says
    0.3. The bridge's sigma(2) is sqrt(2 (1/2 - 1/4)) = sqrt(1/2), so eps = 0.1 sqrt(2).
    """

    shape = (2, 1, 2, 2)
    eps = 0.1 * math.sqrt(2)

    def loss(
        self, unet: torch.nn.Module, t: list[int], objective: bridges.Objective, loss: train_config.Loss
    ) -> torch.Tensor:
        bridge = BrownianBridge(4, objective=objective)
        x0, y, noise = (torch.full(self.shape, value) for value in (0.2, 0.6, self.eps))
        return bridge_loss(unet, bridge, x0, y, torch.tensor(t), noise, loss, condition=y)

    @pytest.mark.parametrize(
        ("objective", "t", "l1", "l2"),
        [
            # residual: targets 0.5 - 0.2 and 0.6 - 0.2, errors 0.2 and 0.1
            ("residual", [2, 4], 0.15, 0.025),
            # displacement: target 0.6 - 0.2 at both, errors 0.3 and 0.1
            ("displacement", [2, 4], 0.2, 0.05),
            # noise: target eps = 0.1414, error 0.0414
            ("noise", [2, 2], eps - 0.1, (eps - 0.1) ** 2),
        ],
        ids=["residual", "displacement", "noise"],
    )
    def test_by_hand(self, objective: bridges.Objective, t: list[int], l1: float, l2: float) -> None:
        assert self.loss(StandIn(), t, objective, "l1").item() == pytest.approx(l1, rel=1e-5)
        assert self.loss(StandIn(), t, objective, "l2").item() == pytest.approx(l2, rel=1e-5)

    def test_huber_by_hand(self) -> None:
        """Errors 0.2 and 0.1 with delta 0.1: 0.1 (0.2 - 0.05) and 0.1^2 / 2."""
        assert self.loss(StandIn(), [2, 4], "residual", "huber").item() == pytest.approx((0.015 + 0.005) / 2, rel=1e-5)

    @pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
    def test_per_image(self, loss: train_config.Loss) -> None:
        """Each image's loss is what it would be alone."""
        bridge, unet = BrownianBridge(4), StandIn()
        x0, y, noise = (torch.full(self.shape, value) for value in (0.2, 0.6, self.eps))
        t = torch.tensor([2, 4])
        each = bridge_loss(unet, bridge, x0, y, t, noise, loss, per_image=True)
        assert each.shape == (2,)
        for i in range(2):
            alone = bridge_loss(unet, bridge, x0[i : i + 1], y[i : i + 1], t[i : i + 1], noise[i : i + 1], loss)
            assert each[i].item() == pytest.approx(alone.item(), rel=1e-6)

    def test_network_sees_t_and_condition(self) -> None:
        unet = StandIn()
        self.loss(unet, [1, 3], "residual", "l1")
        assert unet.t.tolist() == [1, 3]
        assert unet.condition is not None
        assert torch.equal(unet.condition, torch.full(self.shape, 0.6))

    def test_half_prediction_is_compared_in_float32(self) -> None:
        loss = self.loss(StandIn(torch.bfloat16), [2, 4], "residual", "l2")
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.025, rel=0.02)


class TestEMA:
    @staticmethod
    def fill(unet: UNet, value: float) -> UNet:
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.fill_(value)
        return unet

    def check(self, ema: EMA, value: float) -> None:
        for parameter in ema.unet.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, value))

    def test_warms_up_then_decays(self, make_unet: MakeUNet) -> None:
        unet = self.fill(make_unet(), 1.0)
        ema = EMA(unet, decay=0.5)
        ema.update(self.fill(unet, 2.0), step=0)  # decay 1/10
        self.check(ema, 1.9)
        ema.update(self.fill(unet, 3.0), step=1)  # decay 2/11
        self.check(ema, (2 * 1.9 + 9 * 3.0) / 11)
        ema.update(self.fill(unet, 1.0), step=8)  # decay min(1/2, 9/18)
        before = ((2 * 1.9 + 9 * 3.0) / 11 + 1.0) / 2
        self.check(ema, before)
        ema.update(self.fill(unet, 4.0), step=1000)  # decay 1/2, not 1001/1010
        self.check(ema, (before + 4.0) / 2)

    def test_bbdm_settings(self, make_unet: MakeUNet) -> None:
        """A copy until step 4, the average from there on, taken in each second step."""
        unet = self.fill(make_unet(), 0.0)
        ema = EMA(unet, decay=0.5, start=4, every=2)
        for step, (weight, average) in enumerate([(1.0, 0.0), (2.0, 2.0), (3.0, 2.0), (4.0, 44 / 13), (5.0, 44 / 13)]):
            ema.update(self.fill(unet, weight), step)  # the fourth with decay 4/13, (4 * 2 + 9 * 4) / 13
            self.check(ema, average)

    def test_is_a_frozen_copy(self, make_unet: MakeUNet) -> None:
        unet = make_unet().train()
        ema = EMA(unet, decay=0.9)
        assert unet.training
        assert not ema.unet.training
        for mine, theirs in zip(ema.unet.parameters(), unet.parameters(), strict=True):
            assert theirs.requires_grad
            assert not mine.requires_grad
            assert mine.data_ptr() != theirs.data_ptr()


def test_200_steps_halve_the_loss(make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
    """Of the averaged weights on the same pairs, from that of the untrained network, whose prediction is 0."""
    torch.manual_seed(0)
    unet = UNet(
        3,
        3,
        condition_channels=3,
        model_channels=16,
        channel_mult=(1, 2),
        attention_resolutions=(),
        head_channels=16,
        num_groups=4,
        num_res_blocks=1,
    )
    repeated = PairedDataset(pairs.pairs * 50, SIZE)
    trainer = make_trainer(
        unet=unet,
        train=repeated,
        validation=pairs,
        batch_size=4,
        epochs=4,
        learning_rate=3e-3,
        preview_every=4,
    )
    untrained = trainer.validate()
    trainer.fit()
    assert trainer.step == 200
    metrics = metrics_of(trainer)
    assert metrics[-1]["validation_loss"] < 0.5 * untrained
    assert metrics[-1]["loss"] < metrics[0]["loss"]


class InterruptedRunError(Exception):
    pass


def interrupt_after_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends once epoch 2 is on the disk."""

    def save(path: Path, *arguments: Any, **keywords: Any) -> None:
        save_checkpoint(path, *arguments, **keywords)
        if path.name == "step_00000004.pt":
            raise InterruptedRunError

    monkeypatch.setattr(training, "save_checkpoint", save)


def interrupt_after_save_inside_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends once the state between the two steps of epoch 3 is on the disk."""

    def save(path: Path, *arguments: Any, **keywords: Any) -> None:
        save_checkpoint(path, *arguments, **keywords)
        if path.name == "step_00000005.pt":
            raise InterruptedRunError

    monkeypatch.setattr(training, "save_checkpoint", save)


def interrupt_before_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when epoch 3 is done but its checkpoint is not written."""

    def save(path: Path, *arguments: Any, **keywords: Any) -> None:
        if path.name == "step_00000006.pt":
            raise InterruptedRunError
        save_checkpoint(path, *arguments, **keywords)

    monkeypatch.setattr(training, "save_checkpoint", save)


def interrupt_inside_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends after one of the two optimizer steps of epoch 3."""
    calls = 0

    def loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 6:
            raise InterruptedRunError
        return bridge_loss(*arguments, **keywords)

    monkeypatch.setattr(training, "bridge_loss", loss)


class TestResume:
    @pytest.mark.parametrize(
        ("interrupt", "step"),
        [
            (interrupt_after_save, 4),
            (interrupt_inside_epoch, 5),
            (interrupt_after_save_inside_epoch, 5),
            (interrupt_before_save, 5),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_is_bitwise_the_undisturbed_run(
        self,
        interrupt: Callable[[pytest.MonkeyPatch], None],
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
        assert (resumed.epoch, resumed.step) == (2, step)
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

    def test_more_epochs_go_on(self, make_trainer: MakeTrainer) -> None:
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
            (2 * SIZE, "AtoB", "image_size 8, and these pairs have 16"),
            (SIZE, "BtoA", "direction AtoB, and these pairs have BtoA"),
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
            (3, BrownianBridge(50), "BrownianBridge"),
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
        with pytest.raises(ValueError, match=rf"2\.pt was trained as .*{reason}.* and these settings ask for"):
            trainer.resume(newest(other))
        assert all(torch.equal(value, before[key]) for key, value in trainer.unet.state_dict().items())


class TestDivergence:
    def test_is_told_with_its_step_and_keeps_the_last_epoch(
        self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0

        def loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return bridge_loss(*arguments, **keywords) * (math.nan if calls == 3 else 1)

        monkeypatch.setattr(training, "bridge_loss", loss)
        trainer = make_trainer()
        with pytest.raises(
            StoppedError, match=r"loss is nan at step 3\. Lower -lr or set --grad_clip; .* from step 2, .* in .*run"
        ):
            trainer.fit()
        kept = load_checkpoint(newest(trainer))
        assert kept.training is not None
        assert kept.training["epoch"] == 1
        for state in (kept.unet.weights, kept.unet.ema):
            assert state is not None
            assert all(value.isfinite().all() for value in state.values())

    def test_in_the_first_epoch_points_at_no_file(
        self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "bridge_loss", lambda *a, **k: bridge_loss(*a, **k) * math.inf)
        trainer = make_trainer()
        with pytest.raises(StoppedError, match=r"loss is inf at step 1\. .* nothing is saved yet"):
            trainer.fit()
        assert not trainer.run.checkpoints()


class Recorder:
    """Stands for bridge_loss and keeps, for each call in training, (x0, y, t, noise)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, ...]] = []
        monkeypatch.setattr(training, "bridge_loss", self)

    def __call__(
        self, unet: UNet, bridge: Bridge, x0: torch.Tensor, y: torch.Tensor, t: torch.Tensor, **keywords: Any
    ) -> torch.Tensor:
        if torch.is_grad_enabled():
            noise_alone = torch.tensor([[0.0, 0, 1, 0, 0, 1]]).expand(bridge.top + 1, -1)
            noise, _ = noise_step(x0, y, t, noise_alone, seeds=keywords["seeds"], step=keywords["step"])
            self.calls.append((x0, y, t, noise))
        return bridge_loss(unet, bridge, x0, y, t, **keywords)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


class TestRandomness:
    def draws(self, recorder: Recorder, trainer: Trainer) -> list[tuple[torch.Tensor, torch.Tensor]]:
        recorder.calls.clear()
        trainer.fit()
        return [(t, noise) for _, _, t, noise in recorder.calls]

    def test_times_and_noise_are_a_function_of_seed_step_and_index(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: PairedDataset
    ) -> None:
        small = self.draws(recorder, make_trainer("small", batch_size=2, epochs=2))
        backwards = PairedDataset(pairs.pairs[::-1], SIZE, "BtoA")
        large = self.draws(recorder, make_trainer("large", train=backwards, batch_size=4, epochs=4, flip=True))
        assert len(small) == len(large) == 4
        for (t, noise), (t_large, noise_large) in zip(small, large, strict=True):
            assert torch.equal(t, t_large[:2])
            assert torch.equal(noise, noise_large[:2])

    def test_every_sample_has_its_own(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        noises = [n for _, noise in self.draws(recorder, make_trainer(batch_size=2)) for n in noise]
        assert len(noises) == 8  # 2 epochs of 4
        for i, noise in enumerate(noises):
            assert not any(torch.equal(noise, other) for other in noises[:i])

    def test_contract(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        """The first sample of a batch: stream 1 of the published generator; times from its lane 1, scaled to 1..T."""
        for step, (t, noise) in enumerate(self.draws(recorder, make_trainer(seed=11))):
            wanted = philox_numpy.normal(11, step, (3, SIZE, SIZE), stream=1)[0]
            np.testing.assert_allclose(noise[0], wanted, atol=1e-5)
            word = philox_numpy.random_words(11, step, 1, stream=1, lane=1)[0, 0]
            assert t[0] == 1 + int(word) * 50 // 2**32

    def test_another_seed_has_another_order(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        orders = []
        for seed in (0, 1, 2):
            recorder.calls.clear()
            make_trainer(f"order {seed}", seed=seed, batch_size=1, epochs=3).fit()
            orders.append(torch.stack([y for _, y, _, _ in recorder.calls]))
        assert not torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[1], orders[2])

    def test_epoch_visits_every_pair_once_in_an_order_of_its_own(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: PairedDataset
    ) -> None:
        make_trainer(batch_size=1, epochs=3).fit()
        sources = [pairs[i][0] for i in range(4)]
        visited = [next(i for i, s in enumerate(sources) if torch.equal(s, y[0])) for _, y, _, _ in recorder.calls]
        epochs = [visited[i : i + 4] for i in (0, 4, 8)]
        assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3]] * 3
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_flip_mirrors_source_and_target_together(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: PairedDataset
    ) -> None:
        make_trainer(batch_size=4, epochs=4, flip=True).fit()
        plain = [pairs[i] for i in range(4)]
        mirrored = [(source.flip(-1), target.flip(-1)) for source, target in plain]

        def seen(y: torch.Tensor, x0: torch.Tensor, among: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
            return any(torch.equal(y, source) and torch.equal(x0, target) for source, target in among)

        samples = [(y, x0) for x0s, ys, _, _ in recorder.calls for y, x0 in zip(ys, x0s, strict=True)]
        flipped = [seen(y, x0, mirrored) for y, x0 in samples]
        assert [seen(y, x0, plain) for y, x0 in samples] == [not f for f in flipped]
        assert 3 <= sum(flipped) <= 13  # of 16 fair coins, but for 4 in 1000 seeds

    @pytest.mark.parametrize("seed", [0, 1])
    def test_same_seed_same_run(self, seed: int, make_trainer: MakeTrainer) -> None:
        runs = [make_trainer(folder, seed=seed, epochs=1) for folder in ("a", "b")]
        for run in runs:
            run.fit()
        first, second = (run.unet.state_dict() for run in runs)
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_another_seed_shares_no_noise(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        """Two runs that are compared for their spread must be independent."""
        first = self.draws(recorder, make_trainer("a", seed=0, epochs=1))
        second = self.draws(recorder, make_trainer("b", seed=1, epochs=1))
        shared = [torch.equal(m, n) for _, noise in first for m in noise for _, other in second for n in other]
        assert not any(shared)


class TestOptimizers:
    def test_plateau_is_torchs(self) -> None:
        """With BBDM's numbers, on losses that fall, stay, fall a little, and stay for long."""
        patience = 5
        parameter = torch.nn.Parameter(torch.zeros(1))
        sgd = torch.optim.SGD([parameter], lr=1e-4)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            sgd, factor=0.5, patience=patience, threshold=1e-4, cooldown=patience, min_lr=5e-7, eps=0
        )
        ours = Plateau(patience)
        falling = [1 / (1 + i) for i in range(10)]
        noise = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
        rates = set()
        for loss in [*falling, *[0.1] * 8, 0.0999999, 0.0998, *noise]:
            sgd.step()
            theirs.step(loss)
            ours.update(loss)
            rates.add(ours.rate(1e-4))
            assert ours.rate(1e-4) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        assert len(rates) > 5
        assert min(rates) == 5e-7

    def test_plateau_never_raises_a_rate(self) -> None:
        assert Plateau(5).rate(1e-7) == 1e-7

    def test_the_trainer_follows_the_plateau(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(lr_schedule="plateau", plateau_patience=1, learning_rate=1e-3, epochs=1, batch_size=1)
        trainer.plateau.update(0.0)  # nothing will be lower
        trainer.fit()
        assert trainer.step == 4
        assert metrics_of(trainer)[-1]["learning_rate"] == 0.5e-3

    @pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
    def test_kind(self, name: Any, kind: type, make_trainer: MakeTrainer) -> None:
        optimizer = make_trainer(optimizer=name, weight_decay=0.25).optimizer
        assert type(optimizer) is kind
        assert optimizer.defaults["fused"]
        assert optimizer.defaults["weight_decay"] == (0.25 if name == "adamw" else 0)

    def test_where_there_is_no_fused_one(self, make_unet: MakeUNet, monkeypatch: pytest.MonkeyPatch) -> None:
        adam = torch.optim.Adam

        def make(*arguments: Any, fused: bool, **more: Any) -> torch.optim.Optimizer:
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on supported devices")
            return adam(*arguments, fused=fused, **more)

        monkeypatch.setattr(torch.optim, "Adam", make)
        assert not make_optimizer(make_unet(), TrainConfig()).defaults["fused"]

    @staticmethod
    def watch(trainer: Trainer, found: list[torch.Tensor]) -> None:
        """Collect the gradients that the optimizer gets."""

        def collect(*_: Any) -> None:
            found.append(torch.cat([p.grad.flatten() for p in trainer.unet.parameters() if p.grad is not None]))

        trainer.optimizer.register_step_pre_hook(collect)

    def test_parts_of_a_batch_make_the_same_step(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        """All but for rounding: gradients of 4 pairs at once, and of 4 parts of one."""
        weights = []
        for parts in (1, 4):
            trainer = make_trainer(str(parts), batch_size=4, flip=True, grad_accumulation=parts, grad_clip=1e9)
            found: list[torch.Tensor] = []
            self.watch(trainer, found)
            y, x0 = (torch.stack(images) for images in zip(*(pairs[i] for i in range(4)), strict=True))
            weights.append((trainer.train_step(y, x0), found[0]))
        assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-5)
        torch.testing.assert_close(weights[0][1], weights[1][1], rtol=1e-4, atol=1e-6)

    def test_gradients_are_cut(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        trainer = make_trainer(batch_size=4, grad_clip=0.01)
        found: list[torch.Tensor] = []
        self.watch(trainer, found)
        y, x0 = (torch.stack(images) for images in zip(*(pairs[i] for i in range(4)), strict=True))
        trainer.train_step(y, x0)
        assert found[0].norm().item() == pytest.approx(0.01, rel=1e-3)

    def test_dropout_is_the_same_after_a_resume(self, make_trainer: MakeTrainer, make_unet: MakeUNet) -> None:
        ends = []
        for epochs in ([2], [1, 2]):
            unet = make_unet(condition_channels=3, dropout=0.5)
            for number in epochs:
                trainer = make_trainer(str(epochs), unet, epochs=number)
                assert trainer.resume_newest() == (number == 2 and len(epochs) == 2)
                torch.rand(number)  # what else draws from the generator changes nothing
                trainer.fit()
            ends.append(torch.cat([p.flatten() for p in unet.parameters()]))
        assert torch.equal(*ends)


class TestFiles:
    def test_metrics(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        trainer = make_trainer(validation=pairs, learning_rate=1e-3, warmup_steps=8)
        trainer.fit()
        metrics = metrics_of(trainer)
        assert [(record["epoch"], record["step"]) for record in metrics] == [(1, 2), (2, 4)]
        # the rate of the epoch's last step: 2/8 and 4/8 of the way up
        assert [record["learning_rate"] for record in metrics] == pytest.approx([0.25e-3, 0.5e-3])
        assert metrics[-1]["validation_loss"] == trainer.validate()
        for record in metrics:
            assert record["loss"] > 0
            assert record["images_per_second"] > 0

    def test_summary(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        trainer = make_trainer(validation=pairs, epochs=3)
        trainer.fit()
        summary = json.loads((trainer.folder / "summary.json").read_text())
        metrics = metrics_of(trainer)
        assert summary.items() >= metrics[-1].items()
        lowest = min(metrics, key=lambda record: record["validation_loss"])
        assert summary["best"] == {name: lowest[name] for name in ("epoch", "step", "validation_loss")}
        assert summary["machine"]["versions"]["torch"] == metadata.version("torch")

    def test_best_weights_are_those_of_the_lowest_validation_loss(
        self, make_trainer: MakeTrainer, pairs: PairedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses = iter([3.0, 1.0, 2.0])
        monkeypatch.setattr(Trainer, "validate", lambda self: next(losses))
        trainer = make_trainer(validation=pairs, epochs=3, keep=3)
        trainer.fit()
        assert trainer.best == {"epoch": 2, "step": 4, "validation_loss": 1.0}
        best, second = (load_checkpoint(path) for path in (trainer.run.best, trainer.run.checkpoint(4)))
        assert best.training is None
        assert best.unet.ema is not None
        assert second.unet.ema is not None
        assert all(torch.equal(value, second.unet.ema[key]) for key, value in best.unet.ema.items())

    def test_tensorboard(
        self, make_trainer: MakeTrainer, pairs: PairedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Points every 2 steps; a run that goes on writes none twice."""
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        monkeypatch.setattr(tracking, "EVERY", 2)
        for epochs in (1, 3):
            trainer = make_trainer(validation=pairs, epochs=epochs, preview_every=1, batch_size=1, learning_rate=1e-3)
            assert trainer.resume_newest() == (epochs == 3)
            trainer.fit()
        events = accumulators.EventAccumulator(str(trainer.run.events)).Reload()
        quarters = [f"loss by t/quarter {i}" for i in (1, 2, 3, 4)]
        scalars = {"loss", "gradient_norm", "learning_rate", "validation_loss", "images_per_second"}
        assert scalars <= set(events.Tags()["scalars"]) <= scalars | set(quarters)
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert [point.step for point in events.Scalars(name)] == [2, 4, 6, 8, 10, 12]
            assert all(math.isfinite(point.value) and point.value > 0 for point in events.Scalars(name))
        told = [record["validation_loss"] for record in metrics_of(trainer)]
        assert [point.value for point in events.Scalars("validation_loss")] == pytest.approx(told)
        assert [image.step for image in events.Images("source, result, target")] == [4, 8, 12]

    def test_losses_by_quarter_of_t(self, tmp_path: Path) -> None:
        """Of t in 1..8: 1 and 2, 3 and 4, and so on; a quarter without an image has no point."""
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        tracker = tracking.Tracker(tmp_path, 0, (1, 8), torch.device("cpu"))
        tracker.add_losses(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1, 2, 8]))
        tracker.add_losses(torch.tensor([6.0, 7.0]), torch.tensor([1, 5]))
        tracker.write_losses(3)
        tracker.close()
        events = accumulators.EventAccumulator(str(tmp_path)).Reload()
        values = {tag[-1]: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        assert values == {"1": 3.0, "3": 7.0, "4": 5.0}

    def test_without_tensorboard(self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        trainer = make_trainer(epochs=1)
        trainer.fit()
        assert not trainer.run.events.exists()

    def test_config_rebuilds_the_settings(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(epochs=1, flip=True)
        trainer.fit()
        content = json.loads((trainer.folder / "config.json").read_text())
        assert TrainConfig(**content["train"]) == trainer.config
        assert UNetConfig(**content["unet"]) == trainer.unet.config
        assert bridges.from_config(content["bridge"]) == BRIDGE

    def test_previews_are_source_result_target(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        trainer = make_trainer(validation=pairs, epochs=3, preview_every=2)
        trainer.fit()
        assert sorted(file.name for file in trainer.folder.glob("*.png")) == ["epoch_0002.png", "epoch_0003.png"]
        with Image.open(trainer.folder / "epoch_0003.png") as sheet:
            assert sheet.size == (3 * (SIZE + 2) + 2, 4 * (SIZE + 2) + 2)
            for row in range(4):
                source, target = pairs[row]
                top = 2 + row * (SIZE + 2)
                for column, wanted in ((0, source), (2, target)):
                    left = 2 + column * (SIZE + 2)
                    cell = images.from_pil(sheet.crop((left, top, left + SIZE, top + SIZE)))
                    torch.testing.assert_close(cell, wanted)

    def test_without_validation(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(epochs=1, preview_every=1)
        trainer.fit()
        written = {"config.json", "metrics.jsonl", "step_00000002.pt", "summary.json"}
        assert {file.name for file in trainer.folder.iterdir()} - {"tensorboard"} == written
        assert "validation_loss" not in metrics_of(trainer)[0]

    def test_new_run_in_an_old_folder_is_refused(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(epochs=1)
        trainer.fit()
        before = {file.name: file.read_bytes() for file in trainer.folder.glob("*.*")}
        with pytest.raises(ValueError, match=r"holds a run of 2 steps already, .* begin at 0: .* --overwrite"):
            make_trainer(epochs=1).fit()
        assert {file.name: file.read_bytes() for file in trainer.folder.glob("*.*")} == before

    def test_a_half_written_metrics_line_is_dropped(self, make_trainer: MakeTrainer) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        with (first.folder / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 2, "lo')
        second = make_trainer(epochs=2)
        second.resume(newest(first))
        second.fit()
        assert [record["epoch"] for record in metrics_of(second)] == [1, 2]


class TestTrainer:
    def test_pictures_that_are_not_square(self, make_trainer: MakeTrainer, pairs: PairedDataset) -> None:
        wide = PairedDataset(pairs.pairs, (SIZE, 2 * SIZE))
        trainer = make_trainer(train=wide, validation=wide, epochs=1)
        trainer.fit()
        assert load_checkpoint(newest(trainer)).image_size == (SIZE, 2 * SIZE)
        make_trainer(train=wide, epochs=2).resume(newest(trainer))
        with pytest.raises(ValueError, match=r"trained with image_size \(8, 16\), and these pairs have 8"):
            make_trainer(epochs=2).resume(newest(trainer))
        with pytest.raises(ValueError, match=r"image_size \(8, 9\) is not a multiple of the network's 2"):
            make_trainer(train=PairedDataset(pairs.pairs, (SIZE, SIZE + 1)))

    def test_grey_pictures(self, make_trainer: MakeTrainer, make_unet: MakeUNet, pairs: PairedDataset) -> None:
        grey = PairedDataset(pairs.pairs, SIZE, channels=1)
        unet = make_unet(in_channels=1, out_channels=1, condition_channels=1)
        trainer = make_trainer(unet=unet, train=grey, validation=grey, epochs=1)
        trainer.fit()
        assert math.isfinite(metrics_of(trainer)[0]["validation_loss"])
        with pytest.raises(ValueError, match="the network takes 3 channels, and the pairs have 1"):
            make_trainer(train=grey)

    def test_drops_the_last_short_batch(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        trainer = make_trainer(batch_size=3, epochs=1)
        trainer.fit()
        assert [len(t) for _, _, t, _ in recorder.calls] == [3]
        assert trainer.step == 1

    def test_needs_one_batch_of_pairs(self, make_trainer: MakeTrainer) -> None:
        with pytest.raises(ValueError, match="batch_size 5 is more than the number of training pairs, 4"):
            make_trainer(batch_size=5)

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_validation_loss_is_the_mean_over_pairs(
        self, size: int, make_trainer: MakeTrainer, pairs: PairedDataset
    ) -> None:
        """Whatever the batch: a last short batch counts for as many pairs as it has."""
        whole = make_trainer("a", validation=pairs, batch_size=1).validate()
        assert make_trainer("b", validation=pairs, batch_size=size).validate() == pytest.approx(whole, rel=1e-5)

    def test_bf16_keeps_float32_weights(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(precision="bf16", epochs=1)
        trainer.fit()
        assert {p.dtype for p in trainer.unet.parameters()} == {torch.float32}
        assert math.isfinite(metrics_of(trainer)[0]["loss"])

    def test_unconditional_network(self, make_trainer: MakeTrainer, make_unet: MakeUNet, pairs: PairedDataset) -> None:
        trainer = make_trainer(unet=make_unet(), validation=pairs, epochs=1)
        trainer.fit()
        assert (trainer.folder / "epoch_0001.png").is_file()

    def test_compiled_gradients_are_the_eager_ones(
        self, make_trainer: MakeTrainer, make_unet: MakeUNet, pairs: PairedDataset
    ) -> None:
        y, x0 = (torch.stack(images) for images in zip(*(pairs[i] for i in range(4)), strict=True))
        seeds = torch.arange(4)
        losses: list[torch.Tensor] = []
        gradients: list[dict[str, torch.Tensor]] = []
        for compile in (False, True):
            unet = make_unet(condition_channels=3, channel_mult=(1,), attention_resolutions=())
            trainer = make_trainer(f"compile {compile}", unet, compile=compile)
            losses.append(trainer._losses(trainer.network, y, x0, seeds, 0).mean())
            losses[-1].backward()
            gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
            assert len(gradients[-1]) == len(list(unet.parameters()))
            assert math.isfinite(trainer.train_step(y, x0))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        for name, expected in gradients[0].items():
            assert (gradients[1][name] - expected).norm() <= 1e-4 * expected.norm(), name

    def test_a_failure_to_compile_is_an_error(
        self, make_trainer: MakeTrainer, make_unet: MakeUNet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unet = make_unet(condition_channels=3)
        monkeypatch.setattr(unet, "trunk", lambda *arguments: torch._dynamo.graph_break())
        with pytest.raises(Unsupported):
            make_trainer(unet=unet, compile=True).fit()
