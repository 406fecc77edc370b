"""Settings that are declared once: a dataclass field with its help, from which a script makes a flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def setting(default: Any, help: str, *names: str, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its value where none is given.
        help: what it is, as a script's help has it.
        names: other names of its flag, such as ``-b``; ``--FIELD`` is always one.
        parse: makes the value from a flag's text; None for the field's type.
    """
    return field(default=default, metadata={"help": help, "names": names, "parse": parse})


def add_flags(parser: argparse.ArgumentParser, settings: type[Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Add a flag for each field that :func:`setting` made: its name, type, choices, default and help.

    A field of type bool becomes ``--NAME`` and ``--no-NAME``, and one of a ``Literal`` has its values as choices.

    Args:
        parser: where to add them.
        settings: a dataclass.
        defaults: values that replace the fields' own defaults.
    """
    hints = get_type_hints(settings)
    for each in fields(settings):
        if "help" not in each.metadata:
            continue
        kind = _without_none(hints[each.name])
        default = each.default if defaults is None else defaults.get(each.name, each.default)
        options: dict[str, Any] = {"dest": each.name, "default": default, "help": each.metadata["help"]}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options |= {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        else:
            options["type"] = each.metadata["parse"] or kind
        parser.add_argument(*each.metadata["names"], f"--{each.name}", **options)


def from_values(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass of those values that are its fields."""
    names = {each.name for each in fields(settings)}  # pyright: ignore[reportArgumentType]
    return settings(**{name: value for name, value in values.items() if name in names})


def _without_none(kind: Any) -> Any:
    """The type itself of one that may be None."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    return kind
