"""Batches of a data set on the device.

Pictures are copied as uint8 and become floats on the device: a quarter of the bytes, and workers only decode.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from bbdm.data.examples import BadPicturesError, Example
from bbdm.data.pairs import Pairs, Place
from bbdm.pictures.picture import scale

Batch = TypeVar("Batch")
GRACE = 60  # seconds that a worker outlives SIGTERM


def _begin_worker(_: int) -> None:
    """Prepare a worker for the end of its trainer: by SIGTERM, or suddenly.

    It outlives the first SIGTERM by a minute, since the trainer gets it too, and handles it. Not longer: a
    trainer that ends with an error sends SIGTERM to its workers too, and waits for them.
    """

    def outlive(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE)

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGTERM, outlive)
    parent = multiprocessing.parent_process()  # torch watches another process where a server forks
    threading.Thread(target=end_with_parent, daemon=True).start()


def with_short_errors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, with the last line of a worker's error in place of its traceback.

    Raises:
        BadPicturesError: a picture cannot be read.
        ValueError: anything else that was wrong.
    """
    try:
        yield from batches
        return
    except (OSError, ValueError) as error:
        kind, line = type(error), str(error).strip().split("\n")[-1]
        reason = line.removeprefix(f"{kind.__module__}.").removeprefix(f"{kind.__name__}: ")
        raised = BadPicturesError if kind is BadPicturesError else ValueError
    raise raised(reason)  # not from the error: its traceback would keep the workers alive


class _Places(Dataset[Place]):
    """Places as they are."""

    def __getitem__(self, place: Place) -> Place:
        return place


class _Order:
    """Places for a loader, which keeps it from pass to pass."""

    places: Iterable[Place] = ()

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)


class Batches:
    """Batches of a data set on a device, the last one maybe smaller; workers persist from pass to pass."""

    def __init__(self, dataset: Pairs, batch_size: int, device: torch.device, workers: int = 0) -> None:
        self.device = device
        self._dataset = dataset
        self._order = _Order()
        self._loader = DataLoader(
            _Places(),  # of which a worker reads a batch at once
            batch_size,
            sampler=self._order,
            num_workers=workers,
            collate_fn=dataset.batch,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_begin_worker,
        )

    def stored(self, order: Iterable[int] | None = None, seed: int = 0) -> Iterator[Example]:
        """Batches of the examples ``order``, None for all, as the data set has them.

        Pictures are uint8 or floats in [-1, 1]. ``seed`` is of what is drawn for each example.
        """
        self._order.places = self._dataset.places(range(len(self._dataset)) if order is None else order, seed)
        for batch in with_short_errors(self._loader):
            if any(batch.left_out):
                self._dataset.leave_out(batch.left_out)
            yield batch

    def __call__(self, order: Iterable[int] | None = None, seed: int = 0) -> Iterator[Example]:
        """The batches of :meth:`stored` on the device: floats in [-1, 1], or latents."""
        for batch in self.stored(order, seed):
            yield self.placed(batch)

    def placed(self, batch: Example) -> Example:
        """A batch on the device: floats in [-1, 1], or latents."""
        return batch.with_tensors({name: self._placed(each) for name, each in batch.tensors().items()})

    def close(self) -> None:
        """End the workers, which an error would wait for; the next call starts new ones."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
        self._loader._iterator = None

    def _placed(self, v: torch.Tensor) -> torch.Tensor:
        v = v.to(self.device, non_blocking=True)
        v = scale(v) if v.dtype == torch.uint8 else v
        return v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
