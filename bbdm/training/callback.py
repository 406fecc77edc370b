"""Callbacks, which a training run calls at fixed points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbdm.training.loop import Training


class Callback:
    """Base class of the callbacks of a :class:`~bbdm.training.loop.Training`: override what is needed.

    ``trainer`` has the state of the run. Each of several processes calls its own callbacks;
    ``trainer.processes.first`` is true in the one that writes files. A callback ends the run by raising
    :class:`~bbdm.base.scripts.StoppedError`. A resumed run calls :meth:`begin` again; the state of a callback
    is not in the checkpoint.
    """

    def begin(self, trainer: Training) -> None:
        """Called before the first step."""

    def after_step(self, trainer: Training, loss: float) -> None:
        """Called after optimizer step ``trainer.step``; ``loss`` is the loss of its batch before the step."""

    def after_epoch(self, trainer: Training, metrics: dict[str, Any]) -> None:
        """Called after an epoch's steps and validation; may add numbers to ``metrics``."""

    def end(self, trainer: Training) -> None:
        """Called when the run ends, after an error too."""
