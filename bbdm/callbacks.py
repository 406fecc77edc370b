"""What a training run does beside training: callbacks, and those that come with the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bbdm import images
from bbdm.files import write_atomically
from bbdm.results import to_tensor
from bbdm.sampler import BridgeSampler

if TYPE_CHECKING:
    from bbdm.metrics import Scores
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


def due(trainer: Trainer) -> bool:
    """Whether the epoch is one of each ``preview_every``, or the last."""
    return trainer.epoch % trainer.config.preview_every == 0 or trainer.epoch == trainer.config.epochs


class Previews(Callback):
    """Grids of (source, result, target) of the first validation pairs, seed 0, as ``epoch_N.png`` and in TensorBoard.

    They come each ``preview_every`` epochs and after the last, where there are validation pairs.
    """

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Draw and write the grid."""
        pairs = trainer.validation
        if pairs is None or not trainer.processes.first or not due(trainer):
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


class ValidationScores(Callback):
    """Scores of the translated validation pairs, such as FID, among the metrics of an epoch.

    They come when :class:`Previews` do. Pair i has the seed i, and the averaged weights translate it with the
    sampler's own solver and number of steps. Several processes share the pairs.

    Args:
        scores: what counts them, one result of each pair.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def begin(self, trainer: Trainer) -> None:
        """Refuse a run without validation pairs.

        Raises:
            ValueError: there are none, or one where FID is asked for.
        """
        least = 2 if "fid" in self.scores.metrics else 1
        if trainer.validation is None or len(trainer.validation) < least:
            count = 0 if trainer.validation is None else len(trainer.validation)
            raise ValueError(f"{', '.join(self.scores.metrics)} need {least} validation pairs, and there are {count}")

    def after_epoch(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Translate this process's share, and add the scores of all to the metrics, in the first process."""
        if trainer.validation_batches is None or not due(trainer):
            return
        self.scores.reset()
        sampler = BridgeSampler(trainer.ema.unet, trainer.bridge, codec=trainer.codec)
        share, done = trainer.validation_share(), 0
        for y, x0 in trainer.validation_batches(share):
            if trainer.processes.count == 1:  # several have not all the same number of batches
                trainer.check_stop()
            results = sampler(y, seed=share[done : done + len(y)])
            done += len(y)
            found, wanted = (torch.stack([to_tensor(images.to_pil(v)) for v in side]) for side in (results, x0))
            self.scores.update(found[:, None], wanted)
        self.scores.collect(trainer.processes)
        if trainer.processes.first:
            metrics.update(self.scores.compute())
