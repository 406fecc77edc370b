"""Commands: a frozen dataclass, whose fields are flags and positions, and how the library speaks with people.

Python callers make the same dataclass, and meet the same checks. An expected error and an interruption of a
command print one line, without a traceback unless ``BBDM_TRACEBACK`` asks for it; a warning names the line
that called the library.
"""

from __future__ import annotations

import argparse
import dis
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field
from importlib import import_module
from inspect import get_annotations, getdoc
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from bbdm.base import optional, progress
from bbdm.base.settings import check, choices_of, flag_fields, without_none

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
TERMINATED = 143  # and for SIGTERM
READER_ENDED = 141  # and for SIGPIPE: who reads the output, such as head, has ended
MAIN = "what is used most"  # the heading of the fields that the help shows first
# what stands for a value in the help
METAVARS: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
SCREEN = 24  # lines of a terminal, in which the help of a first run fits
FEW = 4  # choices, which a screen of help names
ALL = "all"  # the word after --help that asks for all flags
BY_FLAG = " by flag"  # ends the name of a position that was given by its flag
IMPORT = "--import"  # before a command: a module that registers bridges, solvers or metrics
imported: list[str] = []  # the words that named what this process imported so
Self = TypeVar("Self", bound="Command")
ROOT = f"{Path(__file__).parents[1]}{os.sep}"  # not a folder beside it, such as bbdm_scripts
BETWEEN = ("contextlib.py", "_contextlib.py")  # files of functions that call the library for itself
# the environment variable that asks for the traceback of an expected error
TRACEBACK = "BBDM_TRACEBACK"
RAISE = dis.opmap["RAISE_VARARGS"]  # the instruction of a raise statement
# What PyTorch says where its workers cannot hand over a batch
SHARED_MEMORY_FULL = re.compile(r"shared memory.*No space left on device|Bus error.*shared memory")


def most_like(word: str, known: Sequence[str]) -> str | None:
    """What a word begins, or else what is most like it, of what is known; None if nothing is."""
    from difflib import get_close_matches  # of errors alone

    begun = [each for each in known if each.startswith(word)]
    like = begun or get_close_matches(word, known, 1)
    return like[0] if like else None


class Parser(argparse.ArgumentParser):
    """The flags of a command, whose docstring is the help; an error is one line.

    Attributes:
        first: the parser whose help has the flags of a first run alone; None for a command without.
    """

    first: Parser | None = None

    def __init__(self, description: str | None, **settings: Any) -> None:
        settings |= {"formatter_class": Formatter, "allow_abbrev": False}
        super().__init__(description=description, **settings)
        # values such as -1024:3071:HU are no flags
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; of an unknown flag, name the one that it begins, or else is most like."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        suggestion = ""
        flags = [flag for action in self._actions for flag in action.option_strings]
        if unknown is not None and (flag := most_like(unknown[1], flags)):
            suggestion = f"did you mean {flag}? "
        self.exit(2, f"error: {message}; {suggestion}--help lists the flags\n")

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


def _brief(each: Field[Any]) -> dict[str, Any]:
    """What is known of a field, with its shortest name beside its own, and the first clause of its help."""
    about = each.metadata
    short = [name for name in about["names"] if not name.startswith("--")][:1]
    return {**about, "names": short, "help": about["help"].partition("; ")[0]}


def _add(parser: Any, each: Field[Any], hint: Any, default: Any, brief: bool = False) -> None:
    """Add the flag, or the position, of a field: its names, type, choices and help, with the default.

    A flag that is left out has no value. One that is on has a ``--no-FLAG`` too. ``brief`` leaves out of the
    help what a first run does not need.
    """
    about = _brief(each) if brief else each.metadata
    name, kind, off = each.name, without_none(hint), argparse.SUPPRESS
    usual = (
        ""
        if any(default is unset for unset in (MISSING, None, False, ()))
        else f" (default: {default})"
    )
    if kind is bool:
        parser.add_argument(
            *about["names"],
            f"--{name}",
            action="store_true",
            default=off,
            help=about["help"] + usual,
        )
        if default is True:
            parser.add_argument(
                f"--no-{name}", dest=name, action="store_false", default=off, help="off"
            )
        return

    def parsed(text: str) -> Any:
        try:
            return about["parse"](text)
        except ValueError as error:  # whose message argparse would not show
            raise argparse.ArgumentTypeError(str(error)) from error

    choices, several = choices_of(each, kind), get_origin(kind) is tuple
    options: dict[str, Any] = {
        "help": about["help"],
        "type": get_args(kind)[0] if several else kind,
    }
    if about["parse"] is not None:
        options["type"], several = parsed, False
    elif choices:
        options |= {"choices": choices, "type": type(next(iter(choices)))}
        if not brief or len(choices) <= FEW:
            options["help"] += f": {', '.join(map(str, choices))}"
    options |= {"nargs": "+"} if several else {}
    if about["position"]:
        left_out = (
            {"nargs": "?", "default": default} if default is not MISSING and not several else {}
        )
        parser.add_argument(name, metavar=about["metavar"] or name.upper(), **options, **left_out)
        if about["names"]:
            options["help"] = f"the same as {name.upper()}"
            parser.add_argument(
                *about["names"], dest=f"{name}{BY_FLAG}", metavar="PATH", default=off, **options
            )
        return
    metavar = about["metavar"] or METAVARS.get(kind, name.rpartition("_")[2].upper())
    options |= {
        "help": options["help"] + usual,
        "default": off,
        "required": default is MISSING,
        "metavar": metavar,
    }
    parser.add_argument(
        *about["names"],
        f"--{name}",
        dest=name,
        **options,
        **({"action": "extend"} if several else {}),
    )


def import_modules(words: Sequence[str]) -> list[str]:
    """Import the modules of ``--import MODULE`` at the start of words, and return the other words.

    They are found in the working directory too.
    """
    left = [*words]
    while left[1:] and left[0] == IMPORT:
        if "" not in sys.path:
            sys.path.insert(0, "")
        import_module(left[1])
        imported.extend(left[:2])
        left = left[2:]
    return left


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, whose name and description are those of its class.

    Attributes:
        named: the fields that words or :meth:`of` named, also where they named the default.

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    # the words that start it, where they are not bbdm and the name of the class
    PROGRAM: ClassVar[str] = ""
    # the fields that the help shows first, in this order; other positions come before
    FIRST: ClassVar[str] = ""
    DECIDING: ClassVar[str] = ""  # the field that decides defaults of others
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}  # in place of the fields' own
    HIDDEN: ClassVar[frozenset[str]] = frozenset()  # the fields that are no flags of this command
    # whether Ctrl-C is its usual end, after which nothing is missing
    ENDS_BY_INTERRUPT: ClassVar[bool] = False

    named: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __post_init__(self) -> None:
        check(self)
        getattr(super(), "__post_init__", lambda: None)()  # of settings that a command is made of

    @property
    def opening(self) -> str:
        """What the command does, in a line that it says before it runs; nothing by default."""
        return ""

    def announce(self) -> None:
        """Say what the command does, at once: to import PyTorch and to read a network take seconds."""
        if getattr(self, "quiet", False):
            return
        opening = self.opening
        if opening:
            progress.say(opening)

    def run(self) -> Any:
        """Do what the command does."""
        raise NotImplementedError

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults in place of the fields' own, by the values of other fields."""
        return cls.DEFAULTS

    @classmethod
    def of(cls: type[Self], **values: Any) -> Self:
        """The command of values; what is left out has the default that the help shows."""
        return cls(**{"named": frozenset(values), **cls.defaults(values), **values})

    @classmethod
    def parser(cls, words: Sequence[str] = ()) -> Parser:
        """The parser of the fields; its help shows the defaults that ``words`` decide."""
        known, hints = flag_fields(cls), get_type_hints(cls)
        positions = [name for name, each in known.items() if each.metadata["position"]]
        first = cls.FIRST.split()
        groups = {MAIN: [*(name for name in positions if name not in first), *first]}
        for name in known:
            if name not in groups[MAIN]:
                owner = next(each for each in cls.__mro__ if name in get_annotations(each))
                places = owner.__module__.split(".")  # of a module of the user's own, its name
                heading = vars(owner).get("HEADING") or places[min(1, len(places) - 1)]
                groups.setdefault(known[name].metadata["group"] or heading, []).append(name)
        usage = ["%(prog)s"]
        for each in (known[name] for name in groups[MAIN] if name in positions):
            word = each.metadata["metavar"] or each.name.upper()
            usage.append(word if each.default is MISSING else f"[{word}]")
        summary, _, more = (getdoc(cls) or "").partition("\n\nRaises:")[0].partition("\n\n")
        program = cls.PROGRAM or "bbdm " + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()
        about: dict[str, Any] = {
            "prog": program,
            "usage": " ".join([*usage, "[flags]"]),
            "add_help": False,
        }
        others = f"--help {ALL} lists all {len(known) - len(positions)} flags."
        parser = Parser(summary, epilog=more, **about)
        parser.first = Parser(summary, epilog=f"{more}\n\n{others}".lstrip(), **about)
        early = Parser(None, add_help=False)
        for name in cls.DECIDING.split():
            _add(early, known[name], hints[name], None)
        defaults = cls.defaults(vars(early.parse_known_args(words)[0]))
        for title, names in groups.items():
            group = parser.add_argument_group(title)
            for name in names:
                _add(group, known[name], hints[name], defaults.get(name, known[name].default))
        shown = parser.first.add_argument_group(MAIN)
        for name in groups[MAIN]:
            _add(
                shown, known[name], hints[name], defaults.get(name, known[name].default), brief=True
            )
        off = argparse.SUPPRESS
        about = {"action": Help, "nargs": "?", "dest": off, "default": off, "metavar": ALL}
        parser.add_argument_group("help").add_argument(
            "-h", "--help", help=f"show this; {ALL}: all flags", **about
        )
        return parser

    @classmethod
    def parse(cls: type[Self], words: Sequence[str]) -> Self:
        """The command of words.

        Raises:
            SystemExit: a word is no flag, or no value of its flag. One line says why.
            ValueError: a check of the dataclass fails.
        """
        parser = cls.parser(words)
        values = vars(parser.parse_args([*words]))
        given_by_flag = [name for name in values if name.endswith(BY_FLAG)]
        for given in given_by_flag:
            name = given.removesuffix(BY_FLAG)
            known = flag_fields(cls)[name]
            if values[name] != known.default:
                parser.error(
                    f"{name.upper()} and {known.metadata['names'][0]} are the same: give one"
                )
            values[name] = values.pop(given)
        return cls.of(
            **{
                name: tuple(each) if isinstance(each, list) else each
                for name, each in values.items()
            }
        )

    @classmethod
    @contextmanager
    def naming_flags(cls) -> Iterator[None]:
        """Within it, messages of errors call settings as a user types them: by their flags."""
        try:
            yield
        except (ValueError, StoppedError) as error:
            if len(error.args) == 1:
                error.args = (cls.as_typed(f"{error}"),)
            raise

    @classmethod
    def as_typed(cls, message: str) -> str:
        """A message with flags in place of the names of fields.

        These are taken for names where they have an underscore, stand alone in parentheses, begin the message
        as what it is about, and where it says to leave them out, or what one would do.
        """
        known = flag_fields(cls)
        if not known:
            return message
        one = rf"(?:{'|'.join(known)})\b"
        several = rf"{one}(?:, {one})*(?: and {one})?"
        compound = "|".join(name for name in known if "_" in name)
        anywhere = rf"(?<![\w/.'\"=-])({compound})(?![\w/.(=])" if compound else "(?!)"
        beginning = rf"^{several}(?= (?:must|needs?|is|are|cannot|names|writes|\d))"
        advice = (
            rf"(?<=[:,] ){one}(?= (?:replaces|makes|calibrates|gives) )|(?<=leave out ){several}"
        )
        alone = rf"(?<=\(){one}(?=\))"

        def flag(match: re.Match[str]) -> str:
            about = known[match[1]].metadata
            if about["position"]:
                return about["metavar"] or match[1].upper()
            return f"--{match[1]}"

        def flags(match: re.Match[str]) -> str:
            return re.sub(rf"\b({one})", flag, match[0])

        message = re.sub(rf"{beginning}|{advice}|{alone}", flags, message)
        return re.sub(anywhere, flag, message)

    @classmethod
    def main(cls, words: Sequence[str] | None = None) -> None:
        """Parse words, those of this process if None, say what is done, and do it."""
        command = cls.parse(sys.argv[1:] if words is None else words)
        command.announce()
        command.run()


def warn(message: str) -> None:
    """Warn at the line that called the library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(ROOT) or Path(frame.f_code.co_filename).name in BETWEEN
    ):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


class StoppedError(RuntimeError):
    """Work that ended early; the message says why, what is kept, and what to do next."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM within the context, which yields a function that returns whether one came."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def open_streams() -> None:
    """Give a process that was started without standard streams, as services may be, streams to nowhere.

    Otherwise the next file that is opened would be the standard error of C libraries.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - it stays open; its number is the lowest that is free
            os.set_inheritable(stream.fileno(), True)  # as standard streams are
            setattr(sys, name, stream)


def message_of(error: Exception) -> str | None:
    """What a command prints of an expected error; None of another, whose traceback is printed."""
    if isinstance(error, ModuleNotFoundError) or (
        isinstance(error, ImportError) and optional.install(error)
    ):
        return f"{error}{optional.install(error)}"
    if isinstance(error, OSError):
        return str(error)
    if isinstance(error, ValueError):
        if is_raised(error):
            return str(error)
        return f"{error}; this may be a defect of the program: {TRACEBACK}=1 in the environment shows where it is"
    if isinstance(error, RuntimeError) and SHARED_MEMORY_FULL.search(str(error)):
        return (
            "the shared memory is full, /dev/shm, through which workers hand over pictures: give --workers 0, or "
            "a container more of it, as --shm-size 2g of Docker does"
        )
    return None


def is_raised(error: Exception) -> bool:
    """Whether a raise statement raised it, with a message for people, and no operation that failed."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code.co_code
    return code[last.tb_lasti : last.tb_lasti + 1] == bytes([RAISE])


def run(main: Callable[[], object]) -> None:
    """Run a command's ``main``, and turn an expected error into one line and an exit status."""
    open_streams()
    try:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        main()
    except KeyboardInterrupt as error:
        print(
            f"\ninterrupted: {error if error.args else 'the same command makes what is missing'}",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(error.status) from error
    except BrokenPipeError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # where what is left is written as the process ends
        raise SystemExit(READER_ENDED) from error
    except Exception as error:
        message = message_of(error)
        if message is None or os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        raise SystemExit(f"error: {message}") from error
