"""What examples have besides the source, by the names of columns: images, classes and tokens, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch

from bbdm.data.examples import trimmed
from bbdm.data.reading import Column, Reader, first
from bbdm.data.rows import Row, shown
from bbdm.data.spec import Condition
from bbdm.networks.conditions import ConditionsConfig, Kind


def fitted(conditions: Mapping[str, Condition], rows: Sequence[Row], reader: Reader) -> dict[str, Condition]:
    """The conditions with their sizes and classes, by the rows.

    Raises:
        ValueError: rows have no such column, or nothing in it can be read.
    """
    sizes: dict[Kind, Callable[[str, Row], int]] = {
        "image": lambda name, row: reader.header(_cell(row, name)).shape[0],
        "tokens": lambda name, row: tokens(name, row, reader).shape[1],
    }
    complete: dict[str, Condition] = {}
    for name, each in conditions.items():
        if each.label is None and not has_column(rows, name):
            raise ValueError(
                f"rows have no column {name!r}: add ',{name}=WHERE' behind the data set's folder, or a table's"
            )
        if each.kind == "class" and each.classes is None and not isinstance(rows[0][name], int):
            each = replace(each, classes=labels(rows, name))
        elif each.size is None and each.kind != "class":
            each = replace(each, size=first(rows, lambda row, name=name, kind=each.kind: sizes[kind](name, row)))
        complete[name] = each
    return complete


def known_conditions(
    known: ConditionsConfig,
    stored: Mapping[str, Condition],
    rows: Sequence[Row],
    labels: Mapping[str, str] | None = None,
) -> dict[str, Condition]:
    """The conditions of a trained network, from columns; those that may be left out may be missing.

    Args:
        known: the conditions of the network.
        stored: what its file says of their values.
        rows: of the data set.
        labels: classes of all rows, by the names of conditions.

    Raises:
        ValueError: one is missing, a label is of no class, or labels are of other conditions.
    """
    labels = labels or {}
    for name, label in labels.items():
        names = known.classes.get(name, ())
        if name not in known.classes or (not isinstance(names, int) and label not in names):
            raise ValueError(f"the network takes {known.described}, got {name}={label}")
    conditions: dict[str, Condition] = {}
    for name, each in known.each.items():
        if name in labels or has_column(rows, name):
            values = stored[name].values if name in stored else None
            size = None if name in known.classes else each.size
            conditions[name] = Condition(each.kind, values, size, known.classes.get(name), labels.get(name))
        elif name not in known.drop:
            raise ValueError(
                f"this network takes {known.described}: give a column {name!r}, such as ',{name}=WHERE' behind the "
                "data set's folder"
            )
    return conditions


def config_of(conditions: Mapping[str, Condition]) -> ConditionsConfig:
    """The values of conditions whose sizes and classes are known."""
    of = {kind: {name: each for name, each in conditions.items() if each.kind == kind} for kind in get_args(Kind)}
    return ConditionsConfig(
        images={name: each.size or 0 for name, each in of["image"].items()},
        classes={name: each.classes for name, each in of["class"].items() if each.classes is not None},
        tokens={name: each.size or 0 for name, each in of["tokens"].items()},
    )


def has_column(rows: Sequence[Row], name: str) -> bool:
    """Whether rows have a column."""
    return name in (getattr(rows, "columns", None) or rows[0])


def labels(rows: Any, name: str) -> tuple[str, ...]:
    """The labels in a column, each once: in their table's order, else numbers by value, then words.

    Raises:
        ValueError: rows have no labels in it.
    """
    if hasattr(rows, "columns"):  # of a table, which is read without its pictures
        if known := rows.classes(name):
            return known
        rows = rows.select([name])
    found: set[str] = set()
    for row in rows:
        with suppress(ValueError):  # which is said where the example is read
            found.add(label(name, row))
    if not found:
        raise ValueError(f"no example has a label of {name!r}")
    return tuple(sorted(found, key=lambda each: (0, int(each), each) if each.isdecimal() else (1, 0, each)))


def label(name: str, row: Row) -> str:
    """A label as text. Raises ValueError for what is no text, or empty."""
    value = _cell(row, name)
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} of {shown(row)} must be text, a label; got {text!r}")
    return text.strip()


def read(
    conditions: Mapping[str, Condition], row: Row, columns: Mapping[str, Column], reader: Reader
) -> dict[str, torch.Tensor]:
    """What a row has besides the source, by name: images (C, *S), classes () int64, tokens (L, D).

    Args:
        conditions: with their sizes and classes.
        row: of the data set.
        columns: its images, cropped as its source is.
        reader: opens the columns of rows.

    Raises:
        ValueError: something cannot be read, or does not fit; the message names it.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, each in conditions.items():
        if each.kind == "class":
            tensors[name] = class_number(name, each, row)
        elif each.kind == "tokens":
            tensors[name] = tokens(name, row, reader, each.size)
        else:
            _cell(row, name)
            array = reader.scaled(f"{name} of {shown(row)}", columns[name], each.values, each.size)
            if len(array) != each.size:
                raise ValueError(f"{name} of {shown(row)} has {len(array)} channels, and others have {each.size}")
            tensors[name] = torch.from_numpy(array)
    return tensors


def class_number(name: str, condition: Condition, row: Row) -> torch.Tensor:
    """() int64, the number of a row's class. Raises ValueError for a label that is no class."""
    classes = condition.classes
    if isinstance(row.get(name), int) and classes is None:  # of a data set of one's own
        return torch.tensor(row[name])
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes or ()
    found = condition.label or label(name, row)
    if found not in names:
        raise ValueError(f"{shown(row)}: {found!r} is no class of {name!r}, which are {', '.join(names)}")
    return torch.tensor(names.index(found))


def tokens(name: str, row: Row, reader: Reader, width: int | None = None) -> torch.Tensor:
    """(L, D) float32, a row's tokens without the rows of zeros at the end.

    Raises:
        ValueError: they are no tokens, not finite, or of another width.
    """
    where = f"{name} of {shown(row)}"
    array = np.asarray(reader.read(_cell(row, name)))
    if array.ndim != 3 or len(array) != 1 or array.dtype.kind != "f" or (width or array.shape[2]) != array.shape[2]:
        wanted = f"(L, {width})" if width else "(L, D)"
        raise ValueError(f"{where}: tokens must be {wanted} of floats, got {array.shape[1:]} of {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: tokens have NaN or infinity")
    return trimmed(torch.from_numpy(np.array(array[0], np.float32)))


def _cell(row: Row, name: str) -> Any:
    """A column of a row. Raises ValueError where it is empty."""
    value = row.get(name)
    if value is None:
        raise ValueError(f"{shown(row)} has no {name}")
    return value
