"""Layouts and kinds of conditions that are added from outside, in commands."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbdm import cli, load_checkpoint
from bbdm.base import scripts
from bbdm.data.kinds import CONDITION_KINDS, ClassKind, register_condition
from bbdm.data.pairs import Pairs
from bbdm.data.rows import DATASETS, read_rows, register_layout, with_columns
from bbdm.data.spec import read_kinds
from tests.data.making import pixels, save

MODULE = """
from pathlib import Path
import numpy as np
import torch
from bbdm import data, networks

def scans(data_dir, split, columns):
    folders = sorted(Path(data_dir, split).iterdir())
    rows = [{"name": each.name, "source": each / "in.png", "target": each / "out.png"} for each in folders]
    return data.with_columns(rows, columns)

class Number(data.ConditionKind):
    network = "tokens"

    def size(self, name, rows, reader):
        return 1

    def read(self, condition):
        return np.array([[float(condition.cell)]], np.float32)

@networks.register("aged", call=lambda module, x, t, seen: module(x) + seen["age"].mean((1, 2))[:, None, None, None])
def aged(config):
    return torch.nn.Conv2d(config.channels, config.channels, 3, padding=1)

data.register_layout("scans", scans)
data.register_condition("number", Number)
"""
LINES = (
    "train scans data,age=ages.csv out.pt --preset aged --image_size 16 -b 2 -e 1 --condition age=number",
    "translate scans data,age=ages.csv out.pt results --steps 1",
)


@pytest.fixture
def module(own_names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``scanner.py`` in the working directory, of which the names are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(scripts, "imported", [])
    Path("scanner.py").write_text(MODULE)
    yield
    sys.modules.pop("scanner", None)


def scans(*splits: str) -> None:
    for split in splits:
        for number in range(2):
            for name in ("in", "out"):
                save(Path("data", split, f"p{number}", f"{name}.png"), pixels(number, 16, 16))
    Path("ages.csv").write_text("p0,41\np1,67.5\n")


def test_a_module_adds_a_layout_and_a_kind_of_conditions_to_commands(module: None) -> None:
    scans("train", "val")
    for line in LINES:
        cli.main(["--import", "scanner", *line.split()])
    checkpoint = load_checkpoint("out.pt")
    assert checkpoint.unet.config.tokens == {"age": 1}
    assert sorted(path.name for path in Path("results").glob("p*.png")) == ["p0.png", "p1.png"]
    rows = read_rows("scans", "data,age=ages.csv")
    pairs = Pairs(rows, checkpoint.pictures)
    assert [pairs.conditions(row)["age"].tolist() for row in rows] == [[[41.0]], [[67.5]]]
    del vars(DATASETS)["_things"]["scans"]
    del vars(CONDITION_KINDS)["_things"]["number"]
    with pytest.raises(
        ValueError, match=r"the condition 'age' is of the kind 'number', and known are .*--import"
    ):
        Pairs(rows, checkpoint.pictures)
    with pytest.raises(ValueError, match=r"dataset must be one of .*, got 'scans'"):
        read_rows("scans", "data")


def test_a_condition_that_a_kind_cannot_read_is_of_its_row(module: None) -> None:
    scans("train", "val")
    cli.main(["--import", "scanner", *LINES[0].split()])
    Path("ages.csv").write_text("p0,41\np1,abc\n")
    with pytest.raises(
        SystemExit, match=r"^error: data/val/p1/in\.png: could not convert string to float: 'abc'$"
    ):
        cli.run("translate", LINES[1].split()[1:])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"name": "a", "target": Path("a.png")}],
            "row 0 has no source: a row needs a name and a source",
        ),
        (
            [{"source": Path("a.png")}],
            "row 0 has no name: a row needs a name and a source, and has source",
        ),
        (
            [{"name": "a", "source": Path("a.png")}, {"name": "a", "source": Path("b.png")}],
            r"a\.png \(row 0\) and b\.png \(row 1\) have the same name, 'a'",
        ),
    ],
)
def test_rows_of_a_layout_that_lack_what_rows_need_are_named(
    own_names: None, rows: Any, message: str
) -> None:
    register_layout("mine", lambda data_dir, split, columns: rows)
    register_layout("with columns", lambda data_dir, split, columns: with_columns(rows, columns))
    for layout in ("mine", "with columns"):
        with pytest.raises(ValueError, match=message):
            read_rows(layout, ".")


def test_a_text_is_a_label_and_no_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", pixels(0))
    with pytest.raises(
        ValueError,
        match=r"the picture .*a\.png must be a pathlib\.Path, got a text, which is a label",
    ):
        Pairs([{"name": "a", "source": str(path), "target": path}])
    with pytest.raises(ValueError, match=r"there is no picture .*b\.png"):
        Pairs([{"name": "a", "source": str(tmp_path / "b.png"), "target": path}])
    with pytest.raises(ValueError, match="a has no source"):
        Pairs([{"name": "a", "target": path}])


def test_names_are_taken_once() -> None:
    register_condition("class", ClassKind)  # a cell of a notebook that runs twice
    with pytest.raises(ValueError, match="the kind of conditions 'image' is taken by"):
        register_condition("image", ClassKind)
    with pytest.raises(ValueError, match="the layout 'paired' is taken by"):
        register_layout("paired", lambda data_dir, split, columns: [])
    with pytest.raises(
        ValueError, match="KIND being one of image, class, tokens, or image@LOW:HIGH, with commas"
    ):
        read_kinds("age=number")
