"""Data sets of one's own, and of other libraries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, TrainConfig, Trainer, load_checkpoint
from bbdm.data.mapped import MappedDataset
from bbdm.pictures.values import Percentiles, Values
from tests.conftest import newest, tiny_unet

HU = Values(-1000, 1000, "HU", "int16")


class Own:
    """A data set that knows nothing of this library: two bands, and their difference."""

    def __init__(self, count: int = 4, size: int = 8) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        bands = np.random.default_rng(index).uniform(-0.5, 0.5, (2, self.size, self.size)).astype(np.float32)
        return bands, torch.from_numpy(bands[:1] - bands[1:])


def items(*given: Any) -> list[Any]:
    return list(given)


def test_items_are_tuples_or_mappings_of_arrays_tensors_and_pictures() -> None:
    pairs = MappedDataset(Own())
    assert (len(pairs), pairs.source_channels, pairs.channels, pairs.image_size) == (4, 2, 1, 8)
    bands, difference = Own()[3]
    source, target = pairs[3]
    assert torch.equal(source, torch.from_numpy(bands))
    assert torch.equal(target, difference)
    picture = Image.new("RGB", (8, 8), (255, 0, 51))
    mask = torch.ones(1, 8, 8)
    mapping = {"source": picture, "target": source[:1], "conditions": {"sar": mask}, "mask": mask, "name": "a"}
    example = MappedDataset(items(mapping)).read(0)
    assert example.source.dtype == torch.uint8
    assert example.source[:, 0, 0].tolist() == [255, 0, 51]
    assert (example.name, list(example.conditions)) == ("a", ["sar"])
    assert torch.equal(example.mask, mask)


def test_values_make_the_unit_range() -> None:
    stored = np.array([-1000, 0, 500, 9999], np.int16).reshape(1, 2, 2)
    example = MappedDataset(items((stored, stored)), None, Percentiles(0, 100), HU).read(0)
    assert example.target.flatten().tolist() == [-1, 0, 0.5, 1]
    assert (example.source.min(), example.source.max()) == (-1, 1)


def test_volumes_have_three_axes() -> None:
    stored = np.arange(-4, 4).reshape(1, 2, 2, 2) * 250
    pairs = MappedDataset(items((stored, stored)), None, HU, HU)
    assert (pairs.axes, pairs.image_size) == (3, (2, 2, 2))
    assert torch.equal(pairs[0][1], torch.arange(-4, 4).reshape(1, 2, 2, 2) / 4)
    mask = {"source": stored, "target": stored, "mask": np.ones((1, 2, 2))}
    with pytest.raises(ValueError, match=r"mask must be \(1, 2, 2, 2\), got \(1, 2, 2\)"):
        MappedDataset(items(mask), None, HU, HU)


def test_an_item_of_another_library_needs_one_line() -> None:
    pairs = MappedDataset(items({"mr": np.zeros((1, 4, 4)), "ct": np.ones((1, 4, 4))}), lambda i: (i["mr"], i["ct"]))
    assert pairs[0][1].unique().tolist() == [1]


GOOD = np.zeros((1, 4, 4), np.float32)
WRONG: dict[str, tuple[Any, str]] = {
    "text": ("text", r"item 0 .*: it must be \(source, target\), or a mapping with source and target.*; got str"),
    "keys": ({"image": GOOD}, "got a mapping of image"),
    "three": ((GOOD, GOOD, GOOD), "got tuple"),
    "axes": ((GOOD[0], GOOD), r"source must be \(C, H, W\), got shape \(4, 4\)"),
    "sizes": ((GOOD, np.zeros((1, 4, 5))), r"source \(1, 4, 4\) and target \(1, 4, 5\) have different sizes"),
    "range": (
        (GOOD, GOOD + 3000),
        r"target has values from 3000 to 3000 in float32: .*target_values=Values\(LOW, HIGH",
    ),
    "integers": ((GOOD.astype(np.uint16), GOOD), "source has values from 0 to 0 in uint16: give their range"),
    "nan": ((GOOD * np.nan, GOOD), r"nan stands in channel 0 at \(0, 0\)"),
    "mask": ({"source": GOOD, "target": GOOD, "mask": GOOD[0]}, r"mask must be \(1, 4, 4\), got \(4, 4\)"),
}


@pytest.mark.parametrize(("item", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_an_item_is_said(item: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MappedDataset(items(item))


def test_later_items_are_compared_with_the_first() -> None:
    pairs = MappedDataset(items((GOOD, GOOD), (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)))))
    with pytest.raises(
        ValueError, match=r"item 1 .*: source is of shape \(1, 4, 5\), and that of item 0 .*\(1, 4, 4\)"
    ):
        pairs.read(1)
    with pytest.raises(ValueError, match="needs __len__ and __getitem__, and a generator lacks them"):
        MappedDataset(i for i in ())  # pyright: ignore[reportArgumentType]


def trainer(folder: Path, epochs: int, workers: int = 0, dataset: Any = None) -> Trainer:
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=2)
    config = TrainConfig(epochs=epochs, batch_size=2, workers=workers, preview_every=1)
    return Trainer(unet, ABridge(), config, dataset or Own(), Own(2), folder)


def test_a_run_resumes_exactly_and_is_sampled(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 2, workers=1)
    whole.fit()
    first = trainer(tmp_path / "parts", 1)
    first.fit()
    second = trainer(tmp_path / "parts", 2)
    second.resume(newest(first))
    second.fit()
    for name, weight in whole.unet.state_dict().items():
        assert torch.equal(weight, second.unet.state_dict()[name]), name
    assert (tmp_path / "whole" / "epoch_0001.png").exists()
    sampler = BridgeSampler.from_checkpoint(newest(whole), steps=2)
    assert sampler(torch.from_numpy(Own()[0][0])[None], seed=0).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="pairs of other names"):
        trainer(tmp_path / "parts", 3, dataset=[Own()[i] for i in (3, 2, 1, 0)]).resume(newest(first))


def test_values_are_in_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", 1, dataset=MappedDataset(Own(), None, None, HU))
    run.fit()
    assert load_checkpoint(newest(run)).pictures.target == HU


def test_monai(tmp_path: Path) -> None:
    import monai.data as monai

    data = monai.CacheDataset([{"mr": GOOD, "ct": GOOD}], transform=lambda item: item, progress=False)  # pyright: ignore
    assert torch.equal(MappedDataset(data, lambda item: (item["mr"], item["ct"]))[0][0], torch.from_numpy(GOOD))


def test_hugging_face() -> None:
    import datasets

    picture = Image.new("RGB", (4, 4), (255, 0, 0))
    table = datasets.Dataset.from_dict({"a": [picture], "b": [picture]})
    table = table.cast_column("a", datasets.Image()).cast_column("b", datasets.Image())
    assert MappedDataset(table, lambda row: (row["a"], row["b"]))[0][1][:, 0, 0].tolist() == [1, -1, -1]


def test_torchio() -> None:
    import torchio

    volume = torch.rand(1, 4, 4, 2)
    subject = torchio.Subject(mr=torchio.ScalarImage(tensor=volume), ct=torchio.ScalarImage(tensor=volume))
    pairs = MappedDataset(
        torchio.SubjectsDataset([subject]), lambda s: (s["mr"].data[:, :, :, 0], s["ct"].data[:, :, :, 0])
    )
    assert torch.equal(pairs[0][0], volume[..., 0])
