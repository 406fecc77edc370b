"""What an example is: sizes, values, crops, slices and conditions.

The part that a network has learned is kept in its file, see :meth:`Spec.config`. Nothing here imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed
from bbdm.data.cells import ROLES
from bbdm.data.kinds import CONDITION_KINDS, Condition
from bbdm.data.scaling import off_nodata
from bbdm.networks.conditions import DIRECTION, DIRECTIONS, Kind
from bbdm.pictures.images import Resize, Size, as_size, has_nan
from bbdm.pictures.picture import Geometry, Picture
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, from_config, holds, read_values

Plane = Literal["axial", "coronal", "sagittal"]
Way = Literal["AtoB", "BtoA", "both"]
BANDS = "descriptions"  # the entry of a geometry that names channels
OF_BANDS = (
    BANDS,
    "band_tags",
    "scales",
    "offsets",
)  # entries of a geometry that are of a source's channels, and of no result's
LEARNED = (  # fields that a network's file keeps as they are
    "crop",
    "slices",
    "neighbours",
    "spacing",
    "nodata",
    "source_nodata",
    "target_bands",
    "source_bands",
    "masked",
)
# of a volume (D, H, W), across the plane
AXES: dict[str, int] = dict(zip(get_args(Plane), range(3), strict=True))
SPACING_DIFFERS = 1.1  # ratio of lengths of voxels
CHOICES: dict[str, tuple[Any, ...]] = {
    "slices": (None, *AXES),
    "direction": (*DIRECTIONS, "both"),
    "channels": (None, 1, 3),
    "masked": (False, True),
}
CONTRAST = 0.01  # share of their range that the values of a source have at least


def read_named(text: str, form: str, mark: str = "=") -> dict[str, str]:
    """Texts by name, from ``NAME=TEXT`` with commas; of any other a ValueError that begins with ``form``."""
    values: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.partition(mark)
        if not name.isidentifier() or not value or name in values:
            raise ValueError(f"{form}, with commas, each name once; got {text!r}")
        values[name] = value
    return values


def read_kinds(text: str) -> dict[str, Condition]:
    """Conditions from text: ``NAME=KIND`` with commas, such as ``sar=image@-25:0,season=class,text=tokens``.

    ``@LOW:HIGH`` is the range of an image's values, with ``;`` between those of channels.

    Raises:
        ValueError: the text has another form, or a name is there twice.
    """
    kinds = ", ".join(CONDITION_KINDS)
    form = f"conditions are written as NAME=KIND, KIND being one of {kinds}, or image@LOW:HIGH"
    conditions: dict[str, Condition] = {}
    for name, description in read_named(text, form).items():
        kind, mark, numbers = description.partition("@")
        if kind not in CONDITION_KINDS or (mark and kind != "image"):
            raise ValueError(f"{form}, with commas; got {text!r}")
        channels = read_values(numbers.replace(";", ",")) if mark else None
        conditions[name] = Condition(kind, channels)
    return conditions


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What an example is.

    Args:
        source: the range of sources' stored values; None for 8 bits, and for floats in [-1, 1].
        target: the range of targets' stored values, and so of results'; None as for sources.
        size: of whole pictures, a side, (height, width) or (depth, height, width); None to keep their sizes.
        resize: what the size means: ``stretch`` to it, or ``fit`` inside it with the shape of the picture.
        channels: 1 or 3, which photographs are converted to; None for those of the files.
        crop: the size of crops; None for whole pictures.
        crops: of each picture in an epoch.
        slices: the plane of the slices that volumes are read in; None for other pictures.
        neighbours: the slices, or the frames of a sequence, on each side whose channels a source has besides
            its own, from low to high indices. Beyond the first and the last one, these are repeated.
        axes: the spatial axes of an example: 2, or 3 of volumes.
        direction: ``AtoB`` translates sources into targets, ``BtoA`` targets into sources. With ``both``,
            examples are of AtoB and have the class ``direction``, and training turns half of them.
        conditions: what the network sees besides the source, by the names of columns.
        spacing: the length of a voxel of training along each axis; None where files did not say it.
        nodata: the stored value of pixels without a value in targets; None for none.
        source_nodata: that of sources, which are results of the way back; None for none.
        target_bands: the names of targets' channels; None where their files have none.
        source_bands: those of sources, for the way back; None where their files have none.
        masked: whether a network has learned pixels in masks alone, so that results elsewhere are made up.

    Raises:
        ValueError: a value is out of range, settings contradict each other, or targets have percentiles,
            which results cannot be turned back from.
    """

    source: AnyValues | None = None
    target: Values | None = None
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
    source_nodata: float | None = None
    target_bands: tuple[str | None, ...] | None = field(default=None, compare=False)
    source_bands: tuple[str | None, ...] | None = field(default=None, compare=False)
    masked: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(value) for value in allowed if value is not None)
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if not isinstance(self.target_values, Values):
            raise ValueError(
                f"target values must be LOW:HIGH, so that results have a unit; got {self.target}"
            )
        if type(self.neighbours) is not int or self.neighbours < 0:
            raise ValueError(f"neighbours must be a number, at least 0, got {self.neighbours}")
        if self.neighbours and self.axes == 3:
            raise ValueError(
                f"neighbours are of networks of 2 axes, and this one has 3; got {self.neighbours}"
            )
        if self.axes == 3 and self.slices is not None:
            raise ValueError(
                f"slices are of networks of 2 axes, and this one has 3; got {self.slices}"
            )
        if self.crops < 1 or (self.crops > 1 and self.crop is None):
            raise ValueError(
                f"crops of a picture must be at least 1, and several need their size; got {self.crops}"
            )
        if self.direction == "both":
            if not isinstance(self.source_values, Values) or self.neighbours:
                needed = "direction 'both' makes sources too: they need values LOW:HIGH and no neighbours"
                raise ValueError(
                    f"{needed}, got {self.source_values} and {self.neighbours} neighbours"
                )
            both = Condition("class", size=DIRECTIONS, label=DIRECTIONS[0])
            if self.conditions.get(DIRECTION, both) != both:
                raise ValueError(
                    f"with direction 'both', no other condition may be called {DIRECTION!r}"
                )
            object.__setattr__(self, "conditions", {**self.conditions, DIRECTION: both})
        for name in ("size", "crop"):
            size = getattr(self, name)
            if size is not None:
                axes: int = self.axes
                if axes == 2 and isinstance(size, list | tuple):
                    axes = len(size)
                object.__setattr__(self, name, as_size(size, axes))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", _lengths(self.spacing))
        for name in ("nodata", "source_nodata"):
            if not isinstance(getattr(self, name), float | int | None):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("target_bands", "source_bands"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _bands(name, getattr(self, name)))

    @property
    def source_values(self) -> AnyValues:
        """The range of sources: the given one, or that of 8 bits."""
        return EIGHT_BIT if self.source is None else self.source

    @property
    def target_values(self) -> Values:
        """The range of targets, in which results are stored: the given one, or that of 8 bits."""
        return EIGHT_BIT if self.target is None else self.target

    @property
    def turned(self) -> Spec:
        """The spec from targets to sources: what is said of them changes places."""
        return replace(
            self,
            source=self.target,
            target=cast(Values | None, self.source),
            nodata=self.source_nodata,
            source_nodata=self.nodata,
            target_bands=self.source_bands,
            source_bands=self.target_bands,
        )

    @property
    def planes(self) -> int:
        """The slices of a volume whose channels a source has; 1 of other sources."""
        if self.slices is None:
            return 1
        return 1 + 2 * self.neighbours

    @property
    def eight_bit(self) -> bool:
        """Whether examples are of 8-bit pictures on both sides, and no slices."""
        if self.slices is not None:
            return False
        return self.source_values == EIGHT_BIT and self.target_values == EIGHT_BIT

    def window(
        self, sides: Sequence[int], index: int | None, crop: tuple[str, int] | None
    ) -> tuple[slice, ...]:
        """The window of pictures that an example is: of slice ``index``, and of a crop by its key and seed.

        Raises:
            ValueError: the pictures are smaller than crops.
        """
        window = [slice(0, side) for side in sides]
        axis = None if self.slices is None else AXES[self.slices]
        if axis is not None and index is not None:
            window[axis] = slice(index, index + 1)
        if crop is None or self.crop is None:
            return tuple(window)
        lengths = [self.crop] * 2 if isinstance(self.crop, int) else [*self.crop]
        if axis is not None:
            lengths.insert(axis, 1)
        available = [part.stop - part.start for part in window]
        if not _fits(lengths, available):
            raise ValueError(
                f"it has {sizes.shown(available)} pixels, and crops have {sizes.shown(lengths)}"
            )
        key, seed = crop
        random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
        for i, length in enumerate(lengths):
            start = window[i].start + int(random.integers(available[i] - length + 1))
            window[i] = slice(start, start + length)
        return tuple(window)

    def around(self, index: int, count: int) -> list[int]:
        """The indices of the slices that a source has, for the slice at an index of ``count``."""
        indices = np.arange(index - self.neighbours, index + self.neighbours + 1)
        return indices.clip(0, count - 1).tolist()

    def endpoint(self, source_channels: int, channels: int) -> tuple[int, ...] | None:
        """The channels of a source in its own slice or frame, where they are as many as the target's.

        None without neighbours, or where they are not: the bridge then ends in the mean of all.
        """
        if not self.neighbours or source_channels != (1 + 2 * self.neighbours) * channels:
            return None
        return tuple(range(self.neighbours * channels, (self.neighbours + 1) * channels))

    def own_frame(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The channels of a source (C, H, W) that are of its own frame, without those of neighbours."""
        if not self.neighbours or self.slices is not None:
            return array
        channels = len(array) // (1 + 2 * self.neighbours)
        first = self.neighbours * channels
        return array[first : first + channels]

    def is_flat(self, array: npt.NDArray[Any]) -> bool:
        """Whether values of a source are nearly constant within the range that was given for them."""
        values = self.source
        if not isinstance(values, Values) or not array.size:
            return False
        if values.mapping:
            return bool(np.ptp(values.scaled(array, array.ndim - 1)) < 2 * CONTRAST)
        used = array.clip(np.min(values.low), np.max(values.high))
        return bool(np.ptp(used) < CONTRAST * np.subtract(values.high, values.low).min())

    def note_of_bits(self, name: str, dtype: np.dtype[Any]) -> str | None:
        """What is said of a source of 8 bits that do not hold the values of training; None of others."""
        values = self.source
        if dtype != np.uint8 or not isinstance(values, Values):
            return None
        if np.min(values.low) >= 0 and np.max(values.high) <= 255:
            return None
        return f"{name} has 8 bits, and the network was trained on values {values}"

    def warn_of_source(self, source: Picture) -> None:
        """Warn where a source differs from those of training in its bits or spacing, or has no contrast."""
        name = source.name or "the source"
        note = self.note_of_bits(name, source.dtype)
        if note is not None:
            warnings.warn(note, stacklevel=2)
        spacing = source.geometry.spacing
        if spacing and self.spacing and len(spacing) == 3:
            ratios = np.divide(spacing, self.spacing)
            if max(ratios.max(), 1 / ratios.min()) > SPACING_DIFFERS:
                text = f"{name} has voxels of {_shown(spacing)}, and the network was trained on {_shown(self.spacing)}"
                warnings.warn(
                    f"{text}: it knows things at that scale, so resample the source", stacklevel=2
                )
        if self.is_flat(np.asarray(source)[:, ~source.absent()]):
            warnings.warn(
                f"{name} is nearly constant within {self.source}, the range of training",
                stacklevel=2,
            )

    def result_nodata(self, source: float | None) -> float | None:
        """What stands for no value in a result: the targets' own, or the source's where the type holds it."""
        if self.nodata is not None:
            return self.nodata
        if source is None or not holds(np.dtype(self.target_values.dtype), source):
            return None
        return source

    def check_nodata(self, nodata: float | None, absent: npt.NDArray[np.bool_], name: str) -> None:
        """Raise ValueError where pixels of a source have no value, and results cannot say so."""
        if nodata is not None and absent.any() and self.result_nodata(nodata) is None:
            has_holes = f"{name or 'the source'} has pixels without a value, {nodata:g}"
            held = f"results of {self.target_values.dtype} cannot hold it"
            raise ValueError(
                f"{has_holes}, and {held}: train on targets with a nodata of their own, or of another type"
            )

    def result(
        self,
        array: npt.NDArray[Any],
        geometry: Geometry,
        absent: npt.NDArray[np.bool_] | None = None,
        name: str = "",
        down: bool = False,
    ) -> Picture:
        """A result (C, *S) in [-1, 1] in stored values, at the place of its source.

        Args:
            array: the values of the result.
            geometry: of the source, whose place a result has.
            absent: (*S) where the source has no value, and so the result; None for nowhere.
            name: what messages call the picture.
            down: whether values that meet nodata become the next lower ones, as low ends of intervals must.

        Raises:
            ValueError: values are NaN, and neither the type nor a nodata of results can say so.
        """
        values = self.target_values
        nodata = self.result_nodata(geometry.nodata)
        missing = np.isnan(array).any(axis=0)
        if missing.any() and nodata is None and np.dtype(values.dtype).kind != "f":
            raise has_nan(name, values.dtype)
        if missing.any() and nodata is not None:
            array = np.where(missing, 0, array).astype(array.dtype)
            absent = np.asarray(missing if absent is None else absent | missing)
        stored = values.stored(array, axes=array.ndim - 1)
        stored = off_nodata(stored, nodata, values, down)
        if nodata is not None and absent is not None:
            stored[:, absent] = nodata
        kept = {key: value for key, value in geometry.kept.items() if key not in OF_BANDS}
        if self.target_bands is not None:
            kept[BANDS] = self.target_bands
        return Picture(stored, replace(geometry, nodata=nodata, kept=kept), values.unit, name)

    def config(self) -> dict[str, Any]:
        """What a network has learned, as plain values: what is not of whole 8-bit pictures."""
        unset = Spec()
        config: dict[str, Any] = {}
        for role in ROLES:
            values = getattr(self, role)
            if values is not None:
                config[f"{role}_values"] = values.config()
        for name in LEARNED:
            if getattr(self, name) != getattr(unset, name):
                config[name] = getattr(self, name)
        ranges: dict[str, Any] = {}
        for name, condition in self.conditions.items():
            if condition.values is not None:
                ranges[name] = condition.values.config()
        if ranges:
            config["condition_values"] = ranges
        usual = get_args(Kind)
        kinds = {
            name: condition.kind
            for name, condition in self.conditions.items()
            if condition.kind not in usual
        }
        if kinds:
            config["condition_kinds"] = kinds
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Spec:
        """What a file of :meth:`config` describes; further entries are of others.

        Raises:
            ValueError: an entry is wrong.
        """
        fields = {name: config[name] for name in LEARNED if config.get(name) is not None}
        for role in ROLES:
            stored = config.get(f"{role}_values")
            if stored is not None:
                fields[role] = from_config(stored)
        crop = fields.get("crop")
        if isinstance(crop, list | tuple) and len(crop) == 3:
            fields["axes"] = 3
        conditions: dict[str, Condition] = {}
        for name, stored in _mapping(config, "condition_values").items():
            conditions[name] = Condition("image", from_config(stored))
        for name, kind in _mapping(config, "condition_kinds").items():
            if not isinstance(kind, str):
                raise ValueError(
                    f"condition_kinds[{name!r}] must be the name of a kind, got {kind!r}"
                )
            conditions[name] = Condition(kind)
        return cls(**fields, conditions=conditions)


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry of a file that is a mapping; ValueError where it is another."""
    entry = config.get(name) or {}
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} must be a mapping of names to values, got {entry!r}")
    return entry


def _lengths(value: object) -> tuple[float, float, float]:
    """The lengths of a voxel, checked."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"spacing must be 3 lengths, got {value}")
    if not all(isinstance(length, float | int) and 0 < length < 1e9 for length in value):
        raise ValueError(f"spacing must be 3 lengths, got {value}")
    depth, height, width = value
    return float(depth), float(height), float(width)


def _bands(field_name: str, value: object) -> tuple[str | None, ...]:
    """Names of channels, checked."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(band, str | None) for band in value
    ):
        raise ValueError(f"{field_name} must be the names of channels, got {value!r}")
    return tuple(value)


def _shown(spacing: Sequence[float]) -> str:
    """Lengths of a voxel for messages, such as ``1 x 0.5 x 0.5``."""
    return " x ".join(f"{length:.4g}" for length in spacing)


def check_eight_bit(spec: Spec, what: str) -> None:
    """Raise ValueError unless pictures have 8 bits; ``what`` begins the message."""
    if not spec.eight_bit:
        known = f"this network knows values {spec.source_values} to {spec.target_values}"
        raise ValueError(f"{what} is for pictures of 8 bits, and {known}: use bbdm translate")


def _fits(lengths: Sequence[int], sides: Sequence[int]) -> bool:
    """Whether a crop is of as many axes as a picture, and no longer on any."""
    if len(lengths) != len(sides):
        return False
    return all(length <= side for length, side in zip(lengths, sides, strict=True))
