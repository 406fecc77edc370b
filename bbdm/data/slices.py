"""The slices of volumes as examples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from bbdm.data.collection import Entry, Pairs, Sides


@dataclass(frozen=True)
class Slice(Entry):
    """A slice of an example of volumes: at a place along an axis."""

    name: str  # the volume's, and the place
    volume: Entry
    axis: int  # across the slice
    place: int  # along the axis

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the volume."""
        return self.volume.files

    @property
    def in_memory(self) -> bool:
        """That of the volume."""
        return self.volume.in_memory

    @property
    def told_files(self) -> tuple[Path, ...]:
        """Those of the volume."""
        return self.volume.told_files

    def told(self, name: str) -> Any:
        """That of the volume."""
        return self.volume.told(name)

    def __str__(self) -> str:
        return f"slice {self.place} of {self.volume}"

    def encoded(self) -> list[bytes]:
        """Raise ValueError: a slice is no file."""
        raise ValueError(f"{self} is no picture file of its own, which a shard needs")

    def opened(self) -> Sides:
        """The volumes, with the plane of the slice."""
        return self.volume.opened()._replace(plane=(self.axis, self.place))


class Slices(Pairs):
    """The slices of examples of volumes, across an axis, one after another.

    Args:
        volumes: the examples, each of whole volumes.
        axis: the axis across the slices, counted from 0.
        inside: gives the places of a volume's slices that are examples; None for all.

    Raises:
        ValueError: a picture is no volume, or there are no slices.
    """

    def __init__(self, volumes: Pairs, axis: int, inside: Callable[[Entry], Sequence[int]] | None = None) -> None:
        self.volumes = volumes
        self.axis = axis
        self.has_targets = volumes.has_targets
        self._places = [range(self._count(each)) if inside is None else inside(each) for each in volumes]
        self.ends = list(accumulate(map(len, self._places)))
        self.names = f"{volumes.names}\n{axis} {self.ends}"
        if not len(self):
            raise ValueError("no slice has anything in its mask")

    def _count(self, volume: Entry) -> int:
        sides = volume.opened()
        size = (sides.target or sides.sources[0]).size  # the grid that sources are resampled to
        if len(size) != 3:
            raise ValueError(f"{volume} has {len(size)} axes, and slices are of volumes, which have 3")
        return size[self.axis]

    def __len__(self) -> int:
        return self.ends[-1]

    def at(self, index: int) -> Slice:
        """The slice at an index."""
        number = bisect_right(self.ends, index)
        before = self.ends[number - 1] if number else 0
        volume, place = self.volumes[number], self._places[number][index - before]
        return Slice(f"{volume.name}/{place:04d}", volume, self.axis, place)

    def labels(self, name: str) -> tuple[str, ...]:
        """Those of the volumes."""
        return self.volumes.labels(name)

    def digest(self, before: str = "") -> str:
        """SHA-256 of a text, and of the names and files of the volumes."""
        return self.volumes.digest(f"{before}slices {self.axis}\n")
