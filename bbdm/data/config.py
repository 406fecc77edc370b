"""The settings of a data set's pictures, as commands have them, and the spec that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from bbdm import pictures
from bbdm.base.settings import check, setting
from bbdm.data.degradations import DEGRADATIONS, Degradation
from bbdm.data.rows import DATASETS as DATASETS
from bbdm.data.rows import Half, Row, synthrad_values
from bbdm.data.spec import Condition, Direction, Plane, Spec, read_conditions
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size, read_sides
from bbdm.pictures.values import EIGHT_BIT, Values, read_values

LOOKED_AT = 64  # rows, to find one that can be read


class Crops(NamedTuple):
    """Crops of a side or size, how many of a picture in an epoch, and which share is centred in the mask."""

    size: Size
    of_each: int = 1
    in_mask: float = 0.0


class Slices(NamedTuple):
    """The plane of slices, and the slices on each side that a network sees too; None for the network's."""

    plane: Plane
    neighbours: int | None = None


def read_crops(text: str) -> Crops:
    """Crops from ``SIZE``, ``SIZE:COUNT`` or ``SIZE:COUNT:SHARE``, such as ``96:8:0.5``.

    Raises:
        ValueError: the text has another form.
    """
    size, *numbers = text.split(":")
    try:
        kinds: list[Callable[[str], Any]] = [int, float]
        if len(numbers) > len(kinds):
            raise ValueError
        return Crops(read_sides(size), *(kind(number) for kind, number in zip(kinds, numbers, strict=False)))
    except ValueError as error:
        raise ValueError(f"crops are written as SIZE, SIZE:COUNT or SIZE:COUNT:SHARE, got {text!r}") from error


def read_slices(text: str) -> Slices:
    """Slices from ``PLANE`` or ``PLANE:NEIGHBOURS``, such as ``axial:1``.

    Raises:
        ValueError: the text has another form.
    """
    plane, colon, number = text.partition(":")
    if plane not in get_args(Plane) or (colon and not number.isdecimal()):
        planes = ", ".join(get_args(Plane))
        raise ValueError(f"slices are written as PLANE or PLANE:NEIGHBOURS, of the planes {planes}; got {text!r}")
    return Slices(plane, int(number) if colon else None)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """The pictures of a data set. What has these settings checks them."""

    direction: Direction = setting("AtoB", "AtoB translates A into B, BtoA targets into sources")
    source_values: Any = setting(
        None,
        "range of the sources' values, LOW:HIGH or LOW:HIGH:UNIT, or pLOW:HIGH for percentiles of each picture; "
        "of several channels, ranges with commas; the network's if unset, or 0:255",
        parse=read_values,
    )
    target_values: Any = setting(None, "range of the targets' values, LOW:HIGH:UNIT", parse=read_values)
    slices: Slices | None = setting(
        None,
        "PLANE of the slices that volumes are read in; PLANE:N shows the network N slices on each side too",
        parse=read_slices,
    )
    degrade: Degradation | None = setting(
        None,
        f"make the sources from the pictures of the data set 'folder': {', '.join(DEGRADATIONS)}; "
        "jpeg:QUALITY and blur:SIGMA set the strength, and @SEED what is drawn",
        parse=Degradation.read,
    )

    def spec(
        self,
        dataset: str,
        rows: Sequence[Row],
        *,
        learned: Spec | None = None,
        size: Size | None = None,
        resize: Resize = "stretch",
        channels: int | None = None,
        axes: int = 2,
        crops: Crops | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> Spec:
        """What examples of rows are.

        Args:
            dataset: the layout of the rows.
            rows: of the data set, of which the first that can be read says what its pictures are.
            learned: what a trained network has learned; None for none.
            size: that whole pictures are resized to; None to keep theirs.
            resize: what the size means.
            channels: of a network's sources; photographs are converted to 1 or 3.
            axes: the spatial axes of the network.
            crops: that are trained on; None for whole pictures.
            conditions: what examples have besides the source.

        Raises:
            ValueError: settings differ from what a network has learned, or files have more than 8 bits and
                nobody said what their range is.
        """
        if self.degrade is not None and rows[0].get("target") is not None:
            raise ValueError(f"degrade is for pictures without targets (the data set 'folder'), got {dataset!r}")
        learned = learned or Spec()
        given = {"source": self.source_values, "target": self.target_values}
        slices = self.slices or (Slices(learned.slices, learned.neighbours) if learned.slices else None)
        if dataset == "synthrad":
            usual = synthrad_values(rows)
            usual = usual if self.direction == "AtoB" else usual[::-1]
            given = {name: given[name] or value for name, value in zip(given, usual, strict=True)}
            slices = slices or (Slices("axial") if axes == 2 else None)
        values: dict[str, Any] = {}
        for name, own in given.items():
            known = getattr(learned, name)
            if known != EIGHT_BIT and own is not None and str(own) != str(known):
                raise ValueError(f"{name}_values must be those of the network, {known}, got {own}")
            values[name] = own if known == EIGHT_BIT else known
        if slices and learned.slices not in (None, slices.plane):
            raise ValueError(f"slices must be those of the network, {learned.slices}, got {slices.plane}")
        neighbours = slices.neighbours if slices else 0
        if learned.slices and neighbours not in (None, learned.neighbours):
            raise ValueError(f"neighbours must be those of the network, {learned.neighbours}, got {neighbours}")
        nodata = learned.nodata
        heads = first_headers(rows, self.direction)
        if heads is not None:
            _check_known(heads, values)
            if heads["target"] and isinstance(values["target"], Values) and learned.target == EIGHT_BIT:
                values["target"] = values["target"].stored_like(heads["target"][0].dtype)
                nodata = heads["target"][0].nodata
        return Spec(
            **{name: value or EIGHT_BIT for name, value in values.items()},
            size=None if crops or axes == 3 else size,
            resize=resize,
            channels=channels if channels in (1, 3) else None,
            crop=crops.size if crops else None,
            crops=crops.of_each if crops else 1,
            in_mask=crops.in_mask if crops else 0.0,
            slices=slices.plane if slices else None,
            neighbours=learned.neighbours if neighbours is None else neighbours,
            axes=axes,  # pyright: ignore[reportArgumentType]
            direction=self.direction,
            conditions=conditions or {},
            spacing=learned.spacing,
            nodata=nodata,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """The pictures of a data set that is trained on, and which parts of them are examples.

    Raises:
        ValueError: a setting is out of range.
    """

    crop: Crops | None = setting(
        None,
        "train on crops, not on resized pictures: SIZE, a side, HxW or DxHxW; SIZE:COUNT for several of a picture in "
        "an epoch; SIZE:COUNT:SHARE for a share that is centred in the mask",
        parse=read_crops,
    )
    conditions: dict[str, Condition] | None = setting(
        None,
        "what the network sees besides the source, NAME=KIND with commas, from the columns of these names: image, "
        "image@LOW:HIGH of other than 8 bits, class or tokens",
        "--condition",
        parse=read_conditions,
    )

    def __post_init__(self) -> None:
        check(self)


def read_labels(text: str) -> dict[str, str]:
    """Classes by the names of conditions, from ``NAME=CLASS`` with commas, such as ``season=winter``.

    Raises:
        ValueError: the text has another form, or a name is there twice.
    """
    parts = [each.partition("=") for each in text.split(",")]
    labels = {name: value for name, _, value in parts}
    if len(labels) < len(parts) or not all(name.isidentifier() and value for name, value in labels.items()):
        raise ValueError(f"conditions of all sources are written as NAME=CLASS, with commas, got {text!r}")
    return labels


def first_headers(rows: Sequence[Row], direction: Direction = "AtoB") -> dict[str, list[pictures.Header]] | None:
    """The headers of the first row that can be read, by role; None for tables, or if none can be read."""
    for row in rows[:LOOKED_AT]:
        sides = {role: row.get(role) for role in ("source", "target")}
        if direction == "BtoA":
            sides = {"source": sides["target"], "target": sides["source"]}
        values = {role: value if type(value) is tuple else (value,) for role, value in sides.items()}
        try:
            heads = {
                role: [
                    pictures.header(each.path if isinstance(each, Half) else each) for each in of if each is not None
                ]
                for role, of in values.items()
            }
        except TypeError:  # pictures inside a table, which are of 8 bits
            return None
        except (ValueError, FileNotFoundError):  # which is said where the example is read
            continue
        return heads
    return None


def _check_known(heads: Mapping[str, Sequence[pictures.Header]], values: Mapping[str, Any]) -> None:
    """Raise ValueError where pictures have more than 8 bits, and nobody said what their range is."""
    unknown = {
        role: next(head for head in of if head.dtype != np.uint8)
        for role, of in heads.items()
        if values[role] is None and any(head.dtype != np.uint8 for head in of)
    }
    if unknown:
        arrays: dict[str, Any] = {}
        for role, head in unknown.items():
            picture = pictures.read(head.path)
            arrays[role] = np.asarray(picture)[:, ~picture.absent()]
        found = ", ".join(f"the first {name} has {images.found_range(array)}" for name, array in arrays.items())
        flags = " ".join(f"--{name}_values {images.usual_range(array)}" for name, array in arrays.items())
        kinds = " and ".join(sorted({str(array.dtype) for array in arrays.values()}))
        raise ValueError(
            f"{next(iter(unknown.values())).path}: pictures of {kinds} have no agreed range of values, and {found}: "
            f"give ranges that hold all, such as {flags} ({'=, '.join(unknown)}= of a Spec in Python)"
        )
