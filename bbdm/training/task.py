"""What a training run trains, and one optimizer step of it: a batch in, new weights and their average out.

What is drawn for an example is a function of (run seed, optimizer step, index in the batch), so a resumed run
sees what an uninterrupted run sees. The loop over epochs is :mod:`bbdm.training.trainer`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.weights import Snapshot
from bbdm.kernels import philox
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.training.config import Precision, RunConfig

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
Forward = Callable[..., torch.Tensor]  # of a network
Losses = tuple[torch.Tensor, Mapping[str, torch.Tensor]]
Schedule = Callable[[int, int], float]
LOWEST_RATE = 5e-7  # that a plateau ends at
PATIENCE = 3000  # optimizer steps before a plateau halves the rate, and of rest after, as in BBDM's code
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
SHOWN_EVERY = 50  # optimizer steps between points in TensorBoard


def sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of samples ``first``.. of a batch: the run's seed as low word, the index as high."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and a number; a generator reads no more bits."""
    return (seed * 0x9E3779B9 + number) % 2**32


def broadcast(values: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Numbers of examples (B,) as (B, 1, ...), with the axes of ``over``."""
    return values.view(-1, *[1] * (over.ndim - 1))


class EMA:
    """Exponential moving average of a network's weights, with decay min(decay, (1 + n) / (10 + n)) at step n.

    Args:
        network: whose copy it begins with.
        decay: the share of the average that an update keeps.
        start: optimizer steps during which updates copy the weights.
        every: optimizer steps from one update to the next.

    Attributes:
        network: the network with the averaged weights, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float, start: int = 0, every: int = 1) -> None:
        self.network: Any = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.start, self.every = decay, start, every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average and copy buffers after optimizer step ``step``, counted from 0, if it is due."""
        if (step + 1) % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if step + 1 >= self.start else 0.0
        averages: list[torch.Tensor] = [*self.network.parameters()]
        weights: list[torch.Tensor] = [*network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


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
        autocast: the context of the network's arithmetic, ``with self.autocast():``.
        stateful: what else a checkpoint holds the state of, by name.
        last: what the last optimizer step reported of the whole batch, the learning rate and, each 50 steps
            or where it is clipped, the norm of the gradients.
        paired: whether the sources and the targets of examples must belong together.

    Raises:
        ValueError: fewer pairs than one batch, or processes and parts that do not share it equally.
    """

    betas = (0.9, 0.999)
    parts = 1
    paired = True
    critic: Any = None  # the adversary of a task that has one, as ``replica`` is of the network

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
        self.device, self.config, self.train, self.total = self.processes.device, config, train, total or 1
        if train is not None:
            size, count, several = config.batch_size, len(train), self.processes.count
            if size > count:
                raise ValueError(f"batch_size must be at most the {count} training pairs, got {size}")
            if size % (several * self.parts):
                raise ValueError(f"batch_size {size} does not split into {several} processes x {self.parts} parts")
            self.total = config.epochs * (count // size)
        self.network = network.to(self.device).train()
        self.random = any(isinstance(module, DROPOUT) and module.p for module in network.modules())
        self.ema = EMA(network, config.ema_decay, config.ema_start, config.ema_every)
        self.average = self.ema.network
        self.replica: Any = self.parallel(network)
        self._make_optimizer, self._schedule = optimizer, schedule
        self._rates: list[tuple[torch.optim.Optimizer, list[float]]] = []
        self.optimizer = self.new_optimizer(network)
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.stateful: dict[str, Any] = {"optimizer": self.optimizer, "scaler": self.scaler}
        self.plateau: ReduceLROnPlateau | None = None
        if config.lr_schedule == "plateau":  # of a scale: the rate itself warms up, and may change in a resume
            scale = torch.optim.SGD([torch.zeros(())], lr=1.0)
            self.plateau = ReduceLROnPlateau(scale, factor=0.5, patience=PATIENCE, cooldown=PATIENCE, eps=0)
            self.stateful |= {"plateau": self.plateau, "scale": scale}
        self.sums: Counter[str] = Counter()  # of what losses report, since the epoch began
        self.counted: Counter[str] = Counter()  # the steps that reported it
        self.last: dict[str, Any] = {}
        dtype = AUTOCAST.get(config.precision)
        self.autocast = partial(torch.autocast, self.device.type, dtype, enabled=dtype is not None)

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of a network's trained weights, whose rates follow the schedule."""
        about = {"lr": self.config.learning_rate, "weight_decay": self.config.weight_decay, "betas": self.betas}
        make: Any = self._make_optimizer or partial(torch.optim.AdamW, fused=True, **about)
        optimizer: torch.optim.Optimizer = make([each for each in network.parameters() if each.requires_grad])
        self._rates.append((optimizer, [group["lr"] for group in optimizer.param_groups]))
        return optimizer

    def parallel(self, network: nn.Module) -> Any:
        """A network, compiled where the run is, with gradients averaged over processes."""
        compiled = torch.compile(network, fullgraph=True, dynamic=False) if self.config.compile else network
        return self.processes.parallel(compiled)

    def release(self) -> None:
        """Let go of what :meth:`parallel` returned, before the processes part."""
        self.replica = self.critic = None

    def rate(self, step: int, rate: float) -> float:
        """The learning rate of optimizer step ``step``, where the optimizer was created with ``rate``."""
        if self._schedule is not None:
            return rate * self._schedule(step, self.total)
        rate *= min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        if self.config.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total)))
        if self.plateau is None:
            return rate
        return min(rate, max(LOWEST_RATE, rate * self.plateau.optimizer.param_groups[0]["lr"]))

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
        reported = self._gradients(batch, step)
        self.scaler.unscale_(self.optimizer)
        norm: dict[str, Any] = {}
        if self.config.grad_clip or (step + 1) % SHOWN_EVERY == 0:
            limit = self.config.grad_clip or math.inf
            norm["gradient_norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, step)
        sums = self.processes.total(torch.stack([*reported.values()])).tolist()  # waits for the device
        means = {name: value / self.processes.count for name, value in zip(reported, sums, strict=True)}
        self.sums.update(means)
        self.counted.update(means.keys())
        if self.plateau is not None:
            self.plateau.step(means["loss"])
        self.last = {**means, "learning_rate": self.optimizer.param_groups[0]["lr"], **norm}
        return means["loss"]

    def _gradients(self, batch: Example, step: int) -> dict[str, torch.Tensor]:
        """Compute the gradients of the batch, part by part; returns what this process's share reports."""
        count, found = len(batch.source), dict[str, torch.Tensor]()
        all_seeds = sample_seeds(self.config.seed, self.processes.rank * count, count, self.device)
        size = -(-count // self.parts)
        for start in range(0, count, size):
            rows = slice(start, start + size)
            part, seeds = batch.map(lambda v, rows=rows: v[rows]), all_seeds[rows]
            with nullcontext() if start + size >= count else self.processes.alone(self.replica):
                losses, reported = self.losses(self.replica, self.prepared(part, seeds, step), seeds, step)
                mean = losses.mean()
                self.scaler.scale(mean / self.parts).backward()
            for name, value in {"loss": mean, **reported}.items():
                found[name] = found.get(name, 0) + value.detach().float() / self.parts
        return found

    def prepared(self, batch: Example, seeds: torch.Tensor, step: int) -> Example:
        """The batch that :meth:`losses` gets, of one from the data set: mirrored and moved.

        All images are, alike: tensors of four axes or more. Pictures (H, W) and volumes (D, H, W) are
        mirrored along W, and moved by whole pixels; they go on as at their edge.
        """
        sides, share, axes = batch.source.shape[2:], self.config.shift, batch.source.ndim - 2
        mirrored = philox.flips(seeds, step) if self.config.flip else None
        drawn = philox.uniforms(seeds, step, axes) * 2 - 1 if share else None  # across, down, of volumes deep

        def changed(v: torch.Tensor) -> torch.Tensor:
            if v.ndim < 4:
                return v
            if mirrored is not None:
                v = torch.where(broadcast(mirrored, v), v.flip(-1), v)
            if drawn is not None:
                for axis, side in enumerate(reversed(sides)):
                    moved = torch.round(drawn[:, axis] * share * side).long()[:, None]
                    index = (torch.arange(side, device=v.device) + moved).clamp(0, side - 1)
                    index = index.view(len(v), *[1] * (axes - axis), side, *[1] * axis)
                    v = v.gather(v.ndim - 1 - axis, index.expand(v.shape))
                v = v.contiguous(memory_format=CHANNELS_LAST[v.ndim])
            return v

        return batch.map(changed) if self.config.flip or share else batch

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
            among them is what is reported in place of the mean of the losses.
        """

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
        """What is trained, as plain values: for the run's folder, and compared when it resumes."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Any:
        """The content of a file of a :meth:`snapshot`; ValueError where it is another file, or is damaged."""

    @abstractmethod
    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The content of a file of the weights; with training state, all to resume from."""

    @abstractmethod
    def stored(self, checkpoint: Any) -> tuple[Any, dict[str, Any]]:
        """The network in the content of a file, and the :attr:`description` of what was trained there."""

    def state(self) -> dict[str, Any]:
        """The training state besides the network and its average."""
        parts = {name: part.state_dict() for name, part in self.stateful.items()}
        return {**parts, "sums": dict(self.sums), "counted": dict(self.counted), "config": asdict(self.config)}

    def restore(self, network: Any, state: Mapping[str, Any]) -> None:
        """Take the network of :meth:`stored`, with its average, and what :meth:`state` returned."""
        self.network.load_state_dict(network.weights)
        self.average.load_state_dict(network.ema)
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.sums, self.counted = Counter(state["sums"]), Counter(state["counted"])
