"""What an example is: sizes, values, crops, slices and conditions.

The part that a network has learned is kept in its file, see :meth:`Spec.config`. Nothing here imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import lt
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed
from bbdm.networks.conditions import DIRECTION, DIRECTIONS, Classes, Kind
from bbdm.pictures import values
from bbdm.pictures.images import Resize, Size, as_size
from bbdm.pictures.picture import Geometry, Picture
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, holds, read_values

Plane = Literal["axial", "coronal", "sagittal"]
Way = Literal["AtoB", "BtoA", "both"]
ROLES = ("source", "target")  # the columns that have values of their own
LEARNED = ("crop", "slices", "neighbours", "spacing", "nodata")  # fields that a network's file keeps as they are
AXES: dict[str, int] = dict(zip(get_args(Plane), range(3), strict=True))  # of a volume (D, H, W), across the plane
SPACING_DIFFERS = 1.1  # ratio of lengths of voxels
CHOICES = {"slices": (None, *AXES), "direction": (*DIRECTIONS, "both"), "channels": (None, 1, 3)}
CONTRAST = 0.01  # share of their range that the values of a source have at least


@dataclass(frozen=True)
class Condition:
    """What a network sees besides the source, from the column of its name.

    Args:
        kind: ``image``, ``class`` or ``tokens``.
        values: the range of an image's stored values; of 8 bits also for floats in [-1, 1].
        size: the channels of images, the width of tokens, the number of classes or their names in order; None
            until rows are looked at.
        label: the class of all examples; None where each row has its own.
    """

    kind: Kind
    values: AnyValues = EIGHT_BIT
    size: Classes | None = None
    label: str | None = None

    def __str__(self) -> str:
        return self.kind if self.values == EIGHT_BIT else f"{self.kind}@{self.values}"


def read_named(text: str, form: str, mark: str = "=") -> dict[str, str]:
    """Texts by name, from ``NAME=TEXT`` with commas; of any other a ValueError that begins with ``form``."""
    parts = [each.partition(mark) for each in text.split(",")]
    found = {name: value for name, _, value in parts}
    if len(found) < len(parts) or not all(name.isidentifier() and value for name, value in found.items()):
        raise ValueError(f"{form}, with commas, each name once; got {text!r}")
    return found


def read_kinds(text: str) -> dict[str, Condition]:
    """Conditions from text: ``NAME=KIND`` with commas, such as ``sar=image@-25:0,season=class,text=tokens``.

    ``@LOW:HIGH`` is the range of an image's values, with ``;`` between those of channels.

    Raises:
        ValueError: the text has another form, or a name is there twice.
    """
    form = "conditions are written as NAME=KIND, KIND being image, image@LOW:HIGH, class or tokens"
    conditions: dict[str, Condition] = {}
    for name, each in read_named(text, form).items():
        kind, mark, values = each.partition("@")
        if kind not in get_args(Kind) or (mark and kind != "image"):
            raise ValueError(f"{form}, with commas; got {text!r}")
        conditions[name] = Condition(kind, read_values(values.replace(";", ",")) if mark else EIGHT_BIT)  # pyright: ignore[reportArgumentType]
    return conditions


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What an example is.

    Args:
        source: the values of sources.
        target: the values of targets, and so of results.
        size: of whole pictures, a side, (height, width) or (depth, height, width); None to keep their sizes.
        resize: what the size means: ``stretch`` to it, or ``fit`` inside it with the shape of the picture.
        channels: 1 or 3, which photographs are converted to; None for those of the files.
        crop: the size of crops; None for whole pictures.
        crops: of each picture in an epoch.
        slices: the plane of the slices that volumes are read in; None for other pictures.
        neighbours: the slices on each side whose channels a source has besides its own, from low to high
            indices. Beyond the first and the last slice, these are repeated.
        axes: the spatial axes of an example: 2, or 3 of volumes.
        direction: ``AtoB`` translates sources into targets, ``BtoA`` targets into sources. With ``both``,
            examples are of AtoB and have the class ``direction``, and training turns half of them.
        conditions: what the network sees besides the source, by the names of columns.
        spacing: the length of a voxel of training along each axis; None where files did not say it.
        nodata: the stored value of pixels without a value in targets; None for none.

    Raises:
        ValueError: a value is out of range, settings contradict each other, or targets have percentiles,
            which results cannot be turned back from.
    """

    source: AnyValues = EIGHT_BIT
    target: Values = EIGHT_BIT
    size: Size | None = None
    resize: Resize = "stretch"
    channels: int | None = None
    crop: Size | None = None
    crops: int = 1
    slices: Plane | None = None
    neighbours: int = 0
    axes: Literal[2, 3] = 2
    direction: Way = "AtoB"
    conditions: Mapping[str, Condition] = field(default_factory=dict, hash=False)
    spacing: tuple[float, ...] | None = field(default=None, compare=False)
    nodata: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(each) for each in allowed if each is not None)
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if not isinstance(self.target, Values):
            raise ValueError(f"target values must be LOW:HIGH, so that results have a unit; got {self.target}")
        if type(self.neighbours) is not int or self.neighbours < 0 or (self.neighbours and self.slices is None):
            raise ValueError(f"neighbours must be a number, at least 0, and need slices; got {self.neighbours}")
        if self.axes == 3 and self.slices is not None:
            raise ValueError(f"slices are of networks of 2 axes, and this one has 3; got {self.slices}")
        if self.crops < 1 or (self.crops > 1 and self.crop is None):
            raise ValueError(f"crops of a picture must be at least 1, and several need their size; got {self.crops}")
        if self.direction == "both":
            if not isinstance(self.source, Values) or self.neighbours:
                needed = "direction 'both' makes sources too: they need values LOW:HIGH and no neighbours"
                raise ValueError(f"{needed}, got {self.source} and {self.neighbours} neighbours")
            both = Condition("class", size=DIRECTIONS, label=DIRECTIONS[0])
            if self.conditions.get(DIRECTION, both) != both:
                raise ValueError(f"with direction 'both', no other condition may be called {DIRECTION!r}")
            object.__setattr__(self, "conditions", {**self.conditions, DIRECTION: both})
        for name in ("size", "crop"):
            if (size := getattr(self, name)) is not None:
                axes = len(size) if isinstance(size, list | tuple) and self.axes == 2 else self.axes
                object.__setattr__(self, name, as_size(size, axes))
        if self.spacing is not None:
            lengths = self.spacing if isinstance(self.spacing, list | tuple) and len(self.spacing) == 3 else ()
            if not lengths or not all(isinstance(each, float | int) and 0 < each < 1e9 for each in lengths):
                raise ValueError(f"spacing must be 3 lengths, got {self.spacing}")
            object.__setattr__(self, "spacing", tuple(map(float, lengths)))
        if not isinstance(self.nodata, float | int | None):
            raise ValueError(f"nodata must be a number, got {self.nodata!r}")

    @property
    def turned(self) -> Spec:
        """The spec from targets to sources: their values change places."""
        return replace(self, source=self.target, target=cast(Values, self.source), nodata=None)

    @property
    def planes(self) -> int:
        """The slices, or the pictures, whose channels a source has."""
        return 1 + 2 * self.neighbours

    @property
    def eight_bit(self) -> bool:
        """Whether examples are of 8-bit pictures on both sides, and no slices."""
        return self.source == self.target == EIGHT_BIT and self.slices is None

    def window(self, sides: Sequence[int], index: int | None, crop: tuple[str, int] | None) -> tuple[slice, ...]:
        """The window of pictures that an example is: of slice ``index``, and of a crop by its key and seed.

        Raises:
            ValueError: the pictures are smaller than crops.
        """
        parts = [slice(0, side) for side in sides]
        axis = None if self.slices is None else AXES[self.slices]
        if axis is not None and index is not None:
            parts[axis] = slice(index, index + 1)
        if crop is None or self.crop is None:
            return tuple(parts)
        lengths = [self.crop] * 2 if isinstance(self.crop, int) else [*self.crop]
        lengths = lengths if axis is None else [*lengths[:axis], 1, *lengths[axis:]]
        found = [part.stop - part.start for part in parts]
        if len(found) != len(lengths) or any(map(lt, found, lengths)):
            raise ValueError(f"it has {sizes.shown(found)} pixels, and crops have {sizes.shown(lengths)}")
        key, seed = crop
        random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
        for i, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            start = part.start + int(random.integers(part.stop - part.start - length + 1))
            parts[i] = slice(start, start + length)
        return tuple(parts)

    def around(self, index: int, count: int) -> list[int]:
        """The indices of the slices that a source has, for the slice at an index of ``count``."""
        return [min(max(each, 0), count - 1) for each in range(index - self.neighbours, index + self.neighbours + 1)]

    def endpoint(self, source_channels: int, channels: int) -> tuple[int, ...] | None:
        """The channels of a source that lie in its own slice, where they are as many as the target's.

        None without neighbours, or where they are not: the bridge then ends in the mean of all.
        """
        if not self.neighbours or source_channels != self.planes * channels:
            return None
        return tuple(range(self.neighbours * channels, (self.neighbours + 1) * channels))

    def is_flat(self, array: npt.NDArray[Any]) -> bool:
        """Whether values of a source are nearly constant within their range, unless it is that of 8 bits."""
        if not isinstance(self.source, Values) or self.source == EIGHT_BIT or not array.size:
            return False
        used = array.clip(np.min(self.source.low), np.max(self.source.high))
        return bool(np.ptp(used) < CONTRAST * np.subtract(self.source.high, self.source.low).min())

    def warn_of_source(self, source: Picture) -> None:
        """Warn where a source differs from those of training in its spacing, or has no contrast."""
        name, spacing = source.name or "the source", source.geometry.spacing
        pairs = zip(spacing, self.spacing, strict=True) if spacing and self.spacing and len(spacing) == 3 else ()
        if any(max(pair) > SPACING_DIFFERS * min(pair) for pair in pairs):
            found, trained = (" x ".join(f"{side:.4g}" for side in each or ()) for each in (spacing, self.spacing))
            text = f"{name} has voxels of {found}, and the network was trained on {trained}"
            warnings.warn(f"{text}: it knows things at that scale, so resample the source", stacklevel=2)
        if self.is_flat(np.asarray(source)[:, ~source.absent()]):
            warnings.warn(f"{name} is nearly constant within {self.source}, the range of training", stacklevel=2)

    def result_nodata(self, source: float | None) -> float | None:
        """What stands for no value in a result: the targets' own, or the source's where the type holds it."""
        kept = source is not None and holds(np.dtype(self.target.dtype), source)
        return self.nodata if self.nodata is not None or not kept else source

    def check_nodata(self, nodata: float | None, absent: npt.NDArray[np.bool_], name: str) -> None:
        """Raise ValueError where pixels of a source have no value, and results cannot say so."""
        if nodata is not None and absent.any() and self.result_nodata(nodata) is None:
            found = f"{name or 'the source'} has pixels without a value, {nodata:g}"
            held = f"results of {self.target.dtype} cannot hold it"
            raise ValueError(f"{found}, and {held}: train on targets with a nodata of their own, or of another type")

    def result(
        self, array: npt.NDArray[Any], geometry: Geometry, absent: npt.NDArray[np.bool_] | None = None, name: str = ""
    ) -> Picture:
        """A result (C, *S) in [-1, 1] in stored values, at the place of its source.

        Args:
            array: the values of the result.
            geometry: of the source, whose place a result has.
            absent: (*S) where the source has no value, and so the result; None for nowhere.
            name: what messages call the picture.
        """
        stored, nodata = self.target.stored(array, axes=array.ndim - 1), self.result_nodata(geometry.nodata)
        if nodata is not None and stored.dtype.kind != "f":  # a pixel with a value does not get nodata by rounding
            highest = np.reshape(self.target.high, (-1, *[1] * (stored.ndim - 1)))
            other = np.where(nodata < highest, nodata + 1, nodata - 1)
            stored = np.where(stored == nodata, other, stored).astype(stored.dtype)
        if nodata is not None and absent is not None:
            stored[:, absent] = nodata
        return Picture(stored, replace(geometry, nodata=nodata), self.target.unit, name)

    def config(self) -> dict[str, Any]:
        """What a network has learned, as plain values: what is not of whole 8-bit pictures."""
        unset = Spec()
        sides = {f"{role}_values": getattr(self, role) for role in ROLES if getattr(self, role) != EIGHT_BIT}
        ranges = {name: each.values.config() for name, each in self.conditions.items() if each.values != EIGHT_BIT}
        return {
            **{name: values.config() for name, values in sides.items()},
            **{name: getattr(self, name) for name in LEARNED if getattr(self, name) != getattr(unset, name)},
            **({"condition_values": ranges} if ranges else {}),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Spec:
        """What a file of :meth:`config` describes; further entries are of others.

        Raises:
            ValueError: an entry is wrong.
        """
        sides = {role: config.get(f"{role}_values") for role in ROLES}
        found: dict[str, Any] = {name: config[name] for name in LEARNED if config.get(name) is not None}
        found |= {role: values.from_config(each) for role, each in sides.items() if each is not None}
        if isinstance(found.get("crop"), list | tuple) and len(found["crop"]) == 3:
            found["axes"] = 3
        ranges = config.get("condition_values") or {}
        if not isinstance(ranges, Mapping):
            raise ValueError(f"condition_values must be a mapping of names to values, got {ranges!r}")
        conditions = {name: Condition("image", values.from_config(each)) for name, each in ranges.items()}
        return cls(**found, conditions=conditions)


def check_eight_bit(spec: Spec, what: str) -> None:
    """Raise ValueError unless pictures have 8 bits; ``what`` begins the message."""
    if not spec.eight_bit:
        known = f"this network knows values {spec.source} to {spec.target}"
        raise ValueError(f"{what} is for pictures of 8 bits, and {known}: use bbdm translate")
