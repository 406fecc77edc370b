"""Any map-style data set of ``torch.utils.data`` as examples: one's own, or of another library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from bbdm.data.collection import Example
from bbdm.data.examples import Examples
from bbdm.pictures import images
from bbdm.pictures.kind import PictureKind
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, check_channels, check_finite


class MapStyle(Protocol):
    """What ``torch.utils.data`` calls a map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


KEYS = ("source", "target", "conditions", "mask", "name")
WANTED = f"(source, target), or a mapping with source and target, and maybe {', '.join(KEYS[2:])}"
LOOKED_AT = 8  # items that a digest is of


class MappedDataset(Examples):
    """The items of a map-style data set as examples.

    Args:
        dataset: has ``__len__`` and ``__getitem__``. An item is (source, target), or a mapping with
            ``source``, ``target``, and maybe ``conditions``, ``mask`` (1, H, W) and ``name``. Conditions are
            images (K, H, W) in [-1, 1], numbers of classes, and tokens (L, D) of any length, by name.
        item: makes such an item of what the data set has; None where it has such items.
        source_values: the values of sources. None for 0 to 255 of uint8, and for floats that are in [-1, 1].
        target_values: the values of targets, with the same default.

    Sources and targets are tensors, arrays (C, H, W), of volumes (C, D, H, W), or 8-bit pictures of Pillow,
    all of one size. A
    ``digest()`` of the data set names it when a run resumes; without one, its length and some items do.

    Raises:
        ValueError: item 0 is no example; the message says what it is and what is wanted.
    """

    def __init__(
        self,
        dataset: MapStyle,
        item: Callable[[Any], Any] | None = None,
        source_values: AnyValues | None = None,
        target_values: Values | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"a data set needs __len__ and __getitem__, and a {type(dataset).__name__} lacks them")
        self.dataset = dataset
        self.kind = PictureKind(source_values or EIGHT_BIT, target_values or EIGHT_BIT)
        self.left_out = set()
        self._item = item
        self._given = {"source": source_values, "target": target_values}
        self._shapes: dict[str, tuple[int, ...]] = {}
        first = self.read(0)
        sides = {"source": first.source, "target": first.target, **first.conditions}
        self._shapes = {name: _shape(value) for name, value in sides.items()}
        self.masked = first.mask is not None
        self.source_channels, self.channels = len(first.source), len(first.target)
        self.image_size = images.as_size(tuple(first.target.shape[1:]), first.target.ndim - 1)
        self.axes = first.target.ndim - 1

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, seed: int = 0) -> Example:
        """Item ``index`` as an example: uint8 as it is, all else float32 in [-1, 1]."""
        given = self.dataset[range(len(self))[index]]
        try:
            return self._example(given if self._item is None else self._item(given))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"item {index} of the data set cannot be trained on: {error}") from error

    def _example(self, item: Any) -> Example:
        if isinstance(item, tuple | list) and len(item) == 2:
            item = dict(zip(KEYS, item, strict=False))
        if not isinstance(item, Mapping) or not {"source", "target"} <= item.keys():
            got = f"a mapping of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
            raise ValueError(f"it must be {WANTED}; got {got}")
        source, target = (self._side(name, item[name]) for name in ("source", "target"))
        conditions = {name: _condition(name, value) for name, value in (item.get("conditions") or {}).items()}
        mask = None if item.get("mask") is None else torch.as_tensor(item["mask"]).float()
        made = {"source": source, "target": target, **conditions}
        for name, shape in self._shapes.items():
            if name not in made or _shape(made[name]) != shape:
                found = "missing" if name not in made else f"of shape {tuple(made[name].shape)}"
                raise ValueError(f"{name} is {found}, and that of item 0 is of shape {shape}")
        if source.shape[1:] != target.shape[1:]:
            raise ValueError(f"source {tuple(source.shape)} and target {tuple(target.shape)} have different sizes")
        if self._shapes and (mask is not None) != self.masked:
            raise ValueError(f"mask is {'missing' if self.masked else 'there'}, other than in item 0")
        if mask is not None and tuple(mask.shape) != (1, *target.shape[1:]):
            raise ValueError(f"mask must be {(1, *target.shape[1:])}, got {tuple(mask.shape)}")
        return Example(source, target, conditions, mask, str(item.get("name", "")))

    def _side(self, name: str, value: Any) -> torch.Tensor:
        """A source or target (C, H, W) as uint8, or as float32 in [-1, 1]."""
        if isinstance(value, Image.Image):
            value = images.as_pixels(value)
        array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.ndim not in (3, 4) or 0 in array.shape:
            raise ValueError(f"{name} must be (C, H, W), got shape {array.shape}; of volumes, (C, D, H, W)")
        check_finite(array)
        values = self._given[name]
        if values is not None:
            check_channels(values, len(array), name)
            return torch.from_numpy(values.of(array).scaled(array, axes=array.ndim - 1))
        if array.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(array))
        if array.dtype.kind != "f" or abs(array).max() > images.RANGE_LIMIT:
            raise ValueError(
                f"{name} has values from {images.found_range(array)} in {array.dtype}: give their range, "
                f"MappedDataset(dataset, {name}_values=Values(LOW, HIGH)), or floats in [-1, 1]"
            )
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    def names_digest(self, told: bool = True) -> str:
        """The data set's ``digest()``, else SHA-256 of its length and of the bytes of some items.

        ``told`` includes their conditions.
        """
        own = getattr(self.dataset, "digest", None)
        if callable(own):
            return str(own())
        digest = hashlib.sha256(str(len(self)).encode())
        for index in sorted({round(i * (len(self) - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}):
            example = self.read(index)
            others = [example.conditions[name] for name in sorted(example.conditions) if told]
            for tensor in (example.source, example.target, *(each for each in others if each.ndim in (0, 2))):
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def digest(self) -> str:
        """See :meth:`names_digest`."""
        return self.names_digest()


def _condition(name: str, value: Any) -> torch.Tensor:
    """A class () as int64, tokens (L, D) as float32; an image as it is."""
    made = torch.as_tensor(value)
    if made.ndim == 0 and (made.is_floating_point() or made < 0):
        raise ValueError(f"{name} must be the number of a class, an image or tokens (L, D), got {value!r}")
    return made.long() if made.ndim == 0 else made.float() if made.ndim == 2 else made


def _shape(value: torch.Tensor) -> tuple[Any, ...]:
    """The shape of items, of which tokens are of any length."""
    return ("L", value.shape[1]) if value.ndim == 2 else tuple(value.shape)


def as_examples(dataset: Examples | MapStyle) -> Examples:
    """A data set as it is where it is one of this library, else the items of a map-style one."""
    return dataset if isinstance(dataset, Examples) else MappedDataset(dataset)
