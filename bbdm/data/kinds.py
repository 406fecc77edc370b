"""The kinds of conditions: what a network is shown of a column besides the source.

A kind is one class and one row of :data:`CONDITION_KINDS`; :func:`register_condition` adds one from outside.
Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from bbdm.base.registry import Registry
from bbdm.data.cells import Cell
from bbdm.data.rows import Row, first, shown
from bbdm.data.scaling import Column
from bbdm.data.tables import TableRows
from bbdm.networks.conditions import Classes, Kind
from bbdm.pictures import Header
from bbdm.pictures.values import AnyValues


@dataclass(frozen=True)
class Condition:
    """What a network sees besides the source, from the column of its name.

    Args:
        kind: a name in :data:`CONDITION_KINDS`, such as ``image``, ``class`` or ``tokens``.
        values: the range of an image's stored values; None for 8 bits, and for floats in [-1, 1].
        size: the channels of images, the width of tokens, the number of classes or their names in order; None
            until rows are looked at.
        label: the class of all examples; None where each row has its own.
    """

    kind: str
    values: AnyValues | None = None
    size: Classes | None = None
    label: str | None = None

    def __str__(self) -> str:
        return self.kind if self.values is None else f"{self.kind}@{self.values}"


class PictureReader(Protocol):
    """What opens pictures of rows; :class:`~bbdm.data.reading.Reader` does."""

    def cell(self, row: Row, column: str) -> Cell:
        """The cell of a row in a column."""
        ...

    def header(self, cell: Cell) -> Header:
        """The header of a cell."""
        ...

    def scaled(
        self, name: str, column: Column, values: AnyValues | None, channels: int | None = None
    ) -> npt.NDArray[Any]:
        """(C, *S) of opened pictures: uint8 of 8 bits, else float32 in [-1, 1]."""
        ...


@dataclass(frozen=True)
class RowCondition:
    """A condition of one row, for a kind to read.

    Args:
        name: of the condition and of its column.
        settings: of the condition, with its size.
        row: that it is of.
        reader: opens pictures of rows.
        column: the opened pictures of a kind with ``is_picture``, cropped as the source is; None of others.
    """

    name: str
    settings: Condition
    row: Row
    reader: PictureReader
    column: Column | None = None

    @property
    def cell(self) -> Any:
        """What the row has in the column: a cell of a picture, a text or a number."""
        return self.row[self.name]

    def __str__(self) -> str:
        """What messages call it, such as ``season of A/1.png``."""
        return f"{self.name} of {shown(self.row)}"


class ConditionKind(ABC):
    """A kind of conditions, ``KIND`` of ``--condition NAME=KIND``."""

    network: ClassVar[Kind]  # what it is for a network: image, class or tokens
    # whether its cells lie on the grid of the source and are cropped with it
    is_picture: ClassVar[bool] = False

    @abstractmethod
    def size(self, name: str, rows: Sequence[Row], reader: PictureReader) -> Classes | None:
        """The channels of an image, the number or the names of classes, or the width of tokens.

        Args:
            name: that the column has.
            rows: of the data set.
            reader: opens pictures of rows.

        Returns:
            The size; None where numbers of classes are taken as they are.

        Raises:
            ValueError: no row says it.
        """

    @abstractmethod
    def read(self, condition: RowCondition) -> npt.NDArray[Any]:
        """What the network is shown of a row.

        Returns:
            An image (C, *S) of uint8, or float32 in [-1, 1]; a class () int64; or tokens (L, D) float32.

        Raises:
            ValueError: it cannot be read, or does not fit; the message names it.
        """


class ImageKind(ConditionKind):
    """Images on the grid of the source."""

    network = "image"
    is_picture = True

    def size(self, name: str, rows: Sequence[Row], reader: PictureReader) -> Classes | None:
        """The channels of the first image that can be read."""
        return _first_header(name, rows, reader)[0]

    def read(self, condition: RowCondition) -> npt.NDArray[Any]:
        """(C, *S) of uint8 of 8 bits, else float32 in [-1, 1]."""
        size = condition.settings.size
        assert condition.column is not None
        assert isinstance(size, int)
        array = condition.reader.scaled(
            str(condition), condition.column, condition.settings.values, size
        )
        if len(array) != size:
            raise ValueError(f"{condition} has {len(array)} channels, and others have {size}")
        return array


class TokensKind(ConditionKind):
    """Tokens (L, D) of any length, from an .npy."""

    network = "tokens"

    def size(self, name: str, rows: Sequence[Row], reader: PictureReader) -> Classes | None:
        """The width of the first tokens that can be read."""
        return _first_header(name, rows, reader)[2]

    def read(self, condition: RowCondition) -> npt.NDArray[Any]:
        """(L, D) float32."""
        size = condition.settings.size
        array = np.asarray(condition.reader.cell(condition.row, condition.name).read())
        fits = array.ndim == 3 and len(array) == 1 and array.shape[2] == size
        if not fits or array.dtype.kind != "f" or not np.isfinite(array).all():
            got = f"{array.shape[1:]} of {array.dtype}"
            raise ValueError(f"{condition}: tokens must be (L, {size}) of finite floats, got {got}")
        return np.array(array[0], np.float32)


class ClassKind(ConditionKind):
    """Classes by their labels; numbers of classes of a data set of one's own."""

    network = "class"

    def size(self, name: str, rows: Sequence[Row], reader: PictureReader) -> Classes | None:
        """The labels of all rows, each once; None of numbers."""
        if isinstance(rows[0][name], int):
            return None
        return labels(rows, name)

    def read(self, condition: RowCondition) -> npt.NDArray[Any]:
        """() int64."""
        size = condition.settings.size
        if size is None:
            return np.array(condition.cell, np.int64)
        names = [*map(str, range(size))] if isinstance(size, int) else [*size]
        label = condition.settings.label or label_of(condition.cell)
        if label not in names:
            known = f"{label!r} is no class of {condition.name!r}, which are {', '.join(names)}"
            raise ValueError(f"{shown(condition.row)}: {known}")
        return np.array(names.index(label), np.int64)


def labels(rows: Sequence[Row], name: str) -> tuple[str, ...]:
    """The labels in a column, each once: in their table's order, else numbers by value, then words.

    Raises:
        ValueError: rows have no labels in it.
    """
    if isinstance(rows, TableRows):  # which is read without its pictures
        known = rows.classes(name)
        if known:
            return known
        rows = rows.select([name])
    # which is said where the example is read
    distinct = {label_of(row.get(name)) for row in rows} - {""}
    if not distinct:
        raise ValueError(f"no example has a label of {name!r}")
    numbers = sorted(
        (label for label in distinct if label.isdecimal()), key=lambda label: (int(label), label)
    )
    words = sorted(label for label in distinct if not label.isdecimal())
    return (*numbers, *words)


def label_of(cell: object) -> str:
    """A label as text, "" for a cell that is none."""
    text = cell.decode(errors="replace") if isinstance(cell, bytes) else cell
    return text.strip() if isinstance(text, str) else ""


def _first_header(name: str, rows: Sequence[Row], reader: PictureReader) -> tuple[int, ...]:
    """The shape of the first picture in a column that can be read."""
    return first(rows, lambda row: reader.header(reader.cell(row, name))).shape


CONDITION_KINDS: Registry[ConditionKind] = Registry("kind of conditions")
CONDITION_KINDS.register("image", ImageKind(), ImageKind)
CONDITION_KINDS.register("class", ClassKind(), ClassKind)
CONDITION_KINDS.register("tokens", TokensKind(), TokensKind)


def register_condition(name: str, kind: type[ConditionKind]) -> None:
    """Add a kind of conditions, for ``--condition NAME=KIND``; commands know it by ``--import MODULE``.

    Args:
        name: what users write for it.
        kind: the class of the kind.

    Raises:
        ValueError: another kind has the name.
    """
    CONDITION_KINDS.register(name, kind(), kind)


def kind_of(name: str, conditions: Mapping[str, Condition]) -> ConditionKind:
    """The kind of a condition; ValueError where nobody has registered it."""
    kind = conditions[name].kind
    if kind not in CONDITION_KINDS:
        known = ", ".join(CONDITION_KINDS)
        raise ValueError(
            f"the condition {name!r} is of the kind {kind!r}, and known are {known}: --import its module"
        )
    return CONDITION_KINDS[kind]
