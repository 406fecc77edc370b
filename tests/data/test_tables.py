"""Tables of the datasets library: saved, Parquet, tars of WebDataset; mapped and streamed, the same rows."""

import io
import pickle
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data import tables
from bbdm.data.examples import BadPicturesError
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import read_conditions
from bbdm.networks.conditions import ConditionsConfig
from tests.data.making import Array, load, pixels, save

COUNT = 7
SEASONS = ["winter", "10", "summer", "9", "winter", "10", "9"]
KINDS = ["saved", "splits", "parquet", "parquet file", "tar", "tars"]


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def png(array: Array) -> bytes:
    Image.fromarray(array).save(file := io.BytesIO(), "png")
    return file.getvalue()


def npy(array: Array) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def table_of(rows: Any, **more: Any) -> Any:
    """Columns source, target and season, and more as (values, feature)."""
    cells = {name: [{"bytes": png(pixels(100 * side + row))} for row in rows] for side, name in enumerate(tables.SIDES)}
    kinds: dict[str, Any] = {name: datasets.Image() for name in cells}
    kinds["season"] = datasets.Value("string")
    columns = {**cells, "season": [SEASONS[row] for row in rows], **{name: each[0] for name, each in more.items()}}
    kinds |= {name: each[1] for name, each in more.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def write_tar(path: Path, rows: Mapping[str, Mapping[str, bytes]]) -> Path:
    """KEY.NAME files, member by member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in rows.items():
            for name, content in files.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def sample(row: int) -> dict[str, bytes]:
    files = {"source.png": png(pixels(row)), "target.png": png(pixels(100 + row))}
    return {**files, "season.txt": SEASONS[row % COUNT].encode()}


def tar_of(path: Path, rows: Any) -> Path:
    return write_tar(path, {f"{row:03d}": sample(row) for row in rows})


def make(root: Path, kind: str) -> str:
    if kind == "saved":
        table_of(range(COUNT)).save_to_disk(root / "t")
    elif kind == "splits":
        datasets.DatasetDict({"train": table_of(range(COUNT)), "validation": table_of([3])}).save_to_disk(root / "t")
    elif kind == "tar":
        return str(tar_of(root / "train" / "0.tar", range(COUNT)).parent.parent / "{split}" / "0.tar")
    elif kind == "tars":
        for number, rows in enumerate(([0, 1, 2], [3, 4], [5, 6])):
            tar_of(root / "t" / f"{number}.tar", rows)
        return str(root / "t" / "*.tar")
    else:
        for number, rows in enumerate((range(4), range(4, COUNT))):
            (root / "t").mkdir(parents=True, exist_ok=True)
            table_of(rows).to_parquet(root / "t" / f"train-{number:05d}-of-00002.parquet")
        return str(root / "t" / "*.parquet") if kind == "parquet file" else str(root / "t")
    return str(root / "t")


def names(pairs: Pairs, seed: int, start: int = 0, end: int | None = None) -> list[str]:
    """Of the rows at positions of an epoch, as a trainer asks for them."""
    order = pairs.order(seed)(start, len(pairs) if end is None else end)
    return [place[0].row["name"] if hasattr(place[0], "row") else place[0] for place in pairs.places(order, seed)]


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_and_streamed_rows_are_those_of_the_files(kind: str, tmp_path: Path) -> None:
    where = make(tmp_path, kind)
    keys = [f"{row:03d}" if "tar" in kind else f"{row:08d}" for row in range(COUNT)]
    for layout in ("hub", "stream"):
        pairs = load(where, layout, conditions=read_conditions("season=class"))
        assert (len(pairs), pairs.further.classes) == (COUNT, {"season": ("9", "10", "summer", "winter")})
        batches = Batches(pairs, 3, torch.device("cpu"))
        found = [(name, source, target, season) for batch in batches.stored() for name, source, target, season in
                 zip(batch.name, batch.source, batch.target, batch.conditions["season"], strict=True)]  # fmt: skip
        assert [each[0] for each in found] == keys
        for row, (_, source, target, season) in enumerate(found):
            assert (source.numpy() == pixels(row).transpose(2, 0, 1)).all()
            assert (target.numpy() == pixels(100 + row).transpose(2, 0, 1)).all()
            assert pairs.further.classes["season"][season] == SEASONS[row]  # pyright: ignore[reportIndexIssue]
        assert torch.equal(pairs.read(5).source, found[5][1])
        again = load(where, layout, conditions=read_conditions("season=class"))
        assert (pairs.same_rows(again), again.digest(), again.names_digest()) == (
            True, pairs.digest(), pairs.names_digest())  # fmt: skip
    mapped = load(where, "hub")
    assert torch.equal(pickle.loads(pickle.dumps(mapped)).read(5).source, found[5][1])
    assert sorted(mapped.order(3)(0, COUNT)) == list(range(COUNT))


def test_splits_have_other_names(tmp_path: Path) -> None:
    assert len(load(make(tmp_path, "splits"), "hub", split="val")) == 1
    for layout in ("hub", "stream"):
        for kind in ("splits", "parquet"):
            where = make(tmp_path / kind, kind)
            with pytest.raises(FileNotFoundError, match="has no split 'elsewhere', but train"):
                read_rows(layout, where, "elsewhere")


class TestColumns:
    def test_kinds(self, tmp_path: Path) -> None:
        """Labels of a ClassLabel keep its order; numbers, rows of numbers and pictures are columns too."""
        greys = [{"bytes": png(pixels(50 + row, channels=1))} for row in range(4)]
        text = [np.arange(3.0 * (row + 1)).reshape(-1, 3).tolist() for row in range(4)]
        bands = [np.full((2, 8, 8), row / 4).tolist() for row in range(4)]
        lists = datasets.List(datasets.List(datasets.Value("float32")))
        table_of(
            range(4),
            style=([2, 0, -1, 1], datasets.ClassLabel(names=["wax", "ink", "oil"])),
            number=([10, 9, 10, -1], datasets.Value("int64")),
            sar=(greys, datasets.Image()),
            mask=(greys, datasets.Image()),
            text=(text, lists),
            bands=(bands, datasets.List(lists)),
        ).save_to_disk(tmp_path / "t")
        conditions = read_conditions("style=class,number=class,sar=image,bands=image,text=tokens")
        for layout in ("hub", "stream"):
            pairs = load(tmp_path / "t", layout, conditions=conditions)
            classes = {"style": ("wax", "ink", "oil"), "number": ("9", "10", "-1")}
            assert pairs.further == ConditionsConfig(images={"sar": 1, "bands": 2}, classes=classes, tokens={"text": 3})
            example = pairs.read(3)
            assert (example.conditions["sar"].numpy() == pixels(53, channels=1)).all()
            assert (example.conditions["text"].numpy() == text[3]).all()
            assert example.conditions["bands"].unique().tolist() == [0.75]
            assert [int(example.conditions[name]) for name in classes] == [1, 2]
            assert (example.mask.numpy() == (pixels(53, channels=1) != 0)).all()
            with pytest.raises(ValueError, match="00000002 has no style"):
                pairs.read(2)

    def test_source_and_target_are_named_or_the_two_of_pictures(self, tmp_path: Path) -> None:
        table = table_of(range(2)).rename_columns({"source": "b", "target": "a"})
        table.save_to_disk(tmp_path / "two")
        assert (load(tmp_path / "two", "hub").read(1).source.numpy() == pixels(1).transpose(2, 0, 1)).all()
        named = load(tmp_path / "two", "hub", columns="a,b")
        assert (named.read(1).source.numpy() == pixels(101).transpose(2, 0, 1)).all()
        assert named.digest() != load(tmp_path / "two", "hub").digest()
        with pytest.raises(ValueError, match="00000000 has no target"):
            load(tmp_path / "two", "hub", columns="a").read(0)
        for columns in ("a,season", "a,b,c", "a,a", "a,"):
            with pytest.raises(ValueError, match=rf"columns of pictures {columns} is needed; .* are \['b', 'a'\]"):
                load(tmp_path / "two", "hub", columns=columns)
        table.remove_columns("b").save_to_disk(tmp_path / "one")
        with pytest.raises(ValueError, match=r"two columns of pictures is needed; .* are \['a'\]"):
            load(tmp_path / "one", "stream")
        with pytest.raises(ValueError, match="rows have no column 'cls'"):
            load(tmp_path / "two", "hub", conditions=read_conditions("cls=class"))

    def test_cells_may_be_paths(self, tmp_path: Path) -> None:
        cells = {name: [str(save(tmp_path / f"{name}.png", pixels(0)))] for name in tables.SIDES}
        table = datasets.Dataset.from_dict(cells, features=datasets.Features(dict.fromkeys(cells, datasets.Image())))
        table.save_to_disk(tmp_path / "t")
        assert (load(tmp_path / "t", "hub").read(0).source.numpy() == pixels(0).transpose(2, 0, 1)).all()


class TestStream:
    @pytest.fixture
    def where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """4 tars of 6 rows; 5 are mixed at a time."""
        monkeypatch.setattr(tables, "MIXED", 5)
        for number in range(4):
            tar_of(tmp_path / f"{number}.tar", range(6 * number, 6 * number + 6))
        return str(tmp_path / "*.tar")

    @pytest.mark.parametrize("crops", [1, 3])
    def test_an_epoch_is_a_permutation_by_its_seed_from_any_position(self, where: str, crops: int) -> None:
        def pairs() -> Pairs:
            return load(where, "stream", **({} if crops == 1 else {"crop": 4, "crops": crops}))

        whole = names(pairs(), 5)
        assert sorted(whole) == sorted(f"{row:03d}" for row in range(24) for _ in range(crops))
        assert [whole[i] for i in range(0, len(whole), crops)] == [
            whole[i + crops - 1] for i in range(0, len(whole), crops)
        ]
        assert whole == names(pairs(), 5) != names(pairs(), 6)
        assert whole != sorted(whole)
        for start, end in ((1, 24), (7, 9), (23, 24), (8, 16), (4, 11)):
            assert names(pairs(), 5, start, end) == whole[start:end]

    @pytest.mark.parametrize("crops", [1, 2])
    @pytest.mark.parametrize("processes", [2, 3])  # tars for each, and rows of all
    def test_processes_share_an_epoch(self, where: str, processes: int, crops: int) -> None:
        """In steps of 3 examples each; and a process that begins at a later step reads the same."""
        seen: list[list[str]] = []
        for rank in range(processes):
            pairs = load(where, "stream", **({} if crops == 1 else {"crop": 4, "crops": crops})).shared(rank, processes)
            steps = len(pairs) // (3 * processes)

            def asked(first: int, pairs: Any = pairs, rank: int = rank, steps: int = steps) -> list[str]:
                order = pairs.order(1)
                starts = [(step * processes + rank) * 3 for step in range(first, steps)]
                indices = [index for start in starts for index in order(start, start + 3)]
                return [f"{place.row['name']} {place.number % crops}" for place, _ in pairs.places(indices, 1)]

            whole = asked(0)
            assert asked(2) == whole[6:]
            seen.append(whole)
        together = [name for part in seen for name in part]
        assert len(set(together)) == len(together) == 24 * crops // (3 * processes) * 3 * processes

    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_are_the_rows_with_any_workers(self, where: str, workers: int) -> None:
        pairs = load(where, "stream", crop=4)
        batches = Batches(pairs, 5, torch.device("cpu"), workers)
        found = list(batches.stored(pairs.order(2)(3, 20), 2))
        assert [name for batch in found for name in batch.name] == names(pairs, 2, 3, 20)
        mapped = load(where, "hub", crop=4)
        first = mapped.read(int(found[0].name[0]), 2)
        assert torch.equal(found[0].source[0], first.source)  # the crop of the seed and the name
        batches.close()

    def test_others_of_a_batch_take_the_places_of_bad_ones(self, tmp_path: Path) -> None:
        rows = {f"{row:03d}": sample(row) for row in range(6)}
        for row in (1, 4, 5):
            rows[f"{row:03d}"]["source.png"] = rows[f"{row:03d}"]["source.png"][:60]
        where = write_tar(tmp_path / "0.tar", rows)
        pairs = load(where, "stream", skip_bad=True)
        with pytest.raises(BadPicturesError, match="004"):
            list(Batches(pairs, 2, torch.device("cpu")).stored(range(6)))
        found = list(Batches(pairs, 3, torch.device("cpu")).stored(range(6)))
        assert [batch.name for batch in found] == [["000", "002", "002"], ["003", "003", "003"]]
        assert len(pairs.left_out) == 3
        assert [load(where, "hub", skip_bad=True).read(index).name for index in range(6)] == [
            "000", "002", "002", "003", "000", "000"]  # fmt: skip
        for layout in ("hub", "stream"):
            with pytest.raises(BadPicturesError, match="001"):
                load(where, layout).read(1)

    def test_no_rows_are_refused(self, tmp_path: Path) -> None:
        table_of([]).to_parquet(where := tmp_path / "t.parquet")
        for layout in ("hub", "stream"):
            with pytest.raises(ValueError, match="no rows|no data"):
                load(where, layout)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "suffix", ["source.png", "season.txt", "x.pkl", "x.pyd", "x.pickle", "x.pth", "x.npy", "x.npz"]
)
def test_a_pickle_inside_a_tar_runs_nothing(suffix: str, tmp_path: Path) -> None:
    trap, content = Trap(tmp_path / "sprung"), b""
    if suffix == "x.npy":
        content = npy(np.array([trap], object))
    elif suffix == "x.npz":
        np.savez(file := io.BytesIO(), a=np.array([trap], object))
        content = file.getvalue()
    else:
        content = pickle.dumps(trap)
    where = write_tar(tmp_path / "0.tar", {"000": {**sample(0), suffix: content}})
    for layout in ("hub", "stream"):
        with suppress(Exception):  # of whatever library, or none where nobody looks at the file
            load(where, layout, conditions=read_conditions("x=tokens" if suffix[0] == "x" else "season=class")).read(0)
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()  # it is one
