"""What examples are told besides the source, as tensors: further images, classes and tokens.

Where these lie is a matter of :class:`~bbdm.data.collection.Entry`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import manifest
from bbdm.base.atomic import file_sha256
from bbdm.data.collection import FORMATS, Entry, Files, Pairs, as_label
from bbdm.data.config import ConditionsPlaces, split_values
from bbdm.data.shards import Shards
from bbdm.data.slices import Slices
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import formats, images
from bbdm.pictures.formats import numpy_files
from bbdm.pictures.lazy import Geometry, LazyPicture, LoadedPicture
from bbdm.pictures.values import AnyValues, Values, check_channels, check_finite, scaled_present, without_data

LOOKED_AT = 64  # examples, to find one that can be read
Array = npt.NDArray[Any]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Told:
    """Reads what examples are told besides the source."""

    config: ConditionsConfig = field(default_factory=ConditionsConfig)  # what all examples have
    values: Mapping[str, AnyValues] = field(default_factory=dict)  # of images that have a range, by name
    same: Mapping[str, str] = field(default_factory=dict)  # classes of all examples, by name
    left_out: tuple[str, ...] = ()  # what the network may be told, and examples do not have

    @classmethod
    def of(
        cls, pairs: Pairs, places: ConditionsPlaces, same: Mapping[str, str], known: ConditionsConfig | None
    ) -> Told:
        """What some pairs are told, by the names, classes and sizes of a trained network where one is known.

        Raises:
            ValueError: it differs from what the network is told; or a label is no class of the network.
        """
        made = {name: split_values(place) for name, place in (places.images or {}).items()}
        values = {name: each for name, (_, each) in made.items() if each is not None}
        if known is None:
            classes = {name: pairs.labels(name) for name in places.classes or {}}
            if empty := [name for name, labels in classes.items() if not labels]:
                raise ValueError(f"no example has a label of {empty[0]!r}")
            config = ConditionsConfig(
                images={name: _first(pairs, lambda entry, n=name: opened(entry, n).shape[0]) for name in made},
                classes=classes,
                tokens={name: _first(pairs, lambda e, n=name: tokens(e, n).shape[2]) for name in places.tokens or {}},
            )
            return cls(config, values)
        config = ConditionsConfig(
            images={name: known.images[name] for name in made},
            classes={name: known.classes[name] for name in places.classes or {}},
            tokens={name: known.tokens[name] for name in places.tokens or {}},
        )
        told = cls(config, values, same, tuple(name for name in known.kinds if name not in places.places))
        for entry in pairs if isinstance(pairs, Files) else []:
            told._classes(entry)
        return told

    def __bool__(self) -> bool:
        return bool(self.config.kinds)

    def description(self) -> dict[str, Any]:
        """What decides the tensors besides the content of files."""
        made = {"values": {name: str(each) for name, each in self.values.items()}, "same": dict(self.same)}
        return manifest.as_json({**self.config.told(), **{name: value for name, value in made.items() if value}})

    def digest(self, pairs: Pairs, before: str) -> str:
        """SHA-256 of a digest of pairs, and of all that they are told; that digest where it is nothing."""
        if not self:
            return before
        digest = hashlib.sha256(f"{before}\n{self._described}\n".encode())
        entries: Iterable[Entry] = pairs.volumes if isinstance(pairs, Slices) else pairs
        for entry in () if isinstance(pairs, Shards) else entries:  # shards have it in their files
            digest.update("\n".join(_hash(entry.told(name)) for name in self.own).encode())
        return digest.hexdigest()

    def names(self, pairs: Pairs) -> str:
        """A text of what stays the same when a run resumes: names and sizes, and labels that files have."""
        if not self:
            return ""
        entries = pairs.volumes if isinstance(pairs, Slices) else pairs
        labels = [
            str(entry.told(name))
            for entry in (entries if isinstance(entries, Files) else [])
            for name in self.config.classes
            if name not in self.same
        ]
        return "\n".join(["", self._described, *labels])

    @property
    def _described(self) -> str:
        return json.dumps(self.description())

    @property
    def own(self) -> list[str]:
        """The names of what each example has."""
        return [name for name in self.config.kinds if name not in self.same]

    def pictures(self, entry: Entry) -> tuple[LazyPicture, ...]:
        """The further images of an entry, in the order of ``config.images``.

        Raises:
            ValueError: one cannot be read, or has other channels.
        """
        made = tuple(opened(entry, name) for name in self.config.images)
        for (name, channels), picture in zip(self.config.images.items(), made, strict=True):
            if picture.shape[0] != channels and not (_is_plain(picture) and channels in (1, 3)):
                found = picture.shape[0]
                raise ValueError(f"{picture.path} has {found} channels, and the images {name!r} have {channels}")
        return made

    def scaled(self, name: str, array: Array, absent: Array, values: Values | None, first: Any = ()) -> Array:
        """(K, *S) uint8 of 8 bits, else float32 in [-1, 1], of stored values (K, *S).

        ``absent`` (*S) says where there is none, and ``first`` is the place of the first pixel.

        Raises:
            ValueError: they have no range, or NaN or infinity.
        """
        if values is not None:
            check_channels(values, len(array), name)
            return scaled_present(values, array, absent, first)
        if array.dtype == np.uint8:
            channels = self.config.images[name]
            array = array if len(array) == channels else images.recoloured(array, channels)
            return np.where(absent, np.uint8(0), array) if absent.any() else array
        present = np.where(absent, array.dtype.type(0), array) if absent.any() else array
        check_finite(present, first)
        if array.dtype.kind != "f" or abs(present).max() > images.RANGE_LIMIT:
            raise ValueError(
                f"{name!r} has values from {images.found_range(present)} in {array.dtype}: give their range, "
                f"{name}=PLACE@LOW:HIGH, or floats in [-1, 1]"
            )
        return present.astype(np.float32)

    def whole(self, entry: Entry, fitted: Callable[[Array], Array]) -> dict[str, torch.Tensor]:
        """All that an entry is told, by name; its images are whole, at the size that a function gives them.

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        if not self:
            return {}
        made = self.others(entry)
        for name, picture in zip(self.config.images, self.pictures(entry), strict=True):
            try:
                array = picture[()]
                absent = without_data(array, picture.nodata)
                values = self.values[name].of(array[:, ~absent]) if name in self.values else None
                made[name] = torch.from_numpy(np.ascontiguousarray(fitted(self.scaled(name, array, absent, values))))
            except ValueError as error:
                raise ValueError(f"{picture.path}: {error}") from error
        return made

    def check(self, entry: Entry) -> None:
        """Raise ValueError where something is missing or does not fit, by the headers of files."""
        self.pictures(entry)
        self._classes(entry)
        self._tokens(entry)

    def others(self, entry: Entry) -> dict[str, torch.Tensor]:
        """Classes () int64 and tokens (L, D) float32 of an entry, by name.

        Raises:
            ValueError: one cannot be read; or a label is no class, or tokens have another width.
        """
        made = self._classes(entry)
        for name, found in self._tokens(entry).items():
            rows = np.array(found[()][0], dtype=np.float32)
            if not np.isfinite(rows).all():
                raise ValueError(f"{found.path}: tokens have NaN or infinity")
            made[name] = trimmed(torch.from_numpy(rows))
        return made

    def _tokens(self, entry: Entry) -> dict[str, LazyPicture]:
        made = {name: tokens(entry, name) for name in self.config.tokens}
        for name, found in made.items():
            if (width := self.config.tokens[name]) != found.shape[2]:
                raise ValueError(f"{found.path}: tokens are {found.shape[2]} wide, and {name!r} are {width}")
        return made

    def _classes(self, entry: Entry) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        for name, classes in self.config.classes.items():
            try:
                label = self.same.get(name) or as_label(entry.told(name))
            except ValueError as error:
                raise ValueError(error if str(entry) in str(error) else f"{name} of {entry}: {error}") from error
            names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
            if label not in names:
                raise ValueError(f"{entry}: {label!r} is no class of {name!r}, which are {', '.join(names)}")
            made[name] = torch.tensor(names.index(label))
        return made


NOTHING = Told()


def opened(entry: Entry, name: str) -> LazyPicture:
    """A further image of an entry, or its tokens as an image (1, L, D).

    Raises:
        ValueError: it is neither a picture nor an array.
    """
    raw = entry.told(name)
    if isinstance(raw, Path):
        return formats.open(raw)
    place = Path(f"{name} of {entry}")
    if isinstance(raw, list):
        try:
            return LoadedPicture(np.array(raw, np.float32)[None], place)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: it must be lists of as many numbers each, {error}") from error
    if not isinstance(raw, bytes):
        raise ValueError(f"{place} is neither a picture nor an array, but {raw!r}")
    if raw.startswith(numpy_files.MAGIC):
        return numpy_files.decode(raw, place)
    return LoadedPicture(images.as_pixels(images.decode(raw, str(place), FORMATS)), place, Geometry(format="pillow"))


def tokens(entry: Entry, name: str) -> LazyPicture:
    """An entry's tokens as an image (1, L, D). Raises ValueError for others."""
    found = opened(entry, name)
    one, *shape = found.shape
    if one != 1 or len(shape) != 2 or 0 in shape or found.dtype.kind != "f":
        shown = (one, *shape) if one != 1 else tuple(shape)
        raise ValueError(f"{found.path}: tokens must be (L, D) of floats, got {shown} of {found.dtype}")
    return found


def trimmed(rows: torch.Tensor) -> torch.Tensor:
    """Tokens (L, D) without the rows of zeros at the end, which are no tokens; at least one row."""
    used = rows.any(dim=1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 1]


def _is_plain(picture: LazyPicture) -> bool:
    """Whether it is a photograph, whose grey and colour become one another."""
    return picture.geometry.format == "pillow" and picture.dtype == np.uint8 and picture.shape[0] in (1, 3)


def _first(pairs: Pairs, read: Callable[[Entry], Read]) -> Read:
    """What the first entry gives that can be read. Raises ValueError where none of the first can."""
    failed: ValueError | None = None
    for entry in pairs[:LOOKED_AT]:
        try:
            return read(entry)
        except ValueError as error:
            failed = failed or error
    raise failed or ValueError("there are no examples")


def _hash(raw: Any) -> str:
    """SHA-256 of a condition as it lies there."""
    if isinstance(raw, Path):
        return " ".join(map(file_sha256, formats.files_of(raw)))
    return hashlib.sha256(raw if isinstance(raw, bytes) else json.dumps(raw).encode()).hexdigest()


def check_names(places: ConditionsPlaces, known: ConditionsConfig) -> None:
    """Raise ValueError where other conditions are given than a network is told."""
    for what in ("images", "classes", "tokens"):
        for name in getattr(places, what) or {}:
            if name not in getattr(known, what):
                raise ValueError(f"{what} {name!r} are given, and this network is told {known.wanted}")
    missing = [name for name in known.kinds if name not in places.places and name not in known.drop]
    if missing:
        kind = next(what for what in ("images", "classes", "tokens") if missing[0] in getattr(known, what))
        raise ValueError(f"this network is told {known.wanted}: give {kind}, {missing[0]}=PLACE")
