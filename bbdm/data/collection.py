"""The examples of a data set: the record that travels to the device, and collections of where they lie.

A collection knows where its pictures lie and in which order an epoch visits them. What pictures become is
:mod:`bbdm.data.pairs`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bbdm.base.atomic import file_sha256
from bbdm.pictures import formats, images
from bbdm.pictures.images import open_image
from bbdm.pictures.lazy import Geometry, LazyPicture, LoadedPicture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of pictures inside larger files: those of SUFFIXES
Order = Callable[[int, int], list[int]]  # the examples at the positions start to end of an epoch


class Example(NamedTuple):
    """An example as tensors, or a batch of examples, from the data set to the network."""

    source: Any  # (C, *S), uint8 of 8-bit pictures, float32 in [-1, 1] of others, or latents
    target: Any
    conditions: Mapping[str, Any] = {}  # what the network is told besides, by name
    mask: Any = None  # (1, *S) float32, 1 where pixels count
    name: Any = ""
    left_out: Any = ""  # why examples before it could not be read, by lines; of a batch, a list


class Sides(NamedTuple):
    """The pictures of an example, of which parts are read."""

    sources: tuple[LazyPicture, ...]  # whose channels, one after another, are the source's
    target: LazyPicture | None = None
    mask: LazyPicture | None = None
    plane: tuple[int, int] | None = None  # of a slice: the axis across it, and its place along that
    told: tuple[LazyPicture, ...] = ()  # further images that the network sees

    @classmethod
    def of(cls, pictures: Sequence[LazyPicture]) -> Sides:
        """A source and its target, or a source alone."""
        source, target = (*pictures, None)[:2]
        assert source is not None
        return cls((source,), target)

    def swapped(self) -> Sides:
        """The target as the source. Raises ValueError unless there is one of each."""
        if self.target is None or len(self.sources) != 1:
            raise ValueError(f"{self.sources[0].path}: direction 'BtoA' needs one source and one target")
        return self._replace(sources=(self.target,), target=self.sources[0])


class Entry(ABC):
    """An example where it lies: a source and its target, or a source alone."""

    name: str  # in the data set, a relative path without suffix

    @property
    def in_memory(self) -> bool:
        """Whether :meth:`opened` decodes the pictures."""
        return True

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this example alone, each once."""
        return ()

    @property
    def told_files(self) -> tuple[Path, ...]:
        """The files of this example's conditions."""
        return ()

    def told(self, name: str) -> Any:
        """A condition as it lies there: a file, the bytes of one, a label, or rows of numbers.

        Raises:
            ValueError: it is missing, or cannot be read.
        """
        raise ValueError(f"{self} has no {name}")

    @abstractmethod
    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""

    def load(self) -> list[Image.Image]:
        """Source and target, or the source alone, as upright pictures of the files' sizes."""
        return [images.decode(data, str(self), FORMATS) for data in self.encoded()]

    def opened(self) -> Sides:
        """The pictures as arrays, of which parts are read."""
        return Sides.of(
            [LoadedPicture(images.as_pixels(side), Path(str(self)), Geometry(format="pillow")) for side in self.load()]
        )

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
    further: tuple[Path, ...] = ()  # files whose channels follow those of the source
    mask: Path | None = None
    conditions: tuple[tuple[str, Path | str], ...] = ()  # by name: a file, or a label

    @property
    def told_files(self) -> tuple[Path, ...]:
        """The files of the conditions."""
        return tuple(value for _, value in self.conditions if isinstance(value, Path))

    def told(self, name: str) -> Path | str:
        """A condition: its file, or a label."""
        return dict(self.conditions)[name]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        paths = (self.source, *self.further, self.target, self.mask)
        return tuple(dict.fromkeys(path for path in paths if path))

    @property
    def in_memory(self) -> bool:
        """Whether one file holds both sides."""
        return self.target == self.source

    def __str__(self) -> str:
        return str(self.source)

    def encoded(self) -> list[bytes]:
        """Source and target as the bytes of picture files; PNG where one file holds both."""
        if self.target != self.source:
            return [path.read_bytes() for path in self.files]
        return [images.to_png(side) for side in self.load()]

    def opened(self) -> Sides:
        """The pictures as arrays, of which parts are read."""
        mask = None if self.mask is None else formats.open(self.mask)
        if self.target == self.source:
            return super().opened()._replace(mask=mask)
        sources = tuple(formats.open(path) for path in (self.source, *self.further))
        return Sides(sources, None if self.target is None else formats.open(self.target), mask)

    def load(self) -> list[Image.Image]:
        """Source and target, or the source alone, as upright pictures of the files' sizes."""
        if self.target != self.source:
            return [open_image(path) for path in self.files]
        both = open_image(self.source)
        width, height = self._checked(both.size)
        return [both.crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the files, upright, from their headers."""
        return [self._checked(images.open_size(path)) for path in self.files]

    def _checked(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.target == self.source and size[0] % 2:
            raise ValueError(f"{self.source} is {size[0]} pixels wide: two pictures side by side need an even width")
        return size

    def hashes(self) -> list[str]:
        """SHA-256 of the files."""
        return [file_sha256(file) for path in self.files for file in formats.files_of(path)]


@dataclass(frozen=True)
class EncodedPair(Entry):
    """An example inside a larger file. ``read`` returns its pictures as bytes, or raises ValueError."""

    name: str
    place: str  # for messages
    read: Callable[[], list[bytes]]
    read_told: Callable[[str], Any] | None = None  # a condition by its name

    def __str__(self) -> str:
        return self.place

    def encoded(self) -> list[bytes]:
        """Source and target, or the source alone, as the bytes of picture files."""
        return self.read()

    def told(self, name: str) -> Any:
        """A condition: the bytes of a file, a label, or rows of numbers."""
        return super().told(name) if self.read_told is None else self.read_told(name)


def as_label(value: Any) -> str:
    """A label as text. Raises ValueError for what is no text, or empty."""
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a label must be text, got {text!r}")
    return text.strip()


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in their order: numbers by their value, then words by the alphabet."""
    return tuple(sorted(labels, key=lambda each: (0, int(each), each) if each.isdecimal() else (1, 0, each)))


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

    def labels(self, name: str) -> tuple[str, ...]:
        """The labels of a condition, each once: numbers by their value, then words by the alphabet."""
        found: set[str] = set()
        for entry in self:
            with suppress(ValueError):  # which is said where the example is read
                found.add(as_label(entry.told(name)))
        return sorted_labels(found)

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
