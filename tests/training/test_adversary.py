"""The losses of an adversary against numbers worked out by hand."""

from pathlib import Path

import pytest
import torch

from bbdm.training.adversary import Adversary, adaptive_weight, hinge_loss
from bbdm.training.autoencoder import AutoencoderTask
from bbdm.training.config import AutoencoderConfig
from tests.conftest import MakePairs
from tests.networks.test_vqgan import tiny_vqgan


def test_hinge_loss():
    """Real logits 2, 0, -1 cost 0, 1, 2; false ones -3, 0.5 cost 0, 1.5: (1 + 0.75) / 2."""
    assert hinge_loss(torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-3.0, 0.5])).item() == pytest.approx(0.875)


def test_only_logits_within_the_margin_have_gradients():
    real, false = torch.tensor([2.0, 0.5], requires_grad=True), torch.tensor([-2.0, 0.5], requires_grad=True)
    hinge_loss(real, false).backward()
    assert real.grad is not None
    assert false.grad is not None
    assert real.grad.tolist() == [0.0, -0.25]
    assert false.grad.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("reconstruction", "adversarial", "weight"),
    [
        ([3.0, 4.0], [0.0, 2.0], 5 / 2.0001),
        ([0.0, 0.0], [0.0, 2.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1e4),  # 5 / 1e-4, clamped
    ],
    ids=["ratio", "no reconstruction", "clamped"],
)
def test_adaptive_weight(reconstruction: list[float], adversarial: list[float], weight: float):
    found = adaptive_weight(torch.tensor(reconstruction), torch.tensor(adversarial))
    assert found.item() == pytest.approx(weight, rel=1e-6)


def test_a_step_of_the_discriminator_is_adams(make_pairs: MakePairs, tmp_path: Path):
    """Its first step moves each weight by the rate, against the sign of the hinge loss's gradient."""
    torch.manual_seed(0)
    config = AutoencoderConfig(batch_size=2, adversarial_weight=0, learning_rate=1e-3)
    adversary = Adversary(AutoencoderTask(tiny_vqgan(), None, config, make_pairs(tmp_path, 2)), 4)
    x, image = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    weights = list(adversary.discriminator.parameters())
    before = [weight.detach().clone() for weight in weights]
    network = adversary.discriminator
    wanted = torch.relu(1 - network(x)).mean() / 2 + torch.relu(1 + network(image)).mean() / 2
    gradients = torch.autograd.grad(wanted, weights)
    loss = adversary.learn(*adversary.logits(x, image))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for weight, old, gradient in zip(weights, before, gradients, strict=True):
        clear = gradient.abs() > 1e-5
        torch.testing.assert_close((weight - old)[clear], -1e-3 * gradient.sign()[clear], rtol=2e-2, atol=1e-6)
