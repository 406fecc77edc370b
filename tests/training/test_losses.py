"""The loss of a bridge, against its formulas."""

import math
from typing import Any

import pytest
import torch

from bbdm import bridges
from bbdm.bridges import BrownianBridge
from bbdm.networks.base import Conditions
from bbdm.training.config import Loss
from bbdm.training.losses import bridge_loss


class StandIn(torch.nn.Module):
    """Predicts 2 x_t - 0.9 and remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions | None) -> torch.Tensor:
        self.t, self.conditions = t, conditions
        return (2 * x - 0.9).to(self.dtype)


class TestBridgeLoss:
    """T = 4, x0 = 0.2, y = 0.6, sigma eps = 0.1 at t = 2.

    Thus x_t is 0.2 / 2 + 0.6 / 2 + 0.1 = 0.5 at t = 2, where the stand-in says 0.1, and y = 0.6 at t = 4,
    where it says 0.3. The bridge's sigma(2) is sqrt(2 (1/2 - 1/4)) = sqrt(1/2), so eps = 0.1 sqrt(2)."""

    shape = (2, 1, 2, 2)
    eps = 0.1 * math.sqrt(2)

    def loss(self, unet: torch.nn.Module, t: list[int], objective: bridges.Objective, loss: Loss) -> torch.Tensor:
        bridge = BrownianBridge(4, objective=objective)
        x0, y, noise = (torch.full(self.shape, value) for value in (0.2, 0.6, self.eps))
        return bridge_loss(unet, bridge, x0, y, torch.tensor(t), noise, loss, conditions={"source": y})

    @pytest.mark.parametrize(
        ("objective", "t", "losses"),
        [
            # residual: targets 0.5 - 0.2 and 0.6 - 0.2, errors 0.2 and 0.1; Huber's with delta 0.1 are
            # 0.1 (0.2 - 0.05) and 0.1^2 / 2
            ("residual", [2, 4], {"l1": 0.15, "l2": 0.025, "huber": (0.015 + 0.005) / 2}),
            # displacement: target 0.6 - 0.2 at both, errors 0.3 and 0.1
            ("displacement", [2, 4], {"l1": 0.2, "l2": 0.05}),
            # noise: target eps = 0.1414, error 0.0414
            ("noise", [2, 2], {"l1": eps - 0.1, "l2": (eps - 0.1) ** 2}),
        ],
        ids=["residual", "displacement", "noise"],
    )
    def test_by_hand(self, objective: bridges.Objective, t: list[int], losses: dict[Loss, float]) -> None:
        for kind, wanted in losses.items():
            assert self.loss(StandIn(), t, objective, kind).item() == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
    def test_per_image(self, loss: Loss) -> None:
        """Each image's loss is what it would be alone."""
        bridge, unet = BrownianBridge(4), StandIn()
        x0, y, noise = (torch.full(self.shape, value) for value in (0.2, 0.6, self.eps))
        t = torch.tensor([2, 4])
        each = bridge_loss(unet, bridge, x0, y, t, noise, loss, per_image=True)
        assert each.shape == (2,)
        for i in range(2):
            alone = bridge_loss(unet, bridge, x0[i : i + 1], y[i : i + 1], t[i : i + 1], noise[i : i + 1], loss)
            assert each[i].item() == pytest.approx(alone.item(), rel=1e-6)

    def test_half_prediction_is_compared_in_float32(self) -> None:
        """Of a network that sees t and the conditions."""
        unet = StandIn(torch.bfloat16)
        loss = self.loss(unet, [2, 4], "residual", "l2")
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.025, rel=0.02)
        assert unet.t.tolist() == [2, 4]
        assert unet.conditions is not None
        assert torch.equal(unet.conditions["source"], torch.full(self.shape, 0.6))


@pytest.mark.parametrize("sides", [(2, 2), (3, 4, 5)], ids=["pictures", "volumes"])
@pytest.mark.parametrize(("loss", "errors"), [("l1", torch.abs), ("l2", torch.square)])
def test_the_loss_is_the_mean_over_the_pixels_of_the_mask(sides: tuple[int, ...], loss: Loss, errors: Any) -> None:
    """An image without any pixel has the loss 0."""
    draws = torch.Generator().manual_seed(0)
    x0, y = torch.randn(2, 3, 1, *sides, generator=draws)
    mask = (torch.rand(3, 1, *sides, generator=draws) > 0.3).float()
    mask[2] = 0
    bridge, t, noise = BrownianBridge(4), torch.tensor([2, 3, 2]), torch.zeros_like(x0)
    shown, target = bridge.add_noise(x0, y, t, noise)
    found = errors(2 * shown - 0.9 - target)
    losses = bridge_loss(StandIn(), bridge, x0, y, t, noise, loss, mask=mask, per_image=True)
    wanted = [*(found[i][mask[i] > 0].mean() for i in range(2)), torch.tensor(0.0)]
    torch.testing.assert_close(losses, torch.stack(wanted))
    torch.testing.assert_close(bridge_loss(StandIn(), bridge, x0, y, t, noise, loss), found.mean())
