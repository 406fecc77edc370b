"""What a run trains on: examples by index, whatever they are made of."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from bbdm.data.collection import Entry, Example, Files, Order, Pairs
from bbdm.data.config import DIRECTIONS
from bbdm.data.crops import Crops
from bbdm.data.degradations import Degradation
from bbdm.data.told import NOTHING, Told
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import images
from bbdm.pictures.images import Size
from bbdm.pictures.kind import EIGHT_BIT_PICTURES, PictureKind

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
Place = tuple[int, int]  # an example's index, and the seed of what is drawn for it


class BadPicturesError(ValueError):
    """Pictures of a data set cannot be read."""


class NoTargetError(ValueError):
    """A data set is of sources alone, and targets are needed."""


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]], ABC):
    """Examples by index, of which a run trains.

    Attributes:
        image_size: the size of the pictures that examples have.
        channels: the number of channels of targets.
        source_channels: the number of channels of sources.
        kind: what the pictures are besides.
        masked: whether examples have masks.
        direction: ``AtoB``, or ``BtoA`` where the sides are swapped.
        degradation: what makes sources, or None.
        crops: which crops of pictures the examples are, or None.
        axes: the number of spatial axes of an example.
        left_out: why examples could not be read, as far as this process knows.
        told: reads what examples are told besides the source; of nothing, where they have it as they are.

    Item i is (source, target), each (C, *S) float32 in [-1, 1].
    """

    image_size: Size
    channels: int
    source_channels: int
    kind: PictureKind = EIGHT_BIT_PICTURES
    masked: bool = False
    direction: str = "AtoB"
    degradation: Degradation | None = None
    crops: Crops | None = None
    axes: int = 2
    left_out: set[str]
    told: Told = NOTHING

    @property
    def further(self) -> ConditionsConfig:
        """What examples of files, shards and tables are told besides the source."""
        return self.told.config

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The spacing of the voxels of volumes, the median along each axis; None where it is not known."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, seed: int = 0) -> Example:
        """Example ``index``; ``seed`` is of what is drawn anew for each epoch, such as the place of a crop.

        Raises:
            ValueError: it cannot be read; the message names it.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that decides the examples."""

    @abstractmethod
    def names_digest(self, told: bool = True) -> str:
        """SHA-256 of what names the examples, which stays the same when a run resumes.

        ``told`` includes what they are told besides the source.
        """

    def description(self) -> dict[str, Any]:
        """What decides the examples, for manifests: the digest, and what else there is."""
        degraded = {} if self.degradation is None else {"degradation": str(self.degradation)}
        told = {"conditions": self.told.description()} if self.told else {}
        return {"files": self.digest(), **degraded, **self.kind.config(), **told}

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed: here a permutation of all."""
        indices = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return lambda start, end: indices[start:end].tolist()

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need is fetched."""
        return iter(order)

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Name and count examples that cannot be read, each once, by the lines in :class:`Example`."""
        for reason in chain.from_iterable(map(str.splitlines, reasons)):
            if reason not in self.left_out:
                self.left_out.add(reason)
                log.warning("left out: %s (%d so far)", reason, len(self.left_out))

    def batch(self, places: Iterable[Place]) -> Example:
        """A batch of examples, for a loader."""
        return collate([self.read(index, seed) for index, seed in places])

    def pixels(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Source and target of example ``index`` as :meth:`read` gives them: of 8-bit pictures uint8."""
        example = self.read(index)
        self.leave_out([example.left_out])
        return example.source, example.target

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = self.pixels(index)
        return images.scale(source), images.scale(target)


class PairExamples(Examples):
    """Examples that are pairs of pictures in files. Attributes: ``pairs``, and those of :class:`Examples`.

    Raises:
        ValueError: an unknown direction, or a degradation of pairs with targets.
    """

    def __init__(
        self, pairs: Pairs, direction: str, degradation: Degradation | None, skip_bad: bool, told: Told
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
        if degradation is not None and pairs.has_targets:
            name = pairs[0].name
            raise ValueError(f"degrade is for pictures without targets (the data set 'folder'), {name!r} has one")
        self.pairs = pairs
        self.direction = direction
        self.degradation = degradation
        self.skip_bad = skip_bad
        self.told = told
        self.left_out = set()

    settings: str = ""  # what else decides whether a pair can be read

    @abstractmethod
    def images(self, index: int) -> tuple[Any, Any]:
        """Source and target of pair ``index`` as pictures; None for a missing target."""

    @abstractmethod
    def conditions(self, entry: Entry) -> dict[str, torch.Tensor]:
        """What an entry, a pair of whole pictures, is told besides the source, by name.

        Raises:
            ValueError: it cannot be read, or does not fit.
        """

    @abstractmethod
    def look(self, place: int, whole: bool) -> list[tuple[int, int]]:
        """(width, height) of the files of pair ``place`` from their headers; ``whole`` decodes them.

        Raises:
            ValueError: one cannot be read, or does not fit.
        """

    @abstractmethod
    def _of(self, pairs: Pairs, skip_bad: bool) -> Self:
        """The data set of other pairs, or that leaves out others."""

    def without(self, names: Container[str]) -> Self:
        """The data set without the pairs of some names."""
        return self._of(Files(pair for pair in self.pairs if pair.name not in names), self.skip_bad)

    def skipping(self) -> Self:
        """The data set, in which the next pair takes the place of one that cannot be read."""
        return self._of(self.pairs, True)

    def read(self, index: int, seed: int = 0) -> Example:
        """Example ``index``; with ``skip_bad``, the next one that can be read."""
        reasons: dict[str, None] = {}
        start = range(len(self))[index]  # an IndexError beyond the end, which is what ends an iteration
        for number in range(start, start + len(self) if self.skip_bad else start + 1):
            try:
                example = self._read(number % len(self), seed)
                return example._replace(left_out="\n".join(reasons)) if reasons else example
            except ValueError as error:  # not OSError: a network that fails says nothing about a picture
                if isinstance(error, NoTargetError):
                    raise
                if not self.skip_bad:
                    raise BadPicturesError(str(error)) from error
                reasons[" ".join(str(error).split())] = None
        raise ValueError(f"none of {len(self)} pairs can be read; the first: {next(iter(reasons))}")

    @abstractmethod
    def _read(self, index: int, seed: int) -> Example:
        """Example ``index``, from 0 to less than the length."""

    def order(self, seed: int) -> Order:
        """The order of an epoch; see :meth:`~bbdm.data.collection.Pairs.order`."""
        return self.pairs.order(seed)

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need is fetched; see :mod:`bbdm.data.shards`."""
        return self.pairs.prefetched(order)

    def digest(self) -> str:
        """SHA-256 of all names, of the content of all files, of the degradation, and of conditions."""
        found = self.pairs.digest("" if self.degradation is None else f"{self.degradation}\n")
        return self.told.digest(self.pairs, found)

    def names_digest(self, told: bool = True) -> str:
        """SHA-256 of all names, or of what names shards and tables; ``told``, of conditions' names too."""
        names = self.pairs.names + (self.told.names(self.pairs) if told else "")
        return hashlib.sha256(names.encode()).hexdigest()


def stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """A condition of several examples as (B, ...); tokens (L, D) of several lengths get rows of zeros."""
    return pad_sequence(list(values), batch_first=True) if values[0].ndim == 2 else default_collate(list(values))


def collate(examples: Sequence[Example]) -> Example:
    """Examples as a batch: tensors stacked, names and reasons as lists. Rows of zeros make tokens as long."""
    first = examples[0]
    conditions = {name: stacked([each.conditions[name] for each in examples]) for name in first.conditions}
    mask = None if first.mask is None else default_collate([each.mask for each in examples])
    source, target = (default_collate([each[side] for each in examples]) for side in (0, 1))
    return Example(source, target, conditions, mask, [each.name for each in examples], [e.left_out for e in examples])
