"""What two processes hold of a training whose weights are sharded; an assertion that fails ends them."""

from typing import Any

import torch

from bbdm.bridges import BrownianBridge
from bbdm.data.examples import Example
from bbdm.execution.processes import Processes
from bbdm.execution.sharing import full, local
from bbdm.files.weights import copied
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import TrainConfig
from bbdm.training.distillation import DistillConfig, StudentTask
from tests.conftest import BRIDGE, SIZE, tiny_unet


def pairs_of(processes: Processes) -> Example:
    generator = torch.Generator().manual_seed(processes.rank)
    source, target = torch.rand(2, 2, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return Example(source, target)


def step_of(processes: Processes, done: int = 1, **settings: Any) -> BridgeTask:
    """A step that has been done a few times."""
    config = TrainConfig(batch_size=4, shard=True, **settings)
    step = BridgeTask(tiny_unet(condition_channels=3), BRIDGE, config, None, processes, latents=False, total=10)
    for index in range(done):
        step(pairs_of(processes), index)
    return step


def check_parts(processes: Processes) -> None:
    """Each process holds half of what grows with the network. The first alone gets all, to write it."""
    step = step_of(processes, done=2)
    weights, average = [*step.network.parameters()], [*step.average.parameters()]
    moments = [value for of in step.optimizer.state.values() for key, value in of.items() if key != "step"]
    assert len(moments) == 2 * len(weights)
    for tensors in (weights, average, moments):
        held = sum(local(tensor).untyped_storage().nbytes() for tensor in tensors)
        assert held < 0.52 * sum(4 * tensor.numel() for tensor in tensors), held
    restored = step_of(processes)
    found = copied(step.state())
    total = sum(each["exp_avg"].numel() for each in found["optimizer"]["state"].values())
    assert total == (sum(weight.numel() for weight in weights) if processes.first else 0)
    state = {**step.state(), "optimizer": together(step.optimizer.state_dict())}
    restored.load(state)
    for mine, theirs in zip(restored.optimizer.state.values(), step.optimizer.state.values(), strict=True):
        assert torch.equal(local(mine["exp_avg"]), local(theirs["exp_avg"]))
        assert local(mine["exp_avg"]).untyped_storage().nbytes() == local(theirs["exp_avg"]).untyped_storage().nbytes()


def together(content: Any) -> Any:
    """Containers with whole tensors."""
    if isinstance(content, dict):
        return {name: together(each) for name, each in content.items()}
    return full(content) if isinstance(content, torch.Tensor) else content


def check_overflow(processes: Processes) -> None:
    """A gradient that overflows float16 in one process alone is a step of neither."""
    step = step_of(processes, precision="fp16")
    before, scale = [local(weight).clone() for weight in step.network.parameters()], step.scaler.get_scale()
    for weight in step.network.parameters():
        weight.grad = torch.ones_like(weight)
    if processes.rank == 1:
        local(next(step.network.parameters()).grad).fill_(torch.inf)
    step.scaler.unscale_(step.optimizer)
    step.scaler.step(step.optimizer)
    step.scaler.update()
    assert step.scaler.get_scale() == scale / 2
    assert all(torch.equal(local(now), then) for now, then in zip(step.network.parameters(), before, strict=True))


def check_norm(processes: Processes) -> None:
    """The norm of all gradients is known to both, at a step whose norm the first shows."""
    step = step_of(processes)
    for weight in step.network.parameters():
        weight.grad = torch.ones_like(weight)
    norm = step.gradient_norm(49)
    assert norm is not None
    assert abs(norm.item() - sum(weight.numel() for weight in step.network.parameters()) ** 0.5) < 1e-3
    assert step.gradient_norm(48) is None


def check_student(processes: Processes) -> None:
    """A student, whose network is called several times in a step, learns the same."""
    bridge = BrownianBridge(1000, objective="pinned")
    steps: list[StudentTask] = []
    for shard in (True, False):
        config = DistillConfig(batch_size=4, shard=shard)
        steps.append(StudentTask(tiny_unet(condition_channels=3), bridge, config, None, processes, False, 10))
    for index in range(4):
        losses = [step(pairs_of(processes), index) for step in steps]
        assert abs(losses[0] - losses[1]) < 1e-5 * losses[1]
    for mine, theirs in zip(*(step.network.parameters() for step in steps), strict=True):
        torch.testing.assert_close(full(mine), theirs, rtol=0, atol=1e-6)


def check_finite(processes: Processes) -> None:
    """A weight that is not finite in one process alone is known to both."""
    step = step_of(processes)
    assert step.finite()
    if processes.rank == 1:
        local(next(step.network.parameters())).data.fill_(torch.nan)
    assert not step.finite()


if __name__ == "__main__":
    torch.set_num_threads(1)
    team = Processes.join("cpu")
    for check in (check_parts, check_overflow, check_norm, check_student, check_finite):
        check(team)
    team.leave()
