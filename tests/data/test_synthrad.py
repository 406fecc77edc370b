"""The folders of SynthRAD: which patients, values and masks they give, and what is said where one lacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm.data.config import PicturesConfig
from bbdm.data.pairs import load_dataset
from bbdm.data.valued import ValuedDataset
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import Percentiles, Values

PLACE = Geometry(((3.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
HU = Values(-1024, 3071, "HU", "int16")


def patient(folder: Path, source: str = "mr.mha", size: tuple[int, ...] = (4, 6, 5), without: str = "") -> None:
    suffix = source.partition(".")[2]
    random = np.random.default_rng(len(folder.name))
    mask = np.zeros((1, *size), np.uint8)
    mask[:, 1:3, 2:4, 1:4] = 1
    parts: dict[str, Any] = {
        source: random.normal(300, 80, (1, *size)).astype(np.float32),
        f"ct.{suffix}": random.integers(-1024, 3000, (1, *size)).astype(np.int16),
        f"mask.{suffix}": mask,
    }
    folder.mkdir(parents=True)
    for name, array in parts.items():
        if not without or not name.startswith(without):
            Picture(array, PLACE).save(folder / name)


def load(root: Path, split: str = "train", direction: str = "AtoB", **settings: Any) -> ValuedDataset:
    pairs = load_dataset("synthrad", str(root), split, direction=direction, pictures=PicturesConfig(**settings))
    assert isinstance(pairs, ValuedDataset)
    return pairs


def names(pairs: Any) -> list[str]:
    return [pair.name for pair in pairs.pairs.volumes]


def test_patients_below_anatomies_are_pairs_with_masks(tmp_path: Path) -> None:
    for number in range(20):
        patient(tmp_path / ("AB" if number % 2 else "HN") / f"1ABA{number:03d}")
    (tmp_path / "overviews").mkdir()
    (tmp_path / "overviews" / "1_AB_train.xlsx").touch()
    train, validation = load(tmp_path), load(tmp_path, "val")
    assert len(names(validation)) == 2
    assert sorted(names(train) + names(validation)) == sorted(
        f"{'AB' if number % 2 else 'HN'}/1ABA{number:03d}" for number in range(20)
    )
    assert (train.kind.source, train.kind.target, train.kind.slices) == (Percentiles(0.5, 99.5), HU, "axial")
    assert train.masked
    assert len(train) == 2 * 18  # slices in the mask
    example = train.read(0)
    assert example.mask is not None
    assert 0 < int(example.mask.sum()) < example.mask.numel()
    (tmp_path / "AB").rename(tmp_path / "other")
    assert [name.split("/")[1] for name in names(load(tmp_path, "val"))] == [
        name.split("/")[1] for name in names(validation)
    ]


def test_cbct_of_2023_in_nifti(tmp_path: Path) -> None:
    for number in range(3):
        patient(tmp_path / "brain" / f"2BA{number:03d}", "cbct.nii.gz")
    pairs = load(tmp_path, slices="sagittal", target_values=Values(-1000, 1000, "HU", "int16"))
    assert (pairs.kind.source, str(pairs.kind.target), pairs.kind.slices) == (HU, "-1000:1000:HU", "sagittal")
    assert len(names(load(tmp_path, "val"))) == 1


def test_folders_of_splits_stay(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        patient(tmp_path / split / name)
    assert names(load(tmp_path)) == ["a"]
    assert names(load(tmp_path, "val")) == ["b"]


def test_patients_without_ct_are_sources(tmp_path: Path) -> None:
    for name in "ab":
        patient(tmp_path / name, without="ct")
    for split in ("train", "val"):
        pairs = load(tmp_path, split)
        assert names(pairs) == ["a", "b"]
        assert not pairs.pairs.has_targets


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([("a", {"without": "mask"})], r"patient .*a has no mask: a folder for each patient"),
        ([("a", {}), ("b", {"without": "ct"})], r"patient .*b has no ct: .* is wanted, or no ct of any patient$"),
        ([("a", {}), ("b", {"source": "cbct.mha"})], "both mr and cbct: give the folder of one task"),
        ([("a", {})], "a is the only patient"),
        ([], "no patients: a folder for each patient"),
    ],
)
def test_what_is_wrong_is_named(made: Any, message: str, tmp_path: Path) -> None:
    for name, settings in made:
        patient(tmp_path / name, **settings)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_ct_to_mr_needs_values_of_mr(tmp_path: Path) -> None:
    for name in "ab":
        patient(tmp_path / name)
    with pytest.raises(ValueError, match="target values must be LOW:HIGH"):
        load(tmp_path, direction="BtoA")
    values = Values(0, 800, dtype="float32")
    assert load(tmp_path, direction="BtoA", target_values=values).kind.source == HU
