"""Steps on files, of one picture that is larger than memory: windows or blocks of pixels are read at a time.

The files of a step are written before those of the step before are deleted, and a marker says which step is
done: so the same work goes on after an interruption or a kill.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import manifest
from bbdm.base.atomic import LOCK
from bbdm.bridges.timesteps import Row
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.philox import normal_box, normal_rows
from bbdm.networks.arrays import in_channels
from bbdm.sampling.loop import Batch, Inputs, Run, State
from bbdm.sampling.torch_backend import Loaded, TorchBackend

MARKER = "done.json"
SOURCE_FILES = ("source", "absent")
WHOLE = 1 - 1e-4  # a sum of windows' weights that only rounding makes less than 1
Box = tuple[slice, slice]  # rows and columns


class FileArray:
    """An array in a file: indexing reads a tensor, and what is assigned is written.

    One that is ``sparse`` takes disk only where something was written; the rest is 0.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike, sparse: bool = False
    ) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.ndim = len(shape)
        self.dtype = np.dtype(dtype)
        self.sparse = sparse
        self.nbytes = math.prod(shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def create(self) -> FileArray:
        """The file anew, of zeros; they take their space unless it is sparse: OSError if the disk is full."""
        with self.path.open("wb") as file:
            if self.sparse:
                file.truncate(self.nbytes)
                return self
            for start in range(0, self.nbytes, 2**24):
                file.write(bytes(min(2**24, self.nbytes - start)))
        return self

    def mapped(self, mode: Any = "r") -> npt.NDArray[Any]:
        """The array, mapped into memory. Pages stay in memory as long as the mapping."""
        return np.memmap(self.path, self.dtype, mode, shape=self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if self.sparse:
            return torch.from_numpy(self._read(index))
        return torch.from_numpy(np.array(self.mapped()[index]))

    def __setitem__(self, index: Any, values: Any) -> None:
        array = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
        if self.sparse:
            self._write(index, np.asarray(array, self.dtype))
        else:
            self.mapped("r+")[index] = array

    def _read(self, index: Any) -> npt.NDArray[Any]:
        """Rows and columns of all planes, line by line: a mapping would read far ahead of each line."""
        top, bottom, left, right = self._box(index)
        array = np.empty((*self.shape[:-2], bottom - top, right - left), self.dtype)
        with self.path.open("rb", buffering=0) as file:
            for start, line in self._lines(array, top, left):
                file.seek(start)
                file.readinto(line.data)
        return array[self._whole(index)[:-2]]

    def _write(self, index: Any, array: npt.NDArray[Any]) -> None:
        """Write rows and columns of all planes: a full disk is an OSError, which in a mapping is a signal."""
        top, bottom, left, right = self._box(index)
        values = np.ascontiguousarray(array).reshape(*self.shape[:-2], bottom - top, right - left)
        with self.path.open("rb+", buffering=0) as file:
            for start, line in self._lines(values, top, left):
                file.seek(start)
                file.write(line.data)

    def _whole(self, index: Any) -> tuple[Any, ...]:
        """An index with something for each axis."""
        given = index if isinstance(index, tuple) else (index,)
        place = given.index(...) if ... in given else len(given)
        before = given[:place]
        after = given[place + 1 :]
        missing = self.ndim - len(before) - len(after)
        return (*before, *[slice(None)] * missing, *after)

    def _box(self, index: Any) -> tuple[int, int, int, int]:
        """The first and last row + 1, and the first and last column + 1, of an index of the last two axes."""
        rows, columns = self._whole(index)[-2:]
        top, bottom, _ = rows.indices(self.shape[-2])
        left, right, _ = columns.indices(self.shape[-1])
        return top, bottom, left, right

    def _lines(
        self, array: npt.NDArray[Any], top: int, left: int
    ) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Where each line of an array (..., rows, columns) begins in the file, in bytes, and the line."""
        height, width = self.shape[-2:]
        planes = array.reshape(-1, *array.shape[-2:])
        for number, plane in enumerate(planes):
            for row, line in enumerate(plane, start=number * height + top):
                yield (row * width + left) * self.dtype.itemsize, line

    def sync(self) -> None:
        """Return when the file is on the disk."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())


class FileBackend:
    """Steps on files: what :class:`bbdm.sampling.loop.Backend` says of runs.

    Args:
        backend: of the network, of image space.
        folder: of the files, which this process has locked.
        size: (height, width) of the state.
        names: of the arrays of a state: ``x``; ``x0hat`` where a row reads it; ``inputs`` where the network
            is not shown x.
        boxes: (rows, columns) of the state, a block that is moved at once each.
        settings: plain values that say what is made: states of other work are not used.
        advance: called with the number of network calls that were made, after each and before each block.
        chosen: the windows that the network is called on, by their index of each side; None for all. Boxes
            that none of them touches may be left out.
    """

    def __init__(
        self,
        backend: TorchBackend,
        folder: Path,
        size: Sequence[int],
        names: Sequence[str],
        boxes: Sequence[Box],
        settings: Mapping[str, Any],
        advance: Callable[[int], None],
        chosen: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._size = tuple(size)
        self._names = names
        self._boxes = boxes
        self._chosen = chosen
        self._about = settings
        self._advance = advance

    def done(self) -> int | None:
        """The steps that are done, None where not even the first state is; files of other work go."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            marker = json.loads((self._folder / MARKER).read_text())
            if marker["about"] == self._about:
                return int(marker["done"])
        self._keep([])
        return None

    def state(self, done: int) -> State:
        """The state after a number of steps."""
        shape = (1, self._backend.network.channels, *self._size)
        dtype = str(self._backend.like.dtype).removeprefix("torch.")
        files = {name: self.array(f"{name}.{done}", shape, dtype) for name in self._names}
        return State(files["x"], files.get("x0hat"), files.get("inputs", files["x"]))

    def array(self, name: str, shape: Sequence[int], dtype: npt.DTypeLike) -> FileArray:
        """A file of the folder, which is sparse where not all windows are predicted."""
        return FileArray(self._folder / name, shape, dtype, self._chosen is not None)

    def blocks(self) -> Iterator[Box]:
        """The boxes, with a word to ``advance`` before each."""
        for box in self._boxes:
            self._advance(0)
            yield box

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state."""
        run = Run(batch, inputs, self.state(0))
        loaded: Loaded = batch.plan.loaded
        self._move(run, None, None, loaded.opening, len(loaded.rows) - 1)
        self._finish(run, 0)
        return run

    def step(self, run: Run, index: int) -> None:
        """The network on windows, whose predictions are added up in a file, then a row for each block."""
        before = run.state
        loaded: Loaded = run.batch.plan.loaded
        prediction = self._predict(run, loaded.embedding[index : index + 1])
        run.state = self.state(index + 1)
        self._move(run, before, prediction, loaded.rows[index], index)
        self._finish(run, index + 1)

    def _predict(self, run: Run, embedding: torch.Tensor) -> FileArray:
        device = self._backend.device

        def network(x: torch.Tensor, conditions: Mapping[str, torch.Tensor]) -> torch.Tensor:
            shown = {name: value.to(device) for name, value in conditions.items()}
            prediction = self._backend.call_part(embedding, x.to(device), shown).cpu()
            self._advance(1)
            return prediction

        shown = run.state.inputs
        (conditions,) = run.inputs.conditions
        total = self.array("prediction", shown.shape, shown.dtype).create()
        windows = run.batch.windows
        assert windows is not None
        return windows.predict(network, shown, conditions, run.inputs.weights, total, self._chosen)

    def _move(
        self,
        run: Run,
        before: State | None,
        prediction: FileArray | None,
        row: torch.Tensor,
        number: int,
    ) -> None:
        """A row of the table, block by block, into new files: after a kill, those before are there yet."""
        outputs: dict[str, FileArray] = {name: getattr(run.state, name) for name in self._names}
        for array in outputs.values():
            array.create()
        for rows, columns in self.blocks():
            block = (slice(None), slice(None), rows, columns)
            state = self._block(run, before, prediction, row, number, block)
            for name, array in outputs.items():
                array[block] = getattr(state, name).to(self._backend.like.dtype)
        for array in outputs.values():
            array.sync()

    def _block(
        self,
        run: Run,
        before: State | None,
        prediction: FileArray | None,
        row: torch.Tensor,
        number: int,
        block: tuple[slice, ...],
    ) -> State:
        """A block of the state after a step; without a state before, of the first."""
        inputs = run.inputs
        network = self._backend.network
        y = in_channels(self._read(inputs.y, block), network.channels, network.endpoint_channels)
        state = State(
            torch.zeros_like(y), torch.zeros_like(y), torch.empty_like(y, dtype=self._backend.dtype)
        )
        predicted = y
        if before is not None:
            state.x = self._read(before.x, block)
            if before.x0hat is not None:
                state.x0hat = self._read(before.x0hat, block)
        if prediction is not None:
            predicted = self._read(prediction, block)
            if self._chosen is not None:
                predicted = predicted / self._shares(run, block[2], block[3]).to(predicted)
        noise = None
        if Row(*row.tolist()).c_z != 0:
            noise = self._noise(inputs.seeds, number, block[2], block[3])
        at = torch.tensor([number], device=y.device)
        bridge_step(state.x, state.x0hat, state.inputs, predicted, y, row, at, None, noise)
        return state

    def _noise(self, seeds: torch.Tensor, number: int, rows: slice, columns: slice) -> torch.Tensor:
        """The noise of a block."""
        height, width = self._size
        shape = (self._backend.network.channels, height, width)
        if columns == slice(0, width):
            return normal_rows(seeds, number, shape, rows)
        return normal_box(seeds, number, shape, rows, columns)

    def _shares(self, run: Run, rows: slice, columns: slice) -> torch.Tensor:
        """(rows, columns) sums of the weights of predicted windows in a block; 1 where all or none are."""
        assert run.batch.windows is not None
        assert self._chosen is not None
        height, width = run.batch.windows.sides(self._size)
        of_rows, of_columns = run.inputs.weights
        total = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
        for first, second in self._chosen:
            down = height.span(first)
            across = width.span(second)
            top = max(down.start, rows.start)
            bottom = min(down.stop, rows.stop)
            left = max(across.start, columns.start)
            right = min(across.stop, columns.stop)
            if top >= bottom or left >= right:
                continue
            weight = of_rows[first][top - down.start : bottom - down.start, None].float()
            weight = weight * of_columns[second][left - across.start : right - across.start].float()
            total[
                top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
            ] += weight
        return torch.where((total > 0) & (total < WHOLE), total, 1)

    def _read(self, array: FileArray, block: tuple[slice, ...]) -> torch.Tensor:
        return array[block].to(self._backend.like).contiguous()

    def _finish(self, run: Run, done: int) -> None:
        """Say that a step is done, and delete the files before it."""
        manifest.write(self._folder / MARKER, {"about": self._about, "done": done})
        self._keep(
            [getattr(run.state, name).path.name for name in self._names] + [MARKER, *SOURCE_FILES]
        )

    def _keep(self, names: Collection[str]) -> None:
        """Delete all files but those of some names."""
        for file in self._folder.iterdir():
            if file.is_dir():  # of a write that was killed
                shutil.rmtree(file, ignore_errors=True)
            elif file.name not in (LOCK, *names):
                file.unlink()
