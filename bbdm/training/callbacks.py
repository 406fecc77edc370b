"""What a run calls at fixed points, and the library's own: grids, lines on a terminal, TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import numpy as np
import torch

from bbdm.base import progress, sizes
from bbdm.base.atomic import write_atomically
from bbdm.data.examples import collate
from bbdm.execution.device import peak_memory
from bbdm.pictures import images
from bbdm.training.config import steps_of
from bbdm.training.optimization import SHOWN_EVERY

log = logging.getLogger(__name__)
LOGGER = logging.getLogger("bbdm")
PREVIEW_PAIRS = 8
MEASURED = 5  # first steps of a run that is said to take so long
BY_STEP = {"epoch", "step", "loss", "learning_rate"}  # which TensorBoard has of each step
LEFT_OUT = {"epoch", "step", "learning_rate"}  # on a terminal


class Callback:
    """Base class of the callbacks of a :class:`~bbdm.training.trainer.Trainer`: override what is needed.

    ``trainer`` is the run; it has the type Any, so that a callback may name its own. Each of several
    processes calls its own callbacks; ``trainer.processes.first`` is true in the one that writes files.
    ``trainer.stop(reason)`` ends the run after the next validation. An error that a callback raises ends the
    run, as it is; one of :meth:`after_validation` when the metrics and the checkpoint are written. A resumed
    run calls :meth:`begin` again; the state of a callback is not in the checkpoint.
    """

    HOOKS: ClassVar[frozenset[str]] = frozenset({"after_step", "after_validation"})

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in vars(cls):
            if name.startswith("after_") and name not in cls.HOOKS:
                raise TypeError(
                    f"{cls.__name__}.{name} is never called: a Callback has {', '.join(sorted(cls.HOOKS))}"
                )

    def begin(self, trainer: Any) -> None:
        """Called before the first step."""

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        """Called after optimizer step ``trainer.step``.

        ``loss`` is the loss of its batch before the step, a scalar on the device: to read it waits for a GPU.
        """

    def after_validation(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Called each ``validate_every``, an epoch by default, also where there are no validation pairs.

        It may add numbers to ``metrics``.
        """

    def end(self, trainer: Any) -> None:
        """Called when the run ends, after an error too."""


def after_validation(
    callbacks: Sequence[Callback], trainer: Any, metrics: dict[str, Any]
) -> list[Exception]:
    """Call callbacks after a validation; returns their errors, which a run raises when all is written."""
    errors: list[Exception] = []
    for callback in callbacks:
        try:
            callback.after_validation(trainer, metrics)
        except Exception as error:
            errors.append(error)
    return errors


class Previews(Callback):
    """Writes grids of the first validation pairs: of a bridge (source, result, target).

    A grid is ``step_N.png`` and an image in TensorBoard, written after each validation whose number
    ``preview_every`` divides, and after the last, also where ``trainer.stop`` ends the run. The seed is 0. Of
    volumes, three planes through the middle are shown.
    """

    def after_validation(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the grid of the step, if one is due."""
        pairs = trainer.validation
        if pairs is None or not trainer.processes.first or not self._is_due(trainer):
            return
        examples = [pairs.read(index) for index in range(min(PREVIEW_PAIRS, len(pairs)))]
        columns = trainer.task.columns(collate(examples).map(trainer.batches.placed))
        arrays: list[np.ndarray[Any, Any]] = []
        for column in columns.values():
            # NaN is shown in black
            arrays.append(np.nan_to_num(column.float().cpu().numpy(), nan=-1.0))
        rows = [[images.from_array(array) for array in row] for row in zip(*arrays, strict=True)]
        sheet = images.grid(rows, names=list(columns))
        path = trainer.run_folder.grid(trainer.step)
        write_atomically(path, lambda temporary: sheet.save(temporary, "png"))
        log.info("grid: %s", path)
        trainer.images[", ".join(columns)] = sheet

    def _is_due(self, trainer: Any) -> bool:
        steps = steps_of(trainer.config.validate_every, trainer.steps_per_epoch)
        return trainer.is_last or trainer.step % (steps * trainer.config.preview_every) == 0


class Progress(Callback):
    """Shows a run on standard error: what begins, how far it is, a line for each validation and file.

    How far it is, with the loss, is a bar on a terminal and a line each minute elsewhere. While it runs, it
    shows the library's log from the level INFO on, which has a line for each grid and each checkpoint.

    Args:
        shown: whether how far it is is shown; ``"bar"`` by a bar in any case.
    """

    def __init__(self, shown: progress.Shown = True) -> None:
        self._shown: progress.Shown = shown

    def begin(self, trainer: Any) -> None:
        """Show the device, the sizes of what is trained on what, and the step where it begins."""
        self._ends = ExitStack()
        self._ends.callback(LOGGER.setLevel, LOGGER.level)
        self._ends.enter_context(progress.logged(LOGGER))
        LOGGER.setLevel(logging.INFO)
        train = trainer.train
        batch = trainer.config.batch_size
        size = sum(parameter.numel() for parameter in trainer.network.parameters()) / 1e6
        team = f"device {trainer.device}, processes: {trainer.processes.count}"
        LOGGER.info("%s; network of %.1f M parameters, %s", team, size, trainer.config.precision)
        pairs = f"{len(train)} training pairs of {sizes.shown(train.image_size)}"
        LOGGER.info("%s, %s for validation", pairs, len(trainer.validation or ()))
        LOGGER.info("%s steps, batch %s; files: %s", trainer.total, batch, trainer.folder)
        if trainer.resumed_from is not None:
            LOGGER.info(
                "resumed from %s: step %s of %s", trainer.resumed_from, trainer.step, trainer.total
            )
        meter = progress.Meter("training", trainer.total, "steps", self._shown, trainer.step)
        self._meter = self._ends.enter_context(meter)

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        """Count the step; where that is shown now, with the loss, for which a GPU is waited."""
        if self._meter.due:
            epoch = (trainer.step - 1) // trainer.steps_per_epoch + 1
            self._meter.note = f"epoch {epoch}, loss {float(loss):.4f}"
        self._meter.reach(trainer.step)

    def after_validation(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the metrics."""
        shown = ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name not in LEFT_OUT
        )
        LOGGER.info(
            "epoch %.4g, step %s of %s: %s", trainer.epochs, trainer.step, trainer.total, shown
        )

    def end(self, trainer: Any) -> None:
        """Take the bar away."""
        self._ends.close()


class Forecast(Callback):
    """Prints one line after the first steps: what is trained, and what the run takes of time and memory.

    Time is the median of those steps but the first, which compiles and chooses kernels. Validation comes
    besides.
    """

    def begin(self, trainer: Any) -> None:
        """Begin to measure."""
        self._steps = trainer.total - trainer.step
        self._times = [time.perf_counter()]

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        """Measure one of the first steps; print after the last of them."""
        count = min(MEASURED, self._steps)
        if not trainer.processes.first or len(self._times) > count:
            return
        float(loss)  # waits for a GPU
        self._times.append(time.perf_counter())
        if len(self._times) > count:
            progress.write(self._line(trainer))

    def _line(self, trainer: Any) -> str:
        """What was measured, in words."""
        seconds = np.diff(self._times)
        step = float(np.median(seconds[1:] if len(seconds) > 1 else seconds))
        weights = [*trainer.network.parameters()]
        total = sum(weight.numel() for weight in weights) / 1e6
        trained = sum(weight.numel() for weight in weights if weight.requires_grad) / 1e6
        parts = [f"trains {trained:.3g} M of {total:.3g} M weights", f"{step:.3g} s a step"]
        memory = peak_memory(trainer.device)
        if memory is not None:
            parts.append(f"{memory / 1e9:.3g} GB of memory at most so far")
        parts.append(
            f"{self._steps} steps take {step * self._steps / 3600:.2g} hours, and validation more"
        )
        return "; ".join(parts)


class TensorBoard(Callback):
    """Writes the events of a run to its folder, in the process that writes, where it is installed.

    What a step reports is written every 50 steps, and the metrics and the images after each validation.
    Points that an earlier process wrote of later steps are not shown.
    """

    def begin(self, trainer: Any) -> None:
        """Open the folder of the events."""
        from torch.utils.tensorboard import SummaryWriter  # of an extra

        self._writer: Any = SummaryWriter(
            str(trainer.run_folder.events), purge_step=trainer.step + 1
        )

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        """Write what the step reported, if that is due."""
        if trainer.step % SHOWN_EVERY == 0:
            for name, value in trainer.optimization.last.items():
                self._writer.add_scalar(name, value, trainer.step)

    def after_validation(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the metrics, except those that are written by step, and the images."""
        for name, value in metrics.items():
            if name not in BY_STEP:
                self._writer.add_scalar(name, value, trainer.step)
        self._writer.add_scalar("mean loss", metrics["loss"], trainer.step)
        for name, image in trainer.images.items():
            self._writer.add_image(name, np.asarray(image), trainer.step, dataformats="HWC")

    def end(self, trainer: Any) -> None:
        """Write the remaining points; a full disk loses them without an error."""
        with suppress(OSError):
            self._writer.close()
