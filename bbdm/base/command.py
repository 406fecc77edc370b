"""A command is a frozen dataclass: its fields are flags and positions, and ``run()`` is what it does.

Python callers make the same dataclass, and meet the same checks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from typing import Any, ClassVar, TypeVar

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, check, flag_fields, heading

MAIN = "what is used most"  # the heading of the fields that the help shows first
Self = TypeVar("Self", bound="Command")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, whose name and description are those of its module.

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    FIRST: ClassVar[tuple[str, ...]] = ()  # the fields that the help shows first, in this order
    DECIDING: ClassVar[tuple[str, ...]] = ()  # the fields that decide defaults of others

    def __post_init__(self) -> None:
        check(self)
        getattr(super(), "__post_init__", lambda: None)()  # of settings that a command is made of

    def run(self) -> Any:
        """Do what the command does."""
        raise NotImplementedError

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults in place of the fields' own, by the values of the fields in :attr:`DECIDING`."""
        return {}

    @classmethod
    def of(cls: type[Self], **values: Any) -> Self:
        """The command of values; what is left out has the default that the help shows."""
        return cls(**{**cls.defaults(values), **values})

    @classmethod
    def program(cls) -> str:
        """The words that start it."""
        return f"bbdm {cls.__module__.rpartition('.')[2].replace('_', '-')}"

    @classmethod
    def parser(cls, words: Sequence[str] = ()) -> Parser:
        """The parser of the fields; ``words`` are those that may decide defaults."""
        known, groups = flag_fields(cls), {MAIN: [*cls.FIRST]}
        for name, each in known.items():
            if name not in cls.FIRST:
                groups.setdefault(MAIN if each.metadata.get("position") else heading(cls, name), []).append(name)
        usage = [_shown(known[name]) for name in groups[MAIN] if known[name].metadata.get("position")]
        first, _, more = (sys.modules[cls.__module__].__doc__ or "").partition("\n\n")
        about = {"usage": " ".join(["%(prog)s", *usage, "[flags]"]), "epilog": more, "add_help": False}
        parser = Parser(first, prog=cls.program(), **about)
        for title, names in groups.items():
            add_flags(parser.add_argument_group(title), cls, names)
        parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this")
        if cls.DECIDING:
            early = Parser(None, add_help=False)
            add_flags(early, cls, cls.DECIDING)
            parser.set_defaults(**cls.defaults(vars(early.parse_known_args(words)[0])))
        else:
            parser.set_defaults(**cls.defaults({}))
        return parser

    @classmethod
    def parse(cls: type[Self], words: Sequence[str]) -> Self:
        """The command of words.

        Raises:
            SystemExit: a word is no flag, or no value of its flag. One line says why.
            ValueError: a check of the dataclass fails.
        """
        values = vars(cls.parser(words).parse_args(list(words)))
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @classmethod
    def main(cls, words: Sequence[str]) -> None:
        """Parse words, and run."""
        cls.parse(words).run()


def _shown(position: Field[Any]) -> str:
    """A position in the line of usage."""
    name = position.metadata["metavar"] or position.name.upper()
    return name if position.default is MISSING else f"[{name}]"
