"""What a network trains on: an example as tensors, and batches of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

CONDITION = "condition."  # before the name of a condition


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

    def tensors(self) -> dict[str, Any]:
        """All tensors by name; those of conditions begin with ``condition.``."""
        conditions = {f"{CONDITION}{name}": value for name, value in self.conditions.items()}
        found = {"source": self.source, "target": self.target, "mask": self.mask, **conditions}
        return {name: value for name, value in found.items() if value is not None}


class BadPicturesError(ValueError):
    """Pictures of a data set cannot be read."""


class NoTargetError(ValueError):
    """A data set is of sources alone, and targets are needed."""


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
