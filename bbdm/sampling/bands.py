"""Steps of a picture by bands of rows, of which only some are in memory.

A step of a band needs the state before it in the rows that its windows see, and no more. So bands may be in
files or on other machines; see :mod:`bbdm.sampling.streaming`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bbdm.execution.loop import Loop
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.philox import normal_rows
from bbdm.networks.base import Network
from bbdm.networks.windowed import Windowed
from bbdm.networks.windows import Spans, Windowing

C_H, C_Z = 6, 7  # the columns of the weights of the estimate before, and of the noise
Read = Callable[[str, Spans], torch.Tensor]  # (1, C, rows, columns) of "x", "x0hat" or "source"


class Bands:
    """The steps of one picture on rows of its state.

    Args:
        network: what the source becomes.
        loop: the rows of the table, and the network.
        windows: what the network is called on.
        shape: (C, H, W) of the state.
        seed: the seed of the picture.
        report: called after each call of the network with 1.
        at_once: rows that are stepped at once, for which there is memory; None for all that are ready.

    Raises:
        ValueError: the network is told more than the source.

    Attributes: ``steps``, their number; ``size``, (height, width) of the state; ``first_rows``, the rows at
    which windows begin.
    """

    def __init__(
        self,
        network: Network,
        loop: Loop,
        windows: Windowing,
        shape: tuple[int, ...],
        seed: int,
        report: Callable[[int], Any] = lambda _: None,
        at_once: int | None = None,
    ) -> None:
        if network.further.kinds:
            raise ValueError(
                f"a picture is made by parts without conditions, and the network has {network.further.wanted}"
            )
        self._network = network
        self._loop = loop
        self._windowed = Windowed(loop.network, windows, report)
        self._sides = windows.sides(shape[1:])
        self._shape = shape
        self._seeds = torch.tensor([seed], dtype=torch.int64, device=loop.device)
        self._at_once = at_once or shape[1]
        self.steps = len(loop.rows)
        self.size = shape[1:]
        self.first_rows = self._sides[0].starts

    def seen(self, rows: slice) -> slice:
        """The rows that windows see which touch some rows."""
        return self._sides[0].around(rows)

    def reads_estimate(self, index: int) -> bool:
        """Whether a step needs the estimate of the step before, "x0hat"."""
        return float(self._loop.rows[index, C_H]) != 0

    def start(self, rows: slice, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the first state, and of an estimate that no step uses."""
        y = self._y(read, rows)
        x, x0hat, pred = (torch.zeros_like(y) for _ in range(3))
        self._step(x, x0hat, pred, y, self._loop.opening, self.steps - 1, rows, read)
        return x, x0hat

    def step(self, index: int, rows: slice, read: Read) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Rows after a step: their state, and the estimate of the target.

        ``read`` gives places of what there was before the step: of the state in :meth:`seen`, of all else in
        ``rows``. They may be overwritten only where they were yielded before the last rows.
        """
        before = self._loop.rows[index - 1] if index else self._loop.opening[-1]
        embedding = self._loop.embedding[index : index + 1]

        def shown(place: Spans) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            source = self._read(read, "source", place)
            i_x, i_y = before[8:].tolist()
            x = self._read(read, "x", place)
            inputs = x if (i_x, i_y) == (1.0, 0.0) else i_x * x + i_y * self._network.endpoint(source)
            seen = {name: value.to(self._loop.dtype) for name, value in self._network.given(source).items()}
            return inputs.to(self._loop.dtype), seen

        for done, pred in self._windowed.rows(shown, embedding, self._shape[1:], rows):
            for part in parts(done, self._at_once):
                y, place = self._y(read, part), self._across(part)
                x = self._read(read, "x", place).clone()
                x0hat = self._read(read, "x0hat", place).clone() if self.reads_estimate(index) else torch.zeros_like(x)
                made = pred[:, :, part.start - done.start : part.stop - done.start]
                self._step(x, x0hat, made, y, self._loop.rows, index, part, read)
                yield part, x, x0hat
                del made
            del pred  # the memory of rows that are done

    def _across(self, rows: slice) -> Spans:
        return rows, *(slice(0, side) for side in self._shape[2:])

    def _step(
        self,
        x: torch.Tensor,
        x0hat: torch.Tensor,
        pred: torch.Tensor,
        y: torch.Tensor,
        table: torch.Tensor,
        index: int,
        rows: slice,
        read: Read,
    ) -> None:
        noisy = float(table[index, C_Z]) != 0
        noise = normal_rows(self._seeds, index, self._shape, rows) if noisy else None
        place = torch.full((1,), index, dtype=torch.int64, device=x.device)
        bridge_step(x, x0hat, torch.empty_like(x), pred, y, table, place, None, noise, self._loop.clamp)

    def _y(self, read: Read, rows: slice) -> torch.Tensor:
        return self._network.endpoint(self._read(read, "source", self._across(rows))).contiguous()

    def _read(self, read: Read, name: str, place: Spans) -> torch.Tensor:
        return read(name, place).to(self._loop.device, self._loop.state_dtype).contiguous()


def parts(rows: slice, at_once: int) -> Iterator[slice]:
    """Rows, some at a time."""
    return (slice(start, min(start + at_once, rows.stop)) for start in range(rows.start, rows.stop, at_once))
