"""Settings that are declared once: a dataclass field with its help, from which flags and checks follow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")
SHORT = 30  # characters of choices that stand beside the flag; others stand in the help
METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}  # what stands for a value in the help


def setting(
    default: Any,
    help: str,
    *names: str,
    parse: Callable[[str], Any] | None = None,
    least: float | None = None,
    choices: Collection[Any] = (),
    metavar: str | None = None,
    group: str | None = None,
    repeated: bool = False,
) -> Any:
    """A field of a settings dataclass, which is a flag of a command.

    Args:
        default: its value where none is given; ``...`` for a field that must be given.
        help: what it is, as a command's help prints it.
        names: other names of its flag, such as ``-b``; ``--FIELD`` is always one.
        parse: makes the value from a flag's text, or raises ValueError; None for the field's type.
        least: the least value that :func:`check` lets pass; None for any.
        choices: the values that it may have, of a table that grows its keys of then; those of a ``Literal``
            need not be repeated.
        metavar: what stands for the value in the help; None for a word by its type or name.
        group: the heading in the help; None for the ``HEADING`` of the dataclass that declares the field, or
            else for the name of its room.
        repeated: the flag of a tuple takes one value, and may be repeated; else it takes one value or more.
    """
    about = {"help": help, "names": names, "parse": parse, "least": least, "choices": choices}
    about |= {"metavar": metavar, "group": group, "repeated": repeated}
    return field(default=MISSING if default is ... else default, metadata=about)


def position(help: str, default: Any = ..., **about: Any) -> Any:
    """A field that a command takes by its position, which must be given unless it has a default.

    A field whose type is a tuple takes one word or more. Other arguments are those of :func:`setting`.
    """
    declared = setting(default, help, **about)
    return field(default=declared.default, metadata={**declared.metadata, "position": True})


def flag_fields(settings: type[Any]) -> dict[str, Field[Any]]:
    """The fields of a dataclass that are flags or positions, by name, without those in its ``HIDDEN``."""
    hidden = getattr(settings, "HIDDEN", ())
    return {each.name: each for each in fields(settings) if "help" in each.metadata and each.name not in hidden}


def heading(settings: type[Any], name: str) -> str:
    """The heading of a field in the help."""
    owner = next(each for each in settings.__mro__ if name in get_annotations(each))
    group = settings.__dataclass_fields__[name].metadata["group"]
    return group or vars(owner).get("HEADING") or owner.__module__.split(".")[1]


def add_flags(parser: Any, settings: type[Any], names: Sequence[str] | None = None) -> None:
    """Add a flag, or a position, for each field: its names, type, choices, default and help.

    A field of type bool becomes ``--NAME`` and ``--no-NAME``; the values of a ``Literal`` become choices.
    ``parser.set_defaults`` replaces the fields' own defaults, in the help too.

    Args:
        parser: a parser of argparse, or a group of one.
        settings: the dataclass of the fields.
        names: the fields, in order; None for all.
    """
    hints, known = get_type_hints(settings), flag_fields(settings)
    for name in known if names is None else names:
        about, kind = known[name].metadata, _without_none(hints[name])
        default, at = known[name].default, about.get("position", False)
        metavar = about["metavar"] or METAVARS.get(kind, name.rpartition("_")[2].upper())
        options: dict[str, Any] = {"help": about["help"], "metavar": metavar}
        options |= {} if default is MISSING else {"default": default}
        choices = about["choices"] or (get_args(kind) if get_origin(kind) is Literal else ())
        if about["parse"] is not None:
            options["type"] = flag_type(about["parse"])
        elif choices:
            words = [*map(str, choices)]
            options |= {"choices": choices, "type": type(next(iter(choices)))}
            few, many = {"metavar": f"{{{','.join(words)}}}"}, {"help": f"{about['help']}: {', '.join(words)}"}
            options |= few if len(few["metavar"]) <= SHORT and about["metavar"] is None else many
        elif kind is bool:
            options = {"action": argparse.BooleanOptionalAction, "default": default, "help": about["help"]}
        elif get_origin(kind) is tuple:
            options |= {"type": get_args(kind)[0]} | ({"action": "append"} if about["repeated"] else {"nargs": "+"})
        else:
            options["type"] = kind
        if at:
            options["metavar"] = about["metavar"] or name.upper()
            options |= {} if default is MISSING or "nargs" in options else {"nargs": "?"}
            parser.add_argument(name, **options)
        else:
            required = {"required": True} if default is MISSING else {}
            parser.add_argument(*about["names"], f"--{name}", dest=name, **options, **required)


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
    """Raise ValueError where a field is below its least value, or is none of its choices.

    A path may be given as a string; this makes it a path.
    """
    hints = get_type_hints(type(settings))
    for each in fields(settings):
        kind, value = _without_none(hints[each.name]), getattr(settings, each.name)
        choices = each.metadata.get("choices") or (get_args(kind) if get_origin(kind) is Literal else ())
        if choices and value not in choices and not (value is None and kind != hints[each.name]):
            raise ValueError(f"{each.name} must be one of {tuple(choices)}, got {value!r}")
        if kind is Path and isinstance(value, str):
            object.__setattr__(settings, each.name, Path(value))
        if (least := each.metadata.get("least")) is not None:
            check_least(settings, least, each.name)


def from_values(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass of those values that are its fields."""
    names = {each.name for each in fields(settings)}  # pyright: ignore[reportArgumentType]
    return settings(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True, kw_only=True)
class ShownConfig:
    """Whether a command shows its progress."""

    HEADING: ClassVar[str] = "run"

    show_verbose: bool = setting(False, "show progress, as on a terminal")
    quiet: bool = setting(False, "show no progress")

    @property
    def shown(self) -> bool:
        """Whether progress is shown: on a terminal unless it is to be quiet, elsewhere if asked to."""
        return not self.quiet and (self.show_verbose or sys.stderr.isatty())


def _without_none(kind: Any) -> Any:
    """The type of a value that may be None, None excluded; a union of several types stays one."""
    members = [each for each in get_args(kind) if each is not NoneType]
    return members[0] if get_origin(kind) in (Union, UnionType) and len(members) == 1 else kind
