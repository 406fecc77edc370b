"""From a data set to batches on the device.

Pictures travel as uint8 and become floats there: workers only decode, and a batch is a quarter of the bytes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from bbdm.base import images
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import PairedDataset, Pixels

Batch = TypeVar("Batch")
GRACE = 60  # seconds


class _Order(Sampler[int]):
    """The order of one pass: a loader whose workers stay asks for it anew each time."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _outlive_signals(worker: int) -> None:
    """A reading process leaves a first SIGTERM, which a whole group of processes gets, to the one that
    trains.

    It outlives it by a minute at most: a process that ends with an error sends one too, and waits.
    """
    del worker

    def outlive(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE)

    signal.signal(signal.SIGTERM, outlive)


def with_short_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, where a reading process's error is the line that says what is wrong, not its
    traceback.

    Raises:
        ValueError: a picture cannot be read.
    """
    try:
        yield from batches
        return
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[-1]
        reason = reason.removeprefix(f"{type(error).__name__}: ")
    raise ValueError(reason)  # without the error, whose traceback would keep the reading processes


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
        for y, x0 in with_short_errors(self._loader):
            yield self._placed(y), self._placed(x0)

    def close(self) -> None:
        """End the reading processes, which a call starts anew: an error that is on its way would wait for them."""
        readers = self._loader._iterator
        if readers is not None:
            readers._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
        self._loader._iterator = None

    def _placed(self, v: torch.Tensor) -> torch.Tensor:
        v = v.to(self.device, non_blocking=True)
        v = images.scale(v) if v.dtype == torch.uint8 else v
        return v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
