"""What kind of pictures a network was trained on; it is part of its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from bbdm.pictures import values
from bbdm.pictures.images import Size, as_size
from bbdm.pictures.picture import Geometry
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, holds

Plane = Literal["axial", "coronal", "sagittal"]
BYTE = 255  # the largest value of 8 bits
SPACING_DIFFERS = 1.1  # ratio of lengths of voxels
AXES: dict[str, int] = dict(zip(get_args(Plane), range(3), strict=True))  # of a volume (D, H, W), across the plane


@dataclass(frozen=True)
class PictureKind:
    """What the pictures of a network are, besides their channels.

    Args:
        source: the values of sources.
        target: the values of targets, and so of results.
        crop: the size of the crops that it was trained on; None for whole pictures.
        slices: the plane of the slices of volumes that it was trained on; None for other pictures.
        neighbours: the slices on each side whose channels a source has besides its own, from low to high
            places. Beyond the first and the last slice, these are repeated.
        spacing: of the voxels that it was trained on, along each axis; None where files did not say it. Kinds
            that differ in it alone are equal.

    Raises:
        ValueError: targets have percentiles, which results cannot be turned back from; an unknown plane,
            neighbours of no slice, or a spacing that is none of volumes.
    """

    source: AnyValues = EIGHT_BIT
    target: Values = EIGHT_BIT
    crop: Size | None = None
    slices: Plane | None = None
    neighbours: int = 0
    spacing: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.target, Values):
            raise ValueError(f"target values must be LOW:HIGH, so that results have a unit; got {self.target}")
        if self.slices not in (None, *AXES):
            raise ValueError(f"slices must be one of {', '.join(AXES)}, got {self.slices!r}")
        if type(self.neighbours) is not int or self.neighbours < 0 or (self.neighbours and self.slices is None):
            raise ValueError(
                f"neighbours must be a number of slices, at least 0, and need slices; got {self.neighbours}"
            )
        if self.spacing is not None and not (len(self.spacing) == 3 and all(0 < each < 1e9 for each in self.spacing)):
            raise ValueError(f"spacing must be 3 lengths, got {self.spacing}")

    def warn_of_spacing(self, spacing: tuple[float, ...] | None, name: str) -> None:
        """Warn where a volume's spacing differs by more than a tenth from that of training."""
        if self.spacing is None or spacing is None or len(spacing) != 3:
            return
        if any(max(pair) > SPACING_DIFFERS * min(pair) for pair in zip(spacing, self.spacing, strict=True)):
            found, trained = (" x ".join(f"{length:.4g}" for length in each) for each in (spacing, self.spacing))
            warnings.warn(
                f"{name or 'the source'} has voxels of {found}, and the network was trained on {trained}: "
                "it knows things at that scale, so resample the source",
                stacklevel=2,
            )

    def warn_of_bits(self, dtype: np.dtype[Any]) -> None:
        """Warn where stored values are of 8 bits, which are less than half of the range of training."""
        if dtype != np.uint8 or not isinstance(self.source, Values):
            return
        if np.subtract(self.source.high, self.source.low).max() > 2 * BYTE:
            warnings.warn(
                f"the source has 8 bits, values up to {BYTE}, and the network was trained on {self.source}: store it "
                f"in these values, or give its own to a call in Python, source_values=(0, {BYTE})",
                stacklevel=2,
            )

    @property
    def planes(self) -> int:
        """The slices, or the pictures, whose channels a source has."""
        return 1 + 2 * self.neighbours

    def places(self, place: int, count: int) -> list[int]:
        """The places of the slices that a source has, of the slice at a place along an axis of a length."""
        around = range(place - self.neighbours, place + self.neighbours + 1)
        return [min(max(each, 0), count - 1) for each in around]

    def endpoint(self, source_channels: int, channels: int) -> tuple[int, ...] | None:
        """The channels of a source that lie in its own slice, where they are as many as the target's.

        None without neighbours, or where they are not: the bridge then ends in the mean of all.
        """
        if not self.neighbours or source_channels != self.planes * channels:
            return None
        return tuple(range(self.neighbours * channels, (self.neighbours + 1) * channels))

    def geometry_of_result(self, geometry: Geometry, nodata: float | None) -> Geometry:
        """A source's geometry as its result has it.

        ``nodata``, the source's value of pixels that have none, is the result's too where its type holds it.
        What is said of each band is left out where it is of other values.
        """
        if nodata is not None:
            held = holds(np.dtype(self.target.dtype), nodata)
            geometry = replace(geometry, nodata=nodata if held else None)
        return geometry if self.source == self.target else geometry.without("colors")

    def config(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_config` makes it again: what is not of whole 8-bit pictures."""
        made: dict[str, Any] = {}
        for name in ("source", "target"):
            if getattr(self, name) != EIGHT_BIT:
                made[f"{name}_values"] = getattr(self, name).config()
        return made | {
            name: getattr(self, name) for name in ("crop", "slices", "neighbours", "spacing") if getattr(self, name)
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PictureKind:
        """The kind that a file describes; further entries are of others.

        Raises:
            ValueError: an entry is wrong.
        """
        sides: dict[str, Any] = {
            name: values.from_config(config[f"{name}_values"])
            for name in ("source", "target")
            if config.get(f"{name}_values") is not None
        }
        crop = config.get("crop")
        volumes = {name: config[name] for name in ("slices", "neighbours") if config.get(name) is not None}
        if (spacing := config.get("spacing")) is not None:
            if not isinstance(spacing, list | tuple) or not all(isinstance(each, float | int) for each in spacing):
                raise ValueError(f"spacing must be 3 lengths, got {spacing!r}")
            volumes["spacing"] = tuple(map(float, spacing))
        axes = 3 if isinstance(crop, list | tuple) and len(crop) == 3 else 2
        return cls(**sides, crop=None if crop is None else as_size(crop, axes), **volumes)


EIGHT_BIT_PICTURES = PictureKind()


def check_eight_bit(kind: PictureKind, what: str) -> None:
    """Raise ValueError unless pictures have 8 bits; ``what`` begins the message."""
    if not kind.source == kind.target == EIGHT_BIT or kind.slices is not None:
        raise ValueError(
            f"{what} is for pictures of 8 bits, and this network knows values {kind.source} to {kind.target}: "
            "use bbdm translate"
        )
