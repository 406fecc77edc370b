"""What scripts share: flags, and how they end."""

import subprocess
import sys

import pytest

from bbdm.base import optional, scripts
from tests.conftest import ROOT


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, OSError])
def test_an_error_of_the_user_is_one_line(kind: type[Exception]):
    def main() -> None:
        raise kind("no such thing")

    with pytest.raises(SystemExit, match=r"^error: no such thing$"):
        scripts.run(main)


@pytest.mark.parametrize(
    ("name", "message"), [("torchmetrics.image", r"error: none: pip install 'bbdm\[eval\]'"), ("other", "error: none")]
)
def test_a_missing_package_names_its_extra(name: str, message: str):
    def main() -> None:
        raise ModuleNotFoundError("none", name=name)

    with pytest.raises(SystemExit, match=f"^{message}$"):
        scripts.run(main)


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("bbdm eval edge2shoes DATA MODEL", "torchmetrics", "eval"),
        ("bbdm eval-miou DEEPLAB DATA MODEL", "torchmetrics", "eval"),
        ("bbdm export MODEL", "onnx", "export"),
        ("bbdm app MODEL", "gradio", "app"),
        ("bbdm.runtime FOLDER PICTURE -o OUT", "onnxruntime", "export"),
    ],
)
def test_a_command_without_its_extra_is_one_line(command: str, package: str, extra: str):
    module, *words = command.split()
    hidden = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[1:] = {words!r}"
    code = f"{hidden}; runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert package in done.stderr
    assert done.stderr.endswith(f"pip install 'bbdm[{extra}]'\n")


def test_how_to_install_a_package_is_said_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as caught:
        scripts.run(lambda: optional.package("gradio", "the app"))
    assert str(caught.value) == "error: the app needs gradio, which is not installed: pip install 'bbdm[app]'"


def test_a_fault_of_the_program_keeps_its_traceback():
    def main() -> None:
        raise TypeError("a fault")

    with pytest.raises(TypeError):
        scripts.run(main)


@pytest.mark.parametrize(("own", "message"), [((), "results are kept"), (("last.pt is kept",), "last.pt is kept")])
def test_an_interruption_is_one_line(own: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise KeyboardInterrupt(*own)

    with pytest.raises(SystemExit) as caught:
        scripts.run(main, "results are kept")
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == f"interrupted: {message}"


class BusyError(ValueError):
    pass


class StillBusyError(BusyError):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BusyError("in use"), "error: in use; --folder gives another"),
        (StillBusyError("in use"), "error: in use; --folder gives another"),
        (ValueError("in use"), "error: in use"),
    ],
    ids=["class", "subclass", "other"],
)
def test_a_hint_follows_the_errors_of_its_class(error: Exception, message: str):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        scripts.run(main, hints={"OSError": "no", "BusyError": "--folder gives another"})
    assert caught.value.code == message


def test_a_hint_follows_what_stopped_the_work(capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise scripts.StoppedError("the loss is nan", 3)

    with pytest.raises(SystemExit) as caught:
        scripts.run(main, hints={"StoppedError": "-lr lowers it"})
    assert caught.value.code == 3
    assert capsys.readouterr().err.strip() == "stopped: the loss is nan; -lr lowers it"


def parser() -> scripts.Parser:
    made = scripts.Parser("A script:\n  as it is written.")
    made.add_argument("--steps", type=int, default=0, help="of a solver")
    made.add_argument("--parts", nargs="+", default=["a", "b"], help="of it (default: a b)")
    made.add_argument("--flip", action="store_true", help="mirror")
    made.add_argument("--size", help="unset if unset")
    return made


def test_help_shows_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = parser().format_help()
    assert "A script:\n  as it is written." in text
    assert "of a solver (default: 0)\n" in text
    assert "of it (default: a b)\n" in text
    assert "mirror\n" in text
    assert text.endswith("unset if unset\n")


def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--nonsense"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nonsense; --help lists the flags\n"
