"""What scripts share: flags, and how they end."""

import json
import subprocess
import sys
from typing import Any

import pytest

from bbdm.base import optional, scripts
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ValueError("no such thing"), "error: no such thing", ""),
        (FileNotFoundError("no such thing"), "error: no such thing", ""),
        (OSError("no such thing"), "error: no such thing", ""),
        (ModuleNotFoundError("none", name="torchmetrics.image"), "error: none: pip install 'bbdm[eval]'", ""),
        (ModuleNotFoundError("none", name="other"), "error: none", ""),
        (KeyboardInterrupt(), 130, "interrupted: results are kept"),
        (KeyboardInterrupt("last.pt is kept"), 130, "interrupted: last.pt is kept"),
        (scripts.StoppedError("the loss is nan", 3), 3, "stopped: the loss is nan"),
    ],
    ids=repr,
)
def test_an_expected_end_is_one_line(error: BaseException, code: Any, printed: str, capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        scripts.run(main, "results are kept")
    assert caught.value.code == code
    assert capsys.readouterr().err.strip() == printed


def test_a_fault_of_the_program_keeps_its_traceback():
    def main() -> None:
        raise TypeError("a fault")

    with pytest.raises(TypeError, match=r"^a fault$"):
        scripts.run(main)


def test_a_missing_package_names_its_extra_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = r"^error: the app needs gradio, which is not installed: pip install 'bbdm\[app\]'$"
    with pytest.raises(SystemExit, match=message):
        scripts.run(lambda: optional.package("gradio", "the app"))


EXTRAS = {  # a command, and the package and extra that it says are missing
    "bbdm eval edge2shoes DATA MODEL": ("torchmetrics", "eval"),
    "bbdm export MODEL": ("onnx", "export"),
    "bbdm app MODEL": ("gradio", "app"),
    "bbdm.runtime FOLDER PICTURE -o OUT": ("onnxruntime", "export"),
}
WITHOUT = """
import contextlib, io, json, runpy, sys, warnings
from bbdm.base import scripts
commands, packages = map(json.loads, sys.argv[1:])
sys.modules |= dict.fromkeys(packages)
for command in commands:
    module, *sys.argv[1:] = command.split()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            print(json.dumps([end.code, said.getvalue()]))
scripts.run(lambda: warnings.warn("of a test"))
"""


def test_a_command_without_its_extra_and_a_warning_are_one_line():
    packages = sorted({package for package, _ in EXTRAS.values()})
    command = [sys.executable, "-c", WITHOUT, json.dumps([*EXTRAS]), json.dumps(packages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "warning: of a test\n"
    for line, (package, extra) in zip(done.stdout.splitlines(), EXTRAS.values(), strict=True):
        end, said = json.loads(line)
        assert said == ""
        assert "\n" not in end
        assert package in end
        assert end.endswith(f"pip install 'bbdm[{extra}]'")


def test_help_values_and_wrong_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Defaults are in the help, a value may begin with a minus, and a wrong flag is one line."""
    monkeypatch.setenv("COLUMNS", "80")
    parser = scripts.Parser("A script:\n  as it is written.")
    parser.add_argument("--steps", type=int, default=0, help="of a solver")
    parser.add_argument("--parts", nargs="+", default=["a", "b"], help="of it (default: a b)")
    parser.add_argument("--flip", action="store_true", help="mirror")
    parser.add_argument("--values", help="unset if unset")
    text = parser.format_help()
    for part in ("A script:\n  as it is written.", "of a solver (default: 0)\n", "of it (default: a b)\n", "mirror\n"):
        assert part in text
    assert text.endswith("unset if unset\n")
    for value in ("-1024:3071:HU", "-1", "-.5:1"):
        assert parser.parse_args(["--values", value]).values == value
    for word, like in (("--nonsense", ""), ("--stepps=3", "did you mean --steps? ")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([word])
        assert capsys.readouterr().err == f"error: unrecognized arguments: {word}; {like}--help lists the flags\n"
