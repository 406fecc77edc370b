"""The moving average of weights, against numbers worked out by hand."""

import pytest
import torch

from bbdm.networks.unet import UNet
from bbdm.training.callback import Callback
from bbdm.training.optimizers import EMA
from bbdm.training.trainer import Trainer
from tests.conftest import MakeTrainer, MakeUNet


class TestEMA:
    @staticmethod
    def fill(unet: UNet, value: float) -> UNet:
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.fill_(value)
        return unet

    def check(self, ema: EMA, value: float) -> None:
        for parameter in ema.network.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, value))

    def test_bbdm_settings(self, make_unet: MakeUNet) -> None:
        """A copy until step 4, the average from there on, taken in each second step."""
        unet = self.fill(make_unet(), 0.0)
        ema = EMA(unet, decay=0.5, start=4, every=2)
        for step, (weight, average) in enumerate([(1.0, 0.0), (2.0, 2.0), (3.0, 2.0), (4.0, 44 / 13), (5.0, 44 / 13)]):
            ema.update(self.fill(unet, weight), step)  # the fourth with decay 4/13, (4 * 2 + 9 * 4) / 13
            self.check(ema, average)

    @pytest.mark.parametrize("step", [0, 1, 8, 5000])
    def test_is_bitwise_the_formula_of_each_weight(self, step: int, make_unet: MakeUNet) -> None:
        """torch.lerp of each parameter, with weight 1 - min(decay, (1 + n) / (10 + n))."""
        begin, unet = make_unet(0), make_unet(1)
        ema = EMA(begin, decay=0.995)
        ema.update(unet, step)
        weight = 1 - min(0.995, (1 + step) / (10 + step))
        for average, before, now in zip(ema.network.parameters(), begin.parameters(), unet.parameters(), strict=True):
            assert torch.equal(average, torch.lerp(before, now, weight))

    def test_buffers_are_copied(self, make_unet: MakeUNet) -> None:
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

    def test_is_a_frozen_copy(self, make_unet: MakeUNet) -> None:
        unet = make_unet().train()
        ema = EMA(unet, decay=0.9)
        assert unet.training
        assert not ema.network.training
        for mine, theirs in zip(ema.network.parameters(), unet.parameters(), strict=True):
            assert theirs.requires_grad
            assert not mine.requires_grad
            assert mine.data_ptr() != theirs.data_ptr()


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
