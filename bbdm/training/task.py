"""What a training run trains, and one optimizer step of it: a batch in, new weights and their average out.

The loop over epochs is :mod:`bbdm.training.trainer`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.amp import GradScaler

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.weights import Snapshot
from bbdm.training.batches import augment, mixed, sample_seeds
from bbdm.training.config import Precision, RunConfig
from bbdm.training.optimizers import EMA, MakeOptimizer, Plateau, make_optimizer, trained

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
Forward = Callable[..., torch.Tensor]  # of a network
Losses = tuple[torch.Tensor, Mapping[str, torch.Tensor]]
Schedule = Callable[[int, int], float]
Timed = list[tuple[torch.Tensor, torch.Tensor]]  # losses and their times, both (B,)
SHOWN_EVERY = 50  # optimizer steps between points in TensorBoard


class Step(NamedTuple):
    """What an optimizer step did, for those who show it."""

    means: dict[str, float]  # over the whole batch, of what it reported
    rate: float  # of learning
    norm: torch.Tensor | None  # of the gradients, where it was due
    timed: Timed  # this process's losses and their times, of each part


class Task(ABC):
    """What is trained: a network, the loss that it minimises, and an optimizer step, with all its state.

    Args:
        network: what is trained; it is moved to the device of ``processes``.
        config: the settings of the run.
        train: the pairs to learn from; None where batches come from elsewhere.
        processes: the processes that share the work; None for this one alone.
        optimizer: makes the optimizer of a list of parameters, in place of the settings'.
        schedule: the factor of the learning rates at (step, total steps), in place of the settings'.
        total: the optimizer steps of the whole run, for the learning rate; None for those of ``train``.

    Attributes:
        betas: the two decays of Adam's moments.
        parts: the equal parts that a batch is computed in.
        replica: ``network``, compiled, and with gradients averaged over processes.
        average: the network with the averaged weights.
        stateful: what else a checkpoint holds the state of, by name.
        last: what the last optimizer step did.

    Raises:
        ValueError: fewer pairs than one batch, or processes and parts that do not share it equally.
    """

    betas = (0.9, 0.999)
    parts = 1
    times: tuple[float, float] = (0.0, 1.0)  # where the times of training begin, and where they end

    def __init__(
        self,
        network: Any,
        config: RunConfig,
        train: Pairs | None = None,
        processes: Processes | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: Schedule | None = None,
        total: int | None = None,
    ) -> None:
        self.processes = Processes(next(network.parameters()).device) if processes is None else processes
        self.device = self.processes.device
        self.config = config
        self.train = train
        if train is not None:
            size, count, shares = config.batch_size, len(train), self.parts * self.processes.count
            if size > count:
                raise ValueError(f"batch_size must be at most the {count} training pairs, got {size}")
            if size % shares:
                parts = "" if self.parts == 1 else f" and grad_accumulation={self.parts}"
                raise ValueError(
                    f"batch_size {size} does not split into equal parts for {self.processes.count} processes{parts}"
                )
            total = config.epochs * (count // size)
        self.total = total or 1
        self.network = network.to(self.device).train()
        self.random = any(isinstance(module, DROPOUT) and module.p for module in network.modules())
        self.ema: EMA[Any] = EMA(network, config.ema_decay, config.ema_start, config.ema_every)
        self.average = self.ema.network
        self.replica = self.parallel(network)
        self._make_optimizer, self._schedule = optimizer, schedule
        self._rates: list[tuple[torch.optim.Optimizer, list[float]]] = []
        self.optimizer = self.new_optimizer(network)
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.plateau = Plateau(config.plateau_patience)
        self.stateful: dict[str, Any] = {"optimizer": self.optimizer, "scaler": self.scaler, "plateau": self.plateau}
        self.sums: Counter[str] = Counter()  # of what losses report, since the epoch began
        self.counted: Counter[str] = Counter()  # the steps that reported it
        self.last: Step | None = None

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of a network's trained weights, whose rates follow the schedule."""
        make = self._make_optimizer
        optimizer = make_optimizer(network, self.config, self.betas) if make is None else make(trained(network))
        self._rates.append((optimizer, [group["lr"] for group in optimizer.param_groups]))
        return optimizer

    def parallel(self, network: nn.Module) -> Any:
        """A network, compiled where the run is, with gradients averaged over processes."""
        compiled = torch.compile(network, fullgraph=True, dynamic=False) if self.config.compile else network
        return self.processes.parallel(compiled)

    def release(self) -> None:
        """Let go of the result of :meth:`parallel`, before the processes part."""
        self.replica = self.network

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the network's arithmetic."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def rate(self, step: int, rate: float) -> float:
        """The learning rate of optimizer step ``step``, where the optimizer was created with ``rate``."""
        if self._schedule is not None:
            return rate * self._schedule(step, self.total)
        rate *= min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        if self.config.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total)))
        return self.plateau.rate(rate) if self.config.lr_schedule == "plateau" else rate

    # One optimizer step

    def __call__(self, batch: Example, step: int) -> float:
        """Do optimizer step ``step``, counted from 0, on a batch from the data set, on the device.

        Each process passes its share of the batch; all return the loss of the whole batch before the step.
        """
        if self.random:
            torch.manual_seed(mixed(self.config.seed, step * self.processes.count + self.processes.rank))
        for optimizer, rates in self._rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = self.rate(step, rate)
        reported, timed = self._gradients(batch, step)
        norm = None
        if self.config.grad_clip:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        elif (step + 1) % SHOWN_EVERY == 0:
            norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, step)
        self.after_step(step)
        sums = self.processes.total(torch.stack([*reported.values()])).tolist()  # waits for the device
        means = {name: value / self.processes.count for name, value in zip(reported, sums, strict=True)}
        self.sums.update(means)
        self.counted.update(means.keys())
        self.plateau.step(means["loss"])
        self.last = Step(means, self.optimizer.param_groups[0]["lr"], norm, timed)
        return means["loss"]

    def _gradients(self, batch: Example, step: int) -> tuple[dict[str, torch.Tensor], Timed]:
        """Compute the gradients of the batch, part by part; returns what this process's share reports."""
        count, found, timed = len(batch.source), dict[str, torch.Tensor](), Timed()
        all_seeds = sample_seeds(self.config.seed, self.processes.rank * count, count, self.device)
        size = -(-count // self.parts)
        for start in range(0, count, size):
            rows = slice(start, start + size)
            part, seeds = batch.map(lambda v, rows=rows: v[rows]), all_seeds[rows]
            with nullcontext() if start + size >= count else self.processes.alone(self.replica):
                losses, reported = self.losses(self.replica, self.prepared(part, seeds, step), seeds, step)
                mean = losses.mean()
                self.scaler.scale(mean / self.parts).backward()
            if "t" in reported:
                timed.append((losses.detach(), reported["t"]))
            for name, value in {"loss": mean, **reported}.items():
                if name != "t":
                    found[name] = found.get(name, 0) + value.detach().float() / self.parts
        self.scaler.unscale_(self.optimizer)
        return found, timed

    def prepared(self, batch: Example, seeds: torch.Tensor, step: int) -> Example:
        """The batch that :meth:`losses` gets, of one from the data set: mirrored and moved."""
        return augment(batch, seeds, step, self.config)

    @abstractmethod
    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses, whose mean is minimised, and what is reported.

        Args:
            network: :attr:`replica`, or in validation :attr:`average`.
            batch: what :meth:`prepared` returned of a batch.
            seeds: (B,) int64, one for each example, of what is drawn.
            step: the number of the optimizer step.

        Returns:
            The losses, (B,) or a scalar, and scalars by name, whose means over an epoch are metrics. ``loss``
            among them is what is reported in place of the mean of the losses; ``t``, (B,), are the times of
            the losses, which TensorBoard shows by their quarters.
        """

    def after_step(self, step: int) -> None:  # noqa: B027  (most have nothing to do)
        """Called when optimizer step ``step`` has moved the weights."""

    def report(self) -> dict[str, float]:
        """More metrics of the epoch that ends, the same in each process; the next epoch's begin anew."""
        found = {name: value / self.counted[name] for name, value in self.sums.items() if name != "loss"}
        self.sums.clear()
        self.counted.clear()
        return found

    # Validation, and pictures of the averaged weights

    @abstractmethod
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """Losses of the averaged weights by name, sums over pairs; ``validation_loss`` is the one of all."""

    @abstractmethod
    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """The columns of a grid of pairs by their names, each (B, C, H, W)."""

    # Files

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What is trained, as plain values, for the folder of the run."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Any:
        """The content of a file of a :meth:`snapshot`.

        Raises:
            ValueError: it is another file, or is damaged.
        """

    @abstractmethod
    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The content of a file of the weights; with training state, all to resume from."""

    @abstractmethod
    def stored(self, checkpoint: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The network in the content of a file, with its settings and those of this task."""

    def state(self) -> dict[str, Any]:
        """The training state besides the network and its average."""
        parts = {name: part.state_dict() for name, part in self.stateful.items()}
        return {**parts, "sums": dict(self.sums), "counted": dict(self.counted)}

    def resume(self, path: Path, checkpoint: Any, pairs: Mapping[str, Any]) -> dict[str, Any]:
        """Restore weights and state from the content of ``path``; returns the training state that it holds.

        ``pairs`` describes the training pairs.

        Raises:
            ValueError: it has none, or is of another run. Only the settings in
                :data:`~bbdm.training.config.FREE` may change; functions are not compared.
        """
        network, stored, own = self.stored(checkpoint)
        state = checkpoint.training
        if state is None:
            raise ValueError(f"{path} holds no training state: a run resumes only from one of its step_*.pt files")
        stored, own = {**stored, **state["config"]}, {**own, **self.config.compared()}
        changed = [f"{name}={stored[name]}" for name, value in own.items() if stored.get(name, value) != value]
        old = dict(state["pairs"])
        if not changed and old != pairs:
            both = {name: (old.get(name), pairs.get(name)) for name in {**pairs, **old} if "names" not in name}
            changed = [f"{name}={was} of the pairs, not {now}" for name, (was, now) in both.items() if was != now]
            changed = changed or ["pairs of other names"]
        if changed:
            raise ValueError(
                f"{path} was trained with {', '.join(changed)}: resume with the same, begin anew in another "
                "folder (experiment), or overwrite this run"
            )
        self.network.load_state_dict(network.weights)
        self.average.load_state_dict(network.ema)
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.sums, self.counted = Counter(state["sums"]), Counter(state["counted"])
        return state
