"""A function of images, called on windows of larger ones: where they are, and how results are blended.

Places are a function of sizes alone, and weights one of places. Both are of one side, so an image may have
any number of sides. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.networks.checks import NAMES, along

Weights = npt.NDArray[np.floating[Any]]  # (windows, length) of a side
Spans = tuple[slice, ...]  # the place of a window, a slice for each side
SPREAD = 0.125  # of the Gaussian weights, as a share of a window's side
LEAST = 1e-3  # Gaussian weight, as a share of the largest
LARGEST_OVERLAP = 0.9


@dataclass(frozen=True)
class Windows:
    """One side of an image, ``size`` pixels, in windows of ``length`` that begin at ``starts``."""

    size: int
    length: int
    starts: tuple[int, ...] = (0,)

    @classmethod
    def spread(cls, size: int, length: int, overlap: int, unit: int = 1) -> Windows:
        """Windows spread evenly that overlap by at least a number; all in multiples of a unit.

        A side that is no longer than a window is one.
        """
        longest = max(1, length // unit)
        if size <= longest * unit:
            return cls(size, size)
        free = size // unit - longest
        gaps = -(-free // max(1, longest - -(-overlap // unit)))
        return cls(size, longest * unit, tuple(i * free // gaps * unit for i in range(gaps + 1)))

    @classmethod
    def stepped(cls, size: int, length: int, step: int) -> Windows:
        """Windows at multiples of a step, the last at the end; one where the side is no longer than that."""
        last = max(size - length, 0)
        return cls(size, min(length, size), (*range(0, last, step), last))

    def ramps(self, cell: int) -> Weights:
        """(windows, length / cell) weights that fall linearly to 0 at the edges of a window inside the image.

        Those of a value, which is ``cell`` pixels wide, add up to 1. No three windows overlap.
        """
        at = (np.arange(self.length // cell, dtype=np.float32) + np.float32(0.5)) * np.float32(cell)
        weights = np.ones((len(self.starts), len(at)), np.float32)
        for i, start in enumerate(self.starts[1:], 1):
            before = self.starts[i - 1]
            width = np.float32(before + self.length - start)
            if not width:
                continue
            weights[i] *= np.clip(at / width, 0, 1)
            weights[i - 1] *= 1 - np.clip((at + np.float32(before - start)) / width, 0, 1)
        return self._shares(weights, cell)

    def means(self) -> Weights:
        """(windows, length) weights of a mean over the windows that a pixel is in."""
        return self._shares(np.ones((len(self.starts), self.length)))

    def gaussians(self, margin: int = 0) -> Weights:
        """(windows, length) weights that fall from the middle of a window; those of a pixel add up to 1.

        They are a Gaussian of 0.125 of the length, not below 1e-3 of its peak (as in MONAI), and 0 within
        ``margin`` pixels of an edge of the window inside the image.
        """
        at = np.arange(self.length) - (self.length - 1) / 2
        bell = np.maximum(np.exp(-0.5 * (at / (SPREAD * self.length)) ** 2), LEAST)
        weights = np.tile(bell, (len(self.starts), 1))
        for weight, start in zip(weights, self.starts, strict=True):
            weight[: margin if start > 0 else 0] = 0
            weight[self.length - (margin if start + self.length < self.size else 0) :] = 0
        return self._shares(weights)

    def _shares(self, weights: Weights, cell: int = 1) -> Weights:
        """Weights divided by their sum over windows."""
        total = np.zeros(self.size // cell, weights.dtype)
        for i, weight in enumerate(weights):
            total[self.span(i, cell)] += weight
        return np.stack([weight / total[self.span(i, cell)] for i, weight in enumerate(weights)])

    def around(self, rows: slice) -> slice:
        """The pixels of all windows that touch some."""
        touching = [start for start in self.starts if start < rows.stop and start + self.length > rows.start]
        return slice(touching[0], touching[-1] + self.length)

    def span(self, index: int, cell: int = 1) -> slice:
        """A window's place among values that are ``cell`` pixels wide."""
        return slice(self.starts[index] // cell, (self.starts[index] + self.length) // cell)


@dataclass(frozen=True)
class Windowing:
    """How a network is called on windows of the state.

    Args:
        lengths: of a window's sides, in values of the state; a shorter side of the state is one window.
        overlap: of neighbouring windows at least, as a share of a window.
        margin: values at the edges of a window inside the image that count for nothing.
        unit: windows begin at multiples of it: the network's stride, a number or one for each side.
        at_once: windows in a call of the network.
        fill: whether the last call of a step is filled up to ``at_once``, so that all have one shape.
    """

    lengths: tuple[int, ...]
    overlap: float
    margin: int
    unit: int | tuple[int, ...]
    at_once: int
    fill: bool

    def sides(self, size: Sequence[int]) -> list[Windows]:
        """The windows of each side of a state."""
        units = along(self.unit, len(self.lengths))
        return [
            Windows.spread(n, length, max(math.ceil(self.overlap * length), 2 * self.margin), unit)
            for n, length, unit in zip(size, self.lengths, units, strict=True)
        ]

    def together(self, images: int) -> int:
        """The number of places that a call takes from each of some images."""
        return max(1, self.at_once // images)

    def weights(self, sides: Sequence[Windows]) -> list[Weights]:
        """The weights of windows of each side."""
        return [side.gaussians(self.margin) for side in sides]

    def batches(self, images: Sequence[Any], spans: Sequence[Spans]) -> Iterator[tuple[int, list[Any]]]:
        """Windows of images in batches of a call's size, and how many of each count.

        Args:
            images: (B, C, *S) each, the state first. Others may be some times larger along each side. What
                has other axes, (B, ...), is no image, and is the same for all windows of one.
            spans: places of windows in the state; of each, all images come one after the other.
        """
        cut: list[Any] = []
        for each in images:
            if each.ndim != images[0].ndim:
                cut.append(concatenated([each] * len(spans), 0))
                continue
            cell = each.shape[2] // images[0].shape[2]
            places = [(..., *(slice(s.start * cell, s.stop * cell) for s in span)) for span in spans]
            cut.append(concatenated([each[place] for place in places], 0))
        for start in range(0, len(cut[0]), self.at_once):
            parts = [each[start : start + self.at_once] for each in cut]
            count = len(parts[0])
            if self.fill and count < self.at_once:
                parts = [concatenated([part, *[part[-1:]] * (self.at_once - count)], 0) for part in parts]
            yield count, parts

    def calls(self, images: int, size: Sequence[int]) -> int:
        """The number of network calls for one step of some images."""
        together = self.together(images)
        whole, rest = divmod(math.prod(len(side.starts) for side in self.sides(size)), together)
        return whole * math.ceil(together * images / self.at_once) + math.ceil(rest * images / self.at_once)


def check_windows(
    window: int | Sequence[int] | None, overlap: float, margin: int, stride: Sequence[int]
) -> tuple[int, ...] | None:
    """The sides of windows of pictures, (height, width), or (depth, height, width); None for whole pictures.

    Args:
        window: the side of a window, or its (height, width), in pixels; None for whole pictures.
        overlap: of neighbouring windows at least, as a share of a window.
        margin: pixels at the edges of a window that count for nothing.
        stride: the network's stride along each axis, in pixels.

    Raises:
        ValueError: a value is out of range.
    """
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 < overlap <= LARGEST_OVERLAP:
        raise ValueError(f"overlap must be above 0 and at most {LARGEST_OVERLAP}, got {overlap!r}")
    if isinstance(margin, bool) or not isinstance(margin, int) or margin < 0:
        raise ValueError(f"margin must be an integer of at least 0, got {margin!r}")
    if window is None:
        return None
    axes, least = len(stride), stride[0] if len(set(stride)) == 1 else tuple(stride)
    sides = along(window, axes) if isinstance(window, int | list | tuple) else ()
    if len(sides) != axes or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        names = ", ".join(NAMES[axes])
        raise ValueError(f"window must be a side, ({names}), 'auto' or None, got {window!r}")
    if min(sides) < 1 or any(side % step for side, step in zip(sides, stride, strict=True)):
        raise ValueError(f"window must be a multiple of the network's stride {least}, got {window!r}")
    if any(2 * margin + step > side for side, step in zip(sides, stride, strict=True)):
        raise ValueError(f"margin must leave at least {least} pixels of a window of {window!r}, got {margin}")
    return sides


def concatenated(arrays: list[Any], axis: int = 0) -> Any:
    """Arrays or tensors one after the other along an axis; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis)
    import torch

    return torch.cat(arrays, axis)


def _zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Zeros in the type, the place and the memory format of another array or tensor."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    import torch

    from bbdm.kernels.elementwise import memory_format_of

    return torch.zeros(shape, dtype=like.dtype, device=like.device).to(memory_format=memory_format_of(like))


def sweep(
    function: Callable[[list[Spans]], Any],
    sides: Sequence[Windows],
    weights: Sequence[Any],
    together: int = 1,
    cell: int = 1,
    made: int = 1,
    rows: slice | None = None,
) -> Iterator[tuple[slice, Any]]:
    """The results of a function on windows, each times the weights of its place, added up; by rows.

    Args:
        function: of the places of some windows, in values that are ``cell`` pixels wide, in the order of the
            first side. It returns their results one after the other, (windows B, C, h / made, w / made).
        sides: the windows of each side.
        weights: of each side, those of :class:`Windows`, arrays or tensors as the results are.
        together: windows that the function gets at once.
        cell: pixels along a side of one value of what the function reads.
        made: pixels along a side of one value of its results.
        rows: those of the results that are wanted; None for all. Windows that touch them are computed.

    Yields:
        Rows of the first side, and their results (B, C, rows, W / made), in memory that is not used again.
        No later window touches them.
    """
    rows = slice(0, sides[0].size // made) if rows is None else rows
    spans = [sides[0].span(i, made) for i in range(len(sides[0].starts))]
    touching = [i for i, span in enumerate(spans) if span.start < rows.stop and span.stop > rows.start]
    places = list(product(touching, *(range(len(side.starts)) for side in sides[1:])))
    top, band = spans[touching[0]].start, None
    for first in range(0, len(places), together):
        group = places[first : first + together]
        results = function([tuple(s.span(i, cell) for i, s in zip(place, sides, strict=True)) for place in group])
        count = len(results) // len(group)
        bottom = sides[0].span(group[-1][0], made).stop
        known = 0 if band is None else band.shape[2]
        if known < bottom - top:
            across = (side.size // made for side in sides[1:])
            longer = _zeros((count, results.shape[1], bottom - top, *across), results)
            if known:
                longer[:, :, :known] = band
            band = longer
        assert band is not None
        for k, place in enumerate(group):
            result = results[k * count : (k + 1) * count]
            for axis, (i, weight) in enumerate(zip(place, weights, strict=True)):
                result = result * weight[i].reshape(-1, *[1] * (len(sides) - 1 - axis))
            down, *across = (side.span(i, made) for i, side in zip(place, sides, strict=True))
            band[(..., slice(down.start - top, down.stop - top), *across)] += result
        following = first + together
        done = spans[places[following][0]].start if following < len(places) else bottom
        wanted = slice(max(top, rows.start), min(done, rows.stop))
        if wanted.stop > wanted.start:
            yield wanted, band[:, :, wanted.start - top : wanted.stop - top]
        if done > top:  # what was yielded may be forgotten: the rest is copied
            rest = _zeros((*band.shape[:2], bottom - done, *band.shape[3:]), results)
            rest[:] = band[:, :, done - top :]
            band, top = rest, done


def blend(
    function: Callable[[list[Spans]], Any],
    sides: Sequence[Windows],
    weights: Sequence[Any],
    together: int = 1,
    cell: int = 1,
    made: int = 1,
) -> Any:
    """All rows of :func:`sweep`, (B, C, H / made, W / made)."""
    return concatenated([rows for _, rows in sweep(function, sides, weights, together, cell, made)], 2)
