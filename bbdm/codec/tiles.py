"""Batches through an autoencoder in parts: some images at once, and large images in tiles that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bbdm.base.settings import check_least
from bbdm.networks.windows import Spans, Windows, blend, on_device

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Tiling:
    """How much an autoencoder takes at once: its activations are many times larger than a picture.

    An image of more than ``whole`` pixels is cut into equal tiles of at most ``side`` x ``side``, which
    overlap by at least ``overlap``. There, results are blended: the share of a tile falls linearly to 0 at
    its edge, and shares add up to 1. Each tile is computed alone, so attention and the statistics of
    GroupNorm are of the tile, not of the image.

    Args:
        whole: pixels of the largest image that is not cut, and of the images that are taken together.
        side: of a tile in pixels, rounded down to a multiple of the codec's stride.
        overlap: of neighbouring tiles in pixels, rounded up to a multiple of the stride.
        images: the most that are taken together.

    Raises:
        ValueError: a value is below its least, or a tile is larger than ``whole``.
    """

    whole: int = 1024 * 1024
    side: int = 512
    overlap: int = 128
    images: int = 16

    def __post_init__(self) -> None:
        check_least(self, 1, "side", "images")
        check_least(self, 0, "overlap")
        if self.side**2 > self.whole:
            raise ValueError(f"whole must be at least a tile's {self.side**2} pixels, got {self.whole}")
        if 2 * self.overlap > self.side:
            raise ValueError(f"overlap must be at most half of side={self.side}, got {self.overlap}")

    def map(self, function: Function, batch: torch.Tensor, channels: int, cell: int, stride: int) -> torch.Tensor:
        """The results of a function for a batch, which it gets in parts.

        Args:
            function: (b, C, h, w) to (b, channels, h cell / stride, w cell / stride).
            batch: (B, C, H, W).
            channels: their number in the results.
            cell: pixels along a side of one value of the batch.
            stride: pixels along a side of one value of the result; it divides ``cell``, or the reverse.

        Returns:
            (B, channels, H cell / stride, W cell / stride).

        Raises:
            ValueError: the function gives other channels or another size.
        """
        sides = self._sides(batch.shape, cell, max(cell, stride))
        at_once = self._at_once(sides)
        shape = channels, *(side.length // stride for side in sides)
        tiled = any(len(side.starts) > 1 for side in sides)

        def taken(spans: list[Spans]) -> torch.Tensor:
            tile = batch[(..., *spans[0])].clone(memory_format=torch.channels_last) if tiled else batch
            result = torch.cat([function(part) for part in tile.split(at_once)])
            if result.shape[1:] != shape:
                raise ValueError(f"{tuple(tile.shape[1:])} must become {shape} values, got {tuple(result.shape[1:])}")
            return result

        if not tiled:
            return taken([])
        weights = on_device([side.ramps(stride) for side in sides], batch)
        return blend(taken, sides, weights, cell=cell, stride=stride)

    def _sides(self, shape: Sequence[int], cell: int, unit: int) -> list[Windows]:
        sizes = [size * cell for size in shape[2:]]
        if math.prod(sizes) <= self.whole:
            return [Windows(size, size) for size in sizes]
        overlap = min(self.overlap, self.side // unit // 2 * unit)  # no three tiles overlap
        return [Windows.spread(size, self.side, overlap, unit) for size in sizes]

    def _at_once(self, sides: Sequence[Windows]) -> int:
        """The number of images or tiles that are taken together."""
        return max(1, min(self.images, self.whole // max(1, math.prod(side.length for side in sides))))
