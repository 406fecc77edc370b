"""Layouts: which rows files make, and what is said where they make none."""

from pathlib import Path
from typing import Any

import pytest

from bbdm.data.config import read_labels
from bbdm.data.rows import DATASETS, Half, paths_of, read_layout, read_rows, shown, synthrad_values
from bbdm.pictures.values import Percentiles
from tests.data.making import Array, load, pixels, save


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def texts(rows: Any) -> dict[str, Any]:
    """The other columns of each row as text, by names; the halves of a file as FILE|0 and FILE|1."""

    def text(value: Any) -> Any:
        if isinstance(value, Half):
            return f"{value.path}|{value.side}"
        return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return {row["name"]: {key: text(value) for key, value in row.items() if key != "name"} for row in rows}


CITY = "{}/{}/ulm/ulm_000007_000019_{}.png"
BOTH = {"7": {"source": "train/7.jpg|0", "target": "train/7.jpg|1"}}
A_B = {"7": {"source": "train/A/7.png", "target": "train/B/7.jpg"}}
X_Y = {"7": {"source": "x/train/7.png", "target": "train/y/7.png"}}
LAYOUTS: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {  # dataset, data_dir, files, rows of train
    "edge2shoes": ("edge2shoes", ".", ["train/7.jpg", "val/8.jpg", "train/notes.txt"], BOTH),
    "edge2handbags": ("edge2handbags", ".", ["train/7.jpg", "test/8.jpg"], BOTH),
    "celeba": ("celeba", ".", ["train/A/7.png", "train/B/7.jpg", "val/A/8.png", "val/B/8.png"], A_B),
    "face2comics": ("face2comics", ".", ["train/A/7.png", "train/B/7.jpg"], A_B),
    "cityscapes": (
        "cityscapes",
        ".",
        [
            CITY.format(*each)
            for each in [
                ("gtFine", "train", "gtFine_color"),
                ("gtFine", "train", "gtFine_labelIds"),
                ("leftImg8bit", "train", "leftImg8bit"),
                ("gtFine", "val", "gtFine_color"),
            ]
        ],
        {
            "ulm/ulm_000007_000019": {
                "source": CITY.format("gtFine", "train", "gtFine_color"),
                "target": CITY.format("leftImg8bit", "train", "leftImg8bit"),
            }
        },
    ),
    "paired": ("paired", "x/{split},{split}/y", ["x/train/7.png", "train/y/7.png", "x/val/8.png"], X_Y),
    "several sources": (
        "paired",
        "x,z;y",
        ["x/7.png", "z/7.tif", "y/7.nii.gz"],
        {"7": {"source": "x/7.png+z/7.tif", "target": "y/7.nii.gz"}},
    ),
    "subfolders and suffixes": (
        "paired",
        "x,y",
        ["x/3.png", "x/10.webp", "x/deep/3.PNG", "y/3.jpg", "y/10.PNG", "y/deep/3.bmp", "y/.hidden.png"],
        {
            "10": {"source": "x/10.webp", "target": "y/10.PNG"},
            "3": {"source": "x/3.png", "target": "y/3.jpg"},
            "deep/3": {"source": "x/deep/3.PNG", "target": "y/deep/3.bmp"},
        },
    ),
    "folder": ("folder", ".", ["7.png", "._3.png", "Thumbs.db"], {"7": {"source": "7.png"}}),
    "folder of splits": ("folder", ".", ["train/7.png", "val/8.png", "9.png"], {"7": {"source": "train/7.png"}}),
    "folder with its split": ("folder", "{split}", ["train/7.png", "val/8.png"], {"7": {"source": "train/7.png"}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_layout(layout: str) -> None:
    dataset, data_dir, files, wanted = LAYOUTS[layout]
    touch(*files)
    found = texts(read_rows(dataset, data_dir, "train"))
    assert found == wanted
    assert list(found) == list(wanted)


def test_layouts_that_are_tested_are_all() -> None:
    assert {each[0] for each in LAYOUTS.values()} | {"table", "synthrad", "hub", "stream"} == DATASETS.keys()
    assert read_layout("paired") == "paired"
    with pytest.raises(ValueError, match=r"one of celeba, .*, got '\.': .* 'folder', as in folder \."):
        read_layout(".")


def test_the_halves_of_a_picture_are_source_and_target(root: Path) -> None:
    both: Array = pixels(0, 6, 16)
    save(root / "train/7.png", both)
    example = load(root, "edge2shoes").read(0)
    assert (example.source.numpy() == both[:, :8].transpose(2, 0, 1)).all()
    assert (example.target.numpy() == both[:, 8:].transpose(2, 0, 1)).all()
    save(root / "train/7.png", both[:, :7])
    with pytest.raises(ValueError, match=r"train/7\.png is 7 pixels wide"):
        load(root, "edge2shoes").read(0)


REFUSED: dict[str, tuple[str, str, list[str], str]] = {  # dataset, data_dir, files, message
    "no target": ("celeba", ".", ["A/3", "B/3", "A/5"], r"A/5\.png has no counterpart in .*B: files are matched by"),
    "no source": ("celeba", ".", ["A/3", "B/3", "B/5"], r"B/5\.png has no counterpart in .*A: files are matched by"),
    "three": ("celeba", ".", ["A/3", "B/3", "A/5", "B/6", "B/7"], r"A/5\.png has no counterpart .* 2 more have none"),
    "no second source": ("paired", "train/A,train/C;train/B", ["A/3", "B/3", "C/4"], "A/3.png has no counterpart"),
    "equal stems": ("celeba", ".", ["A/3", "B/3", "A/3.jpg"], r"A/3\.jpg and .*A/3\.png have the same name"),
    "another layout": ("edge2shoes", ".", ["A/3", "B/3"], "train has the folders A and B, .* layout of 'celeba'"),
    "no pictures": ("edge2shoes", ".", ["a.txt"], r"no pictures in train \(looked for .*\.png"),
    "no labels": ("cityscapes", ".", ["../gtFine/train/u/1", "../leftImg8bit/train/u/1"], r"pictures \*_gtFine_color"),
    "a file": ("folder", "train/a.txt", ["a.txt"], "a.txt is a file, not a folder"),
    "one folder": ("paired", "x", [], "two folders, SOURCES,TARGETS; got 'x'"),
    "three folders": ("paired", "x,y,z", [], "got 'x,y,z'; of several sources, FIRST,SECOND;TARGETS"),
    "unknown": ("edges", ".", [], r"dataset must be one of .*edge2shoes.*, got 'edges'"),
    **{name: (name, "gone", [], "there is no folder gone") for name in ("edge2shoes", "celeba", "cityscapes")},
    **{name: (name, "gone", [], "there is no folder gone") for name in ("folder", "synthrad")},
    "no file": ("table", "gone.csv", [], "there is no file gone.csv"),
    "no tar": ("hub", "gone.tar", [], "there is no file gone.tar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_make_no_rows_are_named(case: str) -> None:
    dataset, data_dir, files, message = REFUSED[case]
    touch(*(f"train/{name if '.' in Path(name).name else f'{name}.png'}" for name in files))
    with pytest.raises(FileNotFoundError if data_dir.startswith("gone") else ValueError, match=message):
        read_rows(dataset, data_dir)


def test_columns_are_of_tables() -> None:
    with pytest.raises(ValueError, match="columns are of the data sets hub, stream, got 'a,b' for 'folder'"):
        read_rows("folder", ".", columns="a,b")


def test_pictures_of_kinds_that_are_not_read_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    touch("1.png", "2.gif", "3.GIF", "notes.txt")
    assert list(texts(read_rows("folder", "."))) == ["1"]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 pictures are skipped in .")
    assert "(.gif)" in record.getMessage()


class TestColumns:
    """Further columns, behind a layout's folders."""

    def test_of_folders_and_labels(self) -> None:
        touch("x/a.png", "x/b.png", "y/a.png", "y/b.png", "sar/train/a.tif", "sar/train/b.npy")
        Path("labels_train.csv").write_text("\ufeffname,class\na, ink\n\nb,10\nothers,wax\n")
        rows = read_rows("paired", "x,y,sar=sar/{split},style=labels_{split}.csv")
        assert [(texts(rows)[name]["sar"], texts(rows)[name]["style"]) for name in "ab"] == [
            ("sar/train/a.tif", "ink"),
            ("sar/train/b.npy", "10"),
        ]
        assert isinstance(rows[0]["style"], str)
        assert paths_of(rows[0]) == (Path("x/a.png"), Path("y/a.png"), Path("sar/train/a.tif"))
        assert paths_of(rows[0], ["sar"]) == (Path("sar/train/a.tif"),)
        assert shown(rows[0]) == "x/a.png"

    @pytest.mark.parametrize(
        ("where", "lines", "message"),
        [
            ("sar=sar", "", r"x/b\.png has no sar in sar: files are matched by name"),
            ("sar=gone", "", "sar: there is no folder gone"),
            ("style=gone.csv", "", "style: there is no file gone.csv"),
            ("target=sar", "", r"x/a\.png has a target already: sar would be another"),
            ("style=t.csv", "a,ink", r"x/b\.png has no style in t\.csv"),
            ("style=t.csv", "a,ink,3", r"line 1 of t\.csv must be NAME,CLASS, got 'a,ink,3'"),
            ("style=t.csv", "a,ink\na,oil", r"line 2 of t\.csv: 'a' is of the class 'ink' above"),
        ],
    )
    def test_what_is_wrong_is_named(self, where: str, lines: str, message: str) -> None:
        touch("x/a.png", "x/b.png", "y/a.png", "y/b.png", "sar/a.png")
        Path("t.csv").write_text(lines)
        with pytest.raises(ValueError, match=message):
            read_rows("paired", f"x,y,{where}")


class TestTable:
    """A CSV of rows."""

    def test_paths_are_relative_to_the_file_and_split_is_filled_in(self) -> None:
        touch("data/s/1.tif", "data/depth/1.png")
        Path("data/train.csv").write_text(
            "name,source,target,mask,depth,season\n"
            "one, s/1.tif ; s/2.tif,t/1.tif,m/1.png,depth/1.png,summer.v2\n"
            "two,s/3.tif,t/3.tif,m/3.png,depth/3.png,9\n"
        )
        rows = texts(read_rows("table", "data/{split}.csv"))
        assert rows["one"] == {
            "source": "data/s/1.tif+data/s/2.tif",
            "target": "data/t/1.tif",
            "mask": "data/m/1.png",
            "depth": "data/depth/1.png",
            "season": "summer.v2",
        }
        assert rows["two"]["source"] == "data/s/3.tif"
        assert rows["two"]["season"] == "9"

    def test_names_are_those_of_sources_without_suffix(self) -> None:
        Path("t.csv").write_text("source,style\ns/1.png;s/2.png,ink\ndeep/s/3.png,oil\n")
        assert list(texts(read_rows("table", "t.csv"))) == ["s/1", "deep/s/3"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"t\.csv must begin with a line of column names, each once, source among them; got \[\]"),
            ("name,target\na,b", "source among them; got .*target"),
            ("source,x,x\na,b,c", "each once"),
            ("source,target\na", r"line 2 of t\.csv has 1 cells, and its header 2"),
            ("source,target\na,", r"line 2 of t\.csv has no target"),
            ("name,source\na,b\na,c", r"line 3 of t\.csv: the name 'a' is there twice"),
            ("source,target", r"there are no rows in t\.csv"),
        ],
    )
    def test_what_is_wrong_is_named(self, content: str, message: str) -> None:
        Path("t.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_rows("table", "t.csv")


def patient(folder: str, source: str = "mr", suffix: str = "mha", without: str = "") -> None:
    touch(*(f"{folder}/{name}.{suffix}" for name in (source, "ct", "mask") if name != without))


class TestSynthrad:
    """Folders of patients."""

    def test_a_tenth_of_the_patients_is_for_validation_wherever_they_lie(self) -> None:
        everyone = {f"{'AB' if number % 2 else 'HN'}/1ABA{number:03d}" for number in range(20)}
        for name in everyone:
            patient(name)
        touch("overviews/1_AB_train.xlsx")
        train, validation = (texts(read_rows("synthrad", ".", split)) for split in ("train", "val"))
        assert len(validation) == 2
        assert not train.keys() & validation
        assert train.keys() | validation == everyone
        first = next(iter(train))
        assert train[first] == {name: f"{first}/{file}.mha" for name, file in
                                {"source": "mr", "target": "ct", "mask": "mask"}.items()}  # fmt: skip
        Path("AB").rename("other")
        again = texts(read_rows("synthrad", ".", "val"))
        assert {name[-3:] for name in again} == {name[-3:] for name in validation}

    def test_folders_of_splits_stay(self) -> None:
        for split, name in (("train", "a"), ("val", "b")):
            patient(f"{split}/{name}", "cbct", "nii.gz")
        rows = read_rows("synthrad", ".", "val")
        assert texts(rows)["b"]["source"] == "val/b/cbct.nii.gz"
        assert [str(values) for values in synthrad_values(rows)] == ["-1024:3071:HU"] * 2
        assert list(texts(read_rows("synthrad", "{split}"))) == ["a"]

    def test_patients_without_ct_are_sources_of_each_split(self) -> None:
        for name in "ab":
            patient(name, without="ct")
        for split in ("train", "val"):
            assert texts(read_rows("synthrad", ".", split)) == {
                name: {"source": f"{name}/mr.mha", "mask": f"{name}/mask.mha"} for name in "ab"
            }
        assert synthrad_values(read_rows("synthrad", "."))[0] == Percentiles(0.5, 99.5)

    @pytest.mark.parametrize(
        ("patients", "message"),
        [
            ([("a", {"without": "mask"})], "patient a has no mask: a folder for each patient"),
            ([("a", {}), ("b", {"without": "ct"})], "patient b has no ct: .*, or no ct of any patient"),
            ([("a", {}), ("b", {"source": "cbct"})], "both mr and cbct: give the folder of one task"),
            ([("a", {}), ("a", {"suffix": "nii"}), ("b", {})], "a has .* twice: remove one"),
            ([("a", {})], "a is the only patient"),
            ([], "no patients: a folder for each patient"),
        ],
    )
    def test_what_is_wrong_is_named(self, patients: Any, message: str) -> None:
        for name, settings in patients:
            patient(name, **settings)
        with pytest.raises(ValueError, match=message):
            read_rows("synthrad", ".")


def test_labels_of_all_rows_are_read_from_text() -> None:
    assert read_labels("season=winter,style=a=b") == {"season": "winter", "style": "a=b"}
    for text in ("season", "season=", "=winter", "a b=c", "a=b,a=c", ""):
        with pytest.raises(ValueError, match="NAME=CLASS, with commas"):
            read_labels(text)
