"""A function of images, called on windows of a large image: where they are, and how results are blended.

Places are a function of sizes alone, and weights one of places. Both are of one side, so an image may have
any number of sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Windows:
    """One side of an image, ``size`` pixels, in windows of ``length`` that begin at ``starts``."""

    size: int
    length: int
    starts: tuple[int, ...] = (0,)

    @classmethod
    def spread(cls, size: int, length: int, overlap: int, unit: int = 1) -> Windows:
        """Windows spread evenly that overlap by at least a number, at most half; all in multiples of a unit.

        A side that is no longer than a window is one.
        """
        longest = max(1, length // unit)
        if size <= longest * unit:
            return cls(size, size)
        free = size // unit - longest
        gaps = -(-free // (longest - min(-(-overlap // unit), longest // 2)))
        return cls(size, longest * unit, tuple(i * free // gaps * unit for i in range(gaps + 1)))

    @classmethod
    def stepped(cls, size: int, length: int, step: int) -> Windows:
        """Windows at multiples of a step, the last at the end; one where the side is no longer than that."""
        last = max(size - length, 0)
        return cls(size, min(length, size), (*range(0, last, step), last))

    def ramps(self, cell: int, device: torch.device) -> torch.Tensor:
        """(windows, size / cell) weights that fall linearly to 0 at the edges of a window inside the image.

        Those of a value, which is ``cell`` pixels wide, add up to 1.
        """
        at = (torch.arange(self.size // cell, device=device) + 0.5) * cell
        weights = torch.ones(len(self.starts), len(at), device=device)
        for i, start in enumerate(self.starts[1:], 1):
            end = self.starts[i - 1] + self.length  # of the window before
            rising = ((at - start) / (end - start)).clamp(0, 1)
            weights[i] *= rising
            weights[i - 1] *= 1 - rising
        return weights / weights.sum(0)

    def means(self, like: torch.Tensor) -> torch.Tensor:
        """(windows, size) weights of a mean over the windows that a pixel is in, of the kind of ``like``."""
        starts, at = (torch.as_tensor(places, device=like.device) for places in (self.starts, range(self.size)))
        inside = (at >= starts[:, None]) & (at < starts[:, None] + self.length)
        return inside.sum(0).to(like.dtype).reciprocal().expand(len(self.starts), -1)

    def span(self, index: int, cell: int) -> slice:
        """A window's place among values that are ``cell`` pixels wide."""
        return slice(self.starts[index] // cell, (self.starts[index] + self.length) // cell)


def blend(
    function: Function,
    batch: torch.Tensor,
    sides: Sequence[Windows],
    weights: Sequence[torch.Tensor],
    cell: int = 1,
    made: int = 1,
) -> torch.Tensor:
    """The results of a function on windows, each times the weights of its place, added up.

    Args:
        function: (B, C, h, w) to (B, C', h cell / made, w cell / made).
        batch: (B, C, H, W).
        sides: the windows of each side.
        weights: of each side, (windows, size / made).
        cell: pixels along a side of one value of the batch.
        made: pixels along a side of one value of the result.

    Returns:
        (B, C', H cell / made, W cell / made).
    """
    whole: torch.Tensor | None = None
    for place in product(*(range(len(side.starts)) for side in sides)):
        each = list(zip(place, sides, strict=True))
        result = function(batch[(..., *(side.span(i, cell) for i, side in each))])
        if whole is None:
            whole = result.new_zeros(*result.shape[:2], *(side.size // made for side in sides))
        spans = [side.span(i, made) for i, side in each]
        for axis, (i, span, weight) in enumerate(zip(place, spans, weights, strict=True)):
            result = result * weight[i, span].view(-1, *[1] * (len(sides) - 1 - axis))
        whole[(..., *spans)] += result
    assert whole is not None
    return whole
