"""The flags and positions of a command, made of the fields of its dataclass, and the help that lists them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from inspect import get_annotations, getdoc
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from bbdm.base.settings import choices_of, flag_fields, without_none

MAIN = "what is used most"  # the heading of the fields that the help shows first
# what stands for a value in the help
METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
SCREEN = 24  # lines of a terminal, in which the help of a first run fits
FEW = 4  # choices, which a screen of help names
ALL = "all"  # the word after --help that asks for all flags
BY_FLAG = " by flag"  # ends the name of a position that was given by its flag


def most_like(word: str, known: Sequence[str]) -> str | None:
    """What a word begins, or else what is most like it, of what is known; None if nothing is."""
    from difflib import get_close_matches  # of errors alone

    begun = [flag for flag in known if flag.startswith(word)]
    like = begun or get_close_matches(word, known, 1)
    return like[0] if like else None


class Parser(argparse.ArgumentParser):
    """The flags of a command, whose docstring is the help; an error is one line.

    Attributes:
        first: the parser whose help has the flags of a first run alone; None for a command without.
    """

    first: Parser | None = None

    def __init__(self, description: str | None, **settings: Any) -> None:
        super().__init__(
            description=description, formatter_class=Formatter, allow_abbrev=False, **settings
        )
        # values such as -1024:3071:HU are no flags
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; the message says what was probably meant."""
        self.exit(2, f"error: {message}; {self._suggestion(message)}--help lists the flags\n")

    def _suggestion(self, message: str) -> str:
        """The flag that an unknown one begins or is most like, or the values of a list with commas."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown is not None:
            flags = [flag for action in self._actions for flag in action.option_strings]
            flag = most_like(unknown[1], flags)
            return "" if flag is None else f"did you mean {flag}? "
        listed = re.search(r"argument (\S+): invalid choice: '([^']*,[^']*)'", message)
        several = [
            "/".join(action.option_strings) for action in self._actions if action.nargs == "+"
        ]
        if listed is not None and listed[1] in several:
            return f"spaces separate values: {listed[2].replace(',', ' ')}; "
        return ""

    def screen(self) -> str:
        """The help that fits a screen: all flags where they do, else those of a first run."""
        text = self.format_help()
        if self.first is None or text.count("\n") <= SCREEN:
            return text
        text = self.first.format_help()
        if text.count("\n") > SCREEN:
            # which says what shows the others
            self.first.epilog = (self.first.epilog or "").rpartition("\n\n")[2]
            text = self.first.format_help()
        return text


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of which most flags take one line."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 27, **settings})


class Help(argparse.Action):
    """Print the help, of all flags after the word ``all``, and exit."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Print and exit; ``values`` is the word after the flag, None if there is none."""
        print(parser.format_help() if values == ALL else parser.screen(), end="")
        parser.exit()


@dataclass(frozen=True)
class Flag:
    """A field of a command, as a flag or a position.

    Attributes:
        field: of the dataclass, made by :func:`~bbdm.base.settings.setting`.
        hint: the type of the field.
        default: the value where none is given, which the help shows; ``MISSING`` where one must be given.
        brief: whether the help leaves out what a first run does not need.
    """

    field: Field[Any]
    hint: Any
    default: Any
    brief: bool = False

    def add(self, parser: Any) -> None:
        """Add it to a parser or to a group of one. A flag that is left out has no value."""
        if self.kind is bool:
            self._add_switch(parser)
        elif self.is_position:
            self._add_position(parser)
        else:
            self._add_option(parser)

    @property
    def name(self) -> str:
        """The name of the field."""
        return self.field.name

    @property
    def kind(self) -> Any:
        """The type of the value, None aside."""
        return without_none(self.hint)

    @property
    def is_position(self) -> bool:
        """Whether it is taken by its position."""
        return self.field.metadata["position"]

    @property
    def is_several(self) -> bool:
        """Whether it takes several words."""
        return self.field.metadata["parse"] is None and get_origin(self.kind) is tuple

    @property
    def word(self) -> str:
        """What stands for the value in the help."""
        word = self.field.metadata["metavar"]
        if word:
            return word
        if self.is_position:
            return self.name.upper()
        return METAVARS.get(self.kind, self.name.rpartition("_")[2].upper())

    @property
    def names(self) -> list[str]:
        """Its other names, such as ``-b``; of a brief help, the shortest one."""
        names = list(self.field.metadata["names"])
        if self.brief:
            return [name for name in names if not name.startswith("--")][:1]
        return names

    @property
    def help(self) -> str:
        """What it is, with its choices; of a brief help, the first clause, and few choices."""
        text = self.field.metadata["help"]
        if self.brief:
            text = text.partition("; ")[0]
        choices = self._choices
        if choices and (len(choices) <= FEW or not self.brief):
            text += f": {', '.join(map(str, choices))}"
        return text

    @property
    def _choices(self) -> Any:
        if self.field.metadata["parse"] is not None:
            return ()
        return choices_of(self.field, self.kind)

    @property
    def _default_text(self) -> str:
        if any(self.default is unset for unset in (MISSING, None, False, ())):
            return ""
        return f" (default: {self.default})"

    @property
    def _values(self) -> dict[str, Any]:
        """How argparse makes the value of words."""
        if self.field.metadata["parse"] is not None:
            return {"type": self._parsed}
        values: dict[str, Any] = {"type": self.kind}
        if self.is_several:
            values = {"type": get_args(self.kind)[0], "nargs": "+"}
        choices = self._choices
        if choices:
            values["type"] = type(next(iter(choices)))
            values["choices"] = choices
        return values

    def _parsed(self, text: str) -> Any:
        try:
            return self.field.metadata["parse"](text)
        except ValueError as error:  # whose message argparse would not show
            raise argparse.ArgumentTypeError(str(error)) from error

    def _add_switch(self, parser: Any) -> None:
        """``--FLAG``; of one that is on, ``--no-FLAG`` too."""
        off = argparse.SUPPRESS
        parser.add_argument(
            *self.names,
            f"--{self.name}",
            action="store_true",
            default=off,
            help=self.help + self._default_text,
        )
        if self.default is True:
            parser.add_argument(
                f"--no-{self.name}", dest=self.name, action="store_false", default=off, help="off"
            )

    def _add_position(self, parser: Any) -> None:
        """A position, and its flags, where it has any."""
        optional: dict[str, Any] = {}
        if self.default is not MISSING and not self.is_several:
            optional = {"nargs": "?", "default": self.default}
        parser.add_argument(
            self.name, metavar=self.word, help=self.help, **{**self._values, **optional}
        )
        if self.names:
            parser.add_argument(
                *self.names,
                dest=f"{self.name}{BY_FLAG}",
                metavar="PATH",
                default=argparse.SUPPRESS,
                help=f"the same as {self.name.upper()}",
                **self._values,
            )

    def _add_option(self, parser: Any) -> None:
        """A flag with a value."""
        repeated = {"action": "extend"} if self.is_several else {}
        parser.add_argument(
            *self.names,
            f"--{self.name}",
            dest=self.name,
            metavar=self.word,
            default=argparse.SUPPRESS,
            required=self.default is MISSING,
            help=self.help + self._default_text,
            **self._values,
            **repeated,
        )


def parser_of(command: Any, words: Sequence[str] = ()) -> Parser:
    """The parser of a subclass of Command; its help shows the defaults that ``words`` decide."""
    known = flag_fields(command)
    hints = get_type_hints(command)
    defaults = command.defaults(_deciding(command, known, hints, words))

    def flag(name: str, brief: bool = False) -> Flag:
        return Flag(known[name], hints[name], defaults.get(name, known[name].default), brief)

    positions = [name for name, field in known.items() if field.metadata["position"]]
    groups = _groups(command, known, positions)
    usage = ["%(prog)s"]
    for name in groups[MAIN]:
        if name in positions:
            word = flag(name).word
            usage.append(word if known[name].default is MISSING else f"[{word}]")
    usage.append("[flags]")
    heading: dict[str, Any] = {
        "prog": command.PROGRAM or f"bbdm {_hyphenated(command.__name__)}",
        "usage": " ".join(usage),
        "add_help": False,
    }
    description = (getdoc(command) or "").partition("\n\nRaises:")[0]
    summary, _, more = description.partition("\n\n")
    parser = Parser(summary, epilog=more, **heading)
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            flag(name).add(group)
    others = f"--help {ALL} lists all {len(known) - len(positions)} flags."
    parser.first = Parser(summary, epilog=f"{more}\n\n{others}".lstrip(), **heading)
    first = parser.first.add_argument_group(MAIN)
    for name in groups[MAIN]:
        flag(name, brief=True).add(first)
    parser.add_argument_group("help").add_argument(
        "-h",
        "--help",
        action=Help,
        nargs="?",
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        metavar=ALL,
        help=f"show this; {ALL}: all flags",
    )
    return parser


def _deciding(
    command: Any, known: Mapping[str, Field[Any]], hints: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """The values among words of the fields that decide defaults of others."""
    parser = Parser(None, add_help=False)
    for name in command.DECIDING.split():
        Flag(known[name], hints[name], None).add(parser)
    values, _ = parser.parse_known_args(words)
    return vars(values)


def _groups(
    command: Any, known: Mapping[str, Field[Any]], positions: Sequence[str]
) -> dict[str, list[str]]:
    """The names of fields by the headings of the help; the first has what is used most."""
    first = command.FIRST.split()
    groups: dict[str, list[str]] = {MAIN: [name for name in positions if name not in first]}
    groups[MAIN] += first
    for name, field in known.items():
        if name not in groups[MAIN]:
            title = field.metadata["group"] or _heading(command, name)
            groups.setdefault(title, []).append(name)
    return groups


def _heading(command: type[Any], name: str) -> str:
    """That of the class which declares a field: its ``HEADING``, or else the name of its room."""
    owner = next(base for base in command.__mro__ if name in get_annotations(base))
    if "HEADING" in owner.__dict__:
        return owner.__dict__["HEADING"]
    rooms = owner.__module__.split(".")
    return rooms[1] if len(rooms) > 1 else rooms[0]  # of a module of the user's own, its name


def _hyphenated(name: str) -> str:
    """``train-vqgan`` of ``TrainVqgan``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
