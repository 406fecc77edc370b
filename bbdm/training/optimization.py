"""How a task is learned: gradients, the optimizer and its rates, and the average of weights."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.base.scripts import StoppedError
from bbdm.data.examples import Example
from bbdm.training.task import SHARE, Task, mixed, sample_seeds

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
LOWEST_RATE = 5e-7  # that a plateau ends at
# optimizer steps before a plateau halves the rate, and of rest after, as in BBDM's code
PATIENCE = 3000
SHOWN_EVERY = 50  # optimizer steps between points in TensorBoard
LOOKED_EVERY = 10  # optimizer steps between those that wait for a GPU
DIVERGED = "Lower learning_rate or set grad_clip"
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int, int], float]


class DivergedError(StoppedError):
    """The loss, or a weight, is no longer finite."""


class EMA:
    """Exponential moving average of a network's weights, with decay min(decay, (1 + n) / (10 + n)) at step n.

    Frozen weights, which require no gradient, are those of the network itself.

    Args:
        network: whose copy it begins with.
        decay: the share of the average that an update keeps.
        start: optimizer steps during which updates copy the weights.
        every: optimizer steps from one update to the next.

    Attributes:
        network: the network with the averaged weights, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float, start: int = 0, every: int = 1) -> None:
        frozen = {id(weight): weight for weight in network.parameters() if not weight.requires_grad}
        self.network: Any = copy.deepcopy(network, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.start = start
        self.every = every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average and copy buffers after optimizer step ``step``, counted from 0, if it is due."""
        if (step + 1) % self.every:
            return
        decay = 0.0
        if step + 1 >= self.start:
            decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        for average, weight in zip(self.network.parameters(), network.parameters(), strict=True):
            if weight.requires_grad:
                averages.append(average)
                weights.append(weight)
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]  (as torch's own averages do)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)


def over_examples(means: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means of what :meth:`Task.losses` reports, those with a share over their own examples: NaN of none."""
    numbers: dict[str, torch.Tensor] = {}
    for name, value in means.items():
        share = means.get(SHARE + name)
        if share is not None:
            value = value / share
        if not name.startswith(SHARE):
            numbers[name] = value
    return numbers


class Reported:
    """Sums of what optimizer steps report, on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}  # of steps that report the same
        self._steps: Counter[tuple[str, ...]] = Counter()

    def add(self, names: Sequence[str], values: torch.Tensor) -> None:
        """Add a step's numbers (N,) by their names."""
        key = tuple(names)
        values = values.to(self._dtype)
        if key in self._sums:
            self._sums[key] += values
        else:
            self._sums[key] = values.clone()
        self._steps[key] += 1

    def means(self) -> dict[str, float]:
        """The mean of each number over the steps that reported it, or over the examples that it is of."""
        totals: dict[str, Any] = {}
        steps = Counter[str]()
        for names, sums in self._sums.items():
            for name, value in zip(names, sums, strict=True):
                totals[name] = totals.get(name, 0) + value
                steps[name] += self._steps[names]
        means = over_examples({name: total / steps[name] for name, total in totals.items()})
        return {name: float(value) for name, value in means.items()}

    def clear(self) -> None:
        """Forget all: the next report begins."""
        self._sums.clear()
        self._steps.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain values."""
        groups: list[dict[str, Any]] = []
        for names, sums in self._sums.items():
            groups.append(
                {"names": list(names), "sums": sums.tolist(), "steps": self._steps[names]}
            )
        return {"groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of :meth:`state_dict`."""
        self.clear()
        for group in state["groups"]:
            names = tuple(group["names"])
            self._sums[names] = torch.tensor(group["sums"], dtype=self._dtype, device=self._device)
            self._steps[names] = group["steps"]


class Optimization:
    """The optimizer of a task's network, with its schedule, gradients, precision and average of weights.

    Args:
        task: what is learned. Its settings and its processes are those of the optimization.
        optimizer: makes the optimizer of a list of parameters, in place of the settings'.
        schedule: the factor of the learning rates at (step, total steps), in place of the settings'.
        total: the optimizer steps of the whole run, for the learning rate.

    Attributes:
        parts: the number of equal parts that a batch is computed in.
        replica: the network, compiled where the run is, and with gradients averaged over processes.
        ema: the average of the weights.
        reported: what the steps since the last report reported.
        last: what the last step reported of the whole batch, the learning rate and, each 50 steps or where it
            is clipped, the norm of the gradients. Numbers are tensors on the device.
        asked: the share of processes that asked all to end before the last step, a scalar on the device.
    """

    def __init__(
        self,
        task: Task,
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: Schedule | None = None,
        total: int = 1,
    ) -> None:
        config = task.config
        network = task.network
        self.task = task
        self.config = config
        self.processes = task.processes
        self.device = task.device
        self.total = total
        self.parts = config.parts
        self.ema = EMA(network, config.ema_decay, config.ema_start, config.ema_every)
        self.replica: Any = self.parallel(network)
        self.reported = Reported(self.device)
        self.last: dict[str, Any] = {}
        self.asked = torch.zeros((), device=self.device)
        self._watched = torch.zeros((), device=self.device)  # sum of the losses since the last look
        self._draws = any(isinstance(module, DROPOUT) and module.p for module in network.modules())
        self._make_optimizer = optimizer
        self._schedule = schedule
        self._rates: list[tuple[torch.optim.Optimizer, list[float]]] = []
        self.optimizer = self.new_optimizer(network)
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._stateful: dict[str, Any] = {
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "reported": self.reported,
        }
        self.plateau: ReduceLROnPlateau | None = None
        # of a scale: the rate itself warms up, and may change in a resume
        if config.lr_schedule == "plateau":
            scale = torch.optim.SGD([torch.zeros(())], lr=1.0)
            self.plateau = ReduceLROnPlateau(
                scale, factor=0.5, patience=PATIENCE, cooldown=PATIENCE, eps=0
            )
            self._stateful |= {"plateau": self.plateau, "scale": scale}
        task.average = self.ema.network
        task.begin(self)

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of a network's trained weights, whose rates follow the schedule."""
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if self._make_optimizer is not None:
            optimizer = self._make_optimizer(trained)
        else:
            optimizer = torch.optim.AdamW(
                trained,
                lr=self.config.learning_rate,
                betas=self.task.betas,
                weight_decay=self.config.weight_decay,
                fused=True,
            )
        self._rates.append((optimizer, [group["lr"] for group in optimizer.param_groups]))
        return optimizer

    def compiled(self, network: nn.Module) -> Any:
        """A network, compiled where the run is."""
        if not self.config.compile:
            return network
        return torch.compile(network, fullgraph=True, dynamic=False)

    def parallel(self, network: nn.Module) -> Any:
        """A network, compiled where the run is, with gradients averaged over processes."""
        return self.processes.parallel(self.compiled(network))

    def release(self) -> None:
        """Let go of what :meth:`parallel` returned, before the processes part."""
        self.replica = None
        self.task.release()

    def rate(self, step: int, rate: float) -> float:
        """The learning rate of optimizer step ``step``, where the optimizer was created with ``rate``."""
        if self._schedule is not None:
            return rate * self._schedule(step, self.total)
        rate *= min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        if self.config.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total)))
        if self.plateau is None:
            return rate
        scale = self.plateau.optimizer.param_groups[0]["lr"]
        return min(rate, max(LOWEST_RATE, rate * scale))

    # One step

    def step(self, batch: Example, step: int, asks: bool = False) -> torch.Tensor:
        """Do optimizer step ``step``, counted from 0, on a batch from the data set, on the device.

        Each process passes its share of the batch, and whether it asks all to end.

        Returns:
            The loss of the whole batch before the step, a scalar on the device: to read it waits for a GPU.

        Raises:
            DivergedError: the loss is not finite. The network's weights are those of before the step. On a
                GPU it comes up to :data:`LOOKED_EVERY` steps later, and such steps change no weight of it.
        """
        if self._draws:
            torch.manual_seed(
                mixed(self.config.seed, step * self.processes.count + self.processes.rank)
            )
        for optimizer, rates in self._rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = self.rate(step, rate)
        minimised, shares = self._gradients(batch, step)
        asking = torch.full_like(minimised, float(asks))
        means = (
            self.processes.total(torch.stack([minimised, asking, *shares.values()]))
            / self.processes.count
        )
        self.asked = means[1]
        self.reported.add([*shares], means[2:])
        numbers = over_examples(dict(zip(shares, means[2:], strict=True)))
        loss = numbers["loss"]
        self._guard(means[0] + loss, step)  # not finite where either is
        self.scaler.unscale_(self.optimizer)
        norm = self._clipped(step)
        self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.task.network, step)
        if self.plateau is not None:
            self.plateau.step(float(loss))
        self.task.after_step(step)
        self.last = {**numbers, "learning_rate": self.optimizer.param_groups[0]["lr"], **norm}
        return loss

    def _gradients(self, batch: Example, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the gradients of the batch, part by part.

        Returns:
            Of this process's share, what is minimised, and what is reported by name.
        """
        count = len(batch.source)
        seeds = sample_seeds(self.config.seed, self.processes.rank * count, count, self.device)
        size = math.ceil(count / self.parts)
        totals: dict[str, torch.Tensor] = {}
        minimised = torch.zeros((), device=self.device)
        for start in range(0, count, size):
            rows = slice(start, start + size)
            part = self.task.prepared(batch.map(lambda v, rows=rows: v[rows]), seeds[rows], step)
            parts = count / len(part.source)  # of this size in the batch
            is_last = start + size >= count
            with nullcontext() if is_last else self.processes.alone(self.replica):
                losses, reported = self.task.losses(self.replica, part, seeds[rows], step)
                mean = losses.mean()
                self.scaler.scale(mean / parts).backward()
            minimised = minimised + mean.detach().float() / parts
            for name, value in {"loss": mean, **reported}.items():
                share = value.detach().float() / parts
                totals[name] = totals[name] + share if name in totals else share
        return minimised, totals

    def _clipped(self, step: int) -> dict[str, torch.Tensor]:
        """Clip the gradients; their norm where it is computed."""
        shown = (step + 1) % SHOWN_EVERY == 0
        if not self.config.grad_clip and not shown:
            return {}
        limit = self.config.grad_clip or math.inf
        return {"gradient_norm": nn.utils.clip_grad_norm_(self.task.network.parameters(), limit)}

    # Divergence

    def looks(self, step: int) -> bool:
        """Whether optimizer step ``step``, counted from 0, waits for the device."""
        return self.device.type == "cpu" or not self._skips or (step + 1) % LOOKED_EVERY == 0

    @property
    def _skips(self) -> bool:
        """Whether the optimizer itself skips a step whose loss is not finite, without waiting."""
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        return fused and self.plateau is None

    def _guard(self, loss: torch.Tensor, step: int) -> None:
        """Let no weight of the network move by a loss that is not finite."""
        self._watched = self._watched + loss
        if self.looks(step):
            self.check(step + 1)
        elif not self.scaler.is_enabled():  # which skips such steps too
            self.optimizer.found_inf = (~loss.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]  (fused optimizers read it)

    def check(self, step: int) -> None:
        """Raise DivergedError where a loss since the last look is not finite, after ``step`` steps."""
        loss = float(self._watched)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step}")
        self._watched = torch.zeros((), device=self.device)

    def check_weights(self, step: int) -> None:
        """Raise DivergedError where a weight that a checkpoint holds is not finite, after ``step`` steps."""
        modules = [self.task.network]
        modules += [part for part in self.task.stateful.values() if isinstance(part, nn.Module)]
        finite = [weight.isfinite().all() for module in modules for weight in module.parameters()]
        if not torch.stack(finite).all():
            raise DivergedError(f"weights are not finite at step {step}")

    # Files

    def state(self) -> dict[str, Any]:
        """The training state besides the network and its average."""
        stateful = {**self._stateful, **self.task.stateful}
        state: dict[str, Any] = {name: part.state_dict() for name, part in stateful.items()}
        return {**state, "config": asdict(self.config)}

    def restore(self, network: Any, state: Mapping[str, Any]) -> None:
        """Take the network that a task's ``stored`` returned, with its average, and a :meth:`state`.

        Raises:
            ValueError: the state is of another version of this library; nothing is taken.
        """
        parts = {**self._stateful, **self.task.stateful}
        missing = sorted(parts.keys() - state.keys())
        if missing:
            raise ValueError(
                f"the run is of another version of bbdm, without {missing[0]!r}: begin anew in another folder "
                "(experiment), or overwrite it"
            )
        self.task.network.load_state_dict(network.weights)
        self.task.average.load_state_dict(network.ema)
        for name, part in parts.items():
            part.load_state_dict(state[name])
