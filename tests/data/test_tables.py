"""Rows of other libraries: tables of datasets, mapped and streamed, and map-style data sets."""

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

from bbdm import ABridge, save_checkpoint
from bbdm.cli import translate
from bbdm.data import tables
from bbdm.data.loading import Batches
from bbdm.data.mapped import MappedDataset, as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import same_rows
from bbdm.data.rows import BadPicturesError, read_rows
from bbdm.data.spec import Spec, read_kinds
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures.values import Percentiles, Values
from tests.conftest import tiny_unet
from tests.data.making import Array, load, pixels

COUNT = 7
SEASONS = ["winter", "10", "summer", "9", "winter", "10", "9"]
LAYOUTS = ("hub", "stream")
CPU = torch.device("cpu")
HU = Values(-1000, 1000, "HU", "int16")
GOOD = np.zeros((1, 4, 4), np.float32)


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def png(array: Array) -> bytes:
    Image.fromarray(array).save(file := io.BytesIO(), "png")
    return file.getvalue()


def table_of(rows: Any, **more: Any) -> Any:
    """Columns source, target and season, and more as (values, feature)."""
    columns: dict[str, Any] = {
        "season": ([SEASONS[row] for row in rows], datasets.Value("string")),
        **more,
    }
    for name, first in (("source", 0), ("target", 100)):
        columns[name] = [{"bytes": png(pixels(first + row))} for row in rows], datasets.Image()
    kinds = datasets.Features({name: kind for name, (_, kind) in columns.items()})
    return datasets.Dataset.from_dict(
        {name: values for name, (values, _) in columns.items()}, features=kinds
    )


def write_tar(path: Path, rows: Mapping[int, Mapping[str, bytes]]) -> Path:
    """KEY.NAME files, member by member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for row, files in rows.items():
            for name, content in files.items():
                info = tarfile.TarInfo(f"{row:03d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def sample(row: int) -> dict[str, bytes]:
    files = {"source.png": png(pixels(row)), "target.png": png(pixels(100 + row))}
    return {**files, "season.txt": f"{SEASONS[row % COUNT]}\n".encode()}


@pytest.mark.parametrize("kind", ["folder", "parquet", "tars"])
def test_mapped_and_streamed_rows_are_those_of_the_files(kind: str, tmp_path: Path) -> None:
    """Two files of 7 rows."""
    conditions, classes = read_kinds("season=class"), ("9", "10", "summer", "winter")
    for number, rows in enumerate(([0, 1, 2, 3], [4, 5, 6])):
        if kind == "tars":
            write_tar(tmp_path / f"train{number}.tar", {row: sample(row) for row in rows})
        else:
            table_of(rows).to_parquet(tmp_path / f"train-{number:05d}-of-00002.parquet")
    where = {"parquet": f"{tmp_path}/*.parquet", "tars": f"{tmp_path}/{{split}}*.tar"}.get(
        kind, str(tmp_path)
    )
    if kind == "folder":
        table_of([3]).to_parquet(tmp_path / "validation-00000-of-00001.parquet")
        assert len(load(where, "hub", split="val")) == 1
        with pytest.raises(FileNotFoundError, match="has no split 'elsewhere', but train"):
            read_rows("stream", where, "elsewhere")
    for layout in LAYOUTS:
        pairs = load(where, layout, conditions=conditions)
        assert (len(pairs), pairs.further.classes) == (COUNT, {"season": classes})
        (batch,) = Batches(pairs, COUNT, CPU).stored()
        assert batch.name == [
            f"{row:03d}" if kind == "tars" else f"{row:08d}" for row in range(COUNT)
        ]
        assert (
            batch.source.numpy() == [pixels(row).transpose(2, 0, 1) for row in range(COUNT)]
        ).all()
        assert (
            batch.target.numpy() == [pixels(100 + row).transpose(2, 0, 1) for row in range(COUNT)]
        ).all()
        assert [classes[season] for season in batch.conditions["season"]] == SEASONS
        again = pickle.loads(pickle.dumps(load(where, layout, conditions=conditions)))
        assert torch.equal(again.read(5).source, batch.source[5])
        assert same_rows(pairs.rows, again.rows)
        assert (again.digest(), again.names_digest()) == (pairs.digest(), pairs.names_digest())


def test_columns_of_all_kinds(tmp_path: Path) -> None:
    """Labels of a ClassLabel keep its order; numbers, rows of numbers, bands and masks are columns too."""
    greys = [{"bytes": png(pixels(50 + row, channels=1))} for row in range(4)]
    text = [np.arange(3.0 * (row + 1)).reshape(-1, 3).tolist() for row in range(4)]
    lists = datasets.List(datasets.List(datasets.Value("float32")))
    table_of(
        range(4),
        style=([2, 0, -1, 1], datasets.ClassLabel(names=["wax", "ink", "oil"])),
        number=([10, 9, 10, -1], datasets.Value("int64")),
        sar=(greys, datasets.Image()),
        mask=(greys, datasets.Image()),
        text=(text, lists),
        bands=([np.full((2, 8, 8), row / 4).tolist() for row in range(4)], datasets.List(lists)),
    ).to_parquet(tmp_path / "t.parquet")
    classes = {"style": ("wax", "ink", "oil"), "number": ("9", "10", "-1")}
    conditions = read_kinds("style=class,number=class,sar=image,bands=image,text=tokens")
    for layout in LAYOUTS:
        pairs = load(tmp_path / "t.parquet", layout, conditions=conditions)
        assert pairs.further == ConditionsConfig(
            images={"sar": 1, "bands": 2}, classes=classes, tokens={"text": 3}
        )
        example = pairs.read(3)
        assert (example.conditions["sar"].numpy() == pixels(53, channels=1)).all()
        assert (example.conditions["text"].numpy() == text[3]).all()
        assert example.conditions["bands"].unique().tolist() == [0.75]
        assert [int(pairs.read(row).conditions["style"]) for row in (0, 1, 3)] == [2, 0, 1]
        assert int(example.conditions["number"]) == 2
        assert (example.mask.numpy() == (pixels(53, channels=1) != 0)).all()
        with pytest.raises(ValueError, match="00000002 has no style"):
            pairs.read(2)


def test_source_and_target_are_named_or_the_two_of_pictures(tmp_path: Path) -> None:
    table = table_of(range(2)).rename_columns({"source": "b", "target": "a"})
    table.to_parquet(where := tmp_path / "t.parquet")
    for columns, row in (("", 1), (",source=b,target=a", 1), (",source=a,target=b", 101)):
        found = load(f"{where}{columns}", "hub").read(1).source
        assert (found.numpy() == pixels(row).transpose(2, 0, 1)).all()
    assert load(f"{where},word=season", "hub", conditions=read_kinds("word=class")).further.classes[
        "word"
    ]
    with pytest.raises(ValueError, match="00000000 has no target"):
        load(f"{where},source=a", "stream").read(0)
    for columns, message in {
        ",source=c": "the table has no column 'c', but season, b, a",
        ",source=season": r"a column of pictures source, .* are \['b', 'a'\]: name them",
        "": "rows have no column 'cls'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(f"{where}{columns}", "hub", conditions=read_kinds("cls=class"))


def test_results_of_a_stream_whose_files_were_written_anew_are_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tar has the same names and as many rows; and a run resumes where its tar was only written anew."""
    where = write_tar(tmp_path / "val.tar", {0: sample(0), 1: sample(1)})
    before = load(where, "stream")
    save_checkpoint(
        tmp_path / "c.pt", tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=8
    )
    command = [
        "stream",
        str(where),
        f"{tmp_path}/c.pt",
        f"{tmp_path}/out",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    translate.main(command)
    first = (tmp_path / "out" / "000.png").read_bytes()
    translate.main(command)
    assert ", and 2 that were there" in capsys.readouterr().out
    write_tar(where, {0: {**sample(5), "season.txt": b"9"}, 1: sample(1)})
    translate.main(command)
    assert (tmp_path / "out" / "000.png").read_bytes() != first
    after = load(where, "stream")
    assert after.names_digest() == before.names_digest()
    assert after.digest() != before.digest()


class TestStream:
    @pytest.fixture
    def where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """4 tars of 6 rows; 5 are mixed at a time."""
        monkeypatch.setattr(tables, "MIXED", 5)
        for number in range(4):
            write_tar(
                tmp_path / f"{number}.tar",
                {row: sample(row) for row in range(6 * number, 6 * number + 6)},
            )
        return str(tmp_path / "*.tar")

    @staticmethod
    def names(pairs: Pairs, seed: int, *parts: tuple[int, int]) -> list[str]:
        """Of the examples at positions of an epoch, as a trainer asks for them."""
        order = [index for start, end in parts for index in pairs.order(seed)(start, end)]
        return [
            f"{row['name']} {index % pairs.spec.crops}"
            for index, _, row in pairs.places(order, seed)
        ]

    def test_rows_are_read_once_in_turn(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for the classes of all rows."""
        rows, read = read_rows("stream", where), list[Any]()
        whole = tables.StreamedRows.rows
        monkeypatch.setattr(
            tables.StreamedRows, "rows", lambda *how: read.append(how) or whole(*how)
        )
        assert [row["name"] for row in rows] == [f"{row:03d}" for row in range(24)]
        assert len(read) == 1

    @pytest.mark.parametrize("crops", [1, 3])
    def test_an_epoch_is_a_permutation_by_its_seed_from_any_position(
        self, where: str, crops: int
    ) -> None:
        pairs = load(where, "stream", crop=4, crops=crops)
        whole = self.names(pairs, 5, (0, 24 * crops))
        assert sorted(whole) == [f"{row:03d} {crop}" for row in range(24) for crop in range(crops)]
        assert [name[-1] for name in whole] == [str(crop) for crop in range(crops)] * 24
        again = load(where, "stream", crop=4, crops=crops)
        assert self.names(again, 5, (0, 7), (7, 24 * crops)) == whole != sorted(whole)
        assert self.names(again, 6, (0, 24 * crops)) != whole
        for part in ((1, 24), (7, 9), (23, 24), (8, 16), (4, 11)):
            assert self.names(again, 5, part) == whole[slice(*part)]

    @pytest.mark.parametrize("crops", [1, 2])
    @pytest.mark.parametrize("processes", [2, 3])  # tars for each, and rows of all
    def test_processes_share_an_epoch(self, where: str, processes: int, crops: int) -> None:
        """In steps of 3 examples each; and a process that begins at a later step reads the same."""
        steps, together = 24 * crops // (3 * processes), []
        for rank in range(processes):
            pairs: Any = load(where, "stream", crop=4, crops=crops).shared(rank, processes)
            first = [3 * (step * processes + rank) for step in range(steps)]
            whole = self.names(pairs, 1, *((start, start + 3) for start in first))
            assert self.names(pairs, 1, *((start, start + 3) for start in first[2:])) == whole[6:]
            together += whole
        assert len(set(together)) == len(together) == 3 * processes * steps

    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_are_the_rows_with_any_workers(self, where: str, workers: int) -> None:
        pairs, mapped = load(where, "stream", crop=4), load(where, "hub", crop=4)
        batches = Batches(pairs, 5, CPU, workers)
        found = list(batches.stored(pairs.order(2)(3, 20), 2))
        names = [name for batch in found for name in batch.name]
        assert [f"{name} 0" for name in names] == self.names(pairs, 2, (3, 20))
        for name, source in zip(names, torch.cat([batch.source for batch in found]), strict=True):
            # the crop of the seed and the name
            assert torch.equal(source, mapped.read(int(name), 2).source)
        batches.close()

    def test_others_of_a_batch_take_the_places_of_bad_ones(self, tmp_path: Path) -> None:
        rows = {row: sample(row) for row in range(6)}
        for row in (1, 4, 5):
            rows[row]["source.png"] = rows[row]["source.png"][:60]
        where = write_tar(tmp_path / "0.tar", rows)
        pairs = load(where, "stream", skip_bad=True)
        with pytest.raises(BadPicturesError, match="004"):
            list(Batches(pairs, 2, CPU).stored(range(6)))
        found = list(Batches(pairs, 3, CPU).stored(range(6)))
        assert [batch.name for batch in found] == [["000", "002", "002"], ["003", "003", "003"]]
        assert len(pairs.left_out) == 3
        names = [load(where, "hub", skip_bad=True).read(index).name for index in range(6)]
        assert names == ["000", "002", "002", "003", "000", "000"]
        with pytest.raises(BadPicturesError, match="001"):
            load(where, "stream").read(1)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["source.png", "season.txt", "x.pkl", "x.pyd", "x.pickle", "x.pth", "x.npy"]
)
def test_a_pickle_inside_a_tar_runs_nothing(name: str, tmp_path: Path) -> None:
    trap, file = Trap(tmp_path / "sprung"), io.BytesIO()
    np.save(file, np.array([trap], object)) if name == "x.npy" else pickle.dump(trap, file)
    where = write_tar(tmp_path / "0.tar", {0: {**sample(0), name: file.getvalue()}})
    for layout in LAYOUTS:
        with suppress(Exception):  # of whatever library, or none where nobody looks at the file
            load(
                where,
                layout,
                conditions=read_kinds("x=tokens" if name[0] == "x" else "season=class"),
            ).read(0)
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()  # it is one


@pytest.mark.parametrize("suffix", ["npy", "npz", "pth"])
def test_a_damaged_array_in_a_tar_is_named(suffix: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {0: sample(0)})
    where = write_tar(
        tmp_path / "1.tar", {1: sample(1), 2: {**sample(2), f"x.{suffix}": b"nothing"}}
    )
    for layout in LAYOUTS:
        with pytest.raises(
            ValueError, match=rf"^cannot read 002\.x\.{suffix} of .*1\.tar: [^\n]+$"
        ):
            load(where, layout).read(1)


def test_what_is_no_whole_tar_is_said_in_one_line(tmp_path: Path) -> None:
    where = write_tar(tmp_path / "0.tar", {0: sample(0), 1: sample(1)})
    whole = Path(where).read_bytes()
    for content in (whole[:700], b"this is text\n" * 100, b""):
        Path(where).write_bytes(content)
        for layout in LAYOUTS:
            with pytest.raises(ValueError, match=r"^[^\n]*0\.tar is cut off or no tar$"):
                load(where, layout)


def test_a_picture_in_a_tar_is_named(tmp_path: Path) -> None:
    where = write_tar(tmp_path / "0.tar", {0: {**sample(0), "target.png": b"no picture"}})
    with pytest.raises(
        ValueError, match=r"cannot read the picture 000\.target\.png of .*0\.tar: it is not PNG"
    ):
        load(where, "hub").read(0)


@pytest.mark.parametrize("names", [(), ("readme",)], ids=["empty", "no suffix"])
def test_a_tar_without_rows_says_what_a_row_is(names: tuple[str, ...], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    for layout in LAYOUTS:
        with pytest.raises(
            ValueError,
            match=r"0\.tar: it has no rows; a row is the files KEY\.source\.png and KEY\.t",
        ):
            load(tmp_path / "0.tar", layout)


def test_names_in_a_tar_lead_to_no_folder_outside(tmp_path: Path) -> None:
    rows = {0: sample(0)}
    where = write_tar(tmp_path / "0.tar", rows)
    with tarfile.open(where, "w") as tar:
        for name, content in rows[0].items():
            info = tarfile.TarInfo(f"../../evil.{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for layout in LAYOUTS:
        with pytest.raises(
            ValueError, match=r"row 0 of .*0\.tar: the name of a row must be .*got '\.\./\.\./evil'"
        ):
            load(where, layout).read(0)
    with pytest.raises(ValueError, match="the name of a row must be"):
        as_pairs([{**BOTH, "name": "/evil"}])


def item(index: int) -> Any:
    """Two bands, and their difference."""
    bands = np.random.default_rng(index).uniform(-0.5, 0.5, (2, 8, 8)).astype(np.float32)
    return bands, torch.from_numpy(bands[:1] - bands[1:])


OWN = [item(index) for index in range(4)]


def test_items_are_tuples_of_arrays_and_tensors() -> None:
    pairs = as_pairs(OWN)
    assert as_pairs(pairs) is pairs
    assert (len(pairs), pairs.source_channels, pairs.channels, pairs.image_size) == (4, 2, 1, 8)
    assert (pairs[3][0].numpy() == OWN[3][0]).all()
    assert torch.equal(pairs[3][1], OWN[3][1])
    crop = MappedDataset(OWN, None, Spec(crop=3, crops=2))
    assert (len(crop), crop.read(1).source.shape) == (8, (2, 3, 3))
    for kind in ("uint8", "float16", "float64"):
        stored = np.array([0, 1, 1, 0]).reshape(1, 2, 2).astype(kind)
        example = MappedDataset([stored], lambda array: (array, torch.from_numpy(array))).read(0)
        assert (
            example.source.dtype
            == example.target.dtype
            == (torch.uint8 if kind == "uint8" else torch.float32)
        )
        assert (
            example.source.flatten().tolist() == example.target.flatten().tolist() == [0, 1, 1, 0]
        )


def test_items_are_mappings_with_more() -> None:
    array, mask = pixels(0), torch.ones(1, 8, 8)
    mask[0, 2, 3] = 0
    seen = {
        "style": 2,
        "number": np.int64(1),
        "text": np.ones((3, 5)),
        "sar": mask,
        "rgb": Image.fromarray(array),
    }
    item = {
        "source": Image.fromarray(array),
        "target": mask,
        "conditions": seen,
        "mask": mask,
        "name": "a",
    }
    example = MappedDataset([item, {**item, "mask": None, "name": None}]).read(0)
    assert (example.source.numpy() == array.transpose(2, 0, 1)).all()
    assert (example.name, sorted(example.conditions)) == (
        "a",
        ["number", "rgb", "sar", "style", "text"],
    )
    assert (int(example.conditions["style"]), int(example.conditions["number"])) == (2, 1)
    assert torch.equal(example.mask, mask)
    assert torch.equal(example.conditions["sar"], mask)
    assert torch.equal(example.conditions["rgb"], example.source)


def test_digests_are_of_conditions_or_a_data_sets_own() -> None:
    def of(*classes: int) -> Any:
        tokens = [np.ones((1 + i, 3)) for i in range(len(classes))]
        pairs = zip(classes, tokens, strict=True)
        return MappedDataset(
            [{**BOTH, "conditions": {"style": style, "text": text}} for style, text in pairs]
        )

    assert of(0, 1, 2).digest() == of(0, 1, 2).digest() != of(0, 1, 0).digest()
    one, same, other = (
        type("Named", (list,), {"digest": lambda _, name=name: name})(OWN) for name in "aab"
    )
    assert (
        MappedDataset(one).digest() == MappedDataset(same).digest() != MappedDataset(other).digest()
    )


def test_values_make_the_unit_range_and_volumes_have_three_axes() -> None:
    stored = np.array([-1000, 0, 500, 9999], np.int16).reshape(1, 2, 2)
    example = MappedDataset(
        [(stored, stored)], None, Spec(source=Percentiles(0, 100), target=HU)
    ).read(0)
    assert example.target.flatten().tolist() == [-1, 0, 0.5, 1]
    assert (example.source.min(), example.source.max()) == (-1, 1)
    stored = np.arange(-4, 4).reshape(1, 2, 2, 2) / 4
    pairs = MappedDataset([(stored, stored)])
    assert (pairs.spec.axes, pairs.image_size) == (3, (2, 2, 2))
    valued = MappedDataset(
        [(1000 * stored, 1000 * stored)], None, Spec(source=HU, target=HU, axes=3)
    )
    assert (
        pairs[0][1].flatten().tolist()
        == valued[0][1].flatten().tolist()
        == (np.arange(-4, 4) / 4).tolist()
    )


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
    with pytest.raises(
        ValueError, match=r"text of item 1 .*\(L, 3\) of finite floats, got \(1, 5\)"
    ):
        pairs.read(1)
    with pytest.raises(
        ValueError,
        match=r"source of item 2 .*\(1, 4, 5\), and that of item 0 .*\(1, 4, 4\).*--crop",
    ):
        next(Batches(pairs, 2, CPU).stored([0, 2]))
    with pytest.raises(
        ValueError, match="needs __len__ and __getitem__, and a generator has not both"
    ):
        MappedDataset(i for i in ())  # pyright: ignore[reportArgumentType]
