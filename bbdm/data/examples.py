"""What a run trains on: examples by index, whatever they are made of, and batches of them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from bbdm.data.spec import Spec
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures.images import Size
from bbdm.pictures.picture import scale

log = logging.getLogger(__name__)
Order = Callable[[int, int], list[int]]  # the examples at the positions start to end of an epoch
Place = tuple[Any, int]  # which example, an index or a row of a stream; and the seed of what is drawn for it


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


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]], ABC):
    """Examples by index. Item i is (source, target), each (C, *S) float32 in [-1, 1].

    Attributes:
        spec: what an example is.
        image_size: the size of the pictures that examples have.
        channels: the number of channels of targets.
        source_channels: the number of channels of sources.
        masked: whether examples have masks.
        further: the conditions of examples.
        left_out: why examples could not be read, as far as this process knows.
    """

    masked: bool = False
    further: ConditionsConfig = ConditionsConfig()

    def __init__(self, spec: Spec, image_size: Size, channels: int, source_channels: int) -> None:
        self.spec, self.image_size = spec, image_size
        self.channels, self.source_channels = channels, source_channels
        self.left_out: set[str] = set()

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The length of a voxel along each axis, the median; None where it is not known."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def ends(self) -> Sequence[int]:
        """The number of examples up to each picture's last; slices of a volume are one picture's."""
        return range(1, len(self) + 1)

    @abstractmethod
    def read(self, index: Any, seed: int = 0) -> Example:
        """Example ``index``; ``seed`` is of what is drawn anew for each epoch, such as the place of a crop.

        Raises:
            ValueError: it cannot be read; the message names it.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that decides the examples."""

    @abstractmethod
    def names_digest(self) -> str:
        """SHA-256 of what names the examples, which stays the same when a run resumes."""

    def stamps_digest(self) -> str:
        """SHA-256 of the paths, sizes and times of the examples' files; "" where there are none."""
        return ""

    def settings(self) -> dict[str, Any]:
        """What decides the examples besides their files."""
        return self.spec.config()

    def description(self) -> dict[str, Any]:
        """What decides the examples, for manifests."""
        return {**self.settings(), "files": self.digest()}

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed: here a permutation of all."""
        indices = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return lambda start, end: indices[start:end].tolist()

    def places(self, order: Iterable[int], seed: int) -> Iterator[Place]:
        """What :meth:`read` takes, for the examples of an order."""
        return ((index, seed) for index in order)

    def shared(self, rank: int, processes: int) -> Examples:
        """The data set as one of several processes that share its epochs reads it."""
        return self

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Name and count examples that cannot be read, each once, by the lines in :class:`Example`."""
        for reason in chain.from_iterable(map(str.splitlines, reasons)):
            if reason not in self.left_out:
                self.left_out.add(reason)
                log.warning("left out: %s (%d so far)", reason, len(self.left_out))

    def batch(self, places: Iterable[Place]) -> Example:
        """A batch of examples, for a loader."""
        return collate([self.read(index, seed) for index, seed in places])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        example = self.read(index)
        if example.left_out:
            self.leave_out([example.left_out])
        return scale(example.source), scale(example.target)


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
