"""Commands: a frozen dataclass, whose fields are flags and positions, and how the library speaks with people.

Python callers make the same dataclass, and meet the same checks. An expected error and an interruption of a
command print one line, without a traceback; a warning names the line that called the library.
"""

from __future__ import annotations

import argparse
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
from inspect import getdoc
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from bbdm.base import optional
from bbdm.base.settings import add_flags, check, flag_fields, heading

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
TERMINATED = 143  # and for SIGTERM
MAIN = "what is used most"  # the heading of the fields that the help shows first
IMPORT = "--import"  # before a command: a module that registers bridges, solvers or metrics
imported: list[str] = []  # the modules that this process imported so
Self = TypeVar("Self", bound="Command")
ROOT = f"{Path(__file__).parents[1]}{os.sep}"  # not a folder beside it, such as bbdm_scripts
BETWEEN = ("contextlib.py", "_contextlib.py")  # files of functions that call the library for itself


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the default of a flag, but for those that are off, and no --no-FLAG of them."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = [flag for flag in action.option_strings if action.default is not False or flag[:5] != "--no-"]
        value = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{', '.join(flags)} {value}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        without = not action.option_strings or any(action.default is v for v in (None, False, (), argparse.SUPPRESS))
        return text if without or "(default: " in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """The flags of a command. Its docstring and the flags' defaults are the help; an error is one line."""

    def __init__(self, description: str | None, **settings: Any) -> None:
        super().__init__(description=description, formatter_class=_Help, **settings)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # values such as -1024:3071:HU are no flags

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; of an unknown flag, name the one that is most like it."""
        from difflib import get_close_matches  # of errors alone

        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        flags = [flag for action in self._actions for flag in action.option_strings]
        like = get_close_matches(unknown[1], flags, 1) if unknown else []
        self.exit(2, f"error: {message}; {''.join(f'did you mean {flag}? ' for flag in like)}--help lists the flags\n")


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
    """A command, whose name and description are those of its class.

    Attributes:
        named: the fields that words or :meth:`of` named, also where they named the default.

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    FIRST: ClassVar[str] = ""  # the fields that the help shows first, in this order
    DECIDING: ClassVar[str] = ""  # the field that decides defaults of others
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
        """Defaults in place of the fields' own, by the value of the field :attr:`DECIDING`."""
        return {}

    @classmethod
    def of(cls: type[Self], **values: Any) -> Self:
        """The command of values; what is left out has the default that the help shows."""
        return cls(**{"named": frozenset(values), **cls.defaults(values), **values})

    @classmethod
    def program(cls) -> str:
        """The words that start it."""
        return "bbdm " + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def parser(cls, words: Sequence[str] = ()) -> Parser:
        """The parser of the fields; ``words`` are those that may decide defaults."""
        known = flag_fields(cls)
        positions = [name for name, each in known.items() if each.metadata.get("position")]
        groups = {MAIN: [*dict.fromkeys(name for name in [*cls.FIRST.split(), *positions] if name in known)]}
        for name in known:
            if name not in groups[MAIN]:
                groups.setdefault(heading(cls, name), []).append(name)
        usage = [_shown(known[name]) for name in groups[MAIN] if name in positions]
        first, _, more = (getdoc(cls) or "").partition("\n\nRaises:")[0].partition("\n\n")
        about = {"usage": " ".join(["%(prog)s", *usage, "[flags]"]), "epilog": more, "add_help": False}
        parser, early = Parser(first, prog=cls.program(), **about), Parser(None, add_help=False)
        for title, names in groups.items():
            add_flags(parser.add_argument_group(title), cls, names)
        parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this")
        add_flags(early, cls, cls.DECIDING.split())
        parser.set_defaults(**cls.defaults(vars(early.parse_known_args(words)[0])))
        return parser

    @classmethod
    def parse(cls: type[Self], words: Sequence[str]) -> Self:
        """The command of words.

        Raises:
            SystemExit: a word is no flag, or no value of its flag. One line says why.
            ValueError: a check of the dataclass fails.
        """
        unset: list[Any] = []  # an empty list, which flags that are repeated append to a copy of
        start = argparse.Namespace(**dict.fromkeys(flag_fields(cls), unset))
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


@contextmanager
def imports() -> Iterator[None]:
    """A context of imports that an extra installs: where one is missing, the script ends with one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}{optional.install(error)}") from error


def run(main: Callable[[], None], after: str = "the same command starts anew") -> None:
    """Run a command's ``main``, and turn an expected error into one line and an exit status.

    Args:
        main: the command. A KeyboardInterrupt that it raises with a message replaces ``after``.
        after: the state after an interruption, and how to resume.
    """
    try:
        warnings.formatwarning = _without_code
        with imports():
            main()
    except KeyboardInterrupt as error:
        print(f"\ninterrupted: {error if error.args else after}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(error.status) from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _without_code(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning of a command as a line."""
    return f"warning: {message}\n"
