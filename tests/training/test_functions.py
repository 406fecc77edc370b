"""Optimizer, schedule, loss and times that are functions of the caller, and a task of their own."""

from typing import Any

import pytest
import torch

from bbdm.bridges import Bridge
from bbdm.data.pairs import Pairs
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import DistillConfig, TrainConfig
from bbdm.training.distillation import StudentTask
from bbdm.training.losses import bridge_loss
from tests.conftest import BRIDGE, MakeTrainer, metrics_of, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan


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
    batch, seeds = pairs.batch((index,) for index in range(2)), torch.arange(2)
    batch = batch._replace(**{side: getattr(batch, side) / 127.5 - 1 for side in ("source", "target")})
    losses, reported = task.losses(task.network, batch, seeds, 3)
    assert reported["t"].tolist() == [10, 10]
    about: dict[str, Any] = {"conditions": {"source": batch.source}, "seeds": seeds, "step": 3, "per_image": True}
    wanted = bridge_loss(task.network, BRIDGE, batch.target, batch.source, reported["t"], loss="l2", **about)
    torch.testing.assert_close(losses, wanted)


def test_functions_that_do_not_fit_are_refused(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    run = make_trainer(further={"loss": torch.nn.functional.l1_loss})
    batch = next(run.batches.train())
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
