"""Callbacks of the results of validation pairs during training: grids of them, and their scores."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base.atomic import write_atomically
from bbdm.data.examples import collate
from bbdm.pictures import images
from bbdm.pictures.values import EIGHT_BIT, Values
from bbdm.training.callback import Callback

if TYPE_CHECKING:
    from bbdm.evaluation.scores import Scores

log = logging.getLogger(__name__)
PREVIEW_PAIRS = 8


def due(trainer: Any) -> bool:
    """Whether grids and scores are due: at each ``preview_every``-th epoch and after the last."""
    return trainer.epoch % trainer.config.preview_every == 0 or trainer.epoch == trainer.config.epochs


class Previews(Callback):
    """Writes grids of the first validation pairs: of a bridge (source, result, target).

    A grid is ``epoch_N.png`` and an image in TensorBoard, written each ``preview_every`` epochs and after the
    last, if there are validation pairs. The seed is 0. Of volumes, three planes through the middle are shown.
    """

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the grid of the epoch, if one is due."""
        pairs = trainer.validation
        if pairs is None or not trainer.processes.first or not due(trainer):
            return
        examples = [pairs.read(i) for i in range(min(PREVIEW_PAIRS, len(pairs)))]
        columns = trainer.task.columns(trainer.batches.train.placed(collate(examples)))
        arrays = [column.float().cpu().numpy() for column in columns.values()]
        rows = [[images.preview(array) for array in row] for row in zip(*arrays, strict=True)]
        sheet = images.grid(rows, names=list(columns))
        path = trainer.folder / f"epoch_{trainer.epoch:04d}.png"
        write_atomically(path, lambda temporary: sheet.save(temporary, "png"))
        log.info("grid: %s", path)
        trainer.images[", ".join(columns)] = sheet


def stored(side: torch.Tensor, values: Values) -> npt.NDArray[Any]:
    """(B, C, H, W) in [-1, 1] as stored values: uint8 of 8-bit pictures, else float32."""
    array = values.stored(side)
    return array if values == EIGHT_BIT else array.astype(np.float32)


class ValidationScores(Callback):
    """Adds scores of the results of validation pairs, such as FID, to the metrics of an epoch.

    They are due when :class:`Previews` are. The averaged weights make results of pair i with seed i, a bridge
    with the sampler's default solver and steps. Several processes share the pairs. ``scores`` takes one
    result each.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def begin(self, trainer: Any) -> None:
        """Raise ValueError where there are no validation pairs, or only one for FID."""
        least = 2 if "fid" in self.scores.metrics else 1
        count = 0 if trainer.validation is None else len(trainer.validation)
        if count < least:
            raise ValueError(f"{', '.join(self.scores.metrics)} need {least} validation pairs, and there are {count}")

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Make results of this process's share; the first process adds the scores of all to the metrics."""
        if not due(trainer):
            return
        self.scores.reset()
        for indices, batch in trainer.validation_batches():
            sides = trainer.task.results(batch, seed=indices)
            values = trainer.validation.spec.target
            results, targets = (torch.from_numpy(stored(side, values)) for side in sides)
            self.scores.update(results[:, None], targets, batch.mask)
        self.scores.collect(trainer.processes)
        if trainer.processes.first:
            metrics.update(self.scores.compute())
