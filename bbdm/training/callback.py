"""Callbacks: what a training run does beside training, and what they see of the run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.loading import Batches
from bbdm.data.pairs import PairedDataset
from bbdm.execution.processes import Processes
from bbdm.networks.unet import UNet
from bbdm.training.config import TrainConfig
from bbdm.training.ema import EMA
from bbdm.training.tracking import Tracker


class Run(Protocol):
    """What callbacks use of a run, which is a :class:`~bbdm.training.trainer.Trainer`."""

    unet: UNet
    bridge: Bridge
    config: TrainConfig
    validation: PairedDataset | None
    validation_batches: Batches | None
    folder: Path
    processes: Processes
    device: torch.device
    ema: EMA
    epoch: int  # epochs done
    step: int  # optimizer steps done
    steps_per_epoch: int

    @property
    def codec(self) -> Codec | None:
        """What takes pictures to the space of the bridge; None in image space."""
        ...

    @property
    def tracker(self) -> Tracker | None:
        """TensorBoard, in the process that writes."""
        ...

    def measure_parts(self, around: Callable[[str], AbstractContextManager[None]]) -> None:
        """Enter ``around(name)`` around each part of a step from now on."""
        ...

    def validation_share(self) -> list[int]:
        """The indices of this process's validation pairs."""
        ...

    def check_stop(self) -> None:
        """Save and end the run where it was asked to end."""
        ...


class Callback:
    """Subclass it, override what is needed, and hand it to :class:`~bbdm.training.trainer.Trainer`.

    Of several processes each calls its own; ``trainer.processes.first`` says which one writes. What a run is,
    is in the trainer: ``unet``, ``ema.unet``, ``step``, ``epoch``, ``folder``, ``validation``. A
    :class:`~bbdm.base.scripts.StoppedError` ends the run with one line. A run that goes on calls
    :meth:`begin` again, and what a callback remembers is not in the checkpoint.
    """

    def begin(self, trainer: Run) -> None:
        """Before the first step."""

    def after_step(self, trainer: Run, loss: float) -> None:
        """After an optimizer step, which ``trainer.step`` counts; ``loss`` is the batch's before it."""

    def after_epoch(self, trainer: Run, metrics: dict[str, Any]) -> None:
        """After an epoch's steps and validation, before its metrics are written: numbers may be added to them."""

    def end(self, trainer: Run) -> None:
        """When the run ends, whatever ended it."""


def due(trainer: Run) -> bool:
    """Whether the epoch is one of each ``preview_every``, or the last."""
    return trainer.epoch % trainer.config.preview_every == 0 or trainer.epoch == trainer.config.epochs
