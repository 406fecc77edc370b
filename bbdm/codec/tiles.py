"""Batches through an autoencoder in parts: some images at once, and large images in tiles that overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bbdm.base.settings import check_least

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

    def map(self, function: Function, batch: torch.Tensor, cell: int, made: int) -> torch.Tensor:
        """The results of a function for a batch, which it gets in parts.

        Args:
            function: (b, C, h, w) to (b, C', h cell / made, w cell / made).
            batch: (B, C, H, W).
            cell: pixels along a side of one value of the batch,
            made: and of one value of the result; one is a multiple of the other.

        Returns:
            (B, C', H cell / made, W cell / made).

        Raises:
            ValueError: the function gives another size.
        """
        height, width = (size * cell for size in batch.shape[2:])
        rows, columns = self._cuts(height, width, max(cell, made))
        at_once = self._at_once(rows.length, columns.length)
        size = rows.length // made, columns.length // made

        def taken(tile: torch.Tensor) -> torch.Tensor:
            result = torch.cat([function(part) for part in tile.split(at_once)])
            if result.shape[2:] != size:
                raise ValueError(f"{tuple(tile.shape)} must become {size} values, got {tuple(result.shape[2:])}")
            return result

        if len(rows.starts) == len(columns.starts) == 1:
            return taken(batch)
        down, across = rows.shares(height, made, batch.device), columns.shares(width, made, batch.device)
        whole: torch.Tensor | None = None
        for i, top in enumerate(rows.starts):
            for j, left in enumerate(columns.starts):
                tile = batch[:, :, _span(top, rows.length, cell), _span(left, columns.length, cell)]
                result = taken(tile.clone(memory_format=torch.channels_last))
                if whole is None:
                    whole = result.new_zeros(*result.shape[:2], height // made, width // made)
                y, x = _span(top, rows.length, made), _span(left, columns.length, made)
                whole[:, :, y, x] += result * down[i, y, None] * across[j, x]
        assert whole is not None
        return whole

    def part_shapes(self, shape: Sequence[int], cell: int = 1, stride: int = 1) -> list[torch.Size]:
        """The shapes of the parts in which a codec of a stride takes a batch; see :meth:`map`."""
        rows, columns = self._cuts(shape[2] * cell, shape[3] * cell, stride)
        batch = torch.empty(*shape[:2], rows.length // cell, columns.length // cell, device="meta")
        return [part.shape for part in batch.split(self._at_once(rows.length, columns.length))]

    def _cuts(self, height: int, width: int, unit: int) -> tuple[_Cuts, _Cuts]:
        if height * width <= self.whole:
            return _Cuts((0,), height), _Cuts((0,), width)
        return _Cuts.of(height, self.side, self.overlap, unit), _Cuts.of(width, self.side, self.overlap, unit)

    def _at_once(self, height: int, width: int) -> int:
        """The number of images or tiles of a size that are taken together."""
        return max(1, min(self.images, self.whole // max(1, height * width)))


@dataclass(frozen=True)
class _Cuts:
    """One side of an image in intervals of a length that begin at ``starts``, in pixels."""

    starts: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, size: int, length: int, overlap: int, unit: int) -> _Cuts:
        """Intervals spread evenly, in multiples of a unit."""
        longest = max(1, length // unit)
        if size <= longest * unit:
            return cls((0,), size)
        free = size // unit - longest
        gaps = -(-free // (longest - min(-(-overlap // unit), longest // 2)))
        return cls(tuple(i * free // gaps * unit for i in range(gaps + 1)), longest * unit)

    def shares(self, size: int, cell: int, device: torch.device) -> torch.Tensor:
        """(intervals, size / cell) the share of each interval in each value; those of a value add up to 1."""
        at = (torch.arange(size // cell, device=device) + 0.5) * cell
        shares = torch.ones(len(self.starts), len(at), device=device)
        for i, start in enumerate(self.starts[1:], 1):
            end = self.starts[i - 1] + self.length  # of the interval before
            rising = ((at - start) / (end - start)).clamp(0, 1)
            shares[i] *= rising
            shares[i - 1] *= 1 - rising
        return shares / shares.sum(0)


def _span(start: int, length: int, cell: int) -> slice:
    """An interval in values of a number of pixels."""
    return slice(start // cell, (start + length) // cell)


def part_shapes(shape: Sequence[int], cell: int = 1, stride: int = 1, tiling: Tiling | None = None) -> list[torch.Size]:
    """See :meth:`Tiling.part_shapes`, of the default tiling if None."""
    return (tiling or Tiling()).part_shapes(shape, cell, stride)
