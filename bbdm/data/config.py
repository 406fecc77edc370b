"""What the flags of commands say of a data set's pictures, and the spec that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bbdm.base.settings import position, setting
from bbdm.data.degradations import DEGRADATIONS, Degradation
from bbdm.data.rows import UNPAIRED, BadPicturesError, Row, first, read_layout
from bbdm.data.spec import AXES, ROLES, Condition, Plane, Spec, Way, read_kinds, read_named
from bbdm.networks.conditions import Direction
from bbdm.pictures import images
from bbdm.pictures.images import Size, read_size
from bbdm.pictures.values import EIGHT_BIT, Values, read_values


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
        return cls(plane, int(count) if mark else None)  # pyright: ignore[reportArgumentType]


def read_labels(text: str) -> dict[str, str]:
    """Classes by the names of conditions, from ``NAME=CLASS`` with commas; see :func:`read_named`."""
    return read_named(text, "conditions of all sources are written as NAME=CLASS")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """The pictures of a data set. What has these settings checks them."""

    direction: Direction = setting(
        "AtoB", "AtoB translates A into B, BtoA targets into sources; also of a network of both directions"
    )
    source_values: Any = setting(
        None,
        "range of sources: LOW:HIGH, LOW:HIGH:UNIT, pLOW:HIGH percentiles; channels with commas",
        parse=read_values,
    )
    target_values: Any = setting(
        None, "range of targets: LOW:HIGH or LOW:HIGH:UNIT; 0:255 if unset, or the network's", parse=read_values
    )
    slices: Slices | None = setting(
        None,
        "PLANE of the slices that volumes are read in; PLANE:N shows the network N slices on each side too",
        parse=Slices.read,
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
            raise ValueError(f"degrade is for pictures without targets (the data set 'folder'), got {dataset!r}")
        learned, unset = learned or Spec(), Spec()
        further = {"axes": 2, "conditions": {}, **further}
        said = {"source": self.source_values, "target": self.target_values}
        said |= self.slices._asdict() if self.slices else {}
        for name, value in said.items():
            own = getattr(learned, name)
            if own == getattr(unset, name) and not (name == "neighbours" and learned.slices):
                continue
            if value is not None and str(value) != str(own):
                flag = f"{name}_values" if name in ROLES else name
                raise ValueError(f"{flag} must be those of the network, {own}, got {value}")
            said[name] = own
        files = self._of_files(rows, said)
        said |= files if learned.target == EIGHT_BIT else {}
        return replace(
            learned,
            size=None if crops or further["axes"] == 3 else size,
            channels=channels if channels in (1, 3) else None,
            direction=self.direction,
            **(crops._asdict() if crops else {"crop": None}),
            **further,
            **{name: value for name, value in said.items() if value is not None},
        )

    def _of_files(self, rows: Sequence[Row], said: Mapping[str, Any]) -> dict[str, Any]:
        """The target's type and nodata, by the first row that can be read; ValueError without its range."""
        from bbdm.data.reading import Reader

        reader = Reader(Spec(direction=self.direction))
        try:
            heads, columns = first(rows, lambda row: (reader.heads(row), reader.columns(row)))
        except BadPicturesError:  # which is said where the data set is built
            return {}
        unknown: dict[str, Any] = {}  # the first cell of each role that needs a range
        for role in (role for role in ROLES if said[role] is None):
            wide = [cell for cell, head in zip(columns[role], heads[role], strict=True) if head.dtype != np.uint8]
            unknown |= {role: wide[0]} if wide else {}
        if unknown:
            pictures = {role: reader.read(cell) for role, cell in unknown.items()}
            found = {role: images.ranges(each) for role, each in pictures.items()}
            ranges = ", ".join(f"the first {role} has {values}" for role, (values, _) in found.items())
            flags = " ".join(f"--{role}_values {usual}" for role, (_, usual) in found.items())
            kinds = " and ".join(sorted({str(each.dtype) for each in pictures.values()}))
            text = f"pictures of {kinds} have no agreed range of values, and {ranges}: give ranges that hold all"
            raise ValueError(f"{next(iter(unknown.values()))}: {text}, such as {flags}")
        if not heads["target"] or not isinstance(said["target"], Values):
            return {}
        head, source = heads["target"][0], said["source"]
        found = {"target": said["target"].stored_like(head.dtype), "nodata": head.nodata}
        if self.direction == "both" and isinstance(source, Values):  # which are results too
            found["source"] = source.stored_like(heads["source"][0].dtype)
        return found


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(RowsConfig):
    """A data set, and the pictures of it.

    Raises:
        ValueError: the data set has no targets, or no pairs, and they are needed.
    """

    TARGETS: ClassVar[bool] = True  # whether they are needed
    PAIRS: ClassVar[bool] = True  # whether a target must be that of its source

    dataset: str = position("layout of the data set, see docs/data.md; 'folder' has no targets", parse=read_layout)
    data_dir: str = position("its folder; of 'paired', SOURCES,TARGETS; ,NAME=FOLDER adds a column")

    def __post_init__(self) -> None:
        if self.TARGETS and self.dataset == "folder" and self.degrade is None:
            raise ValueError("the data set 'folder' has no targets: degrade makes sources of the pictures")
        if self.TARGETS and self.PAIRS and self.dataset == UNPAIRED:
            raise ValueError(f"dataset must be one of pairs, since sources are compared with targets; got {UNPAIRED!r}")
        getattr(super(), "__post_init__", lambda: None)()


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """The pictures of a data set that is trained on, and which parts of them are examples.

    Raises:
        ValueError: a setting is out of range.
    """

    direction: Way = setting(  # pyright: ignore[reportIncompatibleVariableOverride]  (training has one more)
        "AtoB", "AtoB translates A into B, BtoA targets into sources, both by one network either into the other"
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
