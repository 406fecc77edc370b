"""What kind of pictures a network was trained on; it is part of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from bbdm.pictures import values
from bbdm.pictures.images import Size, as_size
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, holds

Plane = Literal["axial", "coronal", "sagittal"]
AXES: dict[str, int] = dict(zip(get_args(Plane), range(3), strict=True))  # of a volume (D, H, W), across the plane


@dataclass(frozen=True)
class PictureKind:
    """What the pictures of a network are, besides their channels.

    Args:
        source: the values of sources.
        target: the values of targets, and so of results.
        crop: the size of the crops that it was trained on; None for whole pictures.
        slices: the plane of the slices of volumes that it was trained on; None for other pictures.

    Raises:
        ValueError: targets have percentiles, which results cannot be turned back from; or an unknown plane.
    """

    source: AnyValues = EIGHT_BIT
    target: Values = EIGHT_BIT
    crop: Size | None = None
    slices: Plane | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Values):
            raise ValueError(f"target values must be LOW:HIGH, so that results have a unit; got {self.target}")
        if self.slices not in (None, *AXES):
            raise ValueError(f"slices must be one of {', '.join(AXES)}, got {self.slices!r}")

    def geometry_of_result(self, geometry: Geometry, nodata: float | None) -> Geometry:
        """A source's geometry as its result has it.

        ``nodata``, the source's value of pixels that have none, is the result's too where its type holds it.
        What is said of each band is left out where it is of other values.
        """
        if nodata is not None:
            held = holds(np.dtype(self.target.dtype), nodata)
            geometry = geometry.with_nodata(nodata) if held else geometry.without("nodata")
        return geometry if self.source == self.target else geometry.without("colors")

    def config(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_config` makes it again: what is not of whole 8-bit pictures."""
        made: dict[str, Any] = {}
        for name in ("source", "target"):
            if getattr(self, name) != EIGHT_BIT:
                made[f"{name}_values"] = getattr(self, name).config()
        return made | {name: getattr(self, name) for name in ("crop", "slices") if getattr(self, name) is not None}

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
        return cls(**sides, crop=None if crop is None else as_size(crop), slices=config.get("slices"))


EIGHT_BIT_PICTURES = PictureKind()


def check_eight_bit(kind: PictureKind, what: str) -> None:
    """Raise ValueError unless pictures have 8 bits; ``what`` begins the message."""
    if not kind.source == kind.target == EIGHT_BIT or kind.slices is not None:
        raise ValueError(
            f"{what} is for pictures of 8 bits, and this network knows values {kind.source} to {kind.target}: "
            "use bbdm translate"
        )
