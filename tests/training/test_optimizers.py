"""Optimizers, schedules, gradients computed in parts, and the moving average of weights."""

import math
from typing import Any

import pytest
import torch

from bbdm import Callback
from bbdm.data.pairs import Pairs
from bbdm.training.task import EMA, Plateau
from bbdm.training.trainer import Trainer
from tests.conftest import MakeTrainer, MakeUNet, batch_of, metrics_of


class TestOptimizers:
    def test_plateau(self) -> None:
        """Losses stop falling, with a patience of 2: halved after 3 more, and after 2 of rest and 3."""
        plateau = Plateau(2)
        rates = []
        for loss in [1.0, 0.5, *[0.49999] * 3, *[0.5] * 5, 0.4]:
            plateau.step(loss)
            rates.append(plateau.rate(1e-4))
        assert rates == [1e-4] * 4 + [5e-5] * 5 + [2.5e-5] * 2
        for _ in range(60):
            plateau.step(1.0)
        assert plateau.rate(1e-4) == 5e-7
        assert Plateau(5).rate(1e-7) == 1e-7  # it never raises one

    def test_plateau_goes_on_from_its_state(self) -> None:
        plateaus = Plateau(2), Plateau(2)
        for loss in (0.5, 0.6):
            plateaus[0].step(loss)
        plateaus[1].load_state_dict(plateaus[0].state_dict())
        for loss in [0.6] * 7:
            for plateau in plateaus:
                plateau.step(loss)
            assert plateaus[0].rate(1e-4) == plateaus[1].rate(1e-4)
        assert plateaus[1].rate(1e-4) == 2.5e-5

    def test_the_trainer_follows_the_plateau(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(lr_schedule="plateau", plateau_patience=1, learning_rate=1e-3, epochs=1, batch_size=1)
        assert trainer.task.plateau is not None
        trainer.task.plateau.step(0.0)  # nothing will be lower
        trainer.fit()
        assert trainer.step == 4
        assert metrics_of(trainer)[-1]["learning_rate"] == 0.5e-3

    @pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
    def test_kind(self, name: Any, kind: type, make_trainer: MakeTrainer) -> None:
        optimizer = make_trainer(optimizer=name, weight_decay=0.25).task.optimizer
        assert type(optimizer) is kind
        assert optimizer.defaults["fused"]
        assert optimizer.defaults["weight_decay"] == (0.25 if name == "adamw" else 0)

    def test_where_there_is_no_fused_one(self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        adam = torch.optim.Adam

        def make(*arguments: Any, fused: bool, **more: Any) -> torch.optim.Optimizer:
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on supported devices")
            return adam(*arguments, fused=fused, **more)

        monkeypatch.setattr(torch.optim, "Adam", make)
        assert not make_trainer().task.optimizer.defaults["fused"]

    @staticmethod
    def watch(trainer: Trainer, found: list[torch.Tensor]) -> None:
        """Collect the gradients that the optimizer gets."""

        def collect(*_: Any) -> None:
            found.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]))

        trainer.task.optimizer.register_step_pre_hook(collect)

    def test_parts_of_a_batch_make_the_same_step(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        """All but for rounding: gradients of 4 pairs at once, and of 4 parts of one, which may be cut."""
        found: list[torch.Tensor] = []
        losses: list[float] = []
        for parts, clip in ((1, 1e9), (4, 1e9), (4, 0.01)):
            settings = {"batch_size": 4, "flip": True, "grad_accumulation": parts, "grad_clip": clip}
            trainer = make_trainer(f"{parts} {clip}", **settings)
            self.watch(trainer, found)
            losses.append(trainer.train_step(batch_of(pairs, 4)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
        assert found[2].norm().item() == pytest.approx(0.01, rel=1e-3)


class TestFloat16:
    """Losses are scaled, since gradients in float16 end at 65504 above and 6e-8 below."""

    def test_the_step_is_that_of_float32(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        batch = batch_of(pairs, 4)
        losses, norms = [], []
        for precision in ("fp32", "fp16"):
            trainer = make_trainer(precision, batch_size=4, precision=precision, grad_clip=1e9)
            found: list[torch.Tensor] = []
            TestOptimizers.watch(trainer, found)
            losses.append(trainer.train_step(batch))
            norms.append(found[0].norm().item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)
        assert losses[1] != losses[0]
        assert norms[1] == pytest.approx(norms[0], rel=2e-2)

    def test_a_step_that_overflows_changes_no_weights(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        batch = batch_of(pairs, 2)
        trainer = make_trainer(precision="fp16")
        scaler = trainer.task.scaler
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
        before = [p.clone() for p in trainer.network.parameters()]
        assert math.isfinite(trainer.train_step(batch))
        assert all(torch.equal(*pair) for pair in zip(before, trainer.network.parameters(), strict=True))
        assert scaler.get_scale() == 2.0**59
        scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
        trainer.train_step(batch)
        assert not all(torch.equal(*pair) for pair in zip(before, trainer.network.parameters(), strict=True))
        assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}


def test_buffers_are_copied(make_unet: MakeUNet) -> None:
    """Of floats and of integers, at updates alone."""
    unet = make_unet()
    unet.register_buffer("mean", torch.zeros(3))
    unet.register_buffer("count", torch.tensor(0))
    ema = EMA(unet, decay=0.9, every=3)
    for step, expected in enumerate([0, 0, 3, 3, 3, 6]):
        unet.get_buffer("mean").fill_(step + 1.0)
        unet.get_buffer("count").fill_(step + 1)
        ema.update(unet, step)
        assert ema.network.get_buffer("mean").tolist() == [float(expected)] * 3
        assert ema.network.get_buffer("count").item() == expected


class WeightsOfSteps(Callback):
    """The trained weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: list[list[torch.Tensor]] = []

    def after_step(self, trainer: Trainer, loss: float) -> None:
        self.weights.append([parameter.detach().double() for parameter in trainer.task.network.parameters()])


@pytest.mark.parametrize(
    ("start", "every", "decays"),
    [(0, 1, {0: 1 / 10, 1: 2 / 11, 2: 3 / 12, 3: 0.3, 4: 0.3, 5: 0.3}), (3, 2, {1: 0.0, 3: 0.3, 5: 0.3})],
)
def test_training_averages_the_weights_of_its_steps(
    start: int, every: int, decays: dict[int, float], make_trainer: MakeTrainer
) -> None:
    """The averages in float64, with the decay of each update: 4/13, 5/14 and 6/15 are above 0.3."""
    steps = WeightsOfSteps()
    settings = {"ema_decay": 0.3, "ema_start": start, "ema_every": every, "learning_rate": 1e-2}
    trainer = make_trainer(epochs=3, callbacks=[steps], **settings)
    averages = [parameter.detach().double() for parameter in trainer.task.network.parameters()]
    trainer.fit()
    assert len(steps.weights) == 6
    for step, decay in decays.items():
        pairs = zip(averages, steps.weights[step], strict=True)
        averages = [decay * average + (1 - decay) * weight for average, weight in pairs]
    for parameter, average in zip(trainer.average.parameters(), averages, strict=True):
        torch.testing.assert_close(parameter.double(), average, rtol=1e-6, atol=1e-6)
