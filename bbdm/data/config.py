"""What the flags of commands say of a data set's pictures, and the spec that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bbdm.base.settings import position, setting
from bbdm.data.cells import ROLES
from bbdm.data.degradations import DEGRADATIONS, Degradation
from bbdm.data.kinds import Condition
from bbdm.data.rows import UNPAIRED, BadPicturesError, Row, first, read_layout
from bbdm.data.spec import AXES, BANDS, Plane, Spec, Way, read_kinds, read_named
from bbdm.networks.conditions import Direction
from bbdm.pictures import Header, Picture, images
from bbdm.pictures.images import Size, read_size
from bbdm.pictures.values import AnyValues, Values, read_values


class Crops(NamedTuple):
    """Fields of a spec: the size of crops, and their number in an epoch."""

    crop: Size
    crops: int = 1

    @classmethod
    def read(cls, text: str) -> Crops:
        """Crops from ``SIZE`` or ``SIZE:COUNT``, such as ``96:8``; else a ValueError."""
        size, mark, count = text.partition(":")
        if mark and not count.isdecimal():
            raise ValueError(f"crops are written as SIZE or SIZE:COUNT, got {text!r}")
        return cls(read_size(size), int(count or 1))


class Slices(NamedTuple):
    """Fields of a spec: the plane of slices, and those seen on each side; None for the network's."""

    slices: Plane
    neighbours: int | None = None

    @classmethod
    def read(cls, text: str) -> Slices:
        """Slices from ``PLANE`` or ``PLANE:NEIGHBOURS``, such as ``axial:1``; else a ValueError."""
        plane, mark, count = text.partition(":")
        if plane not in AXES or (mark and not count.isdecimal()):
            forms = f"PLANE or PLANE:NEIGHBOURS, of the planes {', '.join(AXES)}"
            raise ValueError(f"slices are written as {forms}, got {text!r}")
        return cls(plane, int(count) if mark else None)  # pyright: ignore[reportArgumentType]  (looked up above)


def read_labels(text: str) -> dict[str, str]:
    """Classes by the names of conditions, from ``NAME=CLASS`` with commas; see :func:`read_named`."""
    return read_named(text, "conditions of all sources are written as NAME=CLASS")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """The pictures of a data set. What has these settings checks them."""

    direction: Direction = setting(
        "AtoB",
        "AtoB translates A into B, BtoA targets into sources; also of a network of both directions",
    )
    source_values: AnyValues | None = setting(
        None,
        "range of sources: LOW:HIGH, LOW:HIGH:UNIT, pLOW:HIGH percentiles; channels with commas",
        parse=read_values,
    )
    target_values: AnyValues | None = setting(
        None,
        "range of targets: LOW:HIGH or LOW:HIGH:UNIT; 0:255 if unset, or the network's",
        parse=read_values,
    )
    slices: Slices | None = setting(
        None,
        "PLANE of the slices that volumes are read in; PLANE:N shows the network N slices on each side too",
        parse=Slices.read,
    )
    neighbours: int | None = setting(
        None, "frames on each side that the network sees too, of the data set 'frames'", least=0
    )
    degrade: Degradation | None = setting(
        None,
        f"make the sources of the pictures of 'folder': {', '.join(DEGRADATIONS)}; @SEED decides what is drawn",
        parse=Degradation.read,
    )

    def spec(
        self,
        dataset: str,
        rows: Sequence[Row],
        *,
        learned: Spec | None = None,
        crops: Crops | None = None,
        size: Size | None = None,
        channels: int | None = None,
        **further: Any,
    ) -> Spec:
        """What examples of rows are.

        Args:
            dataset: the layout of the rows.
            rows: of the data set, of which the first that can be read says what its pictures are.
            learned: what a trained network has learned, which settings must not contradict; None for none.
            crops: that are trained on; None for whole pictures.
            size: that whole pictures are resized to; None to keep theirs.
            channels: of a network's sources; photographs are converted to 1 or 3.
            further: other fields of the spec, such as resize, axes and conditions.

        Raises:
            ValueError: settings differ from what a network has learned, or files have more than 8 bits and
                nobody said what their range is.
        """
        if self.degrade is not None and rows[0].get("target") is not None:
            raise ValueError(
                f"degrade is for pictures without targets (the data set 'folder'), got {dataset!r}"
            )
        is_new = learned is None
        learned = learned or Spec()
        fields: dict[str, Any] = {"axes": 2, "conditions": {}, "crop": None, **further}
        fields |= self._ranges(learned)
        fields |= self._plane(learned) | self._neighbours(learned, is_new)
        heads = self._heads(rows, fields)
        if learned.target is None:
            fields |= self._of_files(heads, fields, is_new)
        if is_new and heads["target"]:
            fields["target_bands"] = heads["target"][0].geometry.kept.get(BANDS)
            if self.direction == "both":
                fields["source_bands"] = heads["source"][0].geometry.kept.get(BANDS)
        if crops is not None:
            fields |= crops._asdict()
        return replace(
            learned,
            size=None if crops or fields["axes"] == 3 else size,
            channels=channels if channels in (1, 3) else None,
            direction=self.direction,
            **fields,
        )

    def _ranges(self, learned: Spec) -> dict[str, Any]:
        """The values of sources and targets: those that a network has learned, else those of flags."""
        fields: dict[str, Any] = {}
        for role in ROLES:
            flag = f"{role}_values"
            values = getattr(self, flag)
            known = getattr(learned, role)
            if known is not None and values is not None and str(values) != str(known):
                raise ValueError(f"--{flag} must be those of the network, {known}, got {values}")
            fields[role] = values if known is None else known
        return fields

    def _plane(self, learned: Spec) -> dict[str, Any]:
        """The plane of slices, and their neighbours: those that a network has learned, or of the flag."""
        if self.slices is None:
            return {}
        plane, neighbours = self.slices
        if learned.slices is None:
            return {"slices": plane, "neighbours": neighbours or 0}
        if plane != learned.slices:
            raise ValueError(
                f"--slices must be those of the network, {learned.slices}, got {plane}"
            )
        if neighbours is not None and neighbours != learned.neighbours:
            known = f"the network's neighbours, {learned.slices}:{learned.neighbours}"
            raise ValueError(f"--slices must have {known}, got {plane}:{neighbours}")
        return {}

    def _neighbours(self, learned: Spec, is_new: bool) -> dict[str, Any]:
        """The frames on each side: those that a network has learned, or of the flag."""
        if self.neighbours is None or self.neighbours == learned.neighbours:
            return {}
        if self.slices is not None or learned.slices is not None:
            raise ValueError(
                "neighbours are of frames; of slices they are written as --slices PLANE:N"
            )
        if not is_new:
            raise ValueError(
                f"neighbours must be those of the network, {learned.neighbours}, got {self.neighbours}"
            )
        return {"neighbours": self.neighbours}

    def _heads(
        self, rows: Sequence[Row], fields: Mapping[str, Any]
    ) -> Mapping[str, Sequence[Header]]:
        """The headers of the first row that can be read; ValueError where its values need a range."""
        from bbdm.data.reading import Reader

        reader = Reader(Spec(direction=self.direction))
        try:
            heads, columns = first(rows, lambda row: (reader.heads(row), reader.columns(row)))
        except BadPicturesError:  # which is said where the data set is built
            return dict.fromkeys(ROLES, ())
        unknown: dict[str, Picture] = {}  # the first picture of each role that needs a range
        names: list[str] = []
        for role in ROLES:
            wide: list[Any] = []
            for cell, head in zip(columns[role], heads[role], strict=True):
                if head.dtype != np.uint8:
                    wide.append(cell)
            if wide and fields[role] is None:
                unknown[role] = reader.read(wide[0])
                names.append(str(wide[0]))
        if unknown:
            raise ValueError(f"{names[0]}: {_without_range(unknown)}")
        return heads

    def _of_files(
        self, heads: Mapping[str, Sequence[Header]], fields: Mapping[str, Any], is_new: bool
    ) -> dict[str, Any]:
        """The types that values are stored in, and nodata, as the files of a row have them.

        Without a range, targets have 8 bits: their nodata is for a new network. A trained one keeps its own.
        """
        of_files: dict[str, Any] = {}
        for role in ROLES:
            values = fields[role]
            if heads[role] and isinstance(values, Values):
                of_files[role] = values.stored_like(heads[role][0].dtype)
        if "target" in of_files or (is_new and heads["target"]):
            of_files["nodata"] = heads["target"][0].nodata
            if self.direction == "both":  # sources are results too
                of_files["source_nodata"] = heads["source"][0].nodata
        return of_files


def _without_range(unknown: Mapping[str, Picture]) -> str:
    """What is said of pictures, by their roles, whose values nobody said the range of."""
    ranges: list[str] = []
    flags: list[str] = []
    for role, picture in unknown.items():
        limits, usual = images.ranges(picture)
        ranges.append(f"the first {role} has {limits}")
        flags.append(f"--{role}_values {usual}")
    types = " and ".join(sorted({str(picture.dtype) for picture in unknown.values()}))
    text = f"pictures of {types} have no agreed range of values, and {', '.join(ranges)}: give ranges that hold all"
    return f"{text}, such as {' '.join(flags)}"


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(RowsConfig):
    """A data set, and the pictures of it.

    Raises:
        ValueError: the data set has no targets, or no pairs, and they are needed.
    """

    TARGETS: ClassVar[bool] = True  # whether they are needed
    PAIRS: ClassVar[bool] = True  # whether a target must be that of its source

    dataset: str = position(
        "layout of the data set, see docs/data.md; 'folder' has no targets", parse=read_layout
    )
    data_dir: str = position("its folder; of 'paired', SOURCES,TARGETS; ,NAME=FOLDER adds a column")

    def __post_init__(self) -> None:
        if self.TARGETS and self.dataset == "folder" and self.degrade is None:
            raise ValueError(
                "the data set 'folder' has no targets: degrade makes sources of the pictures"
            )
        if self.TARGETS and self.PAIRS and self.dataset == UNPAIRED:
            raise ValueError(
                f"dataset must be one of pairs, since sources are compared with targets; got {UNPAIRED!r}"
            )
        getattr(super(), "__post_init__", lambda: None)()


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """The pictures of a data set that is trained on, and which parts of them are examples.

    Raises:
        ValueError: a setting is out of range.
    """

    direction: Way = setting(  # pyright: ignore[reportIncompatibleVariableOverride]  (training has one more)
        "AtoB",
        "AtoB translates A into B, BtoA targets into sources, both by one network either into the other",
    )
    crop: Crops | None = setting(
        None, "train on crops: SIZE, or SIZE:COUNT of each picture in an epoch", parse=Crops.read
    )
    conditions: dict[str, Condition] | None = setting(
        None,
        "what the network sees besides the source, NAME=KIND with commas, from the columns of these names: image, "
        "image@LOW:HIGH of other than 8 bits, class or tokens",
        "--condition",
        parse=read_kinds,
    )
