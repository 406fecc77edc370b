"""Tables that the datasets library made: the same pictures, with columns and splits by name."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from bbdm.data.examples import PairExamples
from bbdm.data.pairs import PairedDataset, load_dataset
from bbdm.data.shards import Shards
from tests.conftest import SIZE
from tests.data.conftest import COUNT


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def table(pairs: PairedDataset) -> Any:
    """Columns of bytes, with one more of numbers."""
    columns = {
        "photo": [{"bytes": pair.files[1].read_bytes(), "path": None} for pair in pairs.pairs],
        "drawing": [{"bytes": None, "path": str(pair.source)} for pair in pairs.pairs],
        "number": list(range(COUNT)),
    }
    kinds = {"photo": datasets.Image(), "drawing": datasets.Image(), "number": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def load(folder: Path, split: str = "train", columns: str | None = "drawing,photo") -> PairExamples:
    return load_dataset("hub", str(folder), split, SIZE, columns=columns)


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet"])
def test_pictures_are_those_of_the_files(kind: str, table: Any, pairs: PairedDataset, tmp_path: Path) -> None:
    folder, split = tmp_path / "table", "train"
    if kind == "saved":
        table.save_to_disk(folder)
    elif kind == "splits":
        datasets.DatasetDict({"train": table.select([0]), "validation": table}).save_to_disk(folder)
        split = "val"
    else:
        folder.mkdir()
        table.to_parquet(folder / "train-00000-of-00001.parquet")
        with pytest.raises(FileNotFoundError, match="has no split 'val', but train"):
            load(folder, "val")
    found = load(folder, split)
    assert len(found) == COUNT
    for i in range(COUNT):
        assert all(torch.equal(a, b) for a, b in zip(found.pixels(i), pairs.pixels(i), strict=True))
    assert found.pairs == load(folder, split).pairs
    assert found.digest() != load(folder, split, "photo,drawing").digest()
    assert found.order(3)(1, 4) == pairs.order(3)(1, 4)


def test_streamed_as_shards(pairs: PairedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are two shards, of rows whose pictures lie in the files."""
    monkeypatch.setenv("BBDM_SHARDS", str(tmp_path / "shards"))
    folder = tmp_path / "files"
    folder.mkdir()
    for number, rows in enumerate(([0, 1, 2], [3, 4])):
        chosen = [pairs.pairs[row] for row in rows]
        columns = {"drawing": [pair.source for pair in chosen], "photo": [pair.files[1] for pair in chosen]}
        cells = {name: [{"bytes": path.read_bytes()} for path in paths] for name, paths in columns.items()}
        kinds = datasets.Features({"drawing": datasets.Image(), "photo": datasets.Image()})
        part = datasets.Dataset.from_dict(cells, features=kinds)
        part.to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
    streamed = load_dataset("shards", f"hub:{folder}", "train", SIZE, columns="drawing,photo")
    assert isinstance(streamed.pairs, Shards)
    assert [shard.count for shard in streamed.pairs.shards] == [3, 2]
    for i in range(COUNT):
        assert all(torch.equal(a, b) for a, b in zip(streamed.pixels(i), pairs.pixels(i), strict=True))
    with pytest.raises(FileNotFoundError, match="has no split 'val', but train"):
        load_dataset("shards", f"hub:{folder}", "val", SIZE)
    with pytest.raises(ValueError, match="it has no source and no target, but drawing, photo"):
        load_dataset("shards", f"hub:{folder}", "train", SIZE).pixels(0)


def test_two_columns_of_pictures_need_no_names(table: Any, pairs: PairedDataset, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "table")
    source, _ = load(tmp_path / "table", columns=None).pixels(1)
    assert torch.equal(source, pairs.pixels(1)[1])
    with pytest.raises(ValueError, match=r"columns of pictures photo, number is needed; .* are \['photo', 'drawing'\]"):
        load(tmp_path / "table", columns="photo,number")
    table.select_columns(["photo", "number"]).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"two columns of pictures is needed; .* are \['photo'\]"):
        load(tmp_path / "one", columns=None)
    assert load(tmp_path / "one", columns="photo").images(0)[1] is None


def test_broken_rows_are_named_and_left_out(table: Any, tmp_path: Path) -> None:
    cells = [None, {"bytes": b"no picture", "path": None}, *table.with_format("arrow")["photo"].to_pylist()[2:]]
    whole = table.remove_columns("photo").add_column("photo", cells, feature=datasets.Image())
    whole.save_to_disk(tmp_path / "broken")
    broken = load(tmp_path / "broken")
    for index, message in {0: "row 0 has no photo", 1: "cannot read the picture row 1: it is not PNG"}.items():
        with pytest.raises(ValueError, match=message):
            broken.pixels(index)
    skipping = broken.skipping()
    assert all(torch.equal(a, b) for a, b in zip(skipping.pixels(0), broken.pixels(2), strict=True))
    assert len(skipping.left_out) == 2


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load(tmp_path / "gone")
