"""Settings that are declared once: a dataclass field with its help, from which a script makes a flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def setting(
    default: Any, help: str, *names: str, parse: Callable[[str], Any] | None = None, least: float | None = None
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its value where none is given.
        help: what it is, as a script's help prints it.
        names: other names of its flag, such as ``-b``; ``--FIELD`` is always one.
        parse: makes the value from a flag's text, or raises ValueError; None for the field's type.
        least: the least value that :func:`check` lets pass; None for any.
    """
    return field(default=default, metadata={"help": help, "names": names, "parse": parse, "least": least})


def add_flags(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add a flag for each field that :func:`setting` made: its name, type, choices, default and help.

    A field of type bool becomes ``--NAME`` and ``--no-NAME``; the values of a ``Literal`` become choices.
    ``parser.set_defaults`` replaces the fields' own defaults, in the help too.
    """
    hints = get_type_hints(settings)
    for each in fields(settings):
        if "help" not in each.metadata:
            continue
        kind, parse = _without_none(hints[each.name]), each.metadata["parse"]
        options: dict[str, Any] = {"dest": each.name, "default": each.default, "help": each.metadata["help"]}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options |= {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        else:
            options["type"] = kind if parse is None else flag_type(parse)
        parser.add_argument(*each.metadata["names"], f"--{each.name}", **options)


def flag_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of text as an argparse ``type``: the message of its ValueError becomes the script's."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def check_least(settings: Any, least: float, *names: str) -> None:
    """Raise ValueError where a field is below its least value or NaN; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check(settings: Any) -> None:
    """Raise ValueError where a field is below its least value, or is no value of its ``Literal``."""
    for name, kind in get_type_hints(type(settings)).items():
        if get_origin(kind) is Literal and getattr(settings, name) not in get_args(kind):
            raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(settings, name)!r}")
    for each in fields(settings):
        if (least := each.metadata.get("least")) is not None:
            check_least(settings, least, each.name)


def from_values(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass of those values that are its fields."""
    names = {each.name for each in fields(settings)}  # pyright: ignore[reportArgumentType]
    return settings(**{name: value for name, value in values.items() if name in names})


def named(parser: argparse.ArgumentParser, argv: Sequence[str], settings: type[Any]) -> frozenset[str]:
    """The fields that the words of a command name, also where they name the default."""
    unset = object()
    args = parser.parse_args(argv, argparse.Namespace(**{each.name: unset for each in fields(settings)}))
    return frozenset(name for name, value in vars(args).items() if value is not unset)


def _without_none(kind: Any) -> Any:
    """The type of a value that may be None, None excluded; a union of several types stays one."""
    members = [each for each in get_args(kind) if each is not NoneType]
    return members[0] if get_origin(kind) in (Union, UnionType) and len(members) == 1 else kind
