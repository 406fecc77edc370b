"""Content of pairs and their groups, by which a data set is compared with a training."""

import io
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm.data import provenance
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import check_groups, contents, groups, same_rows
from bbdm.data.rows import Row, read_rows
from bbdm.data.trained import Trained
from bbdm.evaluation.calibration import check_unseen
from tests.conftest import noise

SIDES = {"source": "A", "target": "B"}


def save(folder: Path, names: list[str], first: int) -> None:
    """Pairs of small pictures of noise, which differ by their numbers from ``first`` on."""
    for index, name in enumerate(names):
        for side, letter in enumerate(SIDES.values()):
            path = folder / letter / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(2 * (first + index) + side, 8, 8).save(path)


def rows_of(folder: Path, names: list[str]) -> list[Row]:
    sources = folder / "A"
    targets = folder / "B"
    return [
        {"name": name, "source": sources / f"{name}.png", "target": targets / f"{name}.png"}
        for name in names
    ]


def test_a_file_is_known_by_its_bytes_also_in_a_tar(tmp_path: Path) -> None:
    """Both halves of a photograph are one file."""
    (tmp_path / "data/val").mkdir(parents=True)
    noise(0, 16, 8).save(tmp_path / "data/val/a.png")
    content = (tmp_path / "data/val/a.png").read_bytes()
    halves = read_rows("edge2shoes", str(tmp_path / "data"), "val")
    assert contents(halves).digests == {"a": [sha256(content).hexdigest()]}
    save(tmp_path, ["a", "b"], 0)
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name in "ab":
            for role, letter in SIDES.items():
                picture = (tmp_path / letter / f"{name}.png").read_bytes()
                member = tarfile.TarInfo(f"{name}.{role}.png")
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
    table = read_rows("hub", str(tmp_path / "rows.tar"))
    assert contents(table).digests == contents(rows_of(tmp_path, ["a", "b"])).digests


def test_pictures_in_memory_and_sets_without_pairs(tmp_path: Path) -> None:
    save(tmp_path, ["a", "b"], 0)
    pixels = np.asarray(Image.open(tmp_path / "A/a.png")).transpose(2, 0, 1)
    one, same, other = (
        {"name": "x", "source": each} for each in (pixels, pixels.copy(), pixels.astype(np.float32))
    )
    digests = [contents([row]).digests["x"] for row in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    sets = read_rows("unpaired", f"{tmp_path}/A,{tmp_path}/B")
    path = tmp_path / "B/b.png"
    assert contents(sets).digests.keys() == {"A/a", "A/b", "B/a", "B/b"}
    assert contents(sets).digests["B/b"] == [sha256(path.read_bytes()).hexdigest()]


def test_groups_on_both_sides_are_refused_by_name(tmp_path: Path) -> None:
    """From a CSV beside a layout, and a column of a table, where they are no paths."""
    save(tmp_path / "train", ["a", "b", "c"], 0)
    save(tmp_path / "val", ["a", "d"], 3)
    (tmp_path / "train.csv").write_text("a,film 1\nb,film 2\nc,film 2\n")
    (tmp_path / "val.csv").write_text("a,film 3\nd,film 2\n")
    (tmp_path / "film 3").mkdir()
    data = f"{tmp_path}/{{split}}/A,{tmp_path}/{{split}}/B,group={tmp_path}/{{split}}.csv"
    train, val = (read_rows("paired", data, split) for split in ("train", "val"))
    assert groups(val) == [("a", "film 3"), ("d", "film 2")]
    with pytest.raises(
        ValueError,
        match=r"^1 group is on both sides of the split: 'film 2' \(c, and d for validation\)",
    ):
        check_groups(train, val)
    check_groups(train, val[:1])
    trained = Trained.of(train, "the training")
    with pytest.raises(
        ValueError,
        match=r"^1 group is in training too, by the training: 'film 2' \(of d\); calibrate",
    ):
        check_unseen(Pairs(val), trained)
    check_unseen(Pairs(val[:1]), trained)
    (tmp_path / "table.csv").write_text("source,target,group\nval/A/a.png,val/B/a.png,film 3\n")
    assert [group for _, group in groups(read_rows("table", str(tmp_path / "table.csv")))] == [
        "film 3"
    ]
    with pytest.raises(ValueError, match="group must be a CSV of lines NAME,GROUP, got masks"):
        read_rows("paired", f"{tmp_path}/train/A,{tmp_path}/train/B,group=masks")


def test_a_training_that_goes_on_reads_only_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large data sets, to read all again at each start would take minutes."""
    names = ["a", "b", "c"]
    save(tmp_path, names, 0)
    before = Pairs(rows_of(tmp_path, names)).provenance()
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(provenance, "file_sha256", counted)
    assert Pairs(rows_of(tmp_path, names)).provenance(before) == before
    assert read == []
    noise(9, 9, 8).save(tmp_path / "B" / "b.png")
    after = Pairs(rows_of(tmp_path, names)).provenance(before)
    assert sorted(read) == ["b.png", "b.png"]  # of the source and the target of one pair
    assert after.contents["b"] != before.contents["b"]
    assert after.contents == Pairs(rows_of(tmp_path, names)).provenance().contents


def test_a_value_in_memory_that_changes_beside_a_file_is_read_again(tmp_path: Path) -> None:
    """Its row has no stamp, since nothing but the value itself says that it is another."""
    save(tmp_path, ["a"], 0)
    zeros = np.zeros((3, 8, 8), np.uint8)
    rows = [
        {"name": "a", "source": tmp_path / "A/a.png", "target": target}
        for target in (zeros, zeros + 1)
    ]
    first, second = (Pairs([row]) for row in rows)
    before = first.provenance()
    assert before.stamps == {}
    assert second.provenance(before).contents == second.provenance().contents != before.contents


def test_a_table_is_the_same_whatever_part_it_is_read_as(tmp_path: Path) -> None:
    """A file without `{split}` in its path has the training pairs for validation too."""
    import datasets

    save(tmp_path, ["a", "b"], 0)
    for file, names in (("all", "ab"), ("one", "a")):
        pictures = {
            role: [str(tmp_path / side / f"{name}.png") for name in names]
            for role, side in SIDES.items()
        }
        table = datasets.Dataset.from_dict(pictures)
        for role in pictures:
            table = table.cast_column(role, datasets.Image())
        table.to_parquet(tmp_path / f"{file}.parquet")
    train, val = (
        read_rows("hub", str(tmp_path / "all.parquet"), split) for split in ("train", "val")
    )
    assert same_rows(train, val)
    assert not same_rows(train, read_rows("hub", str(tmp_path / "one.parquet"), "val"))
