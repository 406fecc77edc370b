"""Settings that become flags."""

import argparse
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from bbdm.base.settings import add_flags, from_values, setting
from bbdm.pictures.images import Size, read_size


@dataclass
class Settings:
    number: int = setting(3, "a count", "-n", "--count")
    rate: float = setting(0.5, "a rate")
    kind: Literal["a", "b"] | None = setting(None, "a kind")
    channels: Literal[1, 3] = setting(3, "of pictures")
    flip: bool = setting(False, "mirror")
    size: Size | None = setting(8, "of pictures", parse=read_size)
    hidden: int = 7  # no flag


def parse(*argv: str, **defaults: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_flags(parser, Settings)
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


def test_defaults_are_those_of_the_fields(capsys: pytest.CaptureFixture[str]):
    assert from_values(Settings, vars(parse())) == Settings()
    args = parse("--rate", "0.1", number=4, rate=2.0, flip=True)
    assert (args.number, args.rate, args.flip) == (4, 0.1, True)
    assert from_values(Settings, {"number": 4, "unknown": 1}) == Settings(number=4)
    with pytest.raises(SystemExit):
        parse("-h", rate=2.0)
    text = " ".join(capsys.readouterr().out.split())
    assert "a count (default: 3)" in text
    assert "a rate (default: 2.0)" in text


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-n", "5"], "number", 5),
        (["--count", "5"], "number", 5),
        (["--number", "5"], "number", 5),
        (["--rate", "1e-3"], "rate", 1e-3),
        (["--kind", "b"], "kind", "b"),
        (["--channels", "1"], "channels", 1),
        (["--flip"], "flip", True),
        (["--no-flip"], "flip", False),
        (["--size", "8x16"], "size", (8, 16)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags(argv: list[str], name: str, value: Any):
    assert getattr(parse(*argv), name) == value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--number", "many"], "invalid int value: 'many'"),
        (["--size", "8x"], "a size is written as 256, or as 256x512 for height x width, got '8x'"),
        (["--hidden", "1"], "unrecognized arguments: --hidden"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert message in capsys.readouterr().err
