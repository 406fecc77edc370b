"""A command is a dataclass, of which flags, positions, help and checks follow; and how commands end."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from bbdm.base import scripts
from bbdm.base.scripts import Command
from bbdm.base.settings import ShownConfig, from_command, position, setting
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
    FIRST: ClassVar[str] = "output number"
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
    shape: str | None = setting(None, "of it", choices=SHAPES)
    parts: tuple[str, ...] = setting((), "of it", choices=SHAPES)

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"number": 9, "flip": True} if values.get("preset") == "large" else {}


@dataclass(frozen=True, kw_only=True)
class Write(Command):
    folder: Path = position("where to write", Path("out"), names=("-o",))


@pytest.mark.parametrize("words", [["there"], ["-o", "there"]])
def test_a_position_that_may_be_left_out_may_have_a_flag(words: list[str]):
    assert Write.parse(words) == Write(folder=Path("there"))
    assert Write.parse([]) == Write(folder=Path("out"))


def test_a_position_and_its_flag_exclude_each_other(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        Write.parse(["there", "-o", "here"])
    assert capsys.readouterr().err.startswith("error: FOLDER and -o are the same: give one")


@dataclass(frozen=True, kw_only=True)
class Join(Command):
    files: tuple[Path, ...] = position("what to read", metavar="FILE")
    to: Path = setting(..., "where to write", "-o")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {}),
        ("out", {"output": Path("out")}),
        *((f"{flag} 5", {"number": 5}) for flag in ("-n", "--count", "--number")),
        ("--rate 1e-3", {"rate": 1e-3}),
        ("--kind b --channels 1", {"kind": "b", "channels": 1}),
        ("--flip", {"flip": True}),
        ("--size 8x16", {"size": (8, 16)}),
        ("--names a b --names c", {"names": ("a", "b", "c")}),
        ("--shape square --parts round square", {"shape": "square", "parts": ("round", "square")}),
        ("--preset large", {"preset": "large", "number": 9, "flip": True}),
        ("--no-flip -n 3 --preset large", {"preset": "large"}),
        ("--names -1024:3071:HU -1 -.5:1", {"names": ("-1024:3071:HU", "-1", "-.5:1")}),
    ],
)
def test_words_and_values_make_one_command(words: str, values: dict[str, Any]):
    """What was named is known, also where it is the default; a position that may be left out may count."""
    parsed = Draw.parse(["in", *words.split()])
    assert parsed == Draw(source=Path("in"), **values)
    flags = {"-n": "number", "--count": "number", "--no-flip": "flip"}
    named = {
        flags.get(word, word.lstrip("-"))
        for word in words.split()
        if word[:2] == "--" or word in flags
    }
    assert parsed.named - {"output"} == {"source", *named}


def test_python_callers_meet_presets_paths_and_parts():
    command = Draw.of(source="in", preset="large", rate=2.0)
    assert (command.source, command.number, command.flip, command.rate) == (
        Path("in"),
        9,
        True,
        2.0,
    )
    assert command.named == {"source", "preset", "rate"}
    assert from_command(Numbers, command) == Numbers(number=9, rate=2.0)
    assert Join.parse(["a", "b", "-o", "c"]) == Join.of(files=(Path("a"), Path("b")), to="c")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": 0}, "number must be at least 1, got 0"),
        ({"number": float("nan")}, "number must be at least 1, got nan"),
        ({"kind": "c"}, r"kind must be one of .*, got 'c'"),
        ({"channels": None}, r"channels must be one of .*, got None"),
        ({"parts": ("round", "oval")}, r"parts must be one of \('round', 'square'\), got 'oval'"),
    ],
)
def test_what_is_refused_in_python(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Draw.of(source=Path("in"), **values)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (Draw, "in --kind c", "--kind: invalid choice: 'c'"),
        (
            Draw,
            "in --size 8x",
            "--size: a size is written as 256, or as 256x512 for height x width, got '8x'",
        ),
        (Draw, "in --hidden 1", "unrecognized arguments: --hidden"),
        (Draw, "in --size_of_it 1", "unrecognized arguments: --size_of_it"),
        (
            Draw,
            "in --numbr=3",
            "unrecognized arguments: --numbr=3; did you mean --number? --help lists the flags",
        ),
        (
            Draw,
            "in --numb=3",
            "unrecognized arguments: --numb=3; did you mean --number? --help lists the flags",
        ),
        (
            Draw,
            "in --sh=oval",
            "unrecognized arguments: --sh=oval; did you mean --shape? --help lists the flags",
        ),
        (
            Draw,
            "in --parts round,square",
            "; spaces separate values: round square; --help lists the flags",
        ),
        (Draw, "in --shape round,square", "); --help lists the flags"),  # which takes one
        (Draw, "", "the following arguments are required: SOURCE"),
        (Join, "a", "required: -o/--to"),
    ],
)
def test_words_that_are_refused(
    command: Any, words: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        command.parse(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_help_shows_what_is_used_most_first_then_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With the defaults of a preset, and choices that were added."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(SHAPES, "oval", 3)

    def text(*words: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            Draw.parse([*words, "--help", "all"])
        return capsys.readouterr().out

    shown = text()
    assert shown.startswith(
        "usage: bbdm draw SOURCE [OUTPUT] [flags]\n\nDraw what is read.\n\nwhat is used most:"
    )
    assert shown.endswith("\n\nA line below.\n")
    order = [
        "SOURCE",
        "OUTPUT",
        "-n",
        "base:",
        "--rate",
        "pictures:",
        "--preset",
        "--kind",
        "changes:",
        "--flip",
    ]
    # Python 3.13 has "-n, --number COUNT"
    first = [line.split()[0].rstrip(",") for line in shown.splitlines() if line]
    assert [word for word in first if word in order] == order
    for part in (
        "a count (default: 3)",
        "decides defaults: small, large",
        "of it: round, square, oval",
    ):
        assert part in shown
    assert "--no-flip" not in shown
    large = text("--preset", "large")
    assert "a count (default: 9)" in large
    assert "--no-flip" in large
    assert Draw.parse(["in", "--shape", "oval"]).shape == "oval"


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ValueError("no such thing"), "error: no such thing", ""),
        (
            ModuleNotFoundError("none", name="torchmetrics"),
            "error: none: pip install 'bbdm[eval]'",
            "",
        ),
        (
            ModuleNotFoundError("none", name="onnxscript.ir.passes"),
            "error: none: pip install -U onnxscript",
            "",
        ),
        (
            ImportError("no opset23", name="onnxscript.onnx_opset"),
            "error: no opset23: pip install -U onnxscript",
            "",
        ),
        (KeyboardInterrupt(), 130, "interrupted: the same command makes what is missing"),
        (KeyboardInterrupt("last.pt is kept"), 130, "interrupted: last.pt is kept"),
        (scripts.StoppedError("the loss is nan", 3), 3, "stopped: the loss is nan"),
    ],
    ids=repr,
)
def test_an_expected_end_is_one_line(
    error: BaseException,
    code: Any,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A fault of the program keeps its traceback, and a warning is one line."""
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # not installed

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        scripts.run(main)
    assert caught.value.code == code
    assert capsys.readouterr().err.strip() == printed
    with pytest.raises(ZeroDivisionError):
        scripts.run(lambda: print(1 / 0))
    assert warnings.formatwarning("of a test", UserWarning, "file", 1) == "warning: of a test\n"


def unpack() -> None:
    first, second = (1, 2, 3)  # pyright: ignore[reportAssignmentType]
    print(first, second)


@pytest.mark.parametrize("fault", [unpack, lambda: int("x"), lambda: np.zeros(2) + np.zeros(3)])
def test_an_operation_that_fails_may_be_a_defect(
    fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch
):
    """Its text is for programmers, so the line says more. A variable brings tracebacks, of our errors too."""
    with pytest.raises(ValueError) as text:  # noqa: PT011 - what Python says is all that is asked
        fault()
    with pytest.raises(SystemExit) as end:
        scripts.run(fault)
    advice = (
        "this may be a defect of the program: BBDM_TRACEBACK=1 in the environment shows where it is"
    )
    assert end.value.code == f"error: {text.value}; {advice}"
    monkeypatch.setenv("BBDM_TRACEBACK", "1")
    for main in (fault, lambda: Draw.of(source="in", number=0)):
        with pytest.raises(ValueError, match=r"."):
            scripts.run(main)
    monkeypatch.setenv("BBDM_TRACEBACK", "0")
    with pytest.raises(SystemExit, match="error: number must be at least 1, got 0"):
        scripts.run(lambda: Draw.of(source="in", number=0))


@pytest.mark.parametrize(
    "text",
    [
        "Caught RuntimeError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_6582_88352640_1>: "
        "No space left on device (28)\n",
        "DataLoader worker (pid 6660) is killed by signal: Bus error. It is possible that dataloader's workers are "
        "out of shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_little_shared_memory_is_one_line(text: str):
    """By what PyTorch 2.13 and 2.9 say of 16 MB. Another error of it keeps its traceback."""

    def fail(text: str) -> None:
        raise RuntimeError(text)

    with pytest.raises(
        SystemExit, match=r"shared memory is full, .*: give --workers 0, or .* --shm-size"
    ) as end:
        scripts.run(lambda: fail(text))
    assert "\n" not in str(end.value)
    with pytest.raises(RuntimeError, match="unable to open shared memory"):
        scripts.run(
            lambda: fail(
                "unable to open shared memory object </torch_1> in read-write mode: Too many files"
            )
        )


def test_without_standard_streams(monkeypatch: pytest.MonkeyPatch):
    """As Python starts where they are closed: a command may print, and no progress is shown."""
    assert ShownConfig(show_verbose=True).shown
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert not ShownConfig(show_verbose=True).shown
    scripts.run(lambda: sys.stdout.write(sys.stdin.read()) + sys.stderr.write("to nobody"))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As of ``bbdm info FILE | head -1``."""
    program = "from bbdm.base.scripts import run; run(lambda: [print(i, flush=True) for i in range(100_000)])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == scripts.READER_ENDED
