"""One picture that is larger than memory: its state is in files, of which parts are read and written.

A step calls the network on windows of the state before it, and writes the state after it from top to bottom,
see :class:`~bbdm.sampling.bands.Bands`. So memory holds some windows, and the rows that they touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import sizes
from bbdm.base.memory import shown
from bbdm.data.strips import Strips
from bbdm.networks.windows import Spans, Windowing
from bbdm.pictures import files, suffixes
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import Values, check_finite
from bbdm.sampling.bands import Bands, parts
from bbdm.sampling.sampler import BridgeSampler
from bbdm.sampling.state import Plane, state_folder

# Bytes of memory for each value, of which float32 takes 4. In a call, as measured: arrays of sources; state,
# estimate, noise, predictions and results. In windows: copies, and what a network of few channels makes of
# them. In rows that are stepped or scaled: all of that.
SOURCE, STATE, WINDOW, ROW = 12, 36, 48, 64
TALL = 256  # rows are read in multiples of it where there is memory: those of tiles
SUFFIXES = (".npy", ".tif", ".tiff", ".png")  # of results; all but PNG are written by parts


def in_memory(sampler: BridgeSampler, size: Sequence[int], windows: Windowing | None = None) -> int:
    """About the bytes that a call of a sampler takes for a picture of a (height, width)."""
    _, channels, *grid = sampler._shapes.grid(1, *size)
    source = sampler._shapes.source_channels * (1 if sampler.codec is None else 2)  # and the result
    values = math.prod(size) * SOURCE * source + math.prod(grid) * STATE * channels
    if windows is None:
        return values
    places = math.prod(len(side.starts) for side in windows.sides(grid))
    return values + min(places, windows.at_once) * _window_bytes(sampler, windows)


def _window_bytes(sampler: BridgeSampler, windows: Windowing) -> int:
    """About the bytes that a window takes."""
    seen = sampler.unet.channels + sum(sampler.unet.conditions.values())
    return math.prod(windows.lengths) * WINDOW * seen


class Stream:
    """The translation of one picture in image space, of which parts are in memory.

    Args:
        sampler: with its own solver and steps.
        source: the picture, of which rows are read.
        windows: what the network is called on; fewer at once where memory is short.
        seed: the seed of the picture.
        memory: about the bytes that may be used.
        report: called with the number of network calls that are done, and of all, after each and while files
            are written. What it raises ends the work.

    Attributes: ``disk``, the bytes of files between two steps.

    Raises:
        ValueError: the source must be decoded whole, or windows do not fit into the memory; or the bridge is
            of latents.
    """

    def __init__(
        self,
        sampler: BridgeSampler,
        source: Strips,
        windows: Windowing,
        seed: int,
        memory: int,
        report: Callable[[int, int], Any] = lambda done, total: None,
    ) -> None:
        if sampler.codec is not None:
            raise ValueError(
                "pictures larger than memory are translated by networks of image space, and this has latents"
            )
        if source.decoded > memory // 2:
            raise ValueError(
                f"it must be decoded whole, which needs {shown(source.decoded)}, and half of the {shown(memory)} of "
                "memory are for that: save it as GeoTIFF, tiled TIFF or npy, of which parts are read"
            )
        self._source, self._report = source, report
        self._kind = sampler.pictures
        self._shape = sampler._shapes.grid(1, *source.shape[1:])[1:]
        plan = sampler._own
        self._loop, self._about = plan.loop, {"table": plan.table.description(), "seed": seed}
        windows = self._fitting(sampler, windows, memory)
        self._done, self._calls = 0, windows.calls(1, self._shape[1:])
        self._about["windows"] = {"lengths": windows.lengths, "overlap": windows.overlap, "margin": windows.margin}
        self._bands = Bands(
            sampler.unet, self._loop, windows, self._shape, seed, report=self._advance, at_once=self._rows
        )
        history = any(map(self._bands.reads_estimate, range(self._bands.steps)))
        state = math.prod(self._shape) * self._loop.state_dtype.itemsize
        pixels = source.shape[1] * source.shape[2]
        self.disk = 2 * state * (2 if history else 1) + pixels * (
            source.shape[0] * source.dtype.itemsize + source.masked
        )

    def _fitting(self, sampler: BridgeSampler, windows: Windowing, memory: int) -> Windowing:
        """The windows, as many at once as memory allows; sets the rows that are handled at once."""
        channels, _, width = self._shape
        band = 2 * windows.lengths[0] * width * channels * 4  # the rows that predictions are added up in
        window, row = _window_bytes(sampler, windows), width * ROW * (channels + self._source.shape[0])
        least = band + 2 * window + 4 * row
        if memory < least:
            lengths = sizes.shown(windows.lengths)
            raise ValueError(
                f"memory must be at least {shown(least)} for windows of {lengths} of a picture {width} wide, got "
                f"{shown(memory)}: or give smaller windows"
            )
        rows = (memory - band) // 4 // row
        self._rows = rows - rows % TALL or rows
        return replace(windows, at_once=max(1, min(windows.at_once, (memory - band) // 2 // window)))

    def _advance(self, calls: int) -> None:
        self._done += calls
        self._report(self._done, self._calls * self._bands.steps)

    @torch.inference_mode()
    def run(self, path: Path, about: Mapping[str, Any]) -> None:
        """Make the result, whole or not at all; go on after the steps that a killed process did.

        Args:
            path: of the result's file.
            about: plain values that name the network and the source: states of others are not used.

        Raises:
            DiskFullError: the disk is too small, or became full.
            ResultInUseError: another process makes this result.
            ValueError: the source is damaged or not finite, or no file of this name can be written by parts.
        """
        if suffixes.suffix_of(path) not in SUFFIXES:
            raise ValueError(f"the result of a large picture must be one of {', '.join(SUFFIXES)}, got {path}")
        with state_folder(path, {**about, **self._about}) as folder:
            folder.check_free(self.disk, "the state of this picture")
            planes = _Files(folder.path, self._source, self._shape, self._loop.state_dtype)
            if folder.done is None:
                self._begin(planes)
                folder.finish(0, planes.names(0))
            assert folder.done is not None
            self._done = folder.done * self._calls
            for index in range(folder.done, self._bands.steps):
                self._step(planes, index)
                folder.finish(index + 1, planes.names(index + 1))
            last = planes.state(self._bands.steps)
            result = Plane(folder.path / "result", (last.shape[0], *self._source.shape[1:]), self._kind.target.dtype)
            folder.check_free(last.nbytes + 2 * result.nbytes, "the result of this picture and its state")
            files.write(path, self._finish(planes, last, result))

    def _begin(self, planes: _Files) -> None:
        """Copy the source, which is checked, and write the first state."""
        source = self._source
        marked = planes.absent.written() if source.masked else nullcontext()
        with planes.source.written() as values, marked as holes:
            for rows in parts(slice(0, source.shape[1]), self._rows):
                self._advance(0)
                array, absent = source.read(rows)
                check_finite(np.where(absent, array.dtype.type(0), array) if absent.any() else array, (rows.start, 0))
                planes.source.append(values, array)
                if holes is not None:
                    planes.absent.append(holes, absent[None])
        with planes.state(0).written() as file:
            for rows in parts(slice(0, self._shape[1]), self._rows):
                x, _ = self._bands.start(rows, planes.reader(0))
                planes.state(0).append(file, x[0].cpu().numpy())

    def _step(self, planes: _Files, index: int) -> None:
        """Write the state after a step, and the estimate where the next one reads it."""
        following = index + 1
        state, estimate = planes.state(following), planes.estimate(following)
        kept = following < self._bands.steps and self._bands.reads_estimate(following)
        with state.written() as x_file, estimate.written() if kept else nullcontext() as x0hat_file:
            for _, x, x0hat in self._bands.step(index, slice(0, self._shape[1]), planes.reader(index)):
                state.append(x_file, x[0].cpu().numpy())
                if x0hat_file is not None:
                    estimate.append(x0hat_file, x0hat[0].cpu().numpy())

    def _finish(self, planes: _Files, state: Plane, result: Plane) -> Picture:
        """The result in stored values, of the last state; mapped into memory from a file."""
        source, kind = self._source, self._kind
        placed: Picture | None = None
        with result.written() as file:
            for rows in parts(slice(0, result.shape[1]), self._rows):
                self._advance(0)
                window = rows, slice(0, result.shape[2])
                absent = planes.absent.read(*window)[0] if source.masked else None
                placed = kind.result(state.read(*window), source.geometry, absent)
                result.append(file, placed)
        channels, height, width = result.shape
        mapped = np.memmap(result.path, result.dtype, "r", shape=(height, channels, width))
        assert placed is not None
        return Picture(mapped.transpose(1, 0, 2), placed.geometry, kind.target.unit)


class _Files:
    """The files of a picture: the source in stored values, where it has none, states and estimates."""

    def __init__(self, folder: Path, given: Strips, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.given = given
        self.source = Plane(folder / "source", given.shape, given.dtype)
        self.absent = Plane(folder / "absent", (1, *given.shape[1:]), np.bool_)
        self._folder, self._shape = folder, shape
        self._dtype = str(dtype).removeprefix("torch.")

    @cached_property
    def values(self) -> Values:
        """The values of the source, which is not decoded again."""
        values = self.given.values()
        self.given.forget()
        return values

    def state(self, done: int) -> Plane:
        """The state after a number of steps."""
        return Plane(self._folder / f"x.{done}", self._shape, self._dtype)

    def estimate(self, done: int) -> Plane:
        """The estimate of the last of a number of steps."""
        return Plane(self._folder / f"x0hat.{done}", self._shape, self._dtype)

    def names(self, done: int) -> list[str]:
        """The files that are needed after a number of steps."""
        return [each.path.name for each in (self.source, self.absent, self.state(done), self.estimate(done))]

    def reader(self, done: int) -> Callable[[str, Spans], torch.Tensor]:
        """What steps read after a number of steps; see :class:`bbdm.sampling.bands.Bands`."""
        of = {"source": self._scaled, "x": self.state(done).read, "x0hat": self.estimate(done).read}
        return lambda name, place: torch.from_numpy(of[name](*place))[None]

    def _scaled(self, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
        """The source in [-1, 1]; pixels without a value are -1."""
        made = self.values.scaled(self.source.read(rows, columns))
        if self.given.masked:
            made[:, self.absent.read(rows, columns)[0]] = -1
        return made
