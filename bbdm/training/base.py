"""What a training run asks of the thing that it trains: its optimizer step, its checkpoints, its pictures.

The loop over epochs is :mod:`bbdm.training.loop`. It knows no bridge and no autoencoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bbdm.base.atomic import Write, write_atomically
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import PairedDataset
from bbdm.execution.processes import Processes
from bbdm.execution.sharing import own, restore_optimizer, whole
from bbdm.pictures.images import Size
from bbdm.training.config import Precision, RunConfig
from bbdm.training.ema import EMA
from bbdm.training.optimizers import Plateau, make_optimizer
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

    Args:
        unet: the network that is trained, on the device.
        config: the settings of the run.
        processes: those that share the work.
        total: the optimizer steps of the whole run, for the learning rate.
        betas: of Adam.

    Attributes: the arguments; ``network``, which is ``unet`` compiled and with gradients averaged over
    processes; ``ema``, its moving average; ``optimizer``; ``tracker``, TensorBoard or None; ``part``, a
    context that is entered with the name of each part of a step; and ``shared``, whether processes share out
    weights, average and optimizer. Then all must call what reads all weights, such as :meth:`save`.
    """

    shared = False

    def __init__(
        self,
        unet: Any,
        config: RunConfig,
        processes: Processes,
        total: int,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.unet = unet.train()
        self.config = config
        self.processes = processes
        self.total = total
        self.ema: EMA[Any] = EMA(unet, config.ema_decay, config.ema_start, config.ema_every)
        self.network = self.parallel(unet)
        self.device: torch.device = next(unet.parameters()).device
        self.optimizer = make_optimizer(unet, config, betas)
        self.plateau = Plateau(config.plateau_patience)
        self.tracker: Tracker | None = None
        self.part: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def parallel(self, network: nn.Module) -> Any:
        """A network, compiled where the run is, with gradients averaged over processes."""
        compiled = torch.compile(network, fullgraph=True, dynamic=False) if self.config.compile else network
        return self.processes.parallel(compiled)

    def release(self) -> None:
        """Let go of what :meth:`parallel` made, before the processes part."""
        self.network = self.unet

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the network's arithmetic."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

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
            return whole(torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.config.grad_clip))
        if self.due(step) is not None or (self.shared and Tracker.due(step + 1)):
            return whole(torch.nn.utils.get_total_norm([p.grad for p in self.unet.parameters() if p.grad is not None]))
        return None

    def finite(self) -> bool:
        """Whether all weights are finite."""
        finite = torch.stack([own(weight).isfinite().all() for weight in self.unet.parameters()]).all()
        return not self.processes.sum(float(~finite)) if self.shared else bool(finite)

    def averaged(self) -> AbstractContextManager[None]:
        """A context for what calls the averaged weights."""
        return nullcontext()

    @abstractmethod
    def __call__(self, y: torch.Tensor, x0: torch.Tensor, step: int) -> float:
        """Do optimizer step ``step`` on a batch of sources and targets from the data set.

        Each process passes its share of the batch; all return the loss of the whole batch before the step.
        """

    @abstractmethod
    def validation_loss(self, y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor) -> float:
        """The loss of the averaged weights, the sum over pairs of pictures."""

    def report(self) -> dict[str, float]:
        """More metrics of the epoch that ends, the same in each process; the next epoch's begin anew."""
        return {}

    def state(self) -> dict[str, Any]:
        """The state that :meth:`load` restores, besides the network and its average."""
        return {"optimizer": self.optimizer.state_dict(), "plateau": self.plateau.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state` of the same settings."""
        restore_optimizer(self.optimizer, state["optimizer"])
        self.plateau = Plateau(self.config.plateau_patience, **state["plateau"])

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What is trained, as plain values, for the folder of the run."""

    @abstractmethod
    def save(
        self,
        path: Path,
        image_size: Size,
        training: dict[str, Any] | None = None,
        write: Write = write_atomically,
    ) -> None:
        """Write the weights; with training state, all that a run resumes from.

        ``write`` may be called later than this returns: see :func:`~bbdm.files.checkpoint.save_checkpoint`.
        """

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Any:
        """The content of a file that :meth:`save` wrote.

        Raises:
            ValueError: it is another file, or is damaged.
        """

    @abstractmethod
    def resume(self, path: Path, checkpoint: Any, train: PairedDataset | LatentDataset) -> dict[str, Any]:
        """Restore weights and state from the content of ``path``; returns the training state that it holds.

        Raises:
            ValueError: it has none, or is of another run.
        """

    @abstractmethod
    def results(
        self, y: torch.Tensor, x0: torch.Tensor, seed: int | Sequence[int] = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the averaged weights make of pairs, and what that should be: both (N, C, H, W) in [-1, 1]."""

    @abstractmethod
    def columns(self, y: torch.Tensor, x0: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns of a grid of pairs by their names, each (B, C, H, W)."""
