"""A command is a dataclass: flags, positions, help and checks follow from its fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from bbdm.base.scripts import Command
from bbdm.base.settings import from_values, position, setting
from bbdm.pictures.images import Size, read_size

SHAPES = {"round": 1, "square": 2}  # a table that grows


@dataclass(frozen=True, kw_only=True)
class Numbers:
    number: int = setting(3, "a count", "-n", "--count", least=1)
    rate: float = setting(0.5, "a rate")
    hidden: int = 7  # no flag
    size_of_it: int = setting(1, "a flag of others", least=1)


@dataclass(frozen=True, kw_only=True)
class Draw(Command, Numbers):
    """Draw what is read.

    A line below.

    Raises:
        ValueError: is no part of the help.
    """

    HEADING: ClassVar[str] = "pictures"
    FIRST: ClassVar[str] = "source output number"
    DECIDING: ClassVar[str] = "preset"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"size_of_it"})

    output: Path | None = position("where to write", None)
    source: Path = position("what to read")
    preset: str = setting("small", "decides defaults", choices=["small", "large"])
    kind: Literal["a", "b"] | None = setting(None, "a kind")
    channels: Literal[1, 3] = setting(3, "of pictures")
    flip: bool = setting(False, "mirror", group="changes")
    size: Size | None = setting(8, "of pictures", parse=read_size)
    names: tuple[str, ...] = setting((), "of it", metavar="NAME")
    tag: tuple[str, ...] = setting((), "of it", repeated=True)
    shape: str | None = setting(None, "of it", choices=SHAPES)

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"number": 9, "flip": True} if values.get("preset") == "large" else {}


@dataclass(frozen=True, kw_only=True)
class Join(Command):
    files: tuple[Path, ...] = position("what to read", metavar="FILE")
    to: Path = setting(..., "where to write", "-o")


def text(command: type[Command], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        command.parse([*words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {}),
        ("out", {"output": Path("out")}),
        ("-n 5", {"number": 5}),
        ("--count 5", {"number": 5}),
        ("--number 5", {"number": 5}),
        ("--rate 1e-3", {"rate": 1e-3}),
        ("--kind b", {"kind": "b"}),
        ("--channels 1", {"channels": 1}),
        ("--flip", {"flip": True}),
        ("--size 8x16", {"size": (8, 16)}),
        ("--names a b", {"names": ("a", "b")}),
        ("--tag a --tag b", {"tag": ("a", "b")}),
        ("--shape square", {"shape": "square"}),
        ("--preset large", {"preset": "large", "number": 9, "flip": True}),
        ("--no-flip -n 3 --preset large", {"preset": "large"}),
    ],
)
def test_words_and_values_make_one_command(words: str, values: dict[str, Any]):
    assert Draw.parse(["in", *words.split()]) == Draw(source=Path("in"), **values)


@pytest.mark.parametrize(
    ("words", "named"),
    [("in", {"source"}), ("in -n 3", {"source", "number"}), ("in --preset large", {"source", "preset"})],
)
def test_what_was_named_is_known_also_where_it_is_the_default(words: str, named: set[str]):
    assert Draw.parse(words.split()).named - {"output"} == named  # a position that may be left out may count
    assert Draw.of(source="in", number=3).named == {"source", "number"}


def test_a_table_of_choices_may_grow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match=r"shape must be one of \('round', 'square'\), got 'oval'"):
        Draw.of(source="in", shape="oval")
    monkeypatch.setitem(SHAPES, "oval", 3)
    assert Draw.parse(["in", "--shape", "oval"]) == Draw.of(source=Path("in"), shape="oval")
    assert "round,square,oval" in text(Draw, capsys)


def test_positions_that_are_several_and_flags_that_are_needed(capsys: pytest.CaptureFixture[str]):
    assert Join.parse(["a", "b", "-o", "c"]) == Join.of(files=(Path("a"), Path("b")), to="c")
    with pytest.raises(SystemExit):
        Join.parse(["a"])
    assert "required: -o/--to" in capsys.readouterr().err


def test_python_callers_meet_presets_paths_and_parts():
    command = Draw.of(source="in", preset="large", rate=2.0)
    assert (command.source, command.number, command.flip, command.rate) == (Path("in"), 9, True, 2.0)
    assert from_values(Numbers, vars(command)) == Numbers(number=9, rate=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": 0}, "number must be at least 1, got 0"),
        ({"size_of_it": 0}, "size_of_it must be at least 1, got 0"),
        ({"number": float("nan")}, "number must be at least 1, got nan"),
        ({"kind": "c"}, r"kind must be one of .*, got 'c'"),
        ({"channels": 2}, r"channels must be one of .*, got 2"),
        ({"channels": None}, r"channels must be one of .*, got None"),
        ({"preset": "huge"}, r"preset must be one of .*, got 'huge'"),
    ],
)
def test_what_is_refused_in_python(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Draw(source=Path("in"), **values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("in --kind c", "--kind: invalid choice: 'c'"),
        ("in --number many", "--number: invalid int value: 'many'"),
        ("in --size 8x", "--size: a size is written as 256, or as 256x512 for height x width, got '8x'"),
        ("in --hidden 1", "unrecognized arguments: --hidden"),
        ("in --size_of_it 1", "unrecognized arguments: --size_of_it"),
        ("", "the following arguments are required: SOURCE"),
    ],
)
def test_words_that_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        Draw.parse(words.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_value_that_a_check_refuses_is_an_error_of_the_command():
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        Draw.main(["in", "-n", "0"])


def test_the_help_shows_what_is_used_most_first_then_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "100")
    shown = text(Draw, capsys)
    assert shown.startswith("usage: bbdm draw SOURCE [OUTPUT] [flags]\n\nDraw what is read.\n\nwhat is used most:")
    assert shown.endswith("\n\nA line below.\n")
    rows = [line.split("  ")[0] if line[:1] != " " else line.split()[0] for line in shown.splitlines() if line]
    order = ["SOURCE", "OUTPUT", "-n,", "base:", "--rate", "pictures:", "--preset", "--kind", "changes:", "--flip"]
    assert [row for row in rows if row in order] == order
    assert "a count (default: 3)" in shown
    assert "--no-flip" not in shown
    assert "decides defaults" in shown
    large = text(Draw, capsys, "--preset", "large")
    assert "a count (default: 9)" in large
    assert "--flip, --no-flip" in large
