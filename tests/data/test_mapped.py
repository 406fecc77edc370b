"""Data sets of one's own, and of other libraries."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data.loading import Batches
from bbdm.data.mapped import MappedDataset, as_examples
from bbdm.data.spec import Spec
from bbdm.pictures.values import Percentiles, Values
from tests.data.making import Array, pixels

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
    pairs = as_examples(Own())
    assert as_examples(pairs) is pairs
    assert (len(pairs), pairs.source_channels, pairs.channels, pairs.image_size) == (4, 2, 1, 8)
    bands, difference = Own()[3]
    source, target = pairs[3]
    assert (source.numpy() == bands).all()
    assert torch.equal(target, difference)
    crop = MappedDataset(Own(), None, Spec(crop=3, crops=2))
    assert (len(crop), crop.read(1).source.shape) == (8, (2, 3, 3))


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32", "float64"])
def test_types_of_arrays(kind: str) -> None:
    stored = np.array([0, 1, 1, 0]).reshape(1, 2, 2).astype(kind)
    example = MappedDataset([(stored, torch.from_numpy(stored))]).read(0)
    assert example.source.dtype == example.target.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
    assert example.source.flatten().tolist() == [0, 1, 1, 0]


def test_items_are_mappings_with_more() -> None:
    array, mask = pixels(0), torch.ones(1, 8, 8)
    mask[0, 2, 3] = 0
    told = {"style": 2, "number": np.int64(1), "text": np.ones((3, 5)), "sar": torch.zeros(2, 8, 8)}
    told["rgb"] = Image.fromarray(array)
    item = {"source": Image.fromarray(array), "target": mask, "conditions": told, "mask": mask, "name": "a"}
    example = MappedDataset([item, {**item, "mask": None, "name": None}]).read(0)
    assert (example.source.numpy() == array.transpose(2, 0, 1)).all()
    assert (example.name, sorted(example.conditions)) == ("a", ["number", "rgb", "sar", "style", "text"])
    assert torch.equal(example.mask, mask)
    assert (int(example.conditions["style"]), int(example.conditions["number"])) == (2, 1)
    assert (example.conditions["text"].shape, example.conditions["sar"].shape) == ((3, 5), (2, 8, 8))
    assert torch.equal(example.conditions["rgb"], example.source)


def test_conditions_make_batches() -> None:
    items = [{"source": GOOD, "target": GOOD, "conditions": {"style": i, "text": np.ones((i + 1, 3))}} for i in range(3)]
    (batch,) = Batches(MappedDataset(items), 3, torch.device("cpu"))()
    assert batch.conditions["style"].tolist() == [0, 1, 2]
    assert batch.conditions["text"].sum((1, 2)).tolist() == [3, 6, 9]
    other = [*items[:1], {**items[1], "conditions": {**items[1]["conditions"], "style": 2}}, *items[2:]]
    assert MappedDataset(items).digest() != MappedDataset(other).digest()
    assert MappedDataset(items).digest() == MappedDataset(list(items)).names_digest()


def test_values_make_the_unit_range() -> None:
    stored = np.array([-1000, 0, 500, 9999], np.int16).reshape(1, 2, 2)
    example = MappedDataset([(stored, stored)], None, Spec(source=Percentiles(0, 100), target=HU)).read(0)
    assert example.target.flatten().tolist() == [-1, 0, 0.5, 1]
    assert (example.source.min(), example.source.max()) == (-1, 1)


def test_volumes_have_three_axes() -> None:
    stored = np.arange(-4, 4).reshape(1, 2, 2, 2) / 4
    pairs = MappedDataset([(stored, stored)])
    assert (pairs.spec.axes, pairs.image_size) == (3, (2, 2, 2))
    assert pairs[0][1].flatten().tolist() == (np.arange(-4, 4) / 4).tolist()
    valued = MappedDataset([(1000 * stored, 1000 * stored)], None, Spec(source=HU, target=HU, axes=3))
    assert torch.equal(valued[0][1], pairs[0][1])


def test_an_own_digest_names_the_data_set() -> None:
    class Named(Own):
        def digest(self) -> str:
            return "mine"

    assert MappedDataset(Named()).names_digest() == MappedDataset(Named()).digest() == "mine"


WRONG: dict[str, tuple[Any, str]] = {
    "text": ("text", r"item 0 .*: it must be \(source, target\), or a mapping with source and target.*; got str"),
    "keys": ({"image": GOOD}, "item 0 .*got a mapping of image"),
    "three": ((GOOD, GOOD, GOOD), "item 0 .*got tuple"),
    "axes": ((GOOD[0], GOOD), r"item 0 .*source must be \(C, H, W\), got shape \(4, 4\)"),
    "empty": ((GOOD[:0], GOOD), r"item 0 .*source must be \(C, H, W\), got shape \(0, 4, 4\)"),
    "sizes": ((GOOD, np.zeros((1, 4, 5))), r"item 0 .*: source and target lie on different grids, 4 x 4 and 4 x 5"),
    "range": ((GOOD, GOOD + 3000), r"item 0 .*target has values from 3000 to 3000 in float32: give their range"),
    "integers": ((GOOD.astype(np.uint16), GOOD), "item 0 .*source has values from 0 to 0 in uint16: give their range"),
    "nan": ((GOOD * np.nan, GOOD), r"item 0 .*nan stands in channel 0 at \(0, 0\)"),
    "mask": ({"source": GOOD, "target": GOOD, "mask": GOOD[0]}, r"item 0 .*mask must be .* got shape \(4, 4\)"),
    "mask size": ({"source": GOOD, "target": GOOD, "mask": GOOD[:, 1:]}, r"item 0 .*: mask and target lie on different grids, 3 x 4 and 4 x 4"),
    "class": ({"source": GOOD, "target": GOOD, "conditions": {"s": 0.5}}, "item 0 .*s must be the number of a class"),
    "negative": ({"source": GOOD, "target": GOOD, "conditions": {"s": -1}}, "item 0 .*s must be the number of a class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_an_item_is_said(case: str) -> None:
    item, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        MappedDataset([item])


def test_later_items_must_be_like_the_first() -> None:
    def item(text: Array, side: int = 4) -> Any:
        array = np.zeros((1, side, side), np.float32)
        return {"source": array, "target": array, "conditions": {"text": text}}

    pairs = MappedDataset([item(np.ones((1, 3))), item(np.ones((1, 5))), item(np.ones((1, 3)), 5)])
    with pytest.raises(ValueError, match=r"text of item 1 .*\(L, 3\) of floats, got \(1, 5\)"):
        pairs.read(1)
    with pytest.raises(ValueError, match=r"source of item 2 .*\(1, 5, 5\), and that of item 0 .*\(1, 4, 4\)"):
        pairs.batch([(0, 0), (2, 0)])
    with pytest.raises(ValueError, match="needs __len__ and __getitem__, and a generator has not both"):
        MappedDataset(i for i in ())  # pyright: ignore[reportArgumentType]


def test_of_hugging_face() -> None:
    import datasets

    picture = Image.fromarray(pixels(0))
    table = datasets.Dataset.from_dict({"a": [picture], "b": [picture]})
    table = table.cast_column("a", datasets.Image()).cast_column("b", datasets.Image())
    pairs = MappedDataset(table, lambda row: (row["a"], row["b"]))
    assert (pairs.read(0).source.numpy() == pixels(0).transpose(2, 0, 1)).all()


@pytest.mark.nightly
@pytest.mark.parametrize("library", ["monai", "torchio"])
def test_of_other_libraries(library: str) -> None:
    volume = torch.rand(1, 4, 4, 2)
    if library == "monai":
        import monai.data as monai

        items = monai.CacheDataset([{"mr": volume, "ct": volume}], transform=lambda item: item, progress=False)  # pyright: ignore
        pairs = MappedDataset(items, lambda item: (item["mr"], item["ct"]))
    else:
        import torchio

        subject = torchio.Subject(mr=torchio.ScalarImage(tensor=volume), ct=torchio.ScalarImage(tensor=volume))
        pairs = MappedDataset(torchio.SubjectsDataset([subject]), lambda s: (s["mr"].data, s["ct"].data))
    assert torch.equal(pairs[0][0], volume)
