"""A training run in TensorBoard."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from bbdm.training.callback import Callback

EVERY = 50  # optimizer steps between points
BY_STEP = {"epoch", "step", "loss", "learning_rate"}
QUARTERS = 4


class TensorBoard(Callback):
    """Writes the events of a run to its folder, in the process that writes, where TensorBoard is installed.

    What a step reports is written every 50 steps, and the metrics and the images of each epoch. Points that
    an earlier process wrote of later steps are not shown.
    """

    _writer: Any = None

    def begin(self, trainer: Any) -> None:
        """Open the folder of the events."""
        if not trainer.processes.first:
            return
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(trainer.run.events), purge_step=trainer.step + 1)
        self._by_time = LossesByTime(trainer.task.times, trainer.device)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Write what the step reported, if that is due."""
        if self._writer is None:
            return
        step = trainer.task.last
        for losses, t in step.timed:
            self._by_time.add(losses, t)
        if trainer.step % EVERY == 0:
            about = {"learning_rate": step.rate, "gradient_norm": step.norm.item()}
            self._write(trainer.step, {**step.means, **about, **self._by_time.take()})

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the metrics of an epoch, except those that are written by step, and its images."""
        if self._writer is None:
            return
        shown = {name: value for name, value in metrics.items() if name not in BY_STEP}
        self._write(trainer.step, {**shown, "loss of the epoch": metrics["loss"]})
        for name, image in trainer.images.items():
            self._writer.add_image(name, np.asarray(image), trainer.step, dataformats="HWC")

    def end(self, trainer: Any) -> None:
        """Write the remaining points; a full disk loses them without an error."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Write a point of each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class LossesByTime:
    """The mean losses of each quarter of the times of training.

    Args:
        times: the lowest t of training, and where its range ends: for integers, after the highest.
        device: the device of the losses.
    """

    def __init__(self, times: tuple[float, float], device: torch.device) -> None:
        self.low, self.end = times
        self._sums = torch.zeros(2, QUARTERS, device=device)  # sums of losses, and their counts

    def add(self, losses: torch.Tensor, t: torch.Tensor) -> None:
        """Add the losses (B,) of images at times t (B,)."""
        quarter = ((t - self.low) * QUARTERS / (self.end - self.low)).long().clamp(max=QUARTERS - 1)
        self._sums.index_add_(1, quarter, torch.stack([losses.detach().float(), torch.ones_like(losses)]))

    def take(self) -> dict[str, float]:
        """The mean of each quarter that had losses since the last call."""
        sums = self._sums.T.tolist()
        self._sums.zero_()
        return {f"loss by t/quarter {i}": total / count for i, (total, count) in enumerate(sums, start=1) if count}
