"""Callbacks, which a training run calls at fixed points."""

from __future__ import annotations

from typing import Any


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
