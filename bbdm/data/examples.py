"""What a network trains on: an example as tensors, and batches of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def tensors(self) -> dict[str, Any]:
        """All tensors by name; those of conditions begin with ``condition.``."""
        conditions = {f"{CONDITION}{name}": value for name, value in self.conditions.items()}
        found = {"source": self.source, "target": self.target, "mask": self.mask, **conditions}
        return {name: value for name, value in found.items() if value is not None}

    def with_tensors(self, tensors: Mapping[str, Any]) -> Example:
        """The example with other tensors, by the names of :meth:`tensors`."""
        named = {name: value for name, value in tensors.items() if not name.startswith(CONDITION)}
        conditions = {name.removeprefix(CONDITION): tensors[name] for name in tensors if name not in named}
        return self._replace(conditions=conditions, **named)


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
    all_tensors = [each.tensors() for each in examples]
    batch = first.with_tensors({name: stacked([each[name] for each in all_tensors]) for name in all_tensors[0]})
    return batch._replace(name=[each.name for each in examples], left_out=[each.left_out for each in examples])
