"""What of a folder is a result: 40 changes of settings, and what is made anew, kept or refused of files."""

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm import ABridge, save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.cli import translate
from bbdm.data import provenance
from bbdm.data.kinds import Condition
from bbdm.data.spec import Spec
from bbdm.pictures import write
from bbdm.translation.record import Lines, Record
from tests.conftest import noise, tiny_unet

SETTINGS = {"seed": 0, "weights": "a" * 64}
NAMES = ("a.png", "b.png", "c.png")


def item(name: str) -> dict[str, Any]:
    return {"seeds": [0], "content": f"of {name}"}


def record(folder: Path, names: Collection[str] = NAMES, **changes: Any) -> Record:
    """What a command begins with."""
    settings: Mapping[str, Any] = {**SETTINGS, **changes.pop("settings", {})}
    return Record(folder, settings, names, **{"item": item, **changes})


def make(folder: Path, names: Collection[str], settings: Mapping[str, Any] = SETTINGS) -> None:
    """What a process does."""
    lines = Lines(folder, settings)
    for name in names:
        (folder / name).write_text(f"pixels of {name}")
        lines.add(folder / name, item(name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of three results of a run that ended."""
    begun = record(tmp_path / "out")
    make(tmp_path / "out", NAMES)
    begun.close()
    return tmp_path / "out"


def test_a_line_says_what_made_a_file(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [*NAMES]
    assert lines[0]["sha256"] == sha256(b"pixels of a.png").hexdigest()
    assert lines[0]["item"] == item("a.png")
    assert sorted(path.name for path in folder.iterdir()) == [
        *NAMES,
        "results.jsonl",
        "settings.json",
    ]
    assert record(folder).existing == {*NAMES}


@pytest.mark.parametrize("change", ["the file", "the source", "the seeds", "the line"])
def test_what_is_no_longer_what_would_be_made_is_made_anew(change: str, folder: Path) -> None:
    """The others are kept; what is made anew is deleted before, so that a kill leaves nothing of it."""

    def changed(name: str) -> dict[str, Any]:
        about = item(name)
        if name == "b.png" and change == "the source":
            about["content"] = "another picture"
        if name == "b.png" and change == "the seeds":
            about["seeds"] = [1]
        return about

    if change == "the file":
        (folder / "b.png").write_text("retouched")
    if change == "the line":  # of a process that was killed before it wrote it
        table = folder / "results.jsonl"
        table.write_text(
            "".join(line for line in table.read_text().splitlines(True) if "b.png" not in line)
        )
    again = record(folder, item=changed)
    assert again.existing == {"a.png", "c.png"}
    assert again.changed == ({"b.png"} if change != "the line" else set())
    assert not (folder / "b.png").exists()


def test_a_result_stays_where_its_source_cannot_be_read(folder: Path) -> None:
    """As on a share that is not mounted: it is not made anew, and so not deleted."""

    def unreadable(name: str) -> dict[str, Any]:
        if name == "b.png":
            raise FileNotFoundError("there is no picture")
        return item(name)

    assert record(folder, item=unreadable).existing == {*NAMES}
    assert (folder / "b.png").read_text() == "pixels of b.png"
    (folder / "b.png").write_text("retouched")
    assert record(folder, item=unreadable).existing == {"a.png", "c.png"}


def test_a_folder_that_grew_keeps_what_there_is_and_knows_it_later(folder: Path) -> None:
    begun = record(folder, [*NAMES, "d.png"])
    assert (begun.existing, begun.changed) == ({*NAMES}, set())
    make(folder, ["d.png"])
    begun.close()
    record(folder, ["d.png"]).close()  # of fewer
    assert record(folder, [*NAMES, "d.png"]).existing == {*NAMES, "d.png"}


def test_results_of_other_settings_are_refused_and_all_go_when_they_are_overwritten(
    folder: Path,
) -> None:
    with pytest.raises(
        ValueError, match=r"out holds results of other settings \(seed 0, now 1\): give another"
    ):
        record(folder, settings={"seed": 1})
    assert record(folder).existing == {*NAMES}
    begun = record(folder, ["a_mean.png"], settings={"seed": 1}, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["results.jsonl", "settings.json"]
    make(folder, ["a_mean.png"], {**SETTINGS, "seed": 1})
    begun.close()
    with pytest.raises(ValueError, match="seed 1, now 0"):
        record(folder)


def test_of_the_same_settings_those_that_are_asked_for_are_overwritten(folder: Path) -> None:
    assert record(folder, ["b.png"], overwrite=True).existing == set()
    assert sorted(path.name for path in folder.glob("*.png")) == ["a.png", "c.png"]
    assert record(folder).existing == {"a.png", "c.png"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_nothing_lists_are_refused_and_stay(overwrite: bool, folder: Path) -> None:
    """Without settings, and beside those that name others."""
    (folder / "mine.png").write_text("mine")
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "mine.png").write_text("mine")
    for where in (folder, folder.parent / "other"):
        with pytest.raises(
            ValueError, match=r"mine\.png exists, but no .*settings\.json says what made it"
        ):
            record(where, ["mine.png"], overwrite=overwrite)
        assert (where / "mine.png").read_text() == "mine"
    assert record(folder).existing == {*NAMES}


def test_lines_of_several_processes_and_one_that_was_cut_off(folder: Path) -> None:
    """A process that was killed while it wrote a line has written no result."""
    begun = record(folder, [*NAMES, "d.png", "e.png"])
    for name in ("d.png", "e.png"):
        make(folder, [name])
    part = next(path for path in folder.glob(".results.*.jsonl") if "e.png" in path.read_text())
    part.write_text(part.read_text()[:-20])
    del begun
    again = record(folder, [*NAMES, "d.png", "e.png"])
    assert again.existing == {*NAMES, "d.png"}
    assert not list(folder.glob(".*"))


def test_a_list_of_names_deletes_nothing_outside(folder: Path) -> None:
    (folder.parent / "precious.txt").write_text("mine")
    content = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**content, "results": ["../precious.txt"]}))
    with pytest.raises(ValueError, match=r"must be a relative path .*got '\.\./precious\.txt'"):
        record(folder, settings={"seed": 1}, overwrite=True)
    assert (folder.parent / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["{}", '{"settings": {}}', '{"settings": 3, "results": []}', "["]
)
def test_settings_of_another_form_are_refused(content: str, folder: Path) -> None:
    (folder / "settings.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"cannot read .*settings\.json: give another folder of results, or delete"
    ):
        record(folder)


def test_nothing_is_left_where_nothing_was_made(tmp_path: Path) -> None:
    record(tmp_path / "out").close()
    assert not (tmp_path / "out").exists()


# Settings

NETWORK: dict[str, Any] = {
    "condition_channels": 3,
    "attention_resolutions": (),
    "classes": {"style": ("a", "b")},
}
FLAGS = (  # with which results of no flags are refused
    "--solver ddim",
    "--solver sde-dpm2m",
    "--solver mean --steps 1",
    "--steps 2",
    "--steps 4",
    "--seed 1",
    "--seed 2",
    "-r 2",
    "-r 3",
    "--maps mean -r 2",
    "--maps std -r 2",
    "--maps mean,std -r 2",
    "--dtype bf16",
    "--image_size 8",
    "--image_size 8x16",
    "--image_size keep",
    "--window 8",
    "--window 8 --overlap 0.5",
    "--window 8 --margin 1",
    "--direction BtoA",
    "--split train",
    "--outside 7",
    "--condition style=b",
    "--guidance 2",
)
# each beside each other one
MAPS = ("--maps mean -r 2", "--maps std -r 2", "--maps mean,std -r 2", "-r 2")
FILES: dict[str, dict[str, Any]] = {  # what a network's file has in place of the first one's
    "weights": {"seed": 1},
    "steps of the bridge": {"bridge": ABridge(num_steps=60)},
    "noise of the bridge": {"bridge": ABridge(num_steps=50, c_lambda=1.0)},
    "objective": {"bridge": BrownianBridge(50, objective="pinned")},
}


def save_network(seed: int = 0, bridge: Any = None, **file: Any) -> None:
    bridge = bridge or ABridge(num_steps=50)
    save_checkpoint(
        "c.pt", tiny_unet(seed, **NETWORK), bridge, **{"image_size": 16, "pictures": KIND, **file}
    )


KIND = Spec(conditions={"style": Condition("class")})


def test_sources_are_hashed_once_for_all_of_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 samples of 2 sources, one result at a time."""
    monkeypatch.chdir(tmp_path)
    hashed: list[str] = []
    sha256_of = provenance.file_sha256
    monkeypatch.setattr(
        provenance, "file_sha256", lambda path: hashed.append(path.name) or sha256_of(path)
    )
    Path("data").mkdir()
    for index in range(2):
        noise(index).save(f"data/{index}.png")
    save_checkpoint("c.pt", tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=16)
    words = "folder data c.pt out --quiet --steps 2 --num_samples 3 --batch_size 1 --device cpu"
    translate.main(words.split())
    assert sorted(hashed) == ["0.png", "1.png"]


def test_changed_settings_never_keep_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By flags, one beside another, and what the network's file has: 40 changes."""
    monkeypatch.chdir(tmp_path)
    for index, split in enumerate(("train", "val")):
        (tmp_path / "data" / split).mkdir(parents=True)
        noise(index, 32, 16).save(f"data/{split}/a.png")
        (tmp_path / "m" / split).mkdir(parents=True)
        write(f"m/{split}/a.png", np.ones((1, 16, 16), np.uint8))

    def run(output: str, flags: str = "") -> None:
        words = f"edge2shoes data,mask=m/{{split}} c.pt {output} --quiet --steps 3 --condition style=a {flags}"
        translate.main(words.split())

    cases: list[str] = []

    def check(output: str, flags: str, what: str) -> None:
        before = {path: path.read_bytes() for path in Path(output).glob("*.png")}
        with pytest.raises(ValueError, match=rf"^{output} holds results of other settings \("):
            run(output, flags)
        assert before == {path: path.read_bytes() for path in Path(output).glob("*.png")}
        cases.append(what)

    save_network()
    run("out")
    for flags in FLAGS:
        check("out", flags, flags)
    for number, flags in enumerate(MAPS):
        run(str(number), flags)
    for one, other in permutations(range(len(MAPS)), 2):
        check(str(one), MAPS[other], f"{MAPS[one]}, then {MAPS[other]}")
    for what, file in FILES.items():
        save_network(**file)
        check("out", "", what)
    save_network()
    run("out")  # as before
    assert len(cases) == 40
