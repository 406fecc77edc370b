"""From a data set to batches on the device.

Pictures travel as uint8 and become floats there: workers only decode, and a batch is a quarter of the bytes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from bbdm import images
from bbdm.data import PairedDataset, Pixels
from bbdm.latents import LatentDataset


class _Order(Sampler[int]):
    """The order of one pass: a loader whose workers stay asks for it anew each time."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _outlive_signals(worker: int) -> None:
    """A reading process leaves a SIGTERM, which a whole group of processes gets, to the one that trains, but one."""
    del worker
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class Batches:
    """Batches of a data set on a device; workers stay from pass to pass.

    Args:
        dataset: pairs, or their latents.
        batch_size: pairs in a batch; the last may be short.
        device: where they are wanted.
        workers: processes that read.
    """

    def __init__(
        self,
        dataset: PairedDataset | LatentDataset,
        batch_size: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        pairs = Pixels(dataset) if isinstance(dataset, PairedDataset) else dataset
        self.device = device
        self._count = len(dataset)
        self._order = _Order(range(self._count))
        self._loader = DataLoader(
            pairs,
            batch_size,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_outlive_signals,
        )

    def __call__(self, order: Sequence[int] | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(source, target) as floats, pictures in [-1, 1] or latents, of the examples ``order``; None for all."""
        self._order.indices = range(self._count) if order is None else order
        for y, x0 in self._loader:
            yield self._placed(y), self._placed(x0)

    def _placed(self, v: torch.Tensor) -> torch.Tensor:
        v = v.to(self.device, non_blocking=True)
        v = images.scale(v) if v.dtype == torch.uint8 else v
        return v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
