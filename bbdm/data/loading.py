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

from bbdm.base import sizes
from bbdm.base.progress import Shown, counted
from bbdm.data.examples import Example, collate
from bbdm.data.pairs import Pairs
from bbdm.data.rows import BadPicturesError, Row, named, shown
from bbdm.data.scaling import of_cells, present_values, share_outside
from bbdm.pictures import images
from bbdm.pictures.picture import scale
from bbdm.pictures.values import Values, check_finite

GRACE = 60  # seconds that a worker outlives SIGTERM
LOOKED_AT = 8  # rows, at a glance
STRETCHED = 1.05  # ratio of width to height, by that of the file, from which it is said
CLIPPED = 0.001  # share of values outside of the range that is said


def _begin_worker(_: int) -> None:
    """Prepare a worker for the end of its trainer: by SIGTERM, or suddenly."""

    # the trainer handles the first, and waits for workers after an error
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


class _Places(Dataset[Example]):
    """Batches of a data set by lists of the arguments of :meth:`~bbdm.data.pairs.Pairs.read`."""

    def __init__(self, dataset: Pairs) -> None:
        self._dataset = dataset

    def __getitem__(self, places: Sequence[tuple[Any, ...]]) -> Example:
        """A batch. In a stream, others of it take the places of those that cannot be read."""
        dataset = self._dataset
        examples: list[Example | None] = []
        reasons: list[str] = []
        for place in places:
            try:
                examples.append(dataset.read(*place))
            except BadPicturesError as error:
                if not dataset.skip_bad or dataset.stream is None:
                    raise
                examples.append(None)
                reasons.append(" ".join(str(error).split()))
        good = [example for example in examples if example is not None]
        if not good:
            raise BadPicturesError(reasons[0])
        batch = collate(
            [
                good[i % len(good)] if example is None else example
                for i, example in enumerate(examples)
            ]
        )
        return batch._replace(left_out=[*batch.left_out, *reasons])


class Batches:
    """Batches of a data set on a device, the last one maybe smaller; workers persist from pass to pass."""

    def __init__(
        self, dataset: Pairs, batch_size: int, device: torch.device, workers: int = 0
    ) -> None:
        self.device = device
        self._dataset = dataset
        # of the pass that is asked for
        self._places: Any = BatchSampler((), batch_size, drop_last=False)
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
        if v.dtype == torch.uint8:
            v = scale(v)
        if v.ndim == 4:
            return v.contiguous(memory_format=torch.channels_last)
        return v

    def close(self) -> None:
        """End the workers, which an error would wait for; the next call starts new ones."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]  (of workers alone)
        self._loader._iterator = None


def with_short_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, with the last line of a worker's error in place of its traceback."""
    try:
        yield from batches
        return
    except (OSError, ValueError) as error:
        last_line = str(error).strip().split("\n")[-1]
        reason = last_line.removeprefix(f"{type(error).__module__}.").removeprefix(
            f"{type(error).__name__}: "
        )
    raise BadPicturesError(reason)  # not from the error: its traceback would keep the workers alive


def check_rows(pairs: Pairs, workers: int = 0, progress: Shown = False) -> dict[int, str]:
    """Read all that rows have, as training does but whole: why rows cannot be read, by their indices."""
    indices: Any = range(len(pairs.rows))  # a data set, as PyTorch takes any sequence
    reason_of: Any = partial(_reason, pairs)
    loader = DataLoader(indices, None, num_workers=workers, collate_fn=reason_of)
    reasons = counted(with_short_errors(loader), "checking", len(indices), "pairs", progress)
    return {index: reason for index, reason in enumerate(reasons) if reason}


def _reason(pairs: Pairs, index: int) -> str:
    """Why a row cannot be trained on, or nothing."""
    channels = {"source": pairs.source_channels // pairs.spec.planes, "target": pairs.channels}
    try:
        row = pairs.rows[index]
    except ValueError as error:
        return " ".join(str(error).split())
    try:
        for role, column in pairs.reader.whole(row).items():
            if role in channels and len(column.array) != channels[role]:
                raise ValueError(
                    f"its {role} has {len(column.array)} channels, and others have {channels[role]}"
                )
            try:
                check_finite(column.array, column.absent)
            except ValueError as error:
                raise of_cells(column, error) from error
        pairs.conditions(row)
    except (ValueError, FileNotFoundError) as error:
        return " ".join(named(row, error).split())
    return ""


def first_look(pairs: Pairs) -> list[str]:
    """What the first rows show: values outside of ranges, flat sources, and pictures that are stretched."""
    shares: dict[str, list[float]] = {}
    flat: list[str] = []
    stretched: list[str] = []
    for index in range(min(LOOKED_AT, len(pairs.rows))):
        with suppress(ValueError, FileNotFoundError):  # which is said where the example is read
            row = pairs.rows[index]
            stretched += _stretched(pairs, row)
            for role, column in pairs.reader.whole(row).items():
                values = getattr(pairs.spec, role, None)
                if not isinstance(values, Values):
                    continue
                array = present_values(column)
                shares.setdefault(role, []).append(share_outside(array, values))
                if role == "source" and pairs.spec.is_flat(array):
                    flat.append(shown(row))
    lines: list[str] = []
    for role, each in shares.items():
        if np.mean(each) > CLIPPED:
            values = getattr(pairs.spec, role)
            share = f"{100 * np.mean(each):.2g} % of the values of the first {len(each)} {role}s"
            lines.append(f"{share} are outside of their range, {values}, and clipped to it")
    if flat:
        lines.append(
            f"{flat[0]} is nearly constant within {pairs.spec.source}: give the range that sources use"
        )
    return [*lines, *stretched[:1]]


def _stretched(pairs: Pairs, row: Row) -> list[str]:
    """A line on a row whose pictures get another shape, or none."""
    spec = pairs.spec
    if spec.size is None or spec.crop is not None or spec.resize != "stretch":
        return []
    sides = pairs.reader.heads(row)["source"][0].sides
    height, width = (side for axis, side in enumerate(sides) if axis != pairs.reader.axis)
    size = images.sides(spec.size)
    ratio = (size[1] / width) / (size[0] / height)
    if max(ratio, 1 / ratio) < STRETCHED:
        return []
    change = "wider" if ratio > 1 else "higher"
    stretch = f"{sizes.shown((height, width))} to {sizes.shown(size)}, {max(ratio, 1 / ratio):.2g} times {change}"
    return [f"{shown(row)} is stretched from {stretch}: --crop keeps the shape of pictures"]
