"""Data sets of one's own, and of other libraries."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data.loading import Batches
from bbdm.data.pairs import MappedDataset, as_pairs
from bbdm.data.spec import Spec
from bbdm.pictures.values import Percentiles, Values
from tests.data.making import pixels

HU = Values(-1000, 1000, "HU", "int16")
GOOD = np.zeros((1, 4, 4), np.float32)


class Own:
    """A data set that knows nothing of this library: two bands, and their difference."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        bands = np.random.default_rng(index).uniform(-0.5, 0.5, (2, 8, 8)).astype(np.float32)
        return bands, torch.from_numpy(bands[:1] - bands[1:])


def test_items_are_tuples_of_arrays_and_tensors() -> None:
    pairs = as_pairs(Own())
    assert as_pairs(pairs) is pairs
    assert (len(pairs), pairs.source_channels, pairs.channels, pairs.image_size) == (4, 2, 1, 8)
    bands, difference = Own()[3]
    assert (pairs[3][0].numpy() == bands).all()
    assert torch.equal(pairs[3][1], difference)
    crop = MappedDataset(Own(), None, Spec(crop=3, crops=2))
    assert (len(crop), crop.read(1).source.shape) == (8, (2, 3, 3))
    for kind in ("uint8", "float16", "float64"):
        stored = np.array([0, 1, 1, 0]).reshape(1, 2, 2).astype(kind)
        example = MappedDataset([stored], lambda array: (array, torch.from_numpy(array))).read(0)
        assert example.source.dtype == example.target.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
        assert example.source.flatten().tolist() == example.target.flatten().tolist() == [0, 1, 1, 0]


def test_items_are_mappings_with_more() -> None:
    array, mask = pixels(0), torch.ones(1, 8, 8)
    mask[0, 2, 3] = 0
    told = {"style": 2, "number": np.int64(1), "text": np.ones((3, 5)), "sar": mask, "rgb": Image.fromarray(array)}
    item = {"source": Image.fromarray(array), "target": mask, "conditions": told, "mask": mask, "name": "a"}
    example = MappedDataset([item, {**item, "mask": None, "name": None}]).read(0)
    assert (example.source.numpy() == array.transpose(2, 0, 1)).all()
    assert (example.name, sorted(example.conditions)) == ("a", ["number", "rgb", "sar", "style", "text"])
    assert (int(example.conditions["style"]), int(example.conditions["number"])) == (2, 1)
    assert torch.equal(example.mask, mask)
    assert torch.equal(example.conditions["sar"], mask)
    assert torch.equal(example.conditions["rgb"], example.source)


def test_conditions_make_batches_and_digests() -> None:
    def items(classes: Any) -> list[Any]:
        return [{**BOTH, "conditions": {"style": n, "text": np.ones((i + 1, 3))}} for i, n in enumerate(classes)]

    (batch,) = Batches(MappedDataset(items(range(3))), 3, torch.device("cpu"))()
    assert batch.conditions["style"].tolist() == [0, 1, 2]
    assert batch.conditions["text"].sum((1, 2)).tolist() == [3, 6, 9]
    one, same, other = (MappedDataset(items(classes)).digest() for classes in ([0, 1, 2], [0, 1, 2], [0, 1, 0]))
    assert one == same != other
    one, same, other = (type("Named", (Own,), {"digest": lambda _, name=name: name})() for name in ("a", "a", "b"))
    assert MappedDataset(one).digest() == MappedDataset(same).digest() != MappedDataset(other).digest()


def test_values_make_the_unit_range_and_volumes_have_three_axes() -> None:
    stored = np.array([-1000, 0, 500, 9999], np.int16).reshape(1, 2, 2)
    example = MappedDataset([(stored, stored)], None, Spec(source=Percentiles(0, 100), target=HU)).read(0)
    assert example.target.flatten().tolist() == [-1, 0, 0.5, 1]
    assert (example.source.min(), example.source.max()) == (-1, 1)
    stored = np.arange(-4, 4).reshape(1, 2, 2, 2) / 4
    pairs = MappedDataset([(stored, stored)])
    assert (pairs.spec.axes, pairs.image_size) == (3, (2, 2, 2))
    valued = MappedDataset([(1000 * stored, 1000 * stored)], None, Spec(source=HU, target=HU, axes=3))
    assert pairs[0][1].flatten().tolist() == valued[0][1].flatten().tolist() == (np.arange(-4, 4) / 4).tolist()


BOTH: dict[str, Any] = {"source": GOOD, "target": GOOD}
WRONG: list[tuple[Any, str]] = [
    ("text", r"it must be \(source, target\), or a mapping with source and target.*; got str"),
    ({"image": GOOD}, "got a mapping of image"),
    ((GOOD, GOOD, GOOD), "got tuple"),
    ((GOOD[:0], GOOD), r"source must be \(C, H, W\), got shape \(0, 4, 4\)"),
    ((GOOD, np.zeros((1, 4, 5))), "source and target lie on different grids, 4 x 4 and 4 x 5"),
    ((GOOD, GOOD + 3000), "target has values from 3000 to 3000 in float32: give their range"),
    ((GOOD * np.nan, GOOD), "nan stands in channel 0"),
    ({**BOTH, "mask": GOOD[0]}, r"mask must be .* got shape \(4, 4\)"),
    ({**BOTH, "mask": GOOD[:, 1:]}, "mask and target lie on different grids, 3 x 4 and 4 x 4"),
    ({**BOTH, "conditions": {"s": 0.5}}, "s must be the number of a class"),
    ({**BOTH, "conditions": {"s": -1}}, "s must be the number of a class"),
]


@pytest.mark.parametrize(("item", "message"), WRONG)
def test_what_is_wrong_with_an_item_is_said(item: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"item 0 of the data set.*{message}"):
        MappedDataset([item])


def test_later_items_must_be_like_the_first() -> None:
    wide = np.zeros((1, 4, 5), np.float32)
    items = [{**BOTH, "conditions": {"text": np.ones((1, width))}} for width in (3, 5, 3)]
    pairs = MappedDataset([*items[:2], {**items[2], "source": wide, "target": wide}])
    with pytest.raises(ValueError, match=r"text of item 1 .*\(L, 3\) of floats, got \(1, 5\)"):
        pairs.read(1)
    with pytest.raises(ValueError, match=r"source of item 2 .*\(1, 4, 5\), and that of item 0 .*\(1, 4, 4\)"):
        next(Batches(pairs, 2, torch.device("cpu")).stored([0, 2]))
    with pytest.raises(ValueError, match="needs __len__ and __getitem__, and a generator has not both"):
        MappedDataset(i for i in ())  # pyright: ignore[reportArgumentType]
