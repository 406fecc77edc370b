"""What TensorBoard shows of a training run, where it is installed; nothing otherwise."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

EVERY = 50  # optimizer steps between points
QUARTERS = 4


class Tracker:
    """Events of a run in a folder.

    Args:
        folder: where they go.
        step: optimizer steps done; what an earlier process wrote of later ones is not shown.
        times: the lowest and the highest t of training.
        device: of the losses.
    """

    def __init__(self, folder: Path, step: int, times: tuple[int, int], device: torch.device) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        self.low, self.high = times
        self._sums = torch.zeros(2, QUARTERS, device=device)  # of losses, and how many

    def due(self, step: int) -> bool:
        """Whether there is a point after so many optimizer steps."""
        return self._writer is not None and step % EVERY == 0

    def add_losses(self, losses: torch.Tensor, t: torch.Tensor) -> None:
        """Take in the losses (B,) of images at times t (B,)."""
        if self._writer is not None:
            quarter = (t - self.low) * QUARTERS // (self.high - self.low + 1)
            self._sums.index_add_(1, quarter, torch.stack([losses.detach().float(), torch.ones_like(losses)]))

    def write_losses(self, step: int) -> None:
        """A point of the mean losses of each quarter of t since the last one."""
        if self._writer is not None:
            for quarter, (total, count) in enumerate(self._sums.T.tolist(), start=1):
                if count:
                    self._writer.add_scalar(f"loss by t/quarter {quarter}", total / count, step)
            self._sums.zero_()

    def write(self, step: int, **values: float) -> None:
        """A point of each of some values."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, image: Image.Image) -> None:
        """A picture."""
        if self._writer is not None:
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is not on the disk yet; what does not fit there is lost."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
