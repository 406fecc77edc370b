"""Images of one size that are translated together, and what a network takes. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bbdm.networks.arrays import concatenated
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.guidance import Guidance
from bbdm.networks.windows import WindowGrid

AT_ONCE = 16  # windows in a network call, or results of a distribution, where no batch_size is given
PIXELS_AT_ONCE = 2**20  # of windows in a network call, but for one that is larger


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a network takes.

    Args:
        source_channels: the channels of sources.
        image_channels: the channels of results.
        channels: the channels of the bridge's space.
        endpoint: the source channel for each channel of a result; see
            :attr:`bbdm.networks.base.Network.endpoint_channels`.
        conditions: those besides the source.
        shown: whether the network sees the source.
        stride: of each axis; the sides of pictures are padded to multiples of it.
        cell: pixels of a picture along one value of the bridge's space.
        only: the only (number, height, width) of pictures or windows that the network takes, or None. Of
            volumes, here and below, (height, width) is (depth, height, width).
        fill: repeat the last image where a batch is short, so that all batches have one size.
    """

    source_channels: int
    image_channels: int
    channels: int
    endpoint: Sequence[int] | None
    conditions: ConditionsConfig
    shown: bool
    stride: tuple[int, ...]
    cell: int = 1
    only: tuple[int, ...] | None = None
    fill: bool = False

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of pictures after padding."""
        return tuple(side + -side % step for side, step in zip(size, self.stride, strict=True))

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of states for pictures of a size."""
        return tuple(side // self.cell for side in self.padded(size))


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size."""

    indices: list[int]  # of the call's images; a batch that is filled up has more images than these
    source: Any  # (B, C, H, W) in [-1, 1]
    seeds: list[int]
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W), 1 where the target is made, or None
    conditions: Mapping[str, Any] = field(default_factory=dict)  # besides the source, a row for each image
    windows: WindowGrid | None = None  # None where the network sees whole images
    guidance: Guidance | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The (height, width) of the images."""
        return tuple(self.source.shape[2:])

    def guides(self, times: Sequence[float]) -> list[bool]:
        """Which steps are guided, of a table's times."""
        return [False] * len(times) if self.guidance is None else self.guidance.guides(times)

    def split(self, count: int | None, fill: bool) -> Iterator[Batch]:
        """Batches of at most a number; with ``fill``, the last image is repeated where one is short."""
        count = count or len(self.indices)
        if count == len(self.indices):
            yield self
            return
        for start in range(0, len(self.indices), count):
            part = slice(start, start + count)  # not a list, which would be copied to a GPU

            def taken(rows: Any, axis: int = 0, part: slice = part) -> Any:
                whole = (slice(None),) * axis
                rows = rows[(*whole, part)]
                missing = count - rows.shape[axis] if fill else 0
                return concatenated([rows, *[rows[(*whole, slice(-1, None))]] * missing], axis)

            seeds = self.seeds[part]
            yield replace(
                self,
                indices=self.indices[part],
                source=taken(self.source),
                seeds=seeds + seeds[-1:] * (count - len(seeds) if fill else 0),
                noise=None if self.noise is None else taken(self.noise, 1),
                mask=None if self.mask is None else taken(self.mask),
                conditions={name: taken(value) for name, value in self.conditions.items()},
            )

    def most(self, batch_size: int | None) -> int:
        """The results of a distribution at once."""
        return batch_size or min(AT_ONCE, max(1, PIXELS_AT_ONCE // math.prod(self.size)))


@dataclass(eq=False)
class Inputs:
    """What a batch is in the space of the bridge, padded, as the sampler's arrays."""

    y: Any  # (B, C, H, W) the source in the target's channels
    conditions: list[dict[str, Any]]  # all that the network sees, and what it sees in each further evaluation
    seeds: Any  # of each image
    noise: Any = None  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W) or None

    def rows(self, indices: Sequence[int], seeds: Any) -> Inputs:
        """Those of some images, with other seeds."""
        index = list(indices)
        conditions = [{name: value[index] for name, value in each.items()} for each in self.conditions]
        return Inputs(self.y[index], conditions, seeds, None, None if self.mask is None else self.mask[index])
