"""What scripts share: flags, and how they end."""

import json
import subprocess
import sys
from typing import Any

import pytest

from bbdm.base import optional, scripts
from tests.conftest import ROOT


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, OSError])
def test_an_error_of_the_user_is_one_line(kind: type[Exception]):
    def main() -> None:
        raise kind("no such thing")

    with pytest.raises(SystemExit, match=r"^error: no such thing$"):
        scripts.run(main)


def test_a_warning_of_a_command_is_one_line():
    code = "import warnings; from bbdm.base import scripts; scripts.run(lambda: warnings.warn('of a test'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "warning: of a test\n"


@pytest.mark.parametrize(
    ("name", "message"), [("torchmetrics.image", r"error: none: pip install 'bbdm\[eval\]'"), ("other", "error: none")]
)
def test_a_missing_package_names_its_extra(name: str, message: str, monkeypatch: pytest.MonkeyPatch):
    def main() -> None:
        raise ModuleNotFoundError("none", name=name)

    with pytest.raises(SystemExit, match=f"^{message}$"):
        scripts.run(main)
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = r"^error: the app needs gradio, which is not installed: pip install 'bbdm\[app\]'$"  # said once
    with pytest.raises(SystemExit, match=message):
        scripts.run(lambda: optional.package("gradio", "the app"))


EXTRAS = {  # a command, and the package and extra that it says are missing
    "bbdm eval edge2shoes DATA MODEL": ("torchmetrics", "eval"),
    "bbdm export MODEL": ("onnx", "export"),
    "bbdm app MODEL": ("gradio", "app"),
    "bbdm.runtime FOLDER PICTURE -o OUT": ("onnxruntime", "export"),
}
WITHOUT = """
import contextlib, io, json, runpy, sys
commands, packages = map(json.loads, sys.argv[1:])
sys.modules |= dict.fromkeys(packages)
for command in commands:
    module, *sys.argv[1:] = command.split()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            print(json.dumps([end.code, said.getvalue()]))
"""


def test_a_command_without_its_extra_is_one_line():
    packages = sorted({package for package, _ in EXTRAS.values()})
    command = [sys.executable, "-c", WITHOUT, json.dumps([*EXTRAS]), json.dumps(packages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for line, (package, extra) in zip(done.stdout.splitlines(), EXTRAS.values(), strict=True):
        end, said = json.loads(line)
        assert said == ""
        assert "\n" not in end
        assert package in end
        assert end.endswith(f"pip install 'bbdm[{extra}]'")


@pytest.mark.parametrize(("own", "message"), [((), "results are kept"), (("last.pt is kept",), "last.pt is kept")])
def test_an_interruption_is_one_line(own: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise KeyboardInterrupt(*own)

    with pytest.raises(SystemExit) as caught:
        scripts.run(main, "results are kept")
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == f"interrupted: {message}"


def test_a_fault_of_the_program_keeps_its_traceback():
    def main() -> None:
        raise TypeError("a fault")

    with pytest.raises(TypeError, match=r"^a fault$"):
        scripts.run(main)


def test_what_stopped_the_work_decides_the_status(capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise scripts.StoppedError("the loss is nan", 3)

    with pytest.raises(SystemExit) as caught:
        scripts.run(main)
    assert caught.value.code == 3
    assert capsys.readouterr().err.strip() == "stopped: the loss is nan"


def parser() -> scripts.Parser:
    made = scripts.Parser("A script:\n  as it is written.")
    made.add_argument("--steps", type=int, default=0, help="of a solver")
    made.add_argument("--parts", nargs="+", default=["a", "b"], help="of it (default: a b)")
    made.add_argument("--flip", action="store_true", help="mirror")
    made.add_argument("--size", help="unset if unset")
    return made


def test_a_value_may_begin_with_a_minus():
    parser = scripts.Parser(None)
    parser.add_argument("--values")
    for value in ("-1024:3071:HU", "-1", "-.5:1"):
        assert parser.parse_args(["--values", value]).values == value


def test_help_shows_defaults_and_a_wrong_flag_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("COLUMNS", "80")
    text = parser().format_help()
    for part in ("A script:\n  as it is written.", "of a solver (default: 0)\n", "of it (default: a b)\n", "mirror\n"):
        assert part in text
    assert text.endswith("unset if unset\n")
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--nonsense"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --nonsense; --help lists the flags\n"
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--stepps=3"])
    said = "error: unrecognized arguments: --stepps=3; did you mean --steps? --help lists the flags\n"
    assert capsys.readouterr().err == said
