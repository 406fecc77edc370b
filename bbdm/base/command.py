"""A command is a frozen dataclass: its fields are flags and positions, and ``run()`` is what it does.

Python callers make the same dataclass, and meet the same checks.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, check, flag_fields, heading

MAIN = "what is used most"  # the heading of the fields that the help shows first
IMPORT = "--import"  # before a command: a module that registers bridges, solvers or metrics
imported: list[str] = []  # the modules that this process imported so
Self = TypeVar("Self", bound="Command")


def import_modules(words: Sequence[str]) -> list[str]:
    """Import the modules that ``--import MODULE`` at the beginning of words names, and return what is left.

    Modules in the working directory are found too.
    """
    left = [*words]
    while left[1:] and left[0] == IMPORT:
        if "" not in sys.path:
            sys.path.insert(0, "")
        import_module(left[1])
        imported.append(left[1])
        left = left[2:]
    return left


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, whose name and description are those of its module.

    Attributes:
        named: the fields that words or :meth:`of` named, also where they named the default.

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    FIRST: ClassVar[tuple[str, ...]] = ()  # the fields that the help shows first, in this order
    DECIDING: ClassVar[tuple[str, ...]] = ()  # the fields that decide defaults of others
    HIDDEN: ClassVar[frozenset[str]] = frozenset()  # the fields that are no flags of this command

    named: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

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
        return cls(**{"named": frozenset(values), **cls.defaults(values), **values})

    @classmethod
    def program(cls) -> str:
        """The words that start it."""
        return f"bbdm {cls.__module__.rpartition('.')[2].replace('_', '-')}"

    @classmethod
    def parser(cls, words: Sequence[str] = ()) -> Parser:
        """The parser of the fields; ``words`` are those that may decide defaults."""
        known = flag_fields(cls)
        groups = {MAIN: [name for name in cls.FIRST if name in known]}
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
        unset: list[Any] = []  # an empty list, which flags that are repeated append to a copy of
        start = Namespace(**dict.fromkeys(flag_fields(cls), unset))
        found = vars(cls.parser(words).parse_args([*words], start))
        values = {name: value for name, value in found.items() if value is not unset}
        return cls.of(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})

    @classmethod
    def main(cls, words: Sequence[str] | None = None) -> None:
        """Parse words, those of this process if None, and run."""
        cls.parse(sys.argv[1:] if words is None else words).run()


def _shown(position: Field[Any]) -> str:
    """A position in the line of usage."""
    name = position.metadata["metavar"] or position.name.upper()
    name += "..." if str(position.type).startswith("tuple") else ""
    return name if position.default is MISSING else f"[{name}]"
