"""Commands: a frozen dataclass, whose fields are flags and positions, and how the library speaks with people.

Python callers make the same dataclass, and meet the same checks. An expected error and an interruption of a
command print one line, without a traceback unless ``BBDM_TRACEBACK`` asks for it; a warning names the line
that called the library.
"""

from __future__ import annotations

import dis
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bbdm.base import optional, progress
from bbdm.base.flags import BY_FLAG, parser_of
from bbdm.base.settings import check, flag_fields

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
TERMINATED = 143  # and for SIGTERM
READER_ENDED = 141  # and for SIGPIPE: who reads the output, such as head, has ended
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
    def parse(cls: type[Self], words: Sequence[str]) -> Self:
        """The command of words.

        Raises:
            SystemExit: a word is no flag, or no value of its flag. One line says why.
            ValueError: a check of the dataclass fails.
        """
        parser = parser_of(cls, words)
        parsed = vars(parser.parse_args([*words]))
        known = flag_fields(cls)
        values: dict[str, Any] = {}
        for name, value in parsed.items():
            if not name.endswith(BY_FLAG):
                values[name] = tuple(value) if isinstance(value, list) else value
        for name in known:
            if f"{name}{BY_FLAG}" not in parsed:
                continue
            if values[name] != known[name].default:
                flag = known[name].metadata["names"][0]
                parser.error(f"{name.upper()} and {flag} are the same: give one")
            values[name] = parsed[f"{name}{BY_FLAG}"]
        return cls.of(**values)

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
            field = known[match[1]].metadata
            if field["position"]:
                return field["metavar"] or match[1].upper()
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
    frame = sys._getframe(1)
    depth = 2
    while frame.f_back is not None and is_own(frame.f_code.co_filename):
        frame = frame.f_back
        depth += 1
    warnings.warn(message, stacklevel=depth)


def is_own(file: str) -> bool:
    """Whether a file is of the library, or of functions that call it for the library itself."""
    return file.startswith(ROOT) or Path(file).name in BETWEEN


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
    if isinstance(error, ImportError):
        advice = optional.install(error)
        if advice or isinstance(error, ModuleNotFoundError):
            return f"{error}{advice}"
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
        message = str(error) if error.args else "the same command makes what is missing"
        print(f"\ninterrupted: {message}", file=sys.stderr)
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
