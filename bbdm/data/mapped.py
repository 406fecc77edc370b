"""Items of map-style data sets, in memory or of other libraries, as examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bbdm.data.cells import ArrayCell
from bbdm.data.kinds import Condition
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.data.tables import FIELDS, ItemRows, MapStyle


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

    def __init__(
        self, dataset: MapStyle, item: Callable[[Any], Any] | None = None, spec: Spec | None = None
    ) -> None:
        rows = ItemRows(dataset, item)
        row = rows[0]
        conditions: dict[str, Condition] = {}
        for name, value in row.items():
            if name not in FIELDS:
                conditions[name] = Condition(_kind_of_item(value))
        if spec is None:
            spec = Spec(axes=3 if row["target"].array.ndim == 4 else 2)
        super().__init__(rows, replace(spec, conditions=conditions))
        self.read(0)


def _kind_of_item(value: ArrayCell | int) -> str:
    """The kind of a condition of an item: the number of a class, tokens (L, D) or an image."""
    if isinstance(value, int):
        return "class"
    return "tokens" if value.array.ndim == 2 else "image"


def as_pairs(dataset: Pairs | MapStyle) -> Pairs:
    """A data set as it is where it is one of this library, else the items of a map-style one."""
    return dataset if isinstance(dataset, Pairs) else MappedDataset(dataset)
