"""Callbacks, which a training run calls at fixed points, and the part of a run that they use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from bbdm.data.latents import LatentDataset
from bbdm.data.loading import Batches
from bbdm.data.pairs import PairedDataset
from bbdm.execution.processes import Processes
from bbdm.training.base import TrainingTask
from bbdm.training.config import RunConfig
from bbdm.training.tracking import Tracker


class Run(Protocol):
    """The part of a :class:`~bbdm.training.loop.Training` that callbacks use.

    That of a bridge, a :class:`~bbdm.training.trainer.Trainer`, also has ``unet``, its average ``ema.unet``,
    ``bridge`` and ``codec``.
    """

    update: TrainingTask  # what is trained; its averaged weights make results
    config: RunConfig
    train: PairedDataset | LatentDataset
    validation: PairedDataset | None
    validation_batches: Batches | None
    folder: Path
    processes: Processes
    device: torch.device
    epoch: int  # epochs done
    step: int  # optimizer steps done
    steps_per_epoch: int
    total_steps: int
    resumed_from: Path | None  # the checkpoint of the last resume

    @property
    def tracker(self) -> Tracker | None:
        """TensorBoard, where it is installed, in the process that writes; None otherwise."""

    def validation_share(self) -> list[int]:
        """The indices of this process's validation pairs."""
        ...

    def check_stop(self) -> None:
        """Save and end the run if it was asked to end."""


class Callback:
    """Base class of the callbacks of a :class:`~bbdm.training.loop.Training`: override what is needed.

    Each of several processes calls its own callbacks; ``trainer.processes.first`` is true in the one that
    writes files. ``trainer`` has the state of the run: see :class:`Run`. A callback ends the run by raising
    :class:`~bbdm.base.scripts.StoppedError`. A resumed run calls :meth:`begin` again; the state of a callback
    is not in the checkpoint.
    """

    def begin(self, trainer: Run) -> None:
        """Called before the first step."""

    def after_step(self, trainer: Run, loss: float) -> None:
        """Called after optimizer step ``trainer.step``; ``loss`` is the loss of its batch before the step."""

    def after_epoch(self, trainer: Run, metrics: dict[str, Any]) -> None:
        """Called after an epoch's steps and validation; may add numbers to ``metrics``."""

    def end(self, trainer: Run) -> None:
        """Called when the run ends, after an error too."""


def due(trainer: Run) -> bool:
    """Whether previews are due: at each ``preview_every``-th epoch and after the last."""
    return trainer.epoch % trainer.config.preview_every == 0 or trainer.epoch == trainer.config.epochs
