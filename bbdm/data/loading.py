"""Batches of a data set on the device, and looking at its rows before training.

Pictures are copied as uint8 and become floats on the device: a quarter of the bytes, and workers only decode.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm.auto import tqdm

from bbdm.data.examples import Example, collate
from bbdm.data.pairs import Pairs
from bbdm.data.rows import BadPicturesError, named, shown
from bbdm.pictures.picture import scale
from bbdm.pictures.values import Values, check_finite

GRACE = 60  # seconds that a worker outlives SIGTERM
LOOKED_AT = 8  # rows, at a glance
CLIPPED = 0.001  # share of values outside of the range that is said


def _begin_worker(_: int) -> None:
    """Prepare a worker for the end of its trainer: by SIGTERM, or suddenly."""

    def outlive(*_: object) -> None:  # the trainer handles the first, and waits for workers after an error
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE)

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGTERM, outlive)
    parent = multiprocessing.parent_process()  # torch watches another process where a server forks
    threading.Thread(target=end_with_parent, daemon=True).start()


class _Places(Dataset[Example]):
    """Batches of a data set by lists of the arguments of :meth:`~bbdm.data.pairs.Pairs.read`."""

    def __init__(self, dataset: Pairs) -> None:
        self._dataset = dataset

    def __getitem__(self, places: Sequence[tuple[Any, ...]]) -> Example:
        """A batch. In a stream, others of it take the places of those that cannot be read."""
        dataset, examples, reasons = self._dataset, list[Example | None](), list[str]()
        for place in places:
            try:
                examples.append(dataset.read(*place))
            except BadPicturesError as error:
                if not dataset.skip_bad or dataset.stream is None:
                    raise
                examples.append(None)
                reasons.append(" ".join(str(error).split()))
        good = [each for each in examples if each is not None]
        if not good:
            raise BadPicturesError(reasons[0])
        batch = collate([good[i % len(good)] if each is None else each for i, each in enumerate(examples)])
        return batch._replace(left_out=[*batch.left_out, *reasons])


class Batches:
    """Batches of a data set on a device, the last one maybe smaller; workers persist from pass to pass."""

    def __init__(self, dataset: Pairs, batch_size: int, device: torch.device, workers: int = 0) -> None:
        self.device = device
        self._dataset = dataset
        self._places: Any = BatchSampler((), batch_size, drop_last=False)  # of the pass that is asked for
        self._loader = DataLoader(
            _Places(dataset),  # of which a worker reads a batch at once
            None,
            sampler=self._places,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_begin_worker,
        )

    def stored(self, order: Iterable[int] | None = None, seed: int = 0) -> Iterator[Example]:
        """Batches of the examples ``order``, None for all, as the data set has them.

        Pictures are uint8 or floats in [-1, 1]. ``seed`` is of what is drawn for each example.

        Raises:
            BadPicturesError: a picture cannot be read.
            ValueError: anything else that was wrong.
        """
        dataset = self._dataset
        self._places.sampler = dataset.places(range(len(dataset)) if order is None else order, seed)
        for batch in with_short_errors(self._loader):
            dataset.leave_out(batch.left_out)
            yield batch

    def __call__(self, order: Iterable[int] | None = None, seed: int = 0) -> Iterator[Example]:
        """The batches of :meth:`stored` on the device: floats in [-1, 1], or latents."""
        return (batch.map(self.placed) for batch in self.stored(order, seed))

    def placed(self, v: torch.Tensor) -> torch.Tensor:
        """A tensor of a batch on the device; 8 bits as floats in [-1, 1]."""
        v = v.to(self.device, non_blocking=True)
        v = scale(v) if v.dtype == torch.uint8 else v
        return v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v

    def close(self) -> None:
        """End the workers, which an error would wait for; the next call starts new ones."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]
        self._loader._iterator = None


def with_short_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, with the last line of a worker's error in place of its traceback."""
    try:
        yield from batches
        return
    except (OSError, ValueError) as error:
        kind, line = type(error), str(error).strip().split("\n")[-1]
        reason = line.removeprefix(f"{kind.__module__}.").removeprefix(f"{kind.__name__}: ")
    raise BadPicturesError(reason)  # not from the error: its traceback would keep the workers alive


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
    """What the first rows show: values outside of ranges, and a source without contrast."""
    shares, flat = dict[str, list[float]](), list[str]()
    for index in range(min(LOOKED_AT, len(pairs.rows))):
        with suppress(ValueError, FileNotFoundError):  # which is said where the example is read
            row = pairs.rows[index]
            for role, column in pairs.reader.whole(row).items():
                if not isinstance(values := getattr(pairs.spec, role, None), Values):
                    continue
                array = column.array[:, ~np.broadcast_to(column.absent, column.array.shape[1:])]
                low, high = (np.reshape(level, (-1, 1)) for level in (values.low, values.high))
                outside = ((array < low) | (array > high)).mean() if array.size else 0
                shares.setdefault(role, []).append(float(outside))
                flat += [shown(row)] if role == "source" and pairs.spec.is_flat(array) else []
    found = [
        f"{100 * np.mean(each):.2g} % of the values of the first {len(each)} {role}s are outside of their range, "
        f"{getattr(pairs.spec, role)}, and clipped to it"
        for role, each in shares.items()
        if np.mean(each) > CLIPPED
    ]
    if flat:
        found.append(f"{flat[0]} is nearly constant within {pairs.spec.source}: give the range that sources use")
    return found
