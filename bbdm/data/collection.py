"""One example of a data set, and the collections of them that a data set is made of.

A collection knows where its pictures lie and in which order an epoch visits them. What pictures become is
:mod:`bbdm.data.pairs`.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from bbdm.base.atomic import file_sha256
from bbdm.pictures import images
from bbdm.pictures.images import open_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of pictures inside larger files: those of SUFFIXES
Order = Callable[[int, int], list[int]]  # the examples at the positions start to end of an epoch


class Example(Protocol):
    """A source and its target, or a source alone."""

    @property
    def name(self) -> str:
        """The name in the data set, a relative path without suffix."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this example alone."""
        ...

    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""
        ...

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """Source and target as upright pictures, of the files' sizes."""
        ...

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the sides, upright. Raises ValueError where one is not a picture."""
        ...


@dataclass(frozen=True)
class Pair:
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
        return [images.to_png(side) for side in self.load() if side is not None]

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """Source and target as upright pictures, of the files' sizes."""
        source = open_image(self.source)
        if self.target is None:
            return source, None
        if self.target != self.source:
            return source, open_image(self.target)
        width, height = source.size
        self._check_width(width)
        return source.crop((0, 0, width // 2, height)), source.crop((width // 2, 0, width, height))

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the sides, upright, from the files' headers.

        Raises:
            ValueError: a file is not a picture.
        """
        sizes = [images.open_size(path) for path in self.files]
        if self.target == self.source:
            self._check_width(sizes[0][0])
        return sizes

    def _check_width(self, width: int) -> None:
        if width % 2:
            raise ValueError(f"{self.source} is {width} pixels wide: two pictures side by side need an even width")


@dataclass(frozen=True)
class EncodedPair:
    """An example inside a larger file. ``read`` returns its pictures as bytes, or raises ValueError."""

    name: str
    place: str  # for messages
    read: Callable[[], list[bytes]]
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return self.place

    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""
        return self.read()

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """Source and target as upright pictures; nothing but pictures is ever decoded."""
        pictures = [images.decode(data, self.place, FORMATS) for data in self.read()]
        return pictures[0], pictures[1] if len(pictures) > 1 else None

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the sides, upright."""
        return [side.size for side in self.load() if side is not None]


class Pairs(Sequence[Any]):
    """The examples of a data set, by index: each an :class:`Example`, of files a :class:`Pair`."""

    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example at an index from 0 to less than the length."""

    def order(self, seed: int) -> Order:
        """The order of an epoch, a function of the seed: here a permutation of all examples."""
        indices = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return lambda start, end: indices[start:end].tolist()

    def ahead(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need comes near."""
        return iter(order)

    def digest(self, before: str = "") -> str:
        """SHA-256 of a text, of all names, and of the content of all pictures."""
        digest = hashlib.sha256(before.encode())
        for pair in self:
            parts = [hashlib.sha256(part).hexdigest() for part in pair.encoded()]
            digest.update(f"{pair.name} {' '.join(parts)}\n".encode())
        return digest.hexdigest()

    @abstractmethod
    def names_digest(self) -> str:
        """SHA-256 of what names the examples, which must stay the same when a run resumes."""

    @abstractmethod
    def with_target(self) -> str | None:
        """An example that has a target, for a message; None where all are sources alone."""


class Files(Pairs):
    """Examples that are files of their own."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._pairs = tuple(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and self._pairs == other._pairs

    def at(self, index: int) -> Pair:
        """The pair at an index."""
        return self._pairs[index]

    def digest(self, before: str = "") -> str:
        """SHA-256 of a text, of all names, and of the content of all files."""
        digest = hashlib.sha256(before.encode())
        for pair in self:
            digest.update(f"{pair.name} {' '.join(map(file_sha256, pair.files))}\n".encode())
        return digest.hexdigest()

    def names_digest(self) -> str:
        """SHA-256 of all names."""
        return hashlib.sha256("\n".join(pair.name for pair in self).encode()).hexdigest()

    def with_target(self) -> str | None:
        """The first name of an example with a target."""
        return next((pair.name for pair in self if pair.target is not None), None)
