"""One picture that is larger than memory: the loop of a sampler over arrays that are files.

The network is called on windows, whose predictions are added up in a file, and a step moves blocks of rows.
So memory holds some windows, or some rows. The files are in a folder beside the result, of one process at a
time, which says which step is done: the same work goes on after an interruption or a kill.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import manifest, sizes
from bbdm.base.atomic import LOCK, locked
from bbdm.base.scripts import StoppedError
from bbdm.base.sizes import amount
from bbdm.bridges.timesteps import Row
from bbdm.data.reading import Strips
from bbdm.kernels.philox import normal_rows
from bbdm.networks.arrays import in_channels
from bbdm.networks.base import SOURCE
from bbdm.networks.windows import WindowGrid
from bbdm.pictures import Picture, formats, write
from bbdm.pictures.values import scaled_present
from bbdm.sampling.loop import Batch, Inputs, Plan, State
from bbdm.sampling.sampler import BridgeSampler

# Bytes of memory for each value, of which float32 takes 4. In a call, as measured: arrays of sources; state,
# estimate, noise, predictions and results. In windows: copies, and what a network of few channels makes of
# them. In rows that are stepped or scaled: all of that.
SOURCE_BYTES, STATE_BYTES, WINDOW_BYTES, ROW_BYTES = 12, 36, 48, 64
TALL = 256  # rows are read in multiples of it where there is memory: those of tiles
SUFFIXES = (".npy", ".tif", ".tiff", ".png")  # of results; all but PNG are written by parts
MARKER = "done.json"


class FileArray:
    """An array in a file: indexing reads a tensor, and what is assigned is written."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        self.path, self.shape, self.ndim, self.dtype = path, tuple(shape), len(shape), np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def create(self) -> FileArray:
        """The file anew, of zeros that take their space: OSError where the disk is full."""
        with self.path.open("wb") as file:
            for start in range(0, self.nbytes, 2**24):
                file.write(bytes(min(2**24, self.nbytes - start)))
        return self

    def mapped(self, mode: Any = "r") -> npt.NDArray[Any]:
        """The array, mapped into memory. Pages stay in memory as long as the mapping."""
        return np.memmap(self.path, self.dtype, mode, shape=self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(self.mapped()[index]))

    def __setitem__(self, index: Any, values: Any) -> None:
        self.mapped("r+")[index] = values.cpu().numpy() if isinstance(values, torch.Tensor) else values

    def sync(self) -> None:
        """Return when the file is on the disk."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())


def folder_of(result: Path) -> Path:
    """The folder of the states of a result, which one process at a time locks."""
    return result.with_name(f".{result.name}.steps")


@contextmanager
def _states(folder: Path) -> Iterator[None]:
    """The folder of states, locked. It stays if the work is interrupted after the first state was written."""
    keep = True  # what another process makes
    try:
        with locked(folder, patience=0):
            keep = False
            try:
                yield
            except (KeyboardInterrupt, StoppedError):
                keep = (folder / MARKER).exists()
                raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def in_memory(sampler: BridgeSampler, size: Sequence[int], windows: WindowGrid | None = None) -> int:
    """About the bytes that a call of a sampler takes for a picture of a (height, width)."""
    grid = sampler._shapes.grid(size)
    channels = sampler._shapes.source_channels * (1 if sampler.codec is None else 2)  # and the result
    values = math.prod(size) * SOURCE_BYTES * channels + math.prod(grid) * STATE_BYTES * sampler.unet.channels
    count = 0 if windows is None else min(windows.at_once, _count(windows, grid))
    return values + (_window_bytes(sampler, windows) * count if windows else 0)


def _count(windows: WindowGrid, size: Sequence[int]) -> int:
    return math.prod(len(side.starts) for side in windows.sides(size))


def _window_bytes(sampler: BridgeSampler, windows: WindowGrid) -> int:
    channels = sampler.unet.channels + sum(each.size for each in sampler.unet.inputs.values())
    return math.prod(windows.lengths) * WINDOW_BYTES * channels


class LargePicture(BridgeSampler):
    """A sampler of one picture, whose source, states and predictions are files.

    Args:
        sampler: of image space, with its own solver and steps.
        source: the picture, of which rows are read.
        windows: what the network is called on; fewer at once where memory is short.
        seed: the seed of the picture.
        memory: about the bytes that may be used.
        report: called with the number of network calls that are done, and of all, after each and while files
            are written. What it raises ends the work.

    Attributes: ``disk``, the bytes of files at most.

    Raises:
        ValueError: the source must be decoded whole, or windows do not fit into the memory; the network is
            one of latents, or sees more than the source as it is.
    """

    def __init__(
        self,
        sampler: BridgeSampler,
        source: Strips,
        windows: WindowGrid,
        seed: int,
        memory: int,
        report: Callable[[int, int], Any] = lambda done, total: None,
    ) -> None:
        vars(self).update(vars(sampler))
        self._source, self._report, self._done = source, report, 0
        self._check(memory // 2)
        self._size, channels, plan = self._shapes.grid(source.shape[1:]), source.shape[0], self._plan()
        height, width = self._size
        window, row = _window_bytes(self, windows), width * ROW_BYTES * (self.unet.channels + channels)
        if memory < (least := 2 * window + 4 * row):
            lengths = sizes.shown(windows.lengths)
            raise ValueError(
                f"memory must be at least {amount(least)} for windows of {lengths} of a picture {width} wide, got "
                f"{amount(memory)}: or give smaller windows"
            )
        rows = min(height, memory // 4 // row)
        self._rows = rows - rows % TALL or rows  # that are handled at once
        windows = replace(windows, at_once=max(1, min(windows.at_once, memory // 2 // window)))
        self._batch = Batch(plan, [0], None, [seed], windows=windows)
        cut = {"lengths": windows.lengths, "overlap": windows.overlap, "margin": windows.margin}
        self._decides = {"table": plan.table.description(), "seed": seed, "windows": cut}  # of what states are
        self._total = -(-_count(windows, self._size) // windows.at_once) * len(plan.times)
        # A state is x, an estimate that a row reads, and what the network sees where that is not x.
        wanted = {
            "x": True,
            "x0hat": any(Row(*row).c_h != 0 for row in plan.table.rows),
            "inputs": (plan.table.inputs != (1, 0)).any(),
        }
        self._names = [name for name, is_wanted in wanted.items() if is_wanted]
        values = self.unet.channels * (2 * len(self._names) + 1)  # before and after a step, and predictions
        largest = max(
            self._like.itemsize, np.dtype(self.pictures.target_values.dtype).itemsize
        )  # of the result, twice, too
        self.disk = height * width * (largest * values + 4 * channels + source.masked)

    def _check(self, memory: int) -> None:
        """Raise ValueError where the source needs more memory, or windows of it are not all that is seen."""
        if self.codec is not None:
            raise ValueError("only networks of image space translate pictures larger than memory, and this has latents")
        if self._source.decoded > memory:
            raise ValueError(
                f"it must be decoded whole, which needs {amount(self._source.decoded)}, and half of the memory, "
                f"{amount(memory)}, is for that: save it as GeoTIFF, tiled TIFF or npy, of which parts are read"
            )
        source = torch.zeros(1, self._shapes.source_channels, *self._shapes.stride, device=self.device)
        if self._shapes.shown and self.unet.prepared({SOURCE: source}, self._shapes.stride).get(SOURCE) is not source:
            raise ValueError("the network prepares the whole source, which a picture larger than memory has not")

    def _advance(self, calls: int) -> None:
        self._done += calls
        self._report(self._done, self._total)

    def _blocks(self, height: int) -> Iterator[slice]:
        """Rows, as many at once as memory allows."""
        for start in range(0, height, self._rows):
            self._advance(0)
            yield slice(start, min(start + self._rows, height))

    @torch.inference_mode()
    def run(self, path: Path, about: Mapping[str, Any]) -> None:
        """Make the result, whole or not at all; go on after the steps that were done before an interruption.

        Args:
            path: of the result's file.
            about: plain values that name the network and the source: states of others are not used.

        Raises:
            OSError: the disk is too small, or became full.
            InUseError: another process makes this result.
            KeyboardInterrupt, StoppedError: it was interrupted, and the folder has the steps that are done.
            ValueError: the source is damaged or not finite, or no file of this name can be written by parts.
        """
        if formats.suffix_of(path) not in SUFFIXES:
            raise ValueError(f"the result of a large picture must be one of {', '.join(SUFFIXES)}, got {path}")
        batch, windows, steps = self._batch, self._batch.windows, len(self._batch.plan.times)
        assert windows is not None
        self._folder, self._about = folder_of(path), manifest.as_json({**about, **self._decides})
        with _states(self._folder):
            done = self._resumed()
            there = sum(file.stat().st_size for file in self._folder.iterdir())
            if self.disk > (free := shutil.disk_usage(self._folder).free + there):
                raise OSError(
                    f"the state of this picture in {self._folder} needs {amount(self.disk)}, and the disk has "
                    f"{amount(free)}: free {amount(self.disk - free)} there, or give another folder of results"
                )
            source = FileArray(self._folder / "source", (1, self._source.shape[0], *self._size), np.float32)
            absent = FileArray(self._folder / "absent", self._size, np.bool_) if self._source.masked else None
            state = None if done is None else self._state(done)
            self._done = (done or 0) * self._total // steps
            if state is None:
                self._copy(source, absent)
            seen = {SOURCE: source} if self._shapes.shown else {}
            weights = [self._array(each) for each in windows.weights(self._size)]
            inputs = Inputs(source, [seen], self._array(np.array(batch.seeds)), weights=weights)
            for _ in self._states(batch, inputs, state, done or 0):
                pass
            write(path, self._result(absent, self._state(steps).x))

    def _resumed(self) -> int | None:
        """The steps that are done, None where not even the first state is; files of other work go."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            found = json.loads((self._folder / MARKER).read_text())
            if found["about"] == self._about:
                return int(found["done"])
        self._keep([])
        return None

    def _keep(self, names: Collection[str]) -> None:
        """Delete all files but those of some names."""
        for file in self._folder.iterdir():
            if file.is_dir():  # of a write that was killed
                shutil.rmtree(file, ignore_errors=True)
            elif file.name not in (LOCK, *names):
                file.unlink()

    def _copy(self, source: FileArray, absent: FileArray | None) -> None:
        """Write the source in [-1, 1], checked; past its edge, the last pixels are repeated."""
        height, right, values = self._source.shape[1], self._size[1] - self._source.shape[2], self._source.values()
        for array in (source, absent):
            if array is not None:
                array.create()
        for rows in self._blocks(self._size[0]):
            inner = slice(min(rows.start, height - 1), min(rows.stop, height))
            stored, missing = self._source.read(inner)
            scaled = scaled_present(values, stored, missing)
            edges = (0, rows.stop - rows.start - stored.shape[1]), (0, right)
            source[:, :, rows] = np.pad(scaled, [(0, 0), *edges], mode="edge")
            if absent is not None:
                absent[rows] = np.pad(missing, edges, mode="edge")
        self._source.forget()  # it is not decoded again

    def _state(self, done: int) -> State:
        """The state after a number of steps, of files."""
        shape, dtype = (1, self.unet.channels, *self._size), str(self._like.dtype).removeprefix("torch.")
        files = {name: FileArray(self._folder / f"{name}.{done}", shape, dtype) for name in self._names}
        return State(files["x"], files.get("x0hat"), files.get("inputs", files["x"]))

    def _step(self, plan: Plan, inputs: Inputs, state: State | None, prediction: Any, index: int) -> State:
        """One row of the table, block by block, into new files: after a kill, the others are there yet."""
        table, row = (plan.loaded[1], len(plan.times) - 1) if state is None else (plan.loaded[0], index)
        after = self._state(index + 1)
        is_noisy = Row(*table[row].tolist()).c_z != 0
        outputs: dict[str, FileArray] = {name: getattr(after, name) for name in self._names}
        for array in outputs.values():
            array.create()
        for rows in self._blocks(self._size[0]):
            block = slice(None), slice(None), rows, slice(None)
            y = in_channels(self._block(inputs.y, block), self.unet.channels, self.unet.endpoint_channels)
            shape = self.unet.channels, *self._size
            noise = {row: normal_rows(inputs.seeds, row, shape, rows) if is_noisy else None}
            before = predicted = None
            if state is not None:
                x0hat = torch.zeros_like(y) if state.x0hat is None else self._block(state.x0hat, block)
                before = State(self._block(state.x, block), x0hat, torch.empty_like(y, dtype=self.dtype))
                predicted = self._block(prediction, block)
            block_state = super()._step(plan, Inputs(y, [], None, noise), before, predicted, index)
            for name, array in outputs.items():
                array[block] = getattr(block_state, name).to(self._like.dtype)
        for array in outputs.values():
            array.sync()
        manifest.write(self._folder / MARKER, {"about": self._about, "done": index + 1})
        self._keep([MARKER, "source", "absent", *(array.path.name for array in outputs.values())])
        return after

    def _block(self, array: Any, index: Any) -> torch.Tensor:
        return array[index].to(self.device, self._like.dtype).contiguous()

    def _net(self, plan: Plan, conditions: Mapping[str, Any], x: torch.Tensor, index: int) -> torch.Tensor:
        prediction = super()._net(plan, conditions, x, index)
        self._advance(1)
        return prediction

    def _sum(self, x: Any) -> FileArray:
        return FileArray(self._folder / "prediction", x.shape, x.dtype).create()

    def _get(self, value: Any) -> Any:
        return value if isinstance(value, FileArray) else super()._get(value)

    def _put(self, array: torch.Tensor) -> torch.Tensor:
        return super()._put(array.to(self.device))

    def _result(self, absent: FileArray | None, state: FileArray) -> Picture:
        """The result in stored values, of the last state; mapped into memory from a file."""
        kind, height, width = self.pictures, *self._source.shape[1:]
        result = FileArray(self._folder / "result", (state.shape[1], height, width), kind.target_values.dtype)
        result.create()
        placed: Picture | None = None
        for rows in self._blocks(height):
            missing = None if absent is None else absent[rows, :width].numpy()
            placed = kind.result(state[0, :, rows, :width].numpy(), self._source.geometry, missing)
            result[:, rows] = np.asarray(placed)
        assert placed is not None
        return Picture(result.mapped(), placed.geometry, kind.target_values.unit)
