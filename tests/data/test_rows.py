"""Layouts: which rows files make, and what is said where they make none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm.data.cells import HalfCell
from bbdm.data.kinds import Condition
from bbdm.data.loading import check_rows
from bbdm.data.names import RowName
from bbdm.data.rows import (
    DATASETS,
    BadPicturesError,
    UnpairedRows,
    files_of,
    read_layout,
    read_rows,
    shown,
)
from tests.data.making import load, located, pictures, pixels, save
from tests.pictures.formats import write_dicom


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(names: str) -> None:
    for name in names.split():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def texts(rows: Any) -> list[str]:
    """Rows as text: the name and all other columns; halves of a file are FILE|0 and FILE|1."""

    def text(value: Any) -> str:
        value = f"{value.path}|{value.side}" if isinstance(value, HalfCell) else value
        return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [
        " ".join([row["name"], *(text(value) for key, value in row.items() if key != "name")])
        for row in rows
    ]


LABELS, PHOTOS = "gtFine/train/u/1_gtFine_color.png", "leftImg8bit/train/u/1_leftImg8bit.png"
MR = "train/p/7/mr.mha train/p/7/ct.nii.gz"
LAYOUTS = [  # dataset, data_dir, files, rows of train
    ("edge2shoes", ".", "train/7.jpg val/8.jpg train/notes.txt", ["7 train/7.jpg|0 train/7.jpg|1"]),
    ("edge2handbags", ".", "train/7.jpg test/8.jpg", ["7 train/7.jpg|0 train/7.jpg|1"]),
    (
        "celeba",
        ".",
        "train/A/7.png train/B/7.jpg val/A/8.png val/B/8.png",
        ["7 train/A/7.png train/B/7.jpg"],
    ),
    ("face2comics", ".", "train/A/7.png train/B/7.jpg", ["7 train/A/7.png train/B/7.jpg"]),
    (
        "cityscapes",
        ".",
        f"{LABELS} {PHOTOS} gtFine/train/u/1_gtFine_labelIds.png",
        [f"u/1 {LABELS} {PHOTOS}"],
    ),
    (
        "paired",
        "x/{split},{split}/y",
        "x/train/7.png train/y/7.png x/val/8.png",
        ["7 x/train/7.png train/y/7.png"],
    ),
    ("paired", "x,z;y", "x/7.png z/7.tif y/7.nii.gz", ["7 x/7.png+z/7.tif y/7.nii.gz"]),
    (
        "paired",
        "x,y",
        "x/3.png x/10.webp y/3.jpg y/10.PNG y/.no.png",
        ["10 x/10.webp y/10.PNG", "3 x/3.png y/3.jpg"],
    ),
    ("paired", "x,y", "x/deep/3.PNG y/deep/3.bmp", ["deep/3 x/deep/3.PNG y/deep/3.bmp"]),
    ("paired", "{split}/*/mr,{split}/*/ct", f"{MR} train/p/7/mask.mha", [f"p/7 {MR}"]),
    ("folder", "x/*/mr", "x/7/mr.mha x/7/ct.mha", ["7 x/7/mr.mha"]),
    ("folder", ".", "7.png ._3.png Thumbs.db", ["7 7.png"]),
    ("folder", ".", "train/7.png val/8.png 9.png", ["7 train/7.png"]),
    ("folder", "{split}", "train/7.png val/8.png", ["7 train/7.png"]),
]


@pytest.mark.parametrize(("dataset", "data_dir", "files", "wanted"), LAYOUTS)
def test_rows_of_a_layout(dataset: str, data_dir: str, files: str, wanted: list[str]) -> None:
    touch(files)
    assert texts(read_rows(dataset, data_dir)) == wanted


def test_layouts_that_are_tested_are_all() -> None:
    assert {each[0] for each in LAYOUTS} | {
        "table",
        "hub",
        "stream",
        "unpaired",
        "frames",
    } == DATASETS.keys()
    assert read_layout("paired") == "paired"
    with pytest.raises(
        ValueError, match=r"one of celeba, .*, got '\.': .* 'folder', as in folder \."
    ):
        read_layout(".")


def test_the_halves_of_a_picture_are_source_and_target(root: Path) -> None:
    both = pixels(0, 6, 16)
    save(root / "train/7.png", both)
    example = load(root, "edge2shoes").read(0)
    assert (example.source.numpy() == both[:, :8].transpose(2, 0, 1)).all()
    assert (example.target.numpy() == both[:, 8:].transpose(2, 0, 1)).all()
    save(root / "train/7.png", both[:, :7])
    with pytest.raises(ValueError, match=r"train/7\.png is 7 pixels wide"):
        load(root, "edge2shoes").read(0)


PAIR = "train/A/3.png train/B/3.png"
X_Y = "x/a.png x/b.png y/a.png y/b.png sar/a.png"
REFUSED = [  # dataset, data_dir, files, lines of t.csv, message
    (
        "celeba",
        ".",
        f"{PAIR} train/A/5.png",
        "",
        r"A/5\.png has no target in .*B: files are matched by name",
    ),
    (
        "celeba",
        ".",
        f"{PAIR} train/B/5.png",
        "",
        r"B/5\.png has no source in .*A: files are matched by name",
    ),
    ("celeba", ".", f"{PAIR} train/A/3.jpg", "", r"A/3\.jpg and .*A/3\.png have the same name"),
    ("paired", "train/A,x;train/B", f"{PAIR} x/4.png", "", r"A/3\.png has no source in x"),
    ("edge2shoes", ".", PAIR, "", "train has the folders A and B, .* layout of 'celeba'"),
    ("edge2shoes", ".", "train/a.txt", "", r"no pictures in train \(looked for .*\.png"),
    ("paired", "x", "", "", "two folders, SOURCES,TARGETS; got 'x'"),
    ("paired", "x,y,z", "", "", "got 'x,y,z'; of several sources, FIRST,SECOND;TARGETS"),
    ("edges", ".", "", "", r"dataset must be one of .*edge2shoes.*, got 'edges'"),
    *(
        (name, "gone", "", "", "there is no folder gone")
        for name in ("edge2shoes", "celeba", "cityscapes")
    ),
    ("folder", "t.csv", "", "a,b", "t.csv is neither a folder of pictures nor a picture"),
    ("table", "gone.csv", "", "", "there is no file gone.csv"),
    ("hub", "gone.tar", "", "", "there is no file gone.tar"),
    ("paired", "x,y,sar=sar", X_Y, "", r"x/b\.png has no sar in sar: files are matched by name"),
    ("paired", "x,y,sar=nowhere", X_Y, "", "sar: there is no folder nowhere"),
    ("paired", "x,y,style=no.csv", X_Y, "", "style: there is no file no.csv"),
    ("paired", "x,y,target=sar", X_Y, "", "rows have a target already: sar would be another"),
    ("paired", "x,y,style=t.csv", X_Y, "a,ink", r"x/b\.png has no style in t\.csv"),
    (
        "paired",
        "x,y,style=t.csv",
        X_Y,
        "a,ink\na,oil",
        r"line 2 of t\.csv: 'a' is of the class 'ink' above",
    ),
    (
        "table",
        "t.csv",
        "",
        "",
        r"t\.csv must begin with a line of column names, each once, source among them; got",
    ),
    ("table", "t.csv", "", "source,x,x\na,b,c", "each once"),
    (
        "table",
        "t.csv",
        "",
        "source,target\na",
        r"line 2 of t\.csv must have a cell of each of .*target.*, got \['a'\]",
    ),
    (
        "table",
        "t.csv",
        "",
        "source,target\na,",
        r"line 2 of t\.csv must have .*target.*, got \['a', ''\]",
    ),
    (
        "table",
        "t.csv",
        "",
        "name,source\na,b\na,c",
        r"line 3 of t\.csv: the name 'a' is there twice",
    ),
    ("table", "t.csv", "", "source,target", r"there are no rows in t\.csv"),
    ("table", "t.csv", "", "source\n" + "a" * 2**18, r"t\.csv is no CSV of UTF-8: field larger"),
    ("table", "t.csv", "", "source\n\udcff", r"t\.csv is no CSV of UTF-8: .*can't decode"),
]


@pytest.mark.parametrize(("dataset", "data_dir", "files", "lines", "message"), REFUSED)
def test_what_makes_no_rows_is_named(
    dataset: str, data_dir: str, files: str, lines: str, message: str
) -> None:
    touch(files)
    Path("t.csv").write_text(lines, errors="surrogateescape")
    with pytest.raises(
        FileNotFoundError if data_dir.startswith("gone") else ValueError, match=message
    ):
        read_rows(dataset, data_dir)


def test_further_columns_are_of_folders_and_labels() -> None:
    touch("x/a.png x/b.png y/a.png y/b.png sar/train/a.tif sar/train/b.npy")
    Path("labels_train.csv").write_text("\ufeffname,class\na, ink\n\nb,10\nothers,wax\n")
    rows = read_rows("paired", "x,y,sar=sar/{split},style=labels_{split}.csv")
    assert texts(rows) == [
        "a x/a.png y/a.png sar/train/a.tif ink",
        "b x/b.png y/b.png sar/train/b.npy 10",
    ]
    assert [str(path) for path in files_of(rows[0])] == ["x/a.png", "y/a.png", "sar/train/a.tif"]
    assert (files_of(rows[0], ["sar"]), shown(rows[0])) == ((Path("sar/train/a.tif"),), "x/a.png")


def test_paths_of_a_table_are_relative_to_its_file() -> None:
    """But words that are no files are words; names are those of sources without suffix."""
    touch("data/depth/1.png")
    lines = (
        "source,target,mask,depth,season",
        "s/1.tif ; s/2.tif,t/1.tif,m/1.png,depth/1.png,summer.v2",
    )
    Path("data/train.csv").write_text("\n".join(lines))
    paths = "data/s/1.tif+data/s/2.tif data/t/1.tif data/m/1.png data/depth/1.png summer.v2"
    assert texts(read_rows("table", "data/{split}.csv")) == [f"s/1 {paths}"]
    Path("t.csv").write_text("name,source\none,s/1.png\ntwo,s/2.png")
    assert texts(read_rows("table", "t.csv")) == ["one s/1.png", "two s/2.png"]


def test_any_of_two_sets_meets_any() -> None:
    rows = UnpairedRows({str(a): a for a in range(4)}, {str(b): b for b in range(4)})
    drawn = [[rows.drawn(index, seed) for index in range(4)] for seed in range(60)]
    assert all(
        sorted(row[side] for row in epoch) == [0, 1, 2, 3]
        for epoch in drawn
        for side in ("source", "target")
    )
    assert len({(row["source"], row["target"]) for epoch in drawn for row in epoch}) == 16


def test_names_of_a_table_lead_to_no_folder_outside_and_lose_the_suffixes_of_formats(
    root: Path,
) -> None:
    """Of paths that do, the name is what is left without the root and ``..`` at the start."""
    lines = ["source", "../in/b.jpg", f"{root}/x/c.nii.gz", "p.01/d.tar.png", "e.v2"]
    Path("t.csv").write_text("\n".join(lines))
    names = [row["name"] for row in read_rows("table", "t.csv")]
    assert names == ["in/b", f"{root}/x/c".lstrip("/"), "p.01/d.tar", "e.v2"]
    assert all(isinstance(name, RowName) for name in names)
    wrong = {
        "source\n../a.png\na.png": r"line 3 of t\.csv: the name 'a' is there twice: add a column 'name'",
        "source\na/../b.png": r"line 2 of t\.csv: the name of a row must be .*got 'a/\.\./b'; add a column 'name'",
        "name,source\n../a,a.png": r"line 2 of t\.csv: the name of a row must be .*got '\.\./a'",
        "name,source\n/a,a.png": r"got '/a'",
    }
    for text, message in wrong.items():
        Path("t.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_rows("table", "t.csv")


def test_folders_of_dicom_in_a_table_have_their_whole_names_and_are_pictures_in_all_columns() -> (
    None
):
    for folder in ("p.01", "p.02"):
        write_dicom(Path(folder), located(0, (2, 4, 4)), [0, 1])
    Path("t.csv").write_text("source,depth,word\np.01,p.02,winter\np.02,p.01,summer")
    rows = read_rows("table", "t.csv")
    assert [row["name"] for row in rows] == ["p.01", "p.02"]
    assert rows[0]["depth"].read().shape == (1, 2, 4, 4)
    assert rows[0]["word"] == "winter"


def test_lines_of_a_csv_are_those_of_the_file() -> None:
    """Also after empty lines, and with what other programs take for the end of a line."""
    for layout, where, text, number in (
        ("table", "t.csv", "source,word\n\na.png,one\n\nb.png", 5),
        ("folder", "x,word=t.csv", "\n\na,one,two", 3),
    ):
        touch("x/a.png")
        Path("t.csv").write_text(text)
        with pytest.raises(ValueError, match=rf"^line {number} of t\.csv must"):
            read_rows(layout, where)
    Path("t.csv").write_text("source,word\na.png,one\u2028two", "utf-8")
    assert read_rows("table", "t.csv")[0]["word"] == "one\u2028two"


def test_a_link_that_leads_nowhere_is_named(root: Path) -> None:
    pictures(root, 2)
    (root / "A/9.png").symlink_to(root / "gone.png")
    with pytest.raises(ValueError, match=r"A/9\.png has no target in"):
        load(f"{root}/A,{root}/B")
    (root / "B/9.png").symlink_to(root / "gone.png")
    assert "there is no picture" in check_rows(load(f"{root}/A,{root}/B"))[2]
    Path("t.csv").write_text("source,target,sar\nA/0.png,B/0.png,B/9.png\n")
    with pytest.raises(
        BadPicturesError, match=r"B/9\.png: it is a link to .*gone\.png, .*git annex get"
    ):
        load("t.csv", "table", conditions={"sar": Condition("image", size=3)})
    (root / "C").mkdir()
    (root / "C/9.png").symlink_to("gone.png")
    with pytest.raises(
        FileNotFoundError, match=r"C/9\.png: it is a link to gone\.png, .*git annex get"
    ):
        HalfCell(root / "C/9.png", 0).read()


def test_files_of_rows_are_paths_for_what_takes_them(root: Path) -> None:
    pictures(root, 1)
    (row,) = read_rows("paired", "A,B")
    with Image.open(row["source"]) as image:
        assert (np.asarray(image) == pixels(0, image.height, image.width)).all()
    assert (row["source"].path, row["source"].suffix) == (Path("A/0.png"), ".png")
