"""A file of several pictures is several rows, and an address is one of them; each has a digest of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from bbdm import pictures
from bbdm.data.cells import PartCell, cell_of
from bbdm.data.provenance import row_digests, row_stamp, value_digest
from bbdm.data.rows import only_columns, read_rows
from bbdm.pictures import Picture, formats

if sys.version_info < (3, 11):
    pytest.skip("bioio and its plugins are for later Pythons", allow_module_level=True)

from tests.pictures.microscopes import own_values, random, stand_in, write_czi

SCENES = [random((1, 2, 1, 12, 16), seed=scene) for scene in range(2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pictures/ with one.czi of a scene, two.czi of two and tz.czi of three times of two planes."""
    root = tmp_path / "pictures"
    root.mkdir()
    write_czi(root / "one.czi", SCENES[:1])
    write_czi(root / "two.czi", SCENES)
    write_czi(root / "tz.czi", [random((3, 1, 2, 12, 16))])
    return root


def names(dataset: str, data_dir: object) -> list[str]:
    return [str(row["name"]) for row in read_rows(dataset, str(data_dir))]


def test_rows_of_a_folder(folder: Path) -> None:
    """A scene is a row, and so is a time of several planes; a file of one picture keeps its name."""
    expected = ["one", "two/scene0", "two/scene1", "tz/time0", "tz/time1", "tz/time2"]
    assert sorted(names("folder", folder)) == sorted(expected)
    rows = {row["name"]: row["source"] for row in read_rows("folder", str(folder))}
    assert np.array_equal(rows["two/scene1"].read(), own_values(folder / "two.czi", 1, 2))
    assert rows["two/scene1"].header().path == folder / "two.czi#scene=1"
    assert rows["tz/time2"].header().shape == (1, 2, 12, 16)
    assert list(rows["two/scene0"].files()) == [folder / "two.czi"]
    assert str(rows["two/scene0"]) == f"{folder}/two.czi#scene=0"


def test_ten_scenes_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "bioio_lif", [random((1, 1, 1, 4, 5))] * 11)
    (tmp_path / "a.lif").write_bytes(bytes(9999))
    assert names("folder", tmp_path) == [f"a/scene{number}" for number in range(11)]


def test_rows_of_a_file_and_of_an_address(folder: Path) -> None:
    assert names("folder", folder / "two.czi") == ["two/scene0", "two/scene1"]
    (row,) = read_rows("folder", f"{folder}/two.czi#scene=1,channel=0")
    assert row["name"] == "two/scene1/channel0"
    assert np.array_equal(row["source"].read(), own_values(folder / "two.czi", 1, 2)[:1])
    (folder.parent / "labels.csv").write_text("two/scene1/channel0,cat\n")
    further = f"{folder}/two.czi#scene=1,channel=0,kind={folder.parent}/labels.csv"
    (labelled,) = read_rows("folder", further)
    assert labelled["kind"] == "cat"
    assert only_columns(further, []) == f"{folder}/two.czi#scene=1,channel=0"
    with pytest.raises(ValueError, match=r"two\.czi#scen=1: what follows # must be of scene=N"):
        read_rows("folder", f"{folder}/two.czi#scen=1")


def test_scenes_have_targets_in_a_folder_of_their_file(folder: Path) -> None:
    targets = folder.parent / "targets"
    for name in names("folder", folder / "two.czi"):
        (targets / name).parent.mkdir(parents=True, exist_ok=True)
        pictures.write(targets / f"{name}.tif", random((1, 12, 16)))
    (folder / "one.czi").unlink()
    (folder / "tz.czi").unlink()
    rows = read_rows("paired", f"{folder},{targets}")
    assert [row["target"].path.name for row in rows] == ["scene0.tif", "scene1.tif"]


def test_cells_of_a_table(folder: Path) -> None:
    """Channels of one file may be source and target; a cell with a comma stands in quotes."""
    table = folder / "a.csv"
    lines = [
        '"two.czi#scene=1,channel=0","two.czi#scene=1,channel=1"',
        '"two.czi#scene=0,channel=0",one.czi',
    ]
    table.write_text("\n".join(["source,target", *lines]))
    rows = read_rows("table", str(table))
    assert [row["name"] for row in rows] == ["two/scene1/channel0", "two/scene0/channel0"]
    values = own_values(folder / "two.czi", 1, 2)
    assert np.array_equal(rows[0]["source"].read(), values[:1])
    assert np.array_equal(rows[0]["target"].read(), values[1:])
    assert len(row_digests(rows[0])) == 2
    table.write_text("source,sar\none.czi,two.czi#sceen=1")
    with pytest.raises(ValueError, match="what follows # must be of"):
        read_rows("table", str(table))


def test_parts_of_one_file_differ(folder: Path) -> None:
    """In digests, so that scenes are not taken for copies of each other, in stamps, and in headers."""
    first, second = (cell_of(folder / f"two.czi#scene={scene}", "") for scene in range(2))
    assert isinstance(first, PartCell)
    assert value_digest(first) != value_digest(second)
    assert value_digest(first) != value_digest(cell_of(folder / "two.czi", ""))
    assert first.stamp() != second.stamp()
    rows = read_rows("folder", str(folder / "two.czi"))
    assert row_stamp(rows[0]) != row_stamp(rows[1])
    before = value_digest(first)
    write_czi(folder / "other.czi", SCENES[::-1])
    (folder / "other.czi").replace(folder / "two.czi")
    assert value_digest(first) != before


def test_a_damaged_file_is_one_row_that_says_so(folder: Path) -> None:
    """As in other formats: the rows of the folder are there, and reading that one says what is wrong."""
    (folder / "bad.czi").write_bytes(b"ZISRAWFILE" + bytes(300))
    rows = {row["name"]: row["source"] for row in read_rows("folder", str(folder))}
    assert len(rows) == 7
    with pytest.raises(ValueError, match=r"cannot read the picture .*bad\.czi"):
        rows["bad"].header()


def test_a_name_that_two_rows_have(folder: Path) -> None:
    (folder / "two").mkdir()
    pictures.write(folder / "two/scene1.png", random((1, 4, 5), "uint8"))
    with pytest.raises(ValueError, match="have the same name: rename or remove one"):
        read_rows("folder", str(folder))


def test_files_of_one_picture_are_not_opened_when_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Picture(np.zeros((1, 4, 4), np.uint8)).save(tmp_path / "a.tif")
    Picture(np.zeros((1, 4, 4), np.uint8)).save(tmp_path / "b.png")

    def opened(path: Path) -> str:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(formats, "reader_of", opened)
    assert [row["name"] for row in read_rows("folder", str(tmp_path))] == ["a", "b"]
