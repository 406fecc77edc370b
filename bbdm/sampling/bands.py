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
from bbdm.networks.windows import Windowing

C_Z = 7  # the column of the noise's weight
Read = Callable[[str, slice], torch.Tensor]  # rows (1, C, rows, W) of "x", "x0hat", "source" or "mask"


class Bands:
    """The steps of one picture on rows of its state.

    Args:
        network: what the source becomes.
        loop: the rows of the table, and the network.
        windows: what the network is called on.
        shape: (C, H, W) of the state.
        seed: of the picture.
        masked: whether there is a mask.
        report: called after each call of the network with 1.

    Attributes: ``steps``, their number; ``size``, (height, width) of the state; ``first_rows``, the rows at
    which windows begin.
    """

    def __init__(
        self,
        network: Network,
        loop: Loop,
        windows: Windowing,
        shape: tuple[int, int, int],
        seed: int,
        masked: bool = False,
        report: Callable[[int], Any] = lambda _: None,
    ) -> None:
        self._network = network
        self._loop = loop
        self._windowed = Windowed(loop.network, windows, report)
        self._sides = windows.sides(shape[1:])
        self._shape = shape
        self._seeds = torch.tensor([seed], dtype=torch.int64, device=loop.device)
        self._masked = masked
        self.steps = len(loop.rows)
        self.size = shape[1:]
        self.first_rows = self._sides[0].starts

    def seen(self, rows: slice) -> slice:
        """The rows that windows see which touch some rows."""
        return self._sides[0].around(rows)

    def start(self, rows: slice, read: Read) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the first state, and of an estimate that no step uses."""
        y = self._y(read, rows)
        x, x0hat, pred = (torch.zeros_like(y) for _ in range(3))
        self._step(x, x0hat, pred, y, self._loop.opening, self.steps - 1, rows, read)
        return x, x0hat

    def step(self, index: int, rows: slice, read: Read) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Rows after a step: their state, and the estimate of the target.

        ``read`` gives those before the step, of the state in :meth:`seen`, and they may be overwritten only
        where they were yielded before the last rows.
        """
        before = self._loop.rows[index - 1] if index else self._loop.opening[-1]
        embedding = self._loop.embedding[index : index + 1]

        def shown(rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            source = self._read(read, "source", rows)
            x, y = self._read(read, "x", rows), self._network.endpoint(source)
            i_x, i_y = before[8:].tolist()
            inputs = x if (i_x, i_y) == (1.0, 0.0) else i_x * x + i_y * y
            seen = {name: value.to(self._loop.dtype) for name, value in self._network.given(source).items()}
            return inputs.to(self._loop.dtype), seen

        for done, pred in self._windowed.rows(shown, embedding, self._shape[1:], rows):
            x, x0hat, y = self._read(read, "x", done), self._read(read, "x0hat", done), self._y(read, done)
            self._step(x, x0hat, pred, y, self._loop.rows, index, done, read)
            yield done, x, x0hat

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
        mask = self._read(read, "mask", rows) if self._masked else None
        place = torch.full((1,), index, dtype=torch.int64, device=x.device)
        bridge_step(x, x0hat, torch.empty_like(x), pred, y, table, place, None, noise, self._loop.clamp, mask)

    def _y(self, read: Read, rows: slice) -> torch.Tensor:
        return self._network.endpoint(self._read(read, "source", rows)).contiguous().clone()

    def _read(self, read: Read, name: str, rows: slice) -> torch.Tensor:
        return read(name, rows).to(self._loop.device, self._loop.state_dtype, copy=True).contiguous()
