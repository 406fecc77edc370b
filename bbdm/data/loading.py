"""Batches of a data set on the device, and looking at its rows before training.

Pictures are copied as uint8 and become floats on the device: a quarter of the bytes, and workers only decode.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bbdm.data.examples import BadPicturesError, Example
from bbdm.data.pairs import Pairs, Place
from bbdm.data.reading import Column
from bbdm.data.rows import named, shown
from bbdm.data.spec import CONTRAST, ROLES
from bbdm.pictures.picture import scale
from bbdm.pictures.values import Values, check_finite

Batch = TypeVar("Batch")
GRACE = 60  # seconds that a worker outlives SIGTERM
LOOKED_AT = 8  # rows, at a glance
CLIPPED = 0.001  # share of values outside of the range that is said
SHAPES_DIFFER = 1.1  # ratio of the sides' widths over heights


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


class _Order(Dataset[Place]):
    """Places for a loader, which keeps their order from pass to pass; a place is its own item."""

    places: Iterable[Place] = ()

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def __getitem__(self, place: Place) -> Place:
        return place


class Batches:
    """Batches of a data set on a device, the last one maybe smaller; workers persist from pass to pass."""

    def __init__(self, dataset: Pairs, batch_size: int, device: torch.device, workers: int = 0) -> None:
        self.device = device
        self._dataset = dataset
        self._order = _Order()
        self._loader = DataLoader(
            _Order(),  # of which a worker reads a batch at once
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


def check_rows(pairs: Pairs, workers: int = 0, progress: bool = False) -> dict[int, str]:
    """Read all that rows have, as training does but whole: why rows cannot be read, by their indices."""
    count: Any = range(len(pairs.rows))
    how: Any = {"num_workers": workers, "collate_fn": partial(_reason, pairs)}
    loader = DataLoader(count, None, **how)
    bar = tqdm(with_short_errors(loader), "checking", len(count), unit="pair", leave=False, disable=not progress)
    return {index: reason for index, reason in enumerate(bar) if reason}


def _reason(pairs: Pairs, index: int) -> str:
    """Why a row cannot be trained on, or nothing."""
    row = pairs.rows[index]
    try:
        for role, column in pairs.reader.whole(row).items():
            channels = {"source": pairs.source_channels // pairs.spec.planes, "target": pairs.channels}
            if len(column.array) != channels.get(role, len(column.array)):
                raise ValueError(f"its {role} has {len(column.array)} channels, and others have {channels[role]}")
            check_finite(column.array, column.absent)
        pairs.conditions(row)
    except (ValueError, FileNotFoundError) as error:
        return " ".join(named(row, error).split())
    return ""


def first_look(pairs: Pairs) -> list[str]:
    """What the first rows show: values outside of ranges, sources without contrast, stretched sides."""
    shares, flat, stretched = {role: list[float]() for role in ROLES}, list[str](), list[str]()
    for index in range(min(LOOKED_AT, len(pairs.rows))):
        try:
            row = pairs.rows[index]
            columns = pairs.reader.whole(row)
            sides = [pairs.reader.header(columns[role].cells[-1]).shape[-2:] for role in ROLES if role in columns]
        except (ValueError, FileNotFoundError):  # which is said where the example is read
            continue
        shapes = [width / height for height, width in sides]
        if pairs.spec.size is not None and max(shapes) > SHAPES_DIFFER * min(shapes):
            stretched.append(row["name"])
        for role in ROLES:
            values = getattr(pairs.spec, role)
            if role in columns and isinstance(values, Values):
                share, contrast = _levels(columns[role], values)
                shares[role].append(share)
                flat += [shown(row)] if role == "source" and contrast < CONTRAST else []
    found: list[str] = []
    for role, each in shares.items():
        if each and (share := float(np.mean(each))) > CLIPPED:
            values = f"{100 * share:.2g} % of the values of the first {len(each)} {role}s"
            found.append(f"{values} are outside of their range, {getattr(pairs.spec, role)}, and clipped to it")
    if flat:
        found.append(f"{flat[0]} is nearly constant within {pairs.spec.source}: give the range that sources use")
    if stretched:
        count = "1 pair has" if len(stretched) == 1 else f"{len(stretched)} of the first pairs have"
        found.append(f"{count} sides of different shapes, first {stretched[0]!r}: each side is stretched to one size")
    return found


def _levels(column: Column, values: Values) -> tuple[float, float]:
    """The share of values outside of a range, and the largest share of it that a channel uses."""
    array = column.array[:, ~np.broadcast_to(column.absent, column.array.shape[1:])].astype(np.float64)
    if not array.size:
        return 0.0, 1.0
    low, high = (np.reshape(level, (-1, 1)) for level in (values.low, values.high))
    used = np.ptp(array.clip(low, high), axis=1) / (high - low)[:, 0]
    return float(((array < low) | (array > high)).mean()), float(used.max())
