"""The examples of a data set: the record that travels to the device, and collections of where they lie.

A collection knows where its pictures lie and in which order an epoch visits them. What pictures become is
:mod:`bbdm.data.pairs`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bbdm.base.atomic import file_sha256
from bbdm.pictures import images
from bbdm.pictures.images import open_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of pictures inside larger files: those of SUFFIXES
Order = Callable[[int, int], list[int]]  # the examples at the positions start to end of an epoch


class Example(NamedTuple):
    """An example as tensors, or a batch of examples, from the data set to the network."""

    source: Any  # (C, H, W), uint8 of pictures or float32 of latents
    target: Any
    conditions: Mapping[str, Any] = {}  # what the network is told besides, by name
    mask: Any = None  # (1, H, W) float32, 1 where pixels count
    name: Any = ""
    left_out: Any = ""  # why examples before it could not be read, by lines; of a batch, a list


class Entry(ABC):
    """An example where it lies: a source and its target, or a source alone."""

    name: str  # in the data set, a relative path without suffix

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this example alone, each once."""
        return ()

    @abstractmethod
    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""

    def load(self) -> list[Image.Image]:
        """Source and target, or the source alone, as upright pictures of the files' sizes."""
        return [images.decode(data, str(self), FORMATS) for data in self.encoded()]

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the sides, upright. Raises ValueError where one is not a picture."""
        return [side.size for side in self.load()]

    def hashes(self) -> list[str]:
        """SHA-256 of the files, or of the parts of a larger file."""
        return [hashlib.sha256(part).hexdigest() for part in self.encoded()]


@dataclass(frozen=True)
class Pair(Entry):
    """Files of one example: ``target`` is None for sources alone, and ``source`` if one file holds both."""

    name: str
    source: Path
    target: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(path for path in (self.source, self.target) if path))

    def __str__(self) -> str:
        return str(self.source)

    def encoded(self) -> list[bytes]:
        """Source and target as the bytes of picture files; PNG where one file holds both."""
        if self.target != self.source:
            return [path.read_bytes() for path in self.files]
        return [images.to_png(side) for side in self.load()]

    def load(self) -> list[Image.Image]:
        """Source and target, or the source alone, as upright pictures of the files' sizes."""
        sides = [open_image(path) for path in self.files]
        if self.target == self.source:
            width, height = self._checked(sides[0].size)
            return [sides[0].crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]
        return sides

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the files, upright, from their headers."""
        return [self._checked(images.open_size(path)) for path in self.files]

    def _checked(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.target == self.source and size[0] % 2:
            raise ValueError(f"{self.source} is {size[0]} pixels wide: two pictures side by side need an even width")
        return size

    def hashes(self) -> list[str]:
        """SHA-256 of the files."""
        return [file_sha256(path) for path in self.files]


@dataclass(frozen=True)
class EncodedPair(Entry):
    """An example inside a larger file. ``read`` returns its pictures as bytes, or raises ValueError."""

    name: str
    place: str  # for messages
    read: Callable[[], list[bytes]]

    def __str__(self) -> str:
        return self.place

    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""
        return self.read()


class Pairs(Sequence[Any]):
    """The examples of a data set, by index: each an :class:`Entry`, of files a :class:`Pair`.

    Attributes: ``has_targets``, whether an example has a target; ``names``, a text of what names the
    examples, which must stay the same when a run resumes.
    """

    has_targets: bool
    names: str

    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]

    @abstractmethod
    def at(self, index: int) -> Entry:
        """The example at an index from 0 to less than the length."""

    def order(self, seed: int) -> Order:
        """The order of an epoch, a function of the seed: here a permutation of all examples."""
        import torch

        indices = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return lambda start, end: indices[start:end].tolist()

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need is fetched."""
        return iter(order)

    def digest(self, before: str = "") -> str:
        """SHA-256 of a text, of all names, and of the content of all pictures."""
        digest = hashlib.sha256(before.encode())
        for pair in self:
            digest.update(f"{pair.name} {' '.join(pair.hashes())}\n".encode())
        return digest.hexdigest()


class Files(Pairs):
    """Examples that are files of their own."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._pairs = tuple(pairs)
        self.has_targets = any(pair.target is not None for pair in self._pairs)
        self.names = "\n".join(pair.name for pair in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and self._pairs == other._pairs

    def at(self, index: int) -> Pair:
        """The pair at an index."""
        return self._pairs[index]
