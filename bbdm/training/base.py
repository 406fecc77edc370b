"""What a training run asks of the thing that it trains: its optimizer step, its checkpoints, its pictures.

The loop over epochs is :mod:`bbdm.training.loop`. It knows no bridge and no autoencoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.weights import Snapshot
from bbdm.training.augmentation import Pair
from bbdm.training.config import Precision, RunConfig
from bbdm.training.ema import EMA
from bbdm.training.optimizers import Plateau, make_optimizer
from bbdm.training.resume import Stored, training_state
from bbdm.training.tracking import Tracker

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of samples ``first``.. of a batch: the run's seed as low word, the index as high."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and a number; a generator reads no more bits."""
    return (seed * 0x9E3779B9 + number) % 2**32


class TrainingTask(ABC):
    """An optimizer step as a function of a batch, with the state that it changes.

    ``network`` is what is trained, on the device; ``total``, the optimizer steps of the whole run, for the
    learning rate.

    Attributes:
        betas: the two decays of Adam's moments.
        replica: ``network``, compiled, and with gradients averaged over processes.
        ema: the moving average of the network's weights.
        average: the network with the averaged weights.
        tracker: TensorBoard, where it is installed, during the run, in the process that writes; else None.
    """

    betas = (0.9, 0.999)

    def __init__(self, network: Any, config: RunConfig, processes: Processes, total: int) -> None:
        self.network = network.train()
        self.config = config
        self.processes = processes
        self.total = total
        self.ema: EMA[Any] = EMA(network, config.ema_decay, config.ema_start, config.ema_every)
        self.average = self.ema.unet
        self.replica = self.parallel(network)
        self.device: torch.device = next(network.parameters()).device
        self.optimizer = make_optimizer(network, config, self.betas)
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.plateau = Plateau(config.plateau_patience)
        self.tracker: Tracker | None = None

    def parallel(self, network: nn.Module) -> Any:
        """A network, compiled where the run is, with gradients averaged over processes."""
        compiled = torch.compile(network, fullgraph=True, dynamic=False) if self.config.compile else network
        return self.processes.parallel(compiled)

    def release(self) -> None:
        """Let go of what :meth:`parallel` made, before the processes part."""
        self.replica = self.network

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the network's arithmetic."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def seeds(self, pairs: int) -> torch.Tensor:
        """The seeds of this process's share of a batch, a number of pairs."""
        return sample_seeds(self.config.seed, self.processes.rank * pairs, pairs, self.device)

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step ``step``."""
        rate = self.config.lr_at(step, self.total)
        return self.plateau.rate(rate) if self.config.lr_schedule == "plateau" else rate

    def due(self, step: int) -> Tracker | None:
        """The tracker, where it gets a point after optimizer step ``step``, counted from 0."""
        return self.tracker if self.tracker is not None and self.tracker.due(step + 1) else None

    def gradient_norm(self, step: int) -> torch.Tensor | None:
        """The norm of all gradients before they are clipped, or None where nothing needs it."""
        if self.config.grad_clip:
            return nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        if self.due(step) is not None:
            gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
            return nn.utils.get_total_norm(gradients)
        return None

    def move_weights(self, step: int) -> torch.Tensor | None:
        """Move weights and average by the gradients of step ``step``; returns :meth:`gradient_norm`."""
        norm = self.gradient_norm(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, step)
        return norm

    def record(self, step: int, norm: torch.Tensor | None, loss: float, **more: float) -> None:
        """Let the loss of optimizer step ``step`` lower later rates, and write a point where it is due."""
        self.plateau.step(loss)
        if (tracker := self.due(step)) is not None and norm is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            tracker.write(step + 1, loss=loss, learning_rate=rate, gradient_norm=norm.item(), **more)

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return bool(torch.stack([weight.isfinite().all() for weight in self.network.parameters()]).all())

    @abstractmethod
    def __call__(self, batch: Example, step: int) -> float:
        """Do optimizer step ``step`` on a batch from the data set.

        Each process passes its share of the batch; all return the loss of the whole batch before the step.
        """

    @abstractmethod
    def validation_loss(self, batch: Example, seeds: torch.Tensor) -> float:
        """The loss of the averaged weights, the sum over pairs of pictures."""

    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """Losses of the averaged weights by name, sums over pairs; ``validation_loss`` is the one of all."""
        return {"validation_loss": self.validation_loss(batch, seeds)}

    def report(self) -> dict[str, float]:
        """More metrics of the epoch that ends, the same in each process; the next epoch's begin anew."""
        return {}

    def state(self) -> dict[str, Any]:
        """The state that :meth:`load` restores, besides the network and its average."""
        parts = {"optimizer": self.optimizer, "scaler": self.scaler, "plateau": self.plateau}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state` of the same settings."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What is trained, as plain values, for the folder of the run."""

    @abstractmethod
    def snapshot(self, train: Pairs, training: dict[str, Any] | None = None) -> Snapshot:
        """The weights, trained on ``train``, to be written; with training state, all to resume from."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Any:
        """The content of a file of a :meth:`snapshot`.

        Raises:
            ValueError: it is another file, or is damaged.
        """

    @abstractmethod
    def stored(self, checkpoint: Any) -> Stored:
        """The weights in the content of a file, with its settings and those of this task."""

    def resume(self, path: Path, checkpoint: Any, train: Pairs) -> dict[str, Any]:
        """Restore weights and state from the content of ``path``; returns the training state that it holds.

        Raises:
            ValueError: it has none, or is of another run. Only the settings in
                :data:`~bbdm.training.config.FREE` may change.
        """
        stored = self.stored(checkpoint)
        state = training_state(path, stored, checkpoint.training, self.config, train)
        for network, weights in ((self.network, stored.weights), (self.average, stored.average)):
            assert weights is not None  # checked with the state
            network.load_state_dict(weights)
        self.load(state)
        return state

    @abstractmethod
    def results(self, batch: Example, seed: int | Sequence[int] = 0) -> Pair:
        """What the averaged weights make of pairs, and what that should be: both (N, C, H, W) in [-1, 1]."""

    @abstractmethod
    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """The columns of a grid of pairs by their names, each (B, C, H, W)."""
