"""Callbacks, which a training run calls at fixed points: grids, lines on a terminal, TensorBoard."""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bbdm.base import sizes
from bbdm.base.atomic import write_atomically
from bbdm.data.examples import collate
from bbdm.pictures import images
from bbdm.training.task import SHOWN_EVERY

log = logging.getLogger(__name__)
LOGGER = logging.getLogger("bbdm")
PREVIEW_PAIRS = 8
BY_STEP = {"epoch", "step", "loss", "learning_rate"}  # which TensorBoard has of each step
LEFT_OUT = {"epoch", "step", "learning_rate"}  # on a terminal


class Callback:
    """Base class of the callbacks of a :class:`~bbdm.training.trainer.Trainer`: override what is needed.

    ``trainer`` is the run; it has the type Any, so that a callback may name its own. Each of several
    processes calls its own callbacks; ``trainer.processes.first`` is true in the one that writes files.
    ``trainer.stop(reason)`` ends the run after the epoch that it is in. A
    :class:`~bbdm.base.scripts.StoppedError` ends it with an error: at once, or raised in :meth:`after_epoch`,
    when the epoch is written. A resumed run calls :meth:`begin` again; the state of a callback is not in the
    checkpoint.
    """

    def begin(self, trainer: Any) -> None:
        """Called before the first step."""

    def after_step(self, trainer: Any, loss: float) -> None:
        """Called after optimizer step ``trainer.step``; ``loss`` is the loss of its batch before the step."""

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Called after an epoch's steps and validation; may add numbers to ``metrics``."""

    def end(self, trainer: Any) -> None:
        """Called when the run ends, after an error too."""


class Previews(Callback):
    """Writes grids of the first validation pairs: of a bridge (source, result, target).

    A grid is ``epoch_N.png`` and an image in TensorBoard, written each ``preview_every`` epochs and after the
    last, if there are validation pairs. The seed is 0. Of volumes, three planes through the middle are shown.
    """

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the grid of the epoch, if one is due."""
        pairs, config = trainer.validation, trainer.config
        due = trainer.epoch == config.epochs or trainer.epoch % config.preview_every == 0
        if pairs is None or not trainer.processes.first or not due:
            return
        examples = [pairs.read(i) for i in range(min(PREVIEW_PAIRS, len(pairs)))]
        columns = trainer.task.columns(collate(examples).map(trainer.batches.placed))
        arrays = [column.float().cpu().numpy() for column in columns.values()]
        rows = [[images.from_array(array) for array in row] for row in zip(*arrays, strict=True)]
        sheet = images.grid(rows, names=list(columns))
        path = trainer.folder / f"epoch_{trainer.epoch:04d}.png"
        write_atomically(path, lambda temporary: sheet.save(temporary, "png"))
        log.info("grid: %s", path)
        trainer.images[", ".join(columns)] = sheet


class Progress(Callback):
    """Shows a run on standard error: what begins, a bar over the run, and a line for each epoch and file.

    While it runs, it shows the library's log from the level INFO on, which has a line for each grid and each
    checkpoint.
    """

    def begin(self, trainer: Any) -> None:
        """Show the device, the sizes of what is trained on what, and the step where it begins."""
        self._ends = ExitStack()
        self._ends.callback(LOGGER.setLevel, LOGGER.level)
        self._ends.enter_context(logging_redirect_tqdm([LOGGER], tqdm))
        LOGGER.setLevel(logging.INFO)
        config, train, batch = trainer.config, trainer.train, trainer.config.batch_size
        size = sum(parameter.numel() for parameter in trainer.network.parameters()) / 1e6
        team = f"device {trainer.device}, processes: {trainer.processes.count}"
        LOGGER.info("%s; network of %.1f M parameters, %s", team, size, config.precision)
        pairs = f"{len(train)} training pairs of {sizes.shown(train.image_size)}"
        LOGGER.info("%s, %s for validation", pairs, len(trainer.validation or ()))
        LOGGER.info("%s steps, batch %s; files: %s", trainer.total_steps, batch, trainer.folder)
        if (resumed := trainer.resumed_from) is not None:
            LOGGER.info("resumed from %s: step %s of %s", resumed, trainer.step, trainer.total_steps)
        about: dict[str, Any] = {"unit": " pairs", "unit_scale": batch, "initial": trainer.step, "leave": False}
        bar = tqdm(total=trainer.total_steps, disable=None, **about)  # in a file, lines are enough
        self._bar = self._ends.enter_context(bar)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Advance the bar."""
        self._bar.set_description(f"epoch {trainer.epoch + 1}/{trainer.config.epochs}, loss {loss:.4f}", refresh=False)
        self._bar.update()

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the metrics of an epoch."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in LEFT_OUT)
        LOGGER.info("epoch %s/%s: %s", trainer.epoch, trainer.config.epochs, shown)

    def end(self, trainer: Any) -> None:
        """Close the bar."""
        self._ends.close()


class TensorBoard(Callback):
    """Writes the events of a run to its folder, in the process that writes, where TensorBoard is installed.

    What a step reports is written every 50 steps, and the metrics and the images of each epoch. Points that
    an earlier process wrote of later steps are not shown.
    """

    _writer: Any = None

    def begin(self, trainer: Any) -> None:
        """Open the folder of the events."""
        if trainer.processes.first:
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(trainer.run.events), purge_step=trainer.step + 1)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Write what the step reported, if that is due."""
        if self._writer is not None and trainer.step % SHOWN_EVERY == 0:
            for name, value in trainer.task.last.items():
                self._writer.add_scalar(name, value, trainer.step)

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the metrics of an epoch, except those that are written by step, and its images."""
        if self._writer is None:
            return
        shown = {name: value for name, value in metrics.items() if name not in BY_STEP}
        for name, value in {**shown, "loss of the epoch": metrics["loss"]}.items():
            self._writer.add_scalar(name, value, trainer.step)
        for name, image in trainer.images.items():
            self._writer.add_image(name, np.asarray(image), trainer.step, dataformats="HWC")

    def end(self, trainer: Any) -> None:
        """Write the remaining points; a full disk loses them without an error."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
