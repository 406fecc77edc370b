"""Images of one size, which a sampler translates together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bbdm.networks.guidance import Guidance
from bbdm.networks.windows import Windowing


class Batch(NamedTuple):
    """Images of one size."""

    indices: list[int]  # of the call's images; a batch that is filled up has more than these
    source: Any  # (B, C, H, W)
    seeds: list[int]
    noise: Any  # (K, B, C, H, W) in place of seeds, or None
    mask: Any = None  # (B, 1, H, W), 1 where the target is made, or None
    conditions: Mapping[str, Any] = {}  # besides the source, a row for each image
    windows: Windowing | None = None  # None where the network sees whole images
    guidance: Guidance | None = None
    encoded: Any = None  # what the sampler made of source and conditions, where it is known

    def split(self, size: int | None, fill: bool) -> Iterator[Batch]:
        """Batches of at most a size; with ``fill``, the last image is repeated where one is short."""
        size = size or len(self.indices)
        for start in range(0, len(self.indices), size):
            indices, seeds = self.indices[start : start + size], self.seeds[start : start + size]
            place: slice | list[int] = slice(start, start + size)  # not a list, which would be copied to a GPU
            if fill and len(indices) < size:
                place = [*range(start, start + len(indices)), *[start + len(indices) - 1] * (size - len(indices))]
                seeds = [self.seeds[i] for i in place]
            noise = None if self.noise is None else self.noise[:, place]
            mask = None if self.mask is None else self.mask[place]
            conditions = {name: value[place] for name, value in self.conditions.items()}
            source = self.source[place]
            yield Batch(indices, source, seeds, noise, mask, conditions, self.windows, self.guidance)
