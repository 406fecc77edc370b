"""Content of pairs and their groups, by which a data set is compared with a training: 40 cases of overlap."""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm.data import provenance
from bbdm.data.pairs import Pairs, as_pairs
from bbdm.data.provenance import Trained, check_groups, contents, groups
from bbdm.data.rows import Row, read_rows
from bbdm.evaluation.calibration import check_unseen
from tests.conftest import noise

SIDES = ("A", "B")
Change = Callable[[Path, list[str], random.Random], list[Row]]


def save(folder: Path, names: list[str], first: int) -> None:
    """Pairs of small pictures of noise, which differ by their numbers from ``first`` on."""
    for index, name in enumerate(names):
        for side, letter in enumerate(SIDES):
            path = folder / letter / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(2 * (first + index) + side, 8, 8).save(path)


def rows_of(folder: Path, names: list[str]) -> list[Row]:
    sources = folder / "A"
    targets = folder / "B"
    return [{"name": name, "source": sources / f"{name}.png", "target": targets / f"{name}.png"} for name in names]


def same_files(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    return rows_of(folder, names)


def copied(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    """Copies of the files under their names, elsewhere, with other times."""
    for letter in SIDES:
        (folder / "copies" / letter).mkdir(parents=True)
        for name in names:
            shutil.copyfile(folder / letter / f"{name}.png", folder / "copies" / letter / f"{name}.png")
    return rows_of(folder / "copies", names)


def renamed(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    """Copies under other names."""
    rows = copied(folder, names, chance)
    others = chance.sample(range(100, 1000), len(rows))
    return [{**row, "name": f"new{number}"} for row, number in zip(rows, others, strict=True)]


def other_way(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    """The targets as sources, and the other way."""
    rows = rows_of(folder, names)
    return [{"name": row["name"], "source": row["target"], "target": row["source"]} for row in rows]


CHANGES: dict[str, Change] = {"same": same_files, "copied": copied, "renamed": renamed, "other way": other_way}


@pytest.mark.parametrize("how", CHANGES)
def test_pairs_that_were_in_training_are_refused_by_name(how: str, tmp_path: Path) -> None:
    """Ten cases of each: some of the training pairs or all of them, with pairs that are new or without."""
    chance = random.Random(how)
    for case in range(10):
        folder = tmp_path / str(case)
        names = [f"{index:02d}" for index in range(6)]
        new = [f"n{index}" for index in range(case % 3)]
        save(folder, names, 0)
        save(folder, new, 6)
        (folder / "config.json").write_text(json.dumps({"pairs": Pairs(rows_of(folder, names)).provenance()}))
        trained = Trained.of_file(folder / "w.pt")
        chosen = sorted(chance.sample(names, 6 if case == 0 else chance.randint(1, 6)))
        seen = CHANGES[how](folder, chosen, chance)
        rows = [*seen, *rows_of(folder, new)]
        chance.shuffle(rows)
        assert trained is not None
        overlap = trained.overlap(rows)
        assert {*overlap.pairs} == {row["name"] for row in seen}
        assert {*overlap.pairs.values()} == {*chosen}
        message = rf"^{len(seen)} of {len(rows)} pairs? (was|were) in training, by .*config\.json: (new\d|\d\d)"
        with pytest.raises(ValueError, match=message):
            check_unseen(Pairs(rows), trained)
        if new:
            check_unseen(Pairs(rows_of(folder, new)), trained)


def test_other_pictures_of_the_same_names_are_no_overlap(tmp_path: Path) -> None:
    """As in train/1.png and val/1.png; also a pair that shares its source alone, such as an empty slice."""
    save(tmp_path / "one", ["1", "2"], 0)
    save(tmp_path / "two", ["1", "2"], 2)
    shutil.copyfile(tmp_path / "one/A/1.png", tmp_path / "two/A/1.png")
    trained = Trained.of(rows_of(tmp_path / "one", ["1", "2"]), "one")
    check_unseen(Pairs(rows_of(tmp_path / "two", ["1", "2"])), trained)


def test_a_file_is_known_by_its_bytes_also_in_a_tar(tmp_path: Path) -> None:
    """Both halves of a photograph are one file."""
    (tmp_path / "data/val").mkdir(parents=True)
    noise(0, 16, 8).save(tmp_path / "data/val/a.png")
    content = (tmp_path / "data/val/a.png").read_bytes()
    halves = read_rows("edge2shoes", str(tmp_path / "data"), "val")
    assert contents(halves).digests == {"a": sha256(content).hexdigest()}
    save(tmp_path, ["a", "b"], 0)
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name in "ab":
            for letter, role in zip(SIDES, ("source", "target"), strict=True):
                picture = (tmp_path / letter / f"{name}.png").read_bytes()
                member = tarfile.TarInfo(f"{name}.{role}.png")
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
    table = read_rows("hub", str(tmp_path / "rows.tar"))
    assert contents(table).digests == contents(rows_of(tmp_path, ["a", "b"])).digests


def test_items_of_other_libraries_are_known_as_a_whole() -> None:
    def items(seed: int) -> list[Any]:
        pixels = np.random.default_rng(seed).random((4, 2, 3, 8, 8), np.float32) * 2 - 1
        return [tuple(each) for each in pixels]

    trained = Trained.of(as_pairs(items(0)).rows, "here")
    with pytest.raises(ValueError, match=r"^4 of 4 pairs were in training, by here: 0, 1, 2 and 1 more: calibrate on"):
        check_unseen(as_pairs(items(0)), trained)
    check_unseen(as_pairs(items(1)), trained)


def test_pictures_in_memory_and_sets_without_pairs(tmp_path: Path) -> None:
    save(tmp_path, ["a", "b"], 0)
    pixels = np.asarray(Image.open(tmp_path / "A/a.png")).transpose(2, 0, 1)
    one, same, other = ({"name": "x", "source": each} for each in (pixels, pixels.copy(), pixels.astype(np.float32)))
    digests = [contents([row]).digests["x"] for row in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    sets = read_rows("unpaired", f"{tmp_path}/A,{tmp_path}/B")
    path = tmp_path / "B/b.png"
    assert contents(sets).digests.keys() == {"A/a", "A/b", "B/a", "B/b"}
    assert contents(sets).digests["B/b"] == sha256(path.read_bytes()).hexdigest()


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
        ValueError, match=r"^1 group is on both sides of the split: 'film 2' \(c, and d for validation\)"
    ):
        check_groups(train, val)
    check_groups(train, val[:1])
    trained = Trained.of(train, "the training")
    with pytest.raises(ValueError, match=r"^1 group is in training too, by the training: 'film 2' \(of d\); calibrate"):
        check_unseen(Pairs(val), trained)
    check_unseen(Pairs(val[:1]), trained)
    (tmp_path / "table.csv").write_text("source,target,group\nval/A/a.png,val/B/a.png,film 3\n")
    assert [group for _, group in groups(read_rows("table", str(tmp_path / "table.csv")))] == ["film 3"]
    with pytest.raises(ValueError, match="group must be a CSV of lines NAME,GROUP, got masks"):
        read_rows("paired", f"{tmp_path}/train/A,{tmp_path}/train/B,group=masks")


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": 3}', '{"pairs": {"contents": []}}', "\udcff"])
def test_a_file_of_another_program_beside_weights_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    assert Trained.of_file(tmp_path / "w.pt") is None


def test_a_training_that_goes_on_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert after["contents"]["b"] != before["contents"]["b"]
    assert after["contents"] == Pairs(rows_of(tmp_path, names)).provenance()["contents"]
