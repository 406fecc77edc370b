"""What a network trains on: examples as tensors, their conditions, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from bbdm.data.reading import Column, Reader
from bbdm.data.rows import Row, first, shown
from bbdm.data.spec import Condition
from bbdm.networks.conditions import Classes, ConditionsConfig
from bbdm.pictures.values import EIGHT_BIT


class Example(NamedTuple):
    """An example as tensors, or a batch of examples, from the data set to the network."""

    source: Any  # (C, *S), uint8 of 8-bit pictures, float32 in [-1, 1] of others, or latents
    target: Any
    conditions: Mapping[str, Any] = {}  # what the network sees besides, by name
    mask: Any = None  # (1, *S) float32, 1 where pixels count
    name: Any = ""
    left_out: Any = ""  # why examples before it could not be read, by lines; of a batch, a list

    def map(self, change: Callable[[Any], Any]) -> Example:
        """The example with each of its tensors changed."""
        conditions = {name: change(value) for name, value in self.conditions.items()}
        mask = None if self.mask is None else change(self.mask)
        return self._replace(source=change(self.source), target=change(self.target), conditions=conditions, mask=mask)


def stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor of several examples as (B, ...); tokens (L, D) of several lengths get rows of zeros."""
    return pad_sequence(list(values), batch_first=True) if values[0].ndim == 2 else default_collate(list(values))


def trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Tokens (L, D) without the rows of zeros at the end, which are no tokens; at least one row."""
    used = rows.any(dim=1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 1]


def collate(examples: Sequence[Example]) -> Example:
    """Examples as a batch: tensors stacked, names and reasons as lists. Rows of zeros make tokens as long.

    Raises:
        ValueError: they have several sizes or channels.
    """
    first = examples[0]
    for each in examples:
        for side in ("source", "target"):
            sizes = [tuple(getattr(example, side).shape) for example in (first, each)]
            if sizes[0] != sizes[1]:
                found = f"the {side} of {each.name} is {sizes[1]}, and that of {first.name} {sizes[0]}"
                raise ValueError(f"{found}: a batch is of one size; train on crops, such as --crop 96")
    return Example(
        stacked([each.source for each in examples]),
        stacked([each.target for each in examples]),
        {name: stacked([each.conditions[name] for each in examples]) for name in first.conditions},
        None if first.mask is None else stacked([each.mask for each in examples]),
        [each.name for each in examples],
        [each.left_out for each in examples],
    )


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
        classes = known.classes.get(name, ())
        if name not in known.classes or (not isinstance(classes, int) and label not in classes):
            raise ValueError(f"the network takes {known.described}, got {name}={label}")
    conditions: dict[str, Condition] = {}
    for name, each in known.each.items():
        if name in labels or has_column(rows, name):
            values = stored[name].values if name in stored else EIGHT_BIT
            conditions[name] = Condition(each.kind, values, each.names or each.size, labels.get(name))
        elif not each.droppable:
            where = f"a column {name!r}, such as ',{name}=WHERE' behind the data set's folder"
            raise ValueError(f"this network takes {known.described}: give {where}")
    return conditions


def with_sizes(conditions: Mapping[str, Condition], rows: Sequence[Row], reader: Reader) -> dict[str, Condition]:
    """The conditions with their sizes, by the rows; ValueError where these have no such column."""
    found: dict[str, Condition] = {}
    for name, each in conditions.items():
        if each.label is None and not has_column(rows, name):
            add = f"add ',{name}=WHERE' behind the data set's folder, or a table's"
            raise ValueError(f"rows have no column {name!r}: {add}")
        size: Classes | None = each.size
        if size is None and each.kind == "class":
            size = None if isinstance(rows[0][name], int) else labels(rows, name)
        elif size is None:  # of images (C, *S), or of tokens (1, L, D)
            axis = 0 if each.kind == "image" else 2
            size = first(rows, lambda row, name=name, axis=axis: reader.header(row.get(name)).shape[axis])
        found[name] = replace(each, size=size)
    return found


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
    found = {_label(row.get(name)) for row in rows} - {""}  # which is said where the example is read
    if not found:
        raise ValueError(f"no example has a label of {name!r}")
    return tuple(sorted(found, key=lambda each: (0, int(each), each) if each.isdecimal() else (1, 0, each)))


def row_conditions(
    conditions: Mapping[str, Condition], row: Row, columns: Mapping[str, Column], reader: Reader
) -> dict[str, torch.Tensor]:
    """What a row has besides the source, by name: images (C, *S), classes () int64, tokens (L, D).

    Images are uint8 of 8 bits, else float32 in [-1, 1]; ``columns`` has them, cropped as the source is.

    Raises:
        ValueError: something cannot be read, or does not fit; the message names it.
    """
    found: dict[str, torch.Tensor] = {}
    for name, each in conditions.items():
        where, size = f"{name} of {shown(row)}", each.size
        if each.label is None and row.get(name) is None:
            raise ValueError(f"{shown(row)} has no {name}")
        if each.kind == "image":
            array = reader.scaled(where, columns[name], each.values, size)  # pyright: ignore[reportArgumentType]
            if len(array) != size:
                raise ValueError(f"{where} has {len(array)} channels, and others have {size}")
            found[name] = torch.from_numpy(array)
        elif each.kind == "tokens":
            array = np.asarray(reader.read(row[name]))
            floats = array.ndim == 3 and len(array) == 1 and array.dtype.kind == "f" and np.isfinite(array).all()
            if not floats or array.shape[2] != size:
                got = f"{array.shape[1:]} of {array.dtype}"
                raise ValueError(f"{where}: tokens must be (L, {size}) of finite floats, got {got}")
            found[name] = trimmed(torch.from_numpy(np.array(array[0], np.float32)))
        elif size is None:  # of a data set of one's own
            found[name] = torch.tensor(row[name])
        else:
            names = [*map(str, range(size))] if isinstance(size, int) else size
            label = each.label or _label(row[name])
            if label not in names:
                raise ValueError(f"{shown(row)}: {label!r} is no class of {name!r}, which are {', '.join(names)}")
            found[name] = torch.tensor(names.index(label))
    return found


def _label(cell: Any) -> str:
    """A label as text, "" for a cell that is none."""
    text = cell.decode(errors="replace") if isinstance(cell, bytes) else cell
    return text.strip() if isinstance(text, str) else ""
