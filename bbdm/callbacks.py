"""What a training run does beside training: callbacks, and those that come with the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bbdm import images
from bbdm.files import write_atomically
from bbdm.sampler import BridgeSampler

if TYPE_CHECKING:
    from bbdm.training import Trainer

PREVIEW_PAIRS = 8


class Callback:
    """Subclass it, override what is needed, and hand it to :class:`~bbdm.training.Trainer`.

    Of several processes each calls its own; ``trainer.processes.first`` says which one writes. What a run is, is in the
    trainer: ``unet``, ``ema.unet``, ``step``, ``epoch``, ``folder``, ``validation``. A
    :class:`~bbdm.scripts.StoppedError` ends the run with one line. A run that goes on calls :meth:`begin` again, and
    what a callback remembers is not in the checkpoint.
    """

    def begin(self, trainer: Trainer) -> None:
        """Before the first step."""

    def after_step(self, trainer: Trainer, loss: float) -> None:
        """After an optimizer step, which ``trainer.step`` counts; ``loss`` is the batch's before it."""

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After an epoch's steps and validation, before its metrics are written: numbers may be added to them."""

    def end(self, trainer: Trainer) -> None:
        """When the run ends, whatever ended it."""


class Previews(Callback):
    """Grids of (source, result, target) of the first validation pairs, seed 0, as ``epoch_N.png`` and in TensorBoard.

    Args:
        every: epochs from one to the next; there is one of the last epoch too.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Draw and write the grid."""
        pairs, last = trainer.validation, trainer.epoch == trainer.config.epochs
        if pairs is None or not trainer.processes.first or not (last or trainer.epoch % self.every == 0):
            return
        examples = [pairs[i] for i in range(min(PREVIEW_PAIRS, len(pairs)))]
        y = torch.stack([source for source, _ in examples]).to(trainer.device)
        results = BridgeSampler(trainer.ema.unet, trainer.bridge, codec=trainer.codec)(y, seed=0)
        rows = [[images.to_pil(v) for v in (s, r, t)] for (s, t), r in zip(examples, results, strict=True)]
        sheet = images.grid(rows)
        path = trainer.folder / f"epoch_{trainer.epoch:04d}.png"
        write_atomically(path, lambda temporary: sheet.save(temporary, "png"))
        if trainer.tracker is not None:
            trainer.tracker.write_image(trainer.step, "source, result, target", sheet)
