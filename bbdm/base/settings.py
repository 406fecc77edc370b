"""Settings that are declared once: a dataclass field with its help, from which checks and flags follow.

Flags are made of them in :mod:`bbdm.base.flags`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from bbdm.base.progress import Shown

Settings = TypeVar("Settings")


def setting(
    default: Any,
    help: str,
    *names: str,
    parse: Callable[[str], Any] | None = None,
    least: float | None = None,
    choices: Collection[Any] = (),
    metavar: str | None = None,
    group: str | None = None,
    position: bool = False,
) -> Any:
    """A field of a settings dataclass, which is a flag of a command.

    The flag of a tuple takes one value or more, and may be repeated.

    Args:
        default: its value where none is given; ``...`` for a field that must be given.
        help: what it is, as a command's help prints it.
        names: other names of its flag, such as ``-b``; ``--FIELD`` is always one.
        parse: makes the value from a flag's text, or raises ValueError; None for the field's type.
        least: the least value that :func:`check` lets pass; None for any.
        choices: the values that it, or each part of a tuple, may have, of a table that grows its keys of
            then; those of a ``Literal`` need not be repeated.
        metavar: what stands for the value in the help; None for a word by its type or name.
        group: the heading in the help; None for the ``HEADING`` of the dataclass that declares the field, or
            else for the name of its room.
        position: it has no flag, and is taken by its position.
    """
    stored = {"help": help, "names": names, "parse": parse, "least": least, "choices": choices}
    stored |= {"metavar": metavar, "group": group, "position": position}
    return field(default=MISSING if default is ... else default, metadata=stored)


def position(help: str, default: Any = ..., names: Sequence[str] = (), **further: Any) -> Any:
    """A field that a command takes by its position, or by flags of ``names``; of a tuple, one word or more.

    Of one that must be given there are no such flags. See :func:`setting`.
    """
    return setting(default, help, *names, position=True, **further)


def flag_fields(settings: type[Any]) -> dict[str, Field[Any]]:
    """The fields of a dataclass that are flags or positions, by name, without those in its ``HIDDEN``."""
    hidden = getattr(settings, "HIDDEN", ())
    flags: dict[str, Field[Any]] = {}
    for each in fields(settings):
        if "help" in each.metadata and each.name not in hidden:
            flags[each.name] = each
    return flags


def choices_of(each: Field[Any], kind: Any) -> Collection[Any]:
    """The values that a field may have, besides None where its type has it; none if it may have any."""
    return each.metadata.get("choices") or (get_args(kind) if get_origin(kind) is Literal else ())


def without_none(kind: Any) -> Any:
    """The type of a value that may be None, None excluded; a union of several types stays one."""
    members = [member for member in get_args(kind) if member is not NoneType]
    return members[0] if get_origin(kind) in (Union, UnionType) and len(members) == 1 else kind


def check(settings: Any) -> None:
    """Raise ValueError where a field is below its least value, or is none of its choices.

    A path may be given as a string; this makes it a path.
    """
    hints = get_type_hints(type(settings))
    for each in fields(settings):
        name = each.name
        value = getattr(settings, name)
        kind = without_none(hints[name])
        optional = kind != hints[name]
        if value is None and optional:
            continue
        choices = choices_of(each, kind)
        if choices:
            values = value if isinstance(value, tuple) else (value,)
            for chosen in values:
                if chosen not in choices:
                    raise ValueError(f"{name} must be one of {tuple(choices)}, got {chosen!r}")
        if kind is Path and isinstance(value, str):
            object.__setattr__(settings, name, Path(value))
        least = each.metadata.get("least")
        if least is not None and value is not None and not value >= least:  # NaN too
            raise ValueError(f"{name} must be at least {least}, got {value}")


def from_command(settings: type[Settings], command: Any) -> Settings:
    """A settings dataclass of the fields that it shares with a command."""
    given = {each.name for each in fields(command)}
    shared = [each.name for each in fields(cast(Any, settings)) if each.name in given]
    return settings(**{name: getattr(command, name) for name in shared})


@dataclass(frozen=True, kw_only=True)
class ShownConfig:
    """Whether a command says what it does and how far it is, and how."""

    HEADING: ClassVar[str] = "run"

    show_verbose: bool = setting(
        False, "show progress by a bar where there is no terminal too, not a line each minute"
    )
    quiet: bool = setting(False, "say neither what is done nor how far it is")

    @property
    def shown(self) -> Shown:
        """Whether and how progress is shown: on a terminal by a bar, elsewhere by a line each minute."""
        if self.quiet or sys.stderr is None:  # which a service may start without
            return False
        return "bar" if self.show_verbose else True
