"""A training run in TensorBoard."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from statistics import fmean
from typing import Any

import numpy as np
import torch

from bbdm.training.callback import Callback

EVERY = 50  # optimizer steps between points
BY_STEP = {"epoch", "step", "loss", "learning_rate"}
Timed = list[tuple[torch.Tensor, torch.Tensor]]
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
        self._timed: Timed = []

    def after_step(self, trainer: Any, loss: float) -> None:
        """Write what the step reported, if that is due."""
        if self._writer is None:
            return
        step = trainer.task.last
        self._timed += step.timed
        if trainer.step % EVERY == 0:
            about = {"learning_rate": step.rate, "gradient_norm": step.norm.item()}
            self._write(trainer.step, {**step.means, **about, **losses_by_time(self._timed, *trainer.task.times)})
            self._timed = []

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


def losses_by_time(timed: Timed, low: float, end: float) -> dict[str, float]:
    """The mean losses of each quarter of the times of training, of those that had any.

    Args:
        timed: losses and their times, both (B,), of several batches.
        low: the lowest t of training.
        end: the end of its range: for integers, after the highest.
    """
    quarters: defaultdict[int, list[float]] = defaultdict(list)
    columns = [torch.cat(column).tolist() for column in zip(*timed, strict=True)]  # waits for the device
    for loss, t in zip(*columns, strict=True):
        quarters[min(QUARTERS, 1 + int((t - low) * QUARTERS / (end - low)))].append(loss)
    return {f"loss by t/quarter {i}": fmean(losses) for i, losses in sorted(quarters.items())}
