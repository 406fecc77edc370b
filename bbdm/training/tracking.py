"""A training run in TensorBoard."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

EVERY = 50  # optimizer steps between points
QUARTERS = 4


class Tracker:
    """Writes the events of a run to a folder.

    Args:
        step: optimizer steps done; points that an earlier process wrote of later steps are not shown.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, **values: float) -> None:
        """Write a point of each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_epoch(self, step: int, record: dict[str, float]) -> None:
        """Write a point of each metric of an epoch, except those that are written by step."""
        shown = record.keys() - {"epoch", "step", "loss", "learning_rate"}
        self.write(step, **{name: record[name] for name in sorted(shown)}, **{"loss of the epoch": record["loss"]})

    def write_image(self, step: int, name: str, image: Image.Image) -> None:
        """Write a picture."""
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write the remaining points; a full disk loses them without an error."""
        with suppress(OSError):
            self._writer.close()


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
