"""A function of images, called on windows of larger ones: where they are, and how results are blended.

Windows are a function of sizes alone, and weights one of windows. Both are of one side, so an image may have
any number of sides. Arrays are those of NumPy or tensors; torch is imported only where there are tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.networks.arrays import NAMES, along, concatenated

Weights = npt.NDArray[np.floating[Any]]  # (windows, length) of a side
Spans = tuple[slice, ...]  # the window's slice of each side
Predict = Callable[[Any, Mapping[str, Any]], Any]  # (x, conditions) -> prediction
SPREAD = 0.125  # of the Gaussian weights, as a share of a window's side
# Gaussian weight of a side, as a share of the largest; MONAI floors the product of the sides' weights
LEAST = 1e-3
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
        units = max(1, length // unit)  # of a window
        if size <= units * unit:
            return cls(size, size)
        free = size // unit - units  # units from the first start to the last
        longest_gap = max(1, units - math.ceil(overlap / unit))  # units between starts
        gaps = math.ceil(free / longest_gap)
        starts = tuple(index * free // gaps * unit for index in range(gaps + 1))
        return cls(size, units * unit, starts)

    def ramps(self, cell: int) -> Weights:
        """(windows, length / cell) weights that fall linearly to 0 at the edges of a window inside the image.

        Those of a value, which is ``cell`` pixels wide, add up to 1, also where three windows overlap.
        """
        at = (np.arange(self.length // cell, dtype=np.float32) + np.float32(0.5)) * np.float32(cell)
        weights = np.ones((len(self.starts), len(at)), np.float32)
        for index in range(1, len(self.starts)):
            distance = self.starts[index] - self.starts[index - 1]
            shared = np.float32(self.length - distance)  # pixels of both windows
            if shared > 0:
                weights[index] *= np.clip(at / shared, 0, 1)
                weights[index - 1] *= 1 - np.clip((at - np.float32(distance)) / shared, 0, 1)
        return self._shares(weights, cell)

    def gaussians(self, margin: int = 0) -> Weights:
        """(windows, length) weights that fall from the middle of a window; those of a pixel add up to 1.

        They are a Gaussian of 0.125 of the length, not below 1e-3 of its peak, and 0 within ``margin`` pixels
        of an edge of the window inside the image.
        """
        at = np.arange(self.length) - (self.length - 1) / 2
        bell = np.maximum(np.exp(-0.5 * (at / (SPREAD * self.length)) ** 2), LEAST)
        weights = np.tile(bell, (len(self.starts), 1))
        for weight, start in zip(weights, self.starts, strict=True):
            if start > 0:
                weight[:margin] = 0
            if start + self.length < self.size:
                weight[self.length - margin :] = 0
        return self._shares(weights)

    def _shares(self, weights: Weights, cell: int = 1) -> Weights:
        """Weights divided by their sum over windows."""
        spans = [self.span(index, cell) for index in range(len(self.starts))]
        total = np.zeros(self.size // cell, weights.dtype)
        for weight, span in zip(weights, spans, strict=True):
            total[span] += weight
        return np.stack([weight / total[span] for weight, span in zip(weights, spans, strict=True)])

    def span(self, index: int, cell: int = 1) -> slice:
        """A window's slice of values that are ``cell`` pixels wide."""
        start = self.starts[index]
        return slice(start // cell, (start + self.length) // cell)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a state that a network is called on.

    Args:
        lengths: of a window's sides, in values of the state; a shorter side of the state is one window.
        overlap: of neighbouring windows at least, as a share of a window.
        margin: values at the edges of a window inside the image that count for nothing.
        unit: windows begin at multiples of the network's stride along each side.
        at_once: windows in a call of the network.
        fill: whether the last call of a step is filled up to ``at_once``, so that all have one shape.
    """

    lengths: tuple[int, ...]
    overlap: float
    margin: int
    unit: tuple[int, ...]
    at_once: int
    fill: bool

    def sides(self, size: Sequence[int]) -> list[Windows]:
        """The windows of each side of a state."""
        sides: list[Windows] = []
        for side, length, unit in zip(size, self.lengths, self.unit, strict=True):
            overlap = max(math.ceil(self.overlap * length), 2 * self.margin)
            sides.append(Windows.spread(side, length, overlap, unit))
        return sides

    def weights(self, size: Sequence[int]) -> list[Weights]:
        """The weights of the windows of each side of a state."""
        return [side.gaussians(self.margin) for side in self.sides(size)]

    def predict(
        self,
        network: Predict,
        x: Any,
        conditions: Mapping[str, Any],
        weights: Sequence[Any],
        out: Any = None,
        chosen: Sequence[Sequence[int]] | None = None,
    ) -> Any:
        """The predictions of a step for windows of x, blended.

        One row of the table then moves the whole state. So noise has no seams, and the variance of the state
        is kept, which blending steps of windows would lower.

        Args:
            network: called with windows of x and of conditions. It returns predictions of at least 32 bits,
                which are summed.
            x: (B, C, *S) what the network is shown.
            conditions: those of x: images (B, C, *S), which may be some times larger along each side; what
                has other axes, (B, ...), is the same for all windows of an image.
            weights: those of :meth:`weights`, in the type of predictions.
            out: zeros (B, C, *S) for the sum; None for memory of its own.
            chosen: the windows that are predicted, by their index of each side; None for all.
        """

        def predictions(spans: Sequence[Spans]) -> Any:
            states = _cut(x, spans)
            seen: dict[str, Any] = {}
            for name, value in conditions.items():
                if value.ndim == x.ndim:
                    seen[name] = _cut(value, spans, value.shape[2] // x.shape[2])
                else:
                    seen[name] = concatenated([value] * len(spans))
            outputs: list[Any] = []
            for start in range(0, len(states), self.at_once):
                count = min(self.at_once, len(states) - start)
                shown = {name: self._batch(value, start) for name, value in seen.items()}
                prediction = network(self._batch(states, start), shown)
                outputs.append(prediction[:count])
            return concatenated(outputs)

        together = max(1, self.at_once // len(x))
        return blend(
            predictions, self.sides(x.shape[2:]), weights, together, out=out, chosen=chosen
        )

    def _batch(self, values: Any, start: int) -> Any:
        """The values (N, ...) of one call of the network, filled up with the last of them."""
        batch = values[start : start + self.at_once]
        missing = self.at_once - len(batch)
        if self.fill and missing > 0:
            batch = concatenated([batch, *[batch[-1:]] * missing])
        return batch


def _cut(images: Any, spans: Sequence[Spans], cell: int = 1) -> Any:
    """The windows of images (B, C, *S), (windows B, C, *s): all images of a window, then those of the next.

    ``cell`` is how many values of an image along a side one value of the spans has.
    """
    windows: list[Any] = []
    for span in spans:
        slices = [slice(side.start * cell, side.stop * cell) for side in span]
        windows.append(images[(..., *slices)])
    return concatenated(windows)


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
    if not isinstance(overlap, int | float) or not 0 < overlap <= LARGEST_OVERLAP:
        raise ValueError(f"overlap must be above 0 and at most {LARGEST_OVERLAP}, got {overlap!r}")
    if not isinstance(margin, int) or margin < 0:
        raise ValueError(f"margin must be an integer of at least 0, got {margin!r}")
    if window is None:
        return None
    least = stride[0] if len(set(stride)) == 1 else tuple(stride)
    sides: tuple[int, ...] = ()
    if isinstance(window, int | list | tuple):
        sides = along(window, len(stride))
    if len(sides) != len(stride) or any(type(side) is not int for side in sides):
        names = ", ".join(NAMES[len(stride)])
        raise ValueError(f"window must be a side, ({names}), 'auto' or None, got {window!r}")
    if any(side < 1 or side % step for side, step in zip(sides, stride, strict=True)):
        raise ValueError(
            f"window must be a multiple of the network's stride {least}, got {window!r}"
        )
    if any(2 * margin + step > side for side, step in zip(sides, stride, strict=True)):
        raise ValueError(
            f"margin must leave at least {least} pixels of a window of {window!r}, got {margin}"
        )
    return sides


def blend(
    function: Callable[[list[Spans]], Any],
    sides: Sequence[Windows],
    weights: Sequence[Any],
    together: int = 1,
    cell: int = 1,
    stride: int = 1,
    out: Any = None,
    chosen: Sequence[Sequence[int]] | None = None,
) -> Any:
    """The results of a function on windows, each times its weights, added up: (B, C, H / stride, W / stride).

    Args:
        function: of some windows' spans, in values that are ``cell`` pixels wide. It returns their results
            one after the other, (windows B, C, h / stride, w / stride).
        sides: the windows of each side.
        weights: of each side, those of :class:`Windows`, arrays or tensors as the results are.
        together: windows that the function gets at once.
        cell: pixels along a side of one value of what the function reads.
        stride: pixels along a side of one value of its results.
        out: zeros of the shape of the sum; None for memory of its own.
        chosen: the windows, by their index of each side; None for all.
    """
    windows = (
        list(product(*(range(len(side.starts)) for side in sides))) if chosen is None else chosen
    )
    for first in range(0, len(windows), together):
        group = windows[first : first + together]
        results = function([_spans(window, sides, cell) for window in group])
        count = len(results) // len(group)  # images
        if out is None:
            shape = (count, results.shape[1], *(side.size // stride for side in sides))
            out = _zeros(shape, results)
        for number, window in enumerate(group):
            result = results[number * count : (number + 1) * count]
            for axis, index in enumerate(window):
                trailing = [1] * (len(sides) - 1 - axis)
                result = result * weights[axis][index].reshape(-1, *trailing)
            out[(..., *_spans(window, sides, stride))] += result
    return out


def _spans(window: Sequence[int], sides: Sequence[Windows], cell: int) -> Spans:
    """The slices of a window, by its index of each side, in values that are ``cell`` pixels wide."""
    return tuple(side.span(index, cell) for index, side in zip(window, sides, strict=True))


def _zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Zeros of the type and dtype of an array or a tensor."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)
