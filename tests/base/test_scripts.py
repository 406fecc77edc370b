"""How a script ends."""

import pytest

from bbdm.base import scripts


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, OSError])
def test_an_expected_error_is_one_line(kind: type[Exception]):
    def main() -> None:
        raise kind("no such thing")

    with pytest.raises(SystemExit, match=r"^error: no such thing$"):
        scripts.run(main)


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
