"""What a training and other pairs have in common: 40 cases of pairs, and pictures that are in others."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm.data.mapped import as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import Record
from bbdm.data.rows import Row, read_rows
from bbdm.data.trained import Origin, Trained
from bbdm.evaluation.calibration import check_unseen
from tests.conftest import noise
from tests.data.test_provenance import SIDES, rows_of, save

Change = Callable[[Path, list[str], random.Random], list[Row]]


def same_files(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    return rows_of(folder, names)


def copied(folder: Path, names: list[str], chance: random.Random) -> list[Row]:
    """Copies of the files under their names, elsewhere, with other times."""
    for letter in SIDES.values():
        (folder / "copies" / letter).mkdir(parents=True)
        for name in names:
            shutil.copyfile(
                folder / letter / f"{name}.png", folder / "copies" / letter / f"{name}.png"
            )
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


CHANGES: dict[str, Change] = {
    "same": same_files,
    "copied": copied,
    "renamed": renamed,
    "other way": other_way,
}


def write(folder: Path, record: Record) -> Origin:
    """What a run writes of its pairs; and what a file of weights in its folder says."""
    record.write(folder)
    return Origin(folder / "w.pt", folder, record.identity)


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
        trained = Trained.of_origin(write(folder, Pairs(rows_of(folder, names)).provenance()))
        chosen = sorted(chance.sample(names, 6 if case == 0 else chance.randint(1, 6)))
        seen = CHANGES[how](folder, chosen, chance)
        rows = [*seen, *rows_of(folder, new)]
        chance.shuffle(rows)
        assert trained is not None
        overlap = trained.overlap(Pairs(rows))
        assert {*overlap.pairs} == {row["name"] for row in seen}
        assert {*overlap.pairs.values()} == {*chosen}
        message = rf"^{len(seen)} of {len(rows)} pairs? (was|were) in training, by .*: (new\d|\d\d)"
        with pytest.raises(ValueError, match=message):
            check_unseen(Pairs(rows), trained)
        if new:
            check_unseen(Pairs(rows_of(folder, new)), trained)


def test_other_pictures_of_the_same_names_are_no_overlap(tmp_path: Path) -> None:
    """As in train/1.png and val/1.png."""
    save(tmp_path / "one", ["1", "2"], 0)
    save(tmp_path / "two", ["1", "2"], 2)
    trained = Trained.of(rows_of(tmp_path / "one", ["1", "2"]), "one")
    check_unseen(Pairs(rows_of(tmp_path / "two", ["1", "2"])), trained)


def refused(pairs: Pairs, trained: Trained, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: calibrate on others$"):
        check_unseen(pairs, trained)


def test_a_target_or_a_source_of_a_training_pair_is_refused_by_name(tmp_path: Path) -> None:
    """With another source, or another target; of three pairs, each has its reason."""
    names = ["1", "2", "3"]
    save(tmp_path / "one", names, 0)
    save(tmp_path / "two", names, 3)
    trained = Trained.of(rows_of(tmp_path / "one", names), "here")
    shutil.copyfile(tmp_path / "one/B/3.png", tmp_path / "two/B/1.png")
    rows = rows_of(tmp_path / "two", names)
    refused(
        Pairs(rows), trained, r"the target of 1 of 3 pairs was in training, by here: 1 \(as 3\)"
    )
    shutil.copyfile(tmp_path / "one/A/2.png", tmp_path / "two/A/2.png")
    shutil.copyfile(tmp_path / "one/A/1.png", tmp_path / "two/A/3.png")
    refused(
        Pairs(rows[1:]),
        trained,
        r"the sources of 2 of 2 pairs were in training, by here: 2, 3 \(as 1\)",
    )
    shutil.copyfile(tmp_path / "one/B/2.png", tmp_path / "two/B/2.png")
    message = r"1 of 3 pairs were in training, by here: 2; the target of 1 of 3 pairs was in training: 1 \(as 3\); "
    refused(
        Pairs(rows), trained, message + r"the source of 1 of 3 pairs was in training: 3 \(as 1\)"
    )
    overlap = trained.overlap(Pairs(rows))
    assert (overlap.pairs, overlap.targets, overlap.sources) == ({"2": "2"}, {"1": "3"}, {"3": "1"})


def test_a_source_that_several_training_pairs_share_is_no_overlap(tmp_path: Path) -> None:
    """Such as a blank one; the target beside it counts. One whose target has changed is no other pair."""
    names = ["1", "2", "3"]
    save(tmp_path, names, 0)
    for name in names[1:]:
        shutil.copyfile(tmp_path / "A/1.png", tmp_path / "A" / f"{name}.png")
    rows = rows_of(tmp_path, names)
    trained = Trained.of(rows[:2], "here")
    check_unseen(Pairs(rows[2:]), trained)
    refused(Pairs(rows[1:]), trained, "1 of 2 pairs were in training, by here: 2")
    record = Trained.of(rows[:1], "here").record
    before = Record({"1": [record.contents["1"][0], "another target"]}, {}, [])
    message = r"the source of 1 of 1 pair was in training, by here: 3 \(as 1\)"
    refused(Pairs(rows[2:]), Trained("here", record.after(before)), message)


def test_sets_without_pairs_and_pairs_of_the_same_files(tmp_path: Path) -> None:
    """Either way; a set that shares nothing is no overlap."""
    save(tmp_path, ["1", "2"], 0)
    save(tmp_path / "new", ["3"], 2)
    sets = read_rows("unpaired", f"{tmp_path}/A,{tmp_path}/B")
    pairs = rows_of(tmp_path, ["1", "2"])
    new = rows_of(tmp_path / "new", ["3"])
    seen = r"the targets of 2 of 3 pairs were in training, by here: 1 \(as B/1\), 2 \(as B/2\)"
    refused(Pairs([*pairs, *new]), Trained.of(sets, "here"), seen)
    turned = [{"name": "1", "source": pairs[0]["target"], "target": new[0]["target"]}]
    seen = r"the source of 1 of 1 pair was in training, by here: 1 \(as B/1\)"
    refused(Pairs(turned), Trained.of(sets, "here"), seen)
    overlap = Trained.of(pairs[:1], "here").overlap(Pairs(sets))
    assert str(overlap) == "2 of 4 pictures were in training, by here: A/1 (as 1), B/1 (as 1)"
    for trained, rows in ((sets, new), (new, sets)):
        assert str(Trained.of(trained, "here").overlap(Pairs(rows))) == ""


def test_what_was_trained_on_before_is_kept(tmp_path: Path) -> None:
    """Of files that have changed, or are gone, and of another training; also after a second change."""
    names = ["1", "2"]
    save(tmp_path / "old", names, 0)
    save(tmp_path / "now", names, 2)
    old, now = (Pairs(rows_of(tmp_path / folder, names)) for folder in ("old", "now"))
    record = now.provenance().after(old.provenance())
    write(tmp_path, record)
    assert Record.read(tmp_path, record.identity) == record
    again = now.provenance().after(record).after(old.provenance())
    assert again == record  # nothing twice
    third = Pairs(rows_of(tmp_path / "now", names[:1])).provenance().after(record)
    for pairs, where in ((old, record), (old, third), (now, third)):
        refused(pairs, Trained("here", where), "2 of 2 pairs were in training, by here: 1, 2")


def blank(path: Path, size: int = 8) -> None:
    Image.new("L", (size, size), 0).save(path)


def test_constant_pictures_are_no_overlap(tmp_path: Path) -> None:
    """Such as the empty masks of two scans; what is beside them counts. Also of one size, and of halves."""
    names = ["1", "2"]
    for folder, first in (("one", 0), ("two", 2)):
        save(tmp_path / folder, names, first)
        blank(tmp_path / folder / "A/1.png")
        blank(tmp_path / folder / "B/2.png")
    trained = Trained.of(rows_of(tmp_path / "one", names), "here")
    new = rows_of(tmp_path / "two", names)
    check_unseen(Pairs(new), trained)
    sets = read_rows("unpaired", f"{tmp_path}/two/A,{tmp_path}/two/B")
    assert trained.overlap(Pairs(sets)).names == {}
    shutil.copyfile(tmp_path / "one/B/1.png", tmp_path / "two/B/1.png")
    refused(Pairs(new), trained, "1 of 2 pairs were in training, by here: 1")
    blank(tmp_path / "one/A/2.png", 6)
    blank(tmp_path / "two/A/2.png", 6)
    trained = Trained.of(rows_of(tmp_path / "one", names[1:]), "here")
    assert trained.overlap(Pairs(new[1:])).names == {}
    halves = tmp_path / "halves/val"
    halves.mkdir(parents=True)
    half_blank = noise(9, 16, 8)
    half_blank.paste(0, (0, 0, 8, 8))
    half_blank.save(halves / "a.png")
    rows = read_rows("edge2shoes", str(tmp_path / "halves"), "val")
    refused(Pairs(rows), Trained.of(rows, "here"), "1 of 1 pair was in training, by here: a")


def test_a_record_is_of_the_weights_whose_files_name_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the run's folder as the file names it, moved beside the file, or that of the file's name."""
    records = {name: Record({name: ["0"]}, {}, [], [], []) for name in ("w.run", "elsewhere")}
    for folder, record in records.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, record)
    path = tmp_path / "w.pt"
    places = [
        (None, "w.run"),
        (tmp_path / "w.run", "elsewhere"),
        (Path("/gone/elsewhere"), "elsewhere"),
    ]
    for run, name in places:
        identity = records[name].identity
        trained = Trained.of_origin(Origin(path, run, identity), tmp_path / "elsewhere")
        assert trained is not None
        assert [*trained.record.contents] == [name]
    later = Record({"new": ["1"]}, {}, []).after(records["w.run"])
    write(tmp_path / "w.run", later)  # which earlier weights have not seen
    for record in (later, records["w.run"]):
        assert Trained.of_origin(Origin(path, None, record.identity)) == Trained(
            f"{tmp_path}/w.run", record
        )
    assert caplog.messages == []
    unknown = [
        Origin(path, None, "../w.run/records/a"),
        Origin(path, None, "0123456789abcdef"),
        Origin(tmp_path / "other/w.pt"),
        None,
    ]
    assert [Trained.of_origin(origin) for origin in unknown] == [None] * 4
    beginning = "no record says which pairs were in the training of"
    assert [message[: len(beginning)] for message in caplog.messages] == [beginning] * 4
    assert f"{tmp_path}/other/w.pt: they" in caplog.messages[2]


def test_what_no_record_says_of_an_earlier_training_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record({"a": ["1"]}, {}, [], unknown=["start.pt"])
    later = Record({"b": ["2"]}, {}, []).after(record)
    assert len({Record({"a": ["1"]}, {}, []).identity, record.identity, later.identity}) == 3
    assert Trained.of_origin(write(tmp_path, later)) is not None
    assert caplog.messages == [
        f"no record says which pairs were in the training of start.pt, from which {tmp_path}/w.pt goes on: they "
        "cannot be told from new ones"
    ]


def test_items_of_other_libraries_are_known_as_a_whole() -> None:
    def items(seed: int) -> list[Any]:
        pixels = np.random.default_rng(seed).random((4, 2, 3, 8, 8), np.float32) * 2 - 1
        return [tuple(each) for each in pixels]

    trained = Trained.of(as_pairs(items(0)).rows, "here")
    with pytest.raises(
        ValueError,
        match=r"^4 of 4 pairs were in training, by here: 0, 1, 2 and 1 more: calibrate on",
    ):
        check_unseen(as_pairs(items(0)), trained)
    check_unseen(as_pairs(items(1)), trained)


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": 3}', '{"contents": []}', "\udcff"])
def test_a_file_of_another_program_beside_weights_says_nothing(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records/0123456789abcdef.json").write_text(content, errors="surrogateescape")
    assert Trained.of_origin(Origin(tmp_path / "w.pt", None, "0123456789abcdef")) is None
