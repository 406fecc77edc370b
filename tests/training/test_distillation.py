"""Distillation: the loss of a student's own calls."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import BridgeSampler, load_checkpoint, save_checkpoint, wrap
from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.data.examples import Example
from bbdm.kernels import philox
from bbdm.networks.unet import UNet
from bbdm.training import distillation
from bbdm.training.distillation import DistillConfig, StudentTask, student_of
from bbdm.training.task import sample_seeds
from tests.conftest import MakeTrainer, newest, tiny_unet

BRIDGE = BrownianBridge(1000, objective="pinned")
CPU = torch.device("cpu")
SEEDS = sample_seeds(0, 0, 3, CPU)


def make_step(unet: UNet, bridge: Bridge = BRIDGE, **config: Any) -> StudentTask:
    return StudentTask(unet, bridge, DistillConfig(**{"batch_size": 3, **config}))


def pairs_of(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    return Example(source, target)


@pytest.mark.parametrize("config", [{"calls": 1, "results": 3}, {}, {"calls": 4}], ids=str)
def test_loss_is_the_energy_score_of_what_the_sampler_makes(config: dict[str, Any]):
    """The sampler with the same noise makes the same pictures, whose score is written out here.

    Results of a pair have noise of their own and no other: so a batch in parts, or on several processes, has
    the losses of the whole.
    """
    unet, pairs = tiny_unet(condition_channels=3).eval(), pairs_of(0)
    calls, results = config.get("calls", 2), config.get("results", 2)
    step, task = 5 * calls + calls - 1, make_step(unet, **config)  # the turn of the last call
    losses, _ = task.losses(unet, pairs, SEEDS, step)
    sampler = BridgeSampler(unet, BRIDGE, calls=calls)
    outputs = []
    for j in range(results):
        streams = [distillation.FIRST_STREAM + row + j * calls for row in range(calls)]
        noise = torch.stack([philox.normal(SEEDS, step, (3, 8, 8), stream) for stream in streams])
        outputs.append(list(sampler.stream(pairs.source, noise=noise))[-1].x.flatten(1))
    flat = pairs.target.flatten(1)
    for i in range(3):
        error = sum(float((m[i] - flat[i]).norm()) for m in outputs) / results
        spread = [float((a[i] - b[i]).norm()) for a in outputs for b in outputs]
        expected = error - sum(spread) / (2 * results * (results - 1))
        assert losses[i].item() == pytest.approx(expected, rel=1e-4)
    part, _ = task.losses(unet, pairs.map(lambda v: v[1:]), SEEDS[1:], step)
    torch.testing.assert_close(losses[1:], part, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(losses, task.losses(unet, pairs, SEEDS, step + calls)[0])


def test_calls_take_turns_and_only_one_is_differentiated():
    unet = tiny_unet(condition_channels=3)
    step = make_step(unet, calls=2)
    calls: list[tuple[float, bool]] = []

    def network(x: torch.Tensor, t: torch.Tensor, *others: Any) -> torch.Tensor:
        calls.append((float(t[0]), torch.is_grad_enabled()))
        return unet(x, t, *others)

    first, second = step.table.network_times.tolist()
    for turn, expected in ((0, [(first, True)]), (1, [(first, False), (second, True)])):
        calls.clear()
        losses, _ = step.losses(network, pairs_of(0), SEEDS, turn)
        assert calls == expected
        losses.sum().backward()


class Layers(nn.Sequential):
    """A module of a user."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return super().forward(x)


def test_a_wrapped_teacher_needs_its_module(make_trainer: MakeTrainer, tmp_path: Path):
    """A file has its weights alone; Python has the module, whose copy is trained, and saved again."""
    modules = (Layers(nn.Dropout(0.5), nn.Conv2d(3, 3, 1)) for _ in range(2))
    path, (network, other) = tmp_path / "teacher.pt", (wrap(module, 3) for module in modules)
    save_checkpoint(path, network, BRIDGE, image_size=8)
    with pytest.raises(
        ValueError, match=r"holds weights of a .*Layers .*network=.*--import MODULE"
    ):
        student_of(load_checkpoint(path), 2)
    student = student_of(load_checkpoint(path), 2, network=other)
    x, t = torch.rand(1, 3, 8, 8), torch.full((1,), 500.0)
    assert torch.equal(student.train()(x, t), network.eval()(x, t))  # without dropout
    settings = {"kind": DistillConfig, "further": {"task": StudentTask}, "learning_rate": 1e-2}
    trainer = make_trainer("run", student, BRIDGE, epochs=1, **settings)
    trainer.fit()
    found = load_checkpoint(newest(trainer)).build_unet(ema=False, network=other).state_dict()
    assert all(
        torch.equal(value, found[key]) for key, value in trainer.network.state_dict().items()
    )
    assert not any(torch.equal(value, found[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("bridge", "calls", "message"),
    [
        (BRIDGE, 1, "at most those that the teacher was distilled for, 1, got 2"),
        (
            BrownianBridge(max_variance=0.0, objective="residual"),
            None,
            "from noise, and .* has too little at its top",
        ),
        (
            ABridge(c_lambda=0.1),
            None,
            r"a student starts from noise, and .* has too little at its top",
        ),
    ],
)
def test_teachers_that_are_refused(bridge: Bridge, calls: int | None, message: str, tmp_path: Path):
    save_checkpoint(tmp_path / "teacher.pt", tiny_unet(condition_channels=3), bridge, calls=calls)
    with pytest.raises(ValueError, match=message):
        student_of(load_checkpoint(tmp_path / "teacher.pt"), 2)
