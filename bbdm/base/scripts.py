"""What commands share: the help of their flags, and how they end.

An expected error and an interruption print one line, without a traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from bbdm.base import optional

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
TERMINATED = 143  # and for SIGTERM
SHORT = 30  # characters of choices that stand beside the flag
COMPLETION = "_ARGCOMPLETE"  # set by argcomplete's shell function: the number of words that name the program


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the default of a flag, but for those that are off, and long choices after the help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flags, value = action.option_strings, "" if action.nargs == 0 else self._value(action)
        if isinstance(action, argparse.BooleanOptionalAction) and action.default is False:
            flags = [flag for flag in flags if not flag.startswith("--no-")]
        return f"{', '.join(flags)} {value}".strip()

    def _value(self, action: argparse.Action) -> str:
        choices = _words(action)
        inside = f"{{{','.join(choices)}}}"
        short = choices and len(inside) <= SHORT and action.metavar is None
        return inside if short else f"{action.metavar or action.dest.upper()}{'...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, choices = action.help or "", _words(action)
        if choices and not self._value(action).startswith("{"):
            text += f": {', '.join(choices)}"
        without = not action.option_strings or any(action.default is v for v in (None, False, (), argparse.SUPPRESS))
        return text if without or "(default: " in text else f"{text} (default: %(default)s)"


def _words(action: argparse.Action) -> list[str]:
    """The choices of a flag."""
    return [str(each) for each in action.choices or ()]


class Parser(argparse.ArgumentParser):
    """The flags of a command. Its docstring and the flags' defaults are the help; an error is one line."""

    def __init__(self, description: str | None, **settings: Any) -> None:
        super().__init__(description=description, formatter_class=_Help, **settings)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # values such as -1024:3071:HU are no flags

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (its overloads)
        """Parse; or where a shell asks for completions, print them and exit."""
        if COMPLETION in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; of an unknown flag, name the one that is most like it."""
        from difflib import get_close_matches  # of errors alone

        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        flags = [flag for action in self._actions for flag in action.option_strings]
        like = get_close_matches(unknown[1], flags, 1) if unknown else []
        self.exit(2, f"error: {message}; {''.join(f'did you mean {flag}? ' for flag in like)}--help lists the flags\n")


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
