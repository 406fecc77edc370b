"""What a network trains on: an example as tensors, and batches of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate


class Example(NamedTuple):
    """An example as tensors, or a batch of examples, from the data set to the network."""

    source: Any  # (C, *S), uint8 of 8-bit pictures, float32 in [-1, 1] of others, or latents
    target: Any
    conditions: Mapping[str, Any] = {}  # what the network sees besides, by name
    mask: Any = None  # (1, *S) float32, 1 where pixels count
    name: Any = ""
    left_out: Any = ""  # why examples before it could not be read, by lines; of a batch, a list


class BadPicturesError(ValueError):
    """Pictures of a data set cannot be read."""


class NoTargetError(ValueError):
    """A data set is of sources alone, and targets are needed."""


def stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """A condition of several examples as (B, ...); tokens (L, D) of several lengths get rows of zeros."""
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
                raise ValueError(
                    f"the {side} of {each.name} is {sizes[1]}, and that of {first.name} {sizes[0]}: a batch is of one "
                    "size; train on crops, such as --crop 96"
                )
    conditions = {name: stacked([each.conditions[name] for each in examples]) for name in first.conditions}
    mask = None if first.mask is None else default_collate([each.mask for each in examples])
    source, target = (default_collate([each[side] for each in examples]) for side in (0, 1))
    return Example(source, target, conditions, mask, [each.name for each in examples], [e.left_out for e in examples])
