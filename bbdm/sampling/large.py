"""One picture that is larger than memory: the loop of a sampler over arrays that are files.

The network is called on windows, and a step moves blocks of pixels, so that memory holds some of either. The
files are in a folder beside the result, of one process at a time.

Of a source whose chunks are not all stored, only windows with a part of a stored chunk are computed. Pixels
of other chunks have one value in the source, and one in the result.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import manifest, sizes
from bbdm.base.atomic import locked, write_atomically
from bbdm.base.scripts import StoppedError
from bbdm.base.sizes import amount
from bbdm.bridges.timesteps import Row
from bbdm.data.reading import Strips
from bbdm.networks.base import SOURCE
from bbdm.networks.windows import WindowGrid
from bbdm.pictures import Derivation, Picture, formats, images, write
from bbdm.pictures.values import holds, scaled_present
from bbdm.pictures.windows import Chunks
from bbdm.sampling.file_backend import MARKER, Box, FileArray, FileBackend
from bbdm.sampling.loop import Batch, Inputs, Run
from bbdm.sampling.sampler import BridgeSampler
from bbdm.solvers import StepTable

# Bytes of memory for each value, of which float32 takes 4, as measured
SOURCE_BYTES = 12  # in a call: of arrays of sources
STATE_BYTES = 36  # in a call: of state, estimate, noise, predictions and results
WINDOW_BYTES = 48  # of windows: copies, and what a network of few channels makes of them
ROW_BYTES = 64  # of rows that are moved or scaled: all of that
TALL = 256  # rows are read in multiples of it where there is memory: those of tiles
TILE = 512  # pixels at least of a block's sides, of sources whose chunks are not all stored
PAGES = 2048  # pixels that a row of such a block takes more in a file, of whole pages
Array = npt.NDArray[Any]


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


def in_memory(
    sampler: BridgeSampler, size: Sequence[int], windows: WindowGrid | None = None
) -> int:
    """About the bytes that a call of a sampler takes for a picture of a (height, width)."""
    grid = sampler.shapes.grid(size)
    channels = sampler.shapes.source_channels
    if sampler.codec is not None:
        channels *= 2  # and the result
    values = (
        math.prod(size) * SOURCE_BYTES * channels
        + math.prod(grid) * STATE_BYTES * sampler.unet.channels
    )
    if windows is None:
        return values
    return values + _window_bytes(sampler, windows) * min(windows.at_once, _count(windows, grid))


def _count(windows: WindowGrid, size: Sequence[int]) -> int:
    return math.prod(len(side.starts) for side in windows.sides(size))


def _window_bytes(sampler: BridgeSampler, windows: WindowGrid) -> int:
    channels = sampler.unet.channels + sum(
        condition.size for condition in sampler.unet.inputs.values()
    )
    return math.prod(windows.lengths) * WINDOW_BYTES * channels


def _arrays(table: StepTable) -> list[str]:
    """The arrays of a state: x, an estimate that a row reads, what the network sees where it is not x."""
    names = ["x"]
    if any(Row(*row).c_h != 0 for row in table.rows):
        names.append("x0hat")
    if (table.inputs != (1, 0)).any():
        names.append("inputs")
    return names


class LargePicture:
    """The translation of one picture, whose source, states and predictions are files.

    Args:
        sampler: of image space, with its own solver and steps.
        source: the picture, of which rows are read.
        windows: what the network is called on; fewer at once where memory is short.
        seed: the seed of the picture.
        memory: about the bytes that may be used.
        report: called with the number of network calls that are done, and of all, after each and while files
            are written. What it raises ends the work.

    Attributes:
        disk: the bytes of files at most.
        left_out: what is said of windows that are not computed; "" where all are.

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
        _check(sampler, source, memory // 2)
        self._sampler = sampler
        self._source = source
        self._report = report
        self._done = 0
        self._size = sampler.shapes.grid(source.shape[1:])
        plan = sampler.plan()
        rows, windows = self._at_once(windows, memory)
        self._chosen: list[tuple[int, int]] | None = None
        height, width = self._size
        self._boxes: list[Box] = []
        for top in range(0, height, rows):
            self._boxes.append((slice(top, min(top + rows, height)), slice(0, width)))
        count = _count(windows, self._size)
        self.left_out = ""
        if source.chunks is not None:
            self._chosen = _chosen(windows, self._size, source)
            self._boxes = _touched(
                windows, self._size, self._chosen, _tile(source.chunks, rows, self._size[1])
            )
            self.left_out = self._left_out(source.chunks, count)
            count = len(self._chosen)
        self._batch = Batch(plan, [0], None, [seed], windows=windows)
        cut = {"lengths": windows.lengths, "overlap": windows.overlap, "margin": windows.margin}
        # of what states are
        self._decides = {"table": plan.table.description(), "seed": seed, "windows": cut}
        calls = math.ceil(count / windows.at_once)
        self._total = calls * len(plan.times)
        self._names = _arrays(plan.table)
        # before and after a step, and predictions
        values = sampler.unet.channels * (2 * len(self._names) + 1)
        stored = np.dtype(sampler.pictures.target_values.dtype).itemsize
        largest = max(sampler.backend.like.itemsize, stored)  # of the result, twice, too
        pixels = math.prod(self._size)
        if self._chosen is not None:
            taken = 0
            for down, across in self._boxes:
                taken += (down.stop - down.start) * (across.stop - across.start + PAGES)
            pixels = min(pixels, taken)
        self.disk = pixels * (largest * values + 4 * source.shape[0] + source.masked)

    def _left_out(self, chunks: Chunks, windows: int) -> str:
        """What is said of windows that are not computed."""
        assert self._chosen is not None
        stored = f"{int(chunks.stored.sum())} of {chunks.stored.size} chunks are stored"
        computed = f"{len(self._chosen)} of {windows} windows are computed"
        return f"{stored}: {computed}, and where no chunk is stored, the result is {self._fill:g}"

    @property
    def _fill(self) -> float:
        """The result's value where no chunk of the source is stored: the source's where the type holds it."""
        chunks = self._source.chunks
        spec = self._sampler.pictures
        if chunks is None:
            return 0
        stored = np.array([chunks.fill, self._source.geometry.nodata], np.float64)
        nodata = spec.result_nodata(self._source.geometry.nodata)
        if nodata is not None and np.array_equal(stored[:1], stored[1:], equal_nan=True):
            return nodata
        return chunks.fill if holds(np.dtype(spec.target_values.dtype), chunks.fill) else 0

    def _at_once(self, windows: WindowGrid, memory: int) -> tuple[int, WindowGrid]:
        """The rows that are handled at once, and windows of which as many are."""
        height, width = self._size
        window = _window_bytes(self._sampler, windows)
        row = width * ROW_BYTES * (self._sampler.unet.channels + self._source.shape[0])
        least = 2 * window + 4 * row
        if memory < least:
            lengths = sizes.shown(windows.lengths)
            raise ValueError(
                f"memory must be at least {amount(least)} for windows of {lengths} of a picture {width} wide, got "
                f"{amount(memory)}: or give smaller windows"
            )
        rows = min(height, memory // 4 // row)
        tall = self._source.geometry.kept.get("chunk", (TALL,))[0]
        if rows > tall:
            rows -= rows % tall
        return rows, replace(windows, at_once=max(1, min(windows.at_once, memory // 2 // window)))

    def _advance(self, calls: int) -> None:
        self._done += calls
        self._report(self._done, self._total)

    @torch.inference_mode()
    def run(
        self, path: Path, settings: Mapping[str, Any], derivation: Derivation | None = None
    ) -> None:
        """Make the result, whole or not at all; go on after the steps that were done before an interruption.

        Args:
            path: of the result's file.
            settings: plain values that name the network and the source: states of others are not used.
            derivation: what makes the result, which its file says; None to say nothing.

        Raises:
            OSError: the disk is too small, or became full.
            InUseError: another process makes this result.
            KeyboardInterrupt, StoppedError: it was interrupted, and the folder has the steps that are done.
            ValueError: the source is damaged or not finite, or no file of this name can be written by parts.
        """
        suffixes = formats.suffixes_of_large()
        if formats.suffix_of(path) not in suffixes:
            raise ValueError(
                f"the result of a large picture must be one of {', '.join(suffixes)}, got {path}"
            )
        folder = folder_of(path)
        values = manifest.as_json({**settings, **self._decides})
        sampler = self._sampler
        backend = FileBackend(
            sampler.backend,
            folder,
            self._size,
            self._names,
            self._boxes,
            values,
            self._advance,
            self._chosen,
        )
        steps = len(self._batch.plan.times)
        with _states(folder):
            done = backend.done()
            self._check_disk(folder)
            source = backend.array("source", (1, self._source.shape[0], *self._size), np.float32)
            absent = None
            if self._source.masked:
                absent = backend.array("absent", self._size, np.bool_)
            inputs = self._inputs(source)
            if done is None:
                self._write_source(backend, source, absent)
                run = backend.begin(self._batch, inputs)
                done = 0
            else:
                self._done = done * self._total // steps
                run = Run(self._batch, inputs, backend.state(done))
            for index in range(done, steps):
                backend.step(run, index)
            blank = self._blank(derivation)
            with images.named("write", path):
                create = getattr(formats.writer(path, blank), "create", None)
            parts = self._parts(backend, absent, run.state.x)
            if create is None:
                write(path, Picture(self._stored(folder, blank, parts), blank.geometry, blank.unit))
            else:
                write_atomically(
                    path, lambda temporary: _draw(create(temporary, blank, self._fill), parts)
                )

    def _check_disk(self, folder: Path) -> None:
        """Raise OSError where the disk has no room for the files."""
        statuses = [file.stat() for file in folder.iterdir()]
        there = sum(
            min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))
            for status in statuses
        )
        free = shutil.disk_usage(folder).free + there
        if self.disk > free:
            raise OSError(
                f"the state of this picture in {folder} needs {amount(self.disk)}, and the disk has "
                f"{amount(free)}: free {amount(self.disk - free)} there, or give another folder of results"
            )

    def _inputs(self, source: FileArray) -> Inputs:
        seen = {SOURCE: source} if self._sampler.shapes.shown else {}
        seeds = self._sampler.loop.array(np.array(self._batch.seeds))
        assert self._batch.windows is not None
        dtype = self._sampler.backend.like.dtype
        weights: list[torch.Tensor] = []
        for side in self._batch.windows.weights(self._size):
            weights.append(torch.from_numpy(side).to(dtype))
        return Inputs(source, [seen], seeds, weights=weights)

    def _write_source(
        self, backend: FileBackend, source: FileArray, absent: FileArray | None
    ) -> None:
        """Write the source in [-1, 1], checked; past its edge, the last pixels are repeated."""
        _, height, width = self._source.shape
        values = self._source.values()
        source.create()
        if absent is not None:
            absent.create()
        for rows, columns in backend.blocks():
            inner_rows = slice(min(rows.start, height - 1), min(rows.stop, height))
            inner_columns = slice(min(columns.start, width - 1), min(columns.stop, width))
            stored, missing = self._source.read(inner_rows, inner_columns)
            scaled = scaled_present(values, stored, missing)
            below = rows.stop - rows.start - stored.shape[1]
            right = columns.stop - columns.start - stored.shape[2]
            source[:, :, rows, columns] = np.pad(
                scaled, [(0, 0), (0, below), (0, right)], mode="edge"
            )
            if absent is not None:
                absent[rows, columns] = np.pad(missing, [(0, below), (0, right)], mode="edge")
        self._source.forget()  # it is not decoded again

    def _blank(self, derivation: Derivation | None) -> Picture:
        """The result without its values."""
        spec = self._sampler.pictures
        shape = (self._sampler.unet.channels, *self._source.shape[1:])
        pixel = spec.result(np.zeros((shape[0], 1, 1), np.float32), self._source.geometry)
        geometry = replace(pixel.geometry, derivation=derivation)
        return Picture(
            np.broadcast_to(pixel.dtype.type(0), shape), geometry, spec.target_values.unit
        )

    def _parts(
        self, backend: FileBackend, absent: FileArray | None, state: FileArray
    ) -> Iterator[tuple[Box, Array]]:
        """Boxes of the source, and the result's stored values (C, rows, columns) in each.

        Chunks that the source has not stored are left out.
        """
        _, height, width = self._source.shape
        chunks = self._source.chunks
        for padded_rows, padded_columns in backend.blocks():
            rows = slice(padded_rows.start, min(padded_rows.stop, height))
            columns = slice(padded_columns.start, min(padded_columns.stop, width))
            if rows.start >= height or columns.start >= width:
                continue
            missing = None if absent is None else absent[rows, columns].numpy()
            image = state[0, :, rows, columns].numpy()
            result = self._sampler.pictures.result(image, self._source.geometry, missing)
            values = np.asarray(result)
            if chunks is None:
                yield (rows, columns), values
                continue
            for chunk in chunks.stored_in((rows, columns)):
                chunk_rows, chunk_columns = chunk
                inner_rows = slice(chunk_rows.start - rows.start, chunk_rows.stop - rows.start)
                inner_columns = slice(
                    chunk_columns.start - columns.start, chunk_columns.stop - columns.start
                )
                yield (chunk_rows, chunk_columns), values[:, inner_rows, inner_columns]

    def _stored(self, folder: Path, blank: Picture, parts: Iterator[tuple[Box, Array]]) -> Array:
        """The values of the result, mapped into memory from a file."""
        result = FileArray(folder / "result", blank.shape, blank.dtype).create()
        if self._fill:
            for top in range(0, blank.shape[1], TALL):
                result[:, top : top + TALL] = self._fill
        for (rows, columns), values in parts:
            result[:, rows, columns] = values
        return result.mapped()


def _draw(canvas: Any, parts: Iterator[tuple[Box, Array]]) -> None:
    """Write a result part by part."""
    for box, values in parts:
        canvas.write(box, values)
    canvas.finish()


def _chosen(windows: WindowGrid, size: Sequence[int], source: Strips) -> list[tuple[int, int]]:
    """The windows of a state that have a part of a stored chunk, by their index of each side."""
    assert source.chunks is not None
    of_rows, of_columns = windows.sides(size)
    _, height, width = source.shape
    chosen: list[tuple[int, int]] = []
    for first, second in product(range(len(of_rows.starts)), range(len(of_columns.starts))):
        rows = slice(of_rows.span(first).start, min(of_rows.span(first).stop, height))
        columns = slice(of_columns.span(second).start, min(of_columns.span(second).stop, width))
        if source.chunks.holds((rows, columns)):
            chosen.append((first, second))
    return chosen


def _tile(chunks: Chunks, rows: int, width: int) -> tuple[int, int]:
    """The sides of blocks: whole chunks or less, of no more pixels than so many rows of a picture."""
    high, wide = (length * max(1, TILE // length) for length in chunks.lengths)
    while high * wide > rows * width and high > 1:
        high = -(-high // 2)
    return high, wide


def _touched(
    windows: WindowGrid,
    size: Sequence[int],
    chosen: Sequence[tuple[int, int]],
    tile: tuple[int, int],
) -> list[Box]:
    """The tiles of a state that some windows touch."""
    of_rows, of_columns = windows.sides(size)
    touched = np.zeros([-(-side // length) for side, length in zip(size, tile, strict=True)], bool)
    for first, second in chosen:
        rows = of_rows.span(first)
        columns = of_columns.span(second)
        down = slice(rows.start // tile[0], -(-rows.stop // tile[0]))
        across = slice(columns.start // tile[1], -(-columns.stop // tile[1]))
        touched[down, across] = True
    boxes: list[Box] = []
    for first, second in np.argwhere(touched).tolist():
        top = first * tile[0]
        left = second * tile[1]
        boxes.append(
            (slice(top, min(top + tile[0], size[0])), slice(left, min(left + tile[1], size[1])))
        )
    return boxes


def _check(sampler: BridgeSampler, source: Strips, memory: int) -> None:
    """Raise ValueError where the source needs more memory, or windows of it are not all that is seen."""
    if sampler.codec is not None:
        raise ValueError(
            "only networks of image space translate pictures larger than memory, and this has latents"
        )
    if source.decoded > memory:
        raise ValueError(
            f"it must be decoded whole, which needs {amount(source.decoded)}, and half of the memory, "
            f"{amount(memory)}, is for that: save it as GeoTIFF, tiled TIFF or npy, of which parts are read"
        )
    if not sampler.shapes.shown:
        return
    image = torch.zeros(
        1, sampler.shapes.source_channels, *sampler.shapes.stride, device=sampler.device
    )
    if sampler.unet.prepared({SOURCE: image}, sampler.shapes.stride).get(SOURCE) is not image:
        raise ValueError(
            "the network prepares the whole source, which a picture larger than memory has not"
        )
