"""What a network trains on: examples as tensors, their conditions, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from bbdm.data.cells import ROLES
from bbdm.data.kinds import Condition, RowCondition, kind_of
from bbdm.data.reading import Reader
from bbdm.data.rows import Row, shown
from bbdm.data.scaling import Column
from bbdm.networks.conditions import ConditionsConfig


class Example(NamedTuple):
    """An example as tensors, or a batch of examples, from the data set to the network."""

    source: Any  # (C, *S), uint8 of 8-bit pictures, float32 in [-1, 1] of others, or latents
    target: Any
    conditions: Mapping[str, Any] = {}  # what the network sees besides, by name
    mask: Any = None  # (1, *S) float32, 1 where pixels count
    name: Any = ""
    left_out: Any = ""  # why examples before it could not be read, by lines; of a batch, a list
    # the target as an array of stored values, where it was asked for and nothing prepares it
    stored: Any = None

    def map(self, change: Callable[[Any], Any]) -> Example:
        """The example with each of its tensors changed."""
        conditions = {name: change(value) for name, value in self.conditions.items()}
        mask = None if self.mask is None else change(self.mask)
        return self._replace(
            source=change(self.source), target=change(self.target), conditions=conditions, mask=mask
        )


def stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor of several examples as (B, ...); tokens (L, D) of several lengths get rows of zeros."""
    if values[0].ndim == 2:
        return pad_sequence(list(values), batch_first=True)
    return default_collate(list(values))


def trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Tokens (L, D) without the rows of zeros at the end, which are no tokens; at least one row."""
    used = rows.any(dim=1).nonzero()
    count = int(used[-1]) + 1 if len(used) else 1
    return rows[:count]


def collate(examples: Sequence[Example]) -> Example:
    """Examples as a batch: tensors stacked, names and reasons as lists. Rows of zeros make tokens as long.

    Raises:
        ValueError: they have several sizes or channels.
    """
    first = examples[0]
    for example in examples:
        for role in ROLES:
            shape = tuple(getattr(example, role).shape)
            expected = tuple(getattr(first, role).shape)
            if shape != expected:
                differing = (
                    f"the {role} of {example.name} is {shape}, and that of {first.name} {expected}"
                )
                raise ValueError(
                    f"{differing}: a batch is of one size; train on crops, such as --crop 96"
                )
    conditions: dict[str, torch.Tensor] = {}
    for name in first.conditions:
        conditions[name] = stacked([example.conditions[name] for example in examples])
    return Example(
        source=stacked([example.source for example in examples]),
        target=stacked([example.target for example in examples]),
        conditions=conditions,
        mask=None if first.mask is None else stacked([example.mask for example in examples]),
        name=[example.name for example in examples],
        left_out=[example.left_out for example in examples],
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
    for name, condition in known.each.items():
        if name in labels or has_column(rows, name):
            like = stored.get(name, Condition(condition.kind))
            conditions[name] = Condition(
                like.kind, like.values, condition.names or condition.size, labels.get(name)
            )
        elif not condition.droppable:
            where = f"a column {name!r}, such as ',{name}=WHERE' behind the data set's folder"
            raise ValueError(f"this network takes {known.described}: give {where}")
    return conditions


def with_sizes(
    conditions: Mapping[str, Condition], rows: Sequence[Row], reader: Reader
) -> dict[str, Condition]:
    """The conditions with their sizes, by the rows; ValueError where these have no such column."""
    sized: dict[str, Condition] = {}
    for name, condition in conditions.items():
        if condition.label is None and not has_column(rows, name):
            add = f"add ',{name}=WHERE' behind the data set's folder, or a table's"
            raise ValueError(f"rows have no column {name!r}: {add}")
        size = condition.size
        if size is None:
            size = kind_of(name, conditions).size(name, rows, reader)
        sized[name] = replace(condition, size=size)
    return sized


def has_column(rows: Sequence[Row], name: str) -> bool:
    """Whether rows have a column."""
    return name in (getattr(rows, "columns", None) or rows[0])


def row_conditions(
    conditions: Mapping[str, Condition], row: Row, columns: Mapping[str, Column], reader: Reader
) -> dict[str, torch.Tensor]:
    """What a row has besides the source, by name: images (C, *S), classes () int64, tokens (L, D).

    Images are uint8 of 8 bits, else float32 in [-1, 1]; ``columns`` has them, cropped as the source is.

    Raises:
        ValueError: something cannot be read, or does not fit; the message names it.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, condition in conditions.items():
        if condition.label is None and row.get(name) is None:
            raise ValueError(f"{shown(row)} has no {name}")
        kind = kind_of(name, conditions)
        array = kind.read(RowCondition(name, condition, row, reader, columns.get(name)))
        tensor = torch.from_numpy(array)
        tensors[name] = trimmed(tensor) if kind.network == "tokens" else tensor
    return tensors
