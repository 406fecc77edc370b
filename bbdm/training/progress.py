"""A training run on a terminal: what begins, a bar over the whole run, and a line for each epoch and file."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import Any

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bbdm.base import sizes
from bbdm.training.callback import Callback

LOGGER = logging.getLogger("bbdm")
NAMES = {"validation_loss": "validation", "images_per_second": "pairs/s"}
LEFT_OUT = {"epoch", "step", "learning_rate"}


class Progress(Callback):
    """Shows a run on standard error.

    While it runs, it shows the library's log from the level INFO on, which has a line for each grid and each
    checkpoint.
    """

    def begin(self, trainer: Any) -> None:
        """Show the device, the sizes of what is trained on what, and the step where it begins."""
        self._ends = ExitStack()
        self._ends.callback(LOGGER.setLevel, LOGGER.level)
        self._ends.enter_context(logging_redirect_tqdm([LOGGER], tqdm))
        LOGGER.setLevel(logging.INFO)
        self._started, self._first = time.perf_counter(), trainer.step
        for line in _described(trainer):
            LOGGER.info(line)
        bar = tqdm(
            total=trainer.total_steps,
            initial=trainer.step,
            unit=" pairs",
            unit_scale=trainer.config.batch_size,
            leave=False,
            disable=None,  # on a terminal alone: in a file, lines are enough
        )
        self._bar = self._ends.enter_context(bar)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Advance the bar."""
        self._bar.set_description(f"epoch {trainer.epoch + 1}/{trainer.config.epochs}", refresh=False)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the metrics of an epoch, and the time left for the run."""
        parts = [f"{NAMES.get(name, name)} {value:.4g}" for name, value in metrics.items() if name not in LEFT_OUT]
        done, left = trainer.step - self._first, trainer.total_steps - trainer.step
        if done and left:
            seconds = (time.perf_counter() - self._started) / done * left
            parts.append(f"{tqdm.format_interval(seconds)} left")
        LOGGER.info("epoch %s/%s: %s", trainer.epoch, trainer.config.epochs, ", ".join(parts))

    def end(self, trainer: Any) -> None:
        """Close the bar."""
        self._ends.close()


def _described(trainer: Any) -> list[str]:
    """The lines about a run that begins."""
    config, validation = trainer.config, 0 if trainer.validation is None else len(trainer.validation)
    count = sum(parameter.numel() for parameter in trainer.task.network.parameters())
    processes = "" if trainer.processes.count == 1 else f", {trainer.processes.count} processes"
    lines = [
        f"device {trainer.device}{processes}; network of {count / 1e6:.1f} M parameters, {config.precision}",
        f"{len(trainer.train)} training pairs of {sizes.shown(trainer.train.image_size)}, {validation} for validation",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, batch {config.batch_size}",
        f"losses, grids and checkpoints: {trainer.folder}",
    ]
    if trainer.resumed_from is not None:
        lines.append(f"resumed from {trainer.resumed_from}: step {trainer.step} of {trainer.total_steps}")
    return lines
