"""Any map-style data set of ``torch.utils.data`` as pairs: one's own, or of another library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from bbdm.data.pairs import Pairs
from bbdm.data.rows import Row
from bbdm.data.spec import Condition, Spec
from bbdm.pictures import images

ITEM = ("source", "target", "conditions", "mask", "name")
PICTURES = ("source", "target", "mask")
EXPECTED = f"(source, target), or a mapping with source and target, and maybe {', '.join(ITEM[2:])}"
LOOKED_AT = 8  # items that a digest is of


class MapStyle(Protocol):
    """What ``torch.utils.data`` calls a map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class _Items(Sequence[Row]):
    """The items of a data set as rows of arrays and numbers of classes."""

    def __init__(self, dataset: MapStyle, item: Callable[[Any], Any] | None) -> None:
        self.dataset, self._item = dataset, item

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        item, name = self.dataset[range(len(self.dataset))[index]], f"item {index} of the data set"
        try:
            item = item if self._item is None else self._item(item)
            if isinstance(item, tuple | list) and len(item) == 2:
                item = dict(zip(ITEM, item, strict=False))
            if not isinstance(item, Mapping) or not {"source", "target"} <= item.keys():
                got = f"a mapping of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
                raise ValueError(f"it must be {EXPECTED}; got {got}")
            row: dict[str, Any] = {"name": str(item.get("name") or name)}
            row |= {side: _array(side, item[side], (3, 4)) for side in PICTURES if item.get(side) is not None}
            for column, value in (item.get("conditions") or {}).items():
                if np.ndim(value) or isinstance(value, Image.Image):
                    row[column] = _array(column, value, (2, 3, 4))
                elif int(value) != value or value < 0 or isinstance(value, float):
                    raise ValueError(
                        f"{column} must be the number of a class, an image or tokens (L, D), got {value!r}"
                    )
                else:
                    row[column] = int(value)
            return row
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be trained on: {error}") from error

    @property
    def digest(self) -> str:
        """The data set's ``digest()``, else SHA-256 of its length and of some items."""
        own = getattr(self.dataset, "digest", None)
        if callable(own):
            return str(own())
        digest = hashlib.sha256(str(len(self)).encode())
        for index in sorted({round(i * (len(self) - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}):
            for name, value in sorted(self[index].items()):
                content = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
                digest.update(name.encode() + content)
        return digest.hexdigest()


def _array(name: str, value: Any, axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A picture (C, *S) of Pillow, an array or a tensor, or tokens (L, D), as an array."""
    if isinstance(value, Image.Image):
        value = images.pixels(value)
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim not in axes or 0 in array.shape:
        raise ValueError(f"{name} must be (C, H, W), got shape {array.shape}; of volumes, (C, D, H, W)")
    return array.astype(np.float32) if array.dtype == np.float16 else array


class MappedDataset(Pairs):
    """The items of a map-style data set as examples.

    Args:
        dataset: has ``__len__`` and ``__getitem__``. An item is (source, target), or a mapping with
            ``source``, ``target``, and maybe ``conditions``, ``mask`` (1, H, W) and ``name``. Conditions are
            images (K, H, W) of uint8 or in [-1, 1], numbers of classes, and tokens (L, D), by name.
        item: makes such an item of what the data set has; None where it has such items.
        spec: values, crops and sizes; None for 0 to 255 of uint8, and floats in [-1, 1], as they are.

    Sources and targets are tensors, arrays (C, H, W), of volumes (C, D, H, W), or 8-bit pictures of Pillow. A
    ``digest()`` of the data set names it when a run resumes; without one, its length and some items do.

    Raises:
        ValueError: item 0 is no example; the message says what it is and what is expected.
    """

    def __init__(self, dataset: MapStyle, item: Callable[[Any], Any] | None = None, spec: Spec | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"a data set needs __len__ and __getitem__, and a {type(dataset).__name__} has not both")
        rows = _Items(dataset, item)
        first = rows[0]
        spec = spec or Spec(axes=3 if first["target"].ndim == 4 else 2)
        found: dict[str, Condition] = {}
        for name in (name for name in first if name not in ITEM):
            value, axes = first[name], np.ndim(first[name])
            size = None if axes == 0 else len(value) if axes > 2 else value.shape[1]
            found[name] = Condition("class" if axes == 0 else "tokens" if axes == 2 else "image", size=size)
        super().__init__(rows, replace(spec, conditions=found))
        self.read(0)


def as_pairs(dataset: Pairs | MapStyle) -> Pairs:
    """A data set as it is where it is one of this library, else the items of a map-style one."""
    return dataset if isinstance(dataset, Pairs) else MappedDataset(dataset)
