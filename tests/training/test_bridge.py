"""The loss of a bridge against its formulas; optimizer, schedule, loss, times and task of the caller."""

import math
from typing import Any

import pytest
import torch

from bbdm import bridges
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.data.examples import collate
from bbdm.data.pairs import Pairs
from bbdm.networks.base import Conditions
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask
from bbdm.training.bridge import BridgeTask, bridge_loss
from bbdm.training.config import DistillConfig, Loss, TrainConfig
from bbdm.training.distillation import StudentTask
from tests.conftest import BRIDGE, MakeTrainer, metrics_of, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan


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
            # noise: target eps = 0.1414, error 0.0414
            ("noise", [2, 2], {"l1": eps - 0.1, "l2": (eps - 0.1) ** 2}),
        ],
        ids=["residual", "noise"],
    )
    def test_by_hand(self, objective: bridges.Objective, t: list[int], losses: dict[Loss, float]) -> None:
        for kind, wanted in losses.items():
            assert self.loss(StandIn(), t, objective, kind).item() == pytest.approx(wanted, rel=1e-5)

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


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Two groups, of which each has its rate."""
    return torch.optim.SGD([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.2}], momentum=0.9)


def schedule(step: int, total: int) -> float:
    return (step + 1) / (2 * total)


def test_an_optimizer_and_a_schedule_by_plain_torch(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    """The weights after two steps are those of torch's SGD on the gradients of the same losses."""
    functions = {"optimizer": sgd, "schedule": schedule}
    run = make_trainer(epochs=1, learning_rate=0.5, warmup_steps=7, further=functions)
    network = tiny_unet(condition_channels=3)
    optimizer = sgd(list(network.parameters()))
    seeds = torch.arange(2) << 32
    order = run.train.order(0)(0, 4)
    for step, factor in enumerate((0.25, 0.5)):
        y, x0 = (torch.stack(side) for side in zip(*(pairs[i] for i in order[2 * step :][:2]), strict=True))
        t = BRIDGE.draw_times(seeds, step)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1 * factor, 0.2 * factor
        optimizer.zero_grad()
        bridge_loss(network, BRIDGE, x0, y, t, conditions={"source": y}, seeds=seeds, step=step).backward()
        optimizer.step()
    run.fit()
    assert metrics_of(run)[0]["learning_rate"] == 0.05
    for mine, wanted in zip(run.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def at_7(seeds: torch.Tensor, step: int, bridge: Bridge) -> torch.Tensor:
    assert bridge is BRIDGE
    return seeds.new_full(seeds.shape, 7 + step)


def test_a_loss_and_times_are_those_of_the_functions(pairs: Pairs) -> None:
    task = BridgeTask(tiny_unet(condition_channels=3), BRIDGE, TrainConfig(batch_size=2, loss="l1"), pairs,
                      loss=lambda a, b: (a - b).square(), times=at_7)  # fmt: skip
    batch, seeds = collate([pairs.read(index) for index in range(2)]), torch.arange(2)
    batch = batch._replace(**{side: getattr(batch, side) / 127.5 - 1 for side in ("source", "target")})
    losses, _ = task.losses(task.network, batch, seeds, 3)
    about: dict[str, Any] = {"conditions": {"source": batch.source}, "seeds": seeds, "step": 3, "per_image": True}
    wanted = bridge_loss(task.network, BRIDGE, batch.target, batch.source, torch.tensor([10, 10]), loss="l2", **about)
    torch.testing.assert_close(losses, wanted)


def test_functions_that_do_not_fit_are_refused(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    run = make_trainer(further={"loss": torch.nn.functional.l1_loss})
    batch = next(run.batches())
    with pytest.raises(ValueError, match=r"loss must return errors of the target's shape, \(2, 3, 8, 8\), got \(\)"):
        run.train_step(batch)
    with pytest.raises(ValueError, match="times must be None for a student"):
        make_trainer(kind=DistillConfig, further={"task": StudentTask, "times": at_7})
    with pytest.raises(TypeError, match="loss"):
        AutoencoderTask(tiny_vqgan(), None, AutoencoderConfig(batch_size=2, adversarial_weight=0), pairs,
                        loss=torch.nn.functional.l1_loss)  # fmt: skip


class Regression(BridgeTask):
    """Of the source in one call; it reports a number, and needs no times."""

    def losses(self, network: Any, batch: Any, seeds: torch.Tensor, step: int) -> Any:
        result = network(batch.source, torch.full((1,), 50.0), {"source": batch.source})
        losses = (result - batch.target).square().flatten(1).mean(1)
        return losses, {"brightness": result.mean()}


def test_a_task_of_its_own_is_a_loss(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    """What it reports is a metric: the mean over the steps of an epoch."""
    network, settings = tiny_unet(condition_channels=3), {"learning_rate": 1e-9, "grad_accumulation": 2}
    run = make_trainer(unet=network, validation=pairs, further={"task": Regression}, **settings)
    sources = torch.stack([pairs[i][0] for i in range(4)])
    with torch.no_grad():
        results = network(sources, torch.full((1,), 50.0), {"source": sources})
    run.fit()
    records = metrics_of(run)
    assert [each["brightness"] for each in records] == pytest.approx([results.mean().item()] * 2, rel=1e-3)
    error = (results - torch.stack([pairs[i][1] for i in range(4)])).square().mean().item()
    assert records[0]["loss"] == pytest.approx(error, rel=1e-3)
    assert records[0]["validation_loss"] == pytest.approx(error, rel=1e-3)
