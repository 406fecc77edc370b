"""How a script ends: what its user can mend, and an interruption, are one line and no traceback."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit status that shells give to Ctrl-C
TERMINATED = 143  # and to SIGTERM


class StoppedError(RuntimeError):
    """Work that ended early: the message says why, what is kept, and what to do next.

    Args:
        message: one line.
        status: the script's exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Within it, SIGTERM ends nothing: what it gives tells whether one came, for the work to end where it can."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def run(main: Callable[[], None], after: str = "the same command starts anew") -> None:
    """Run a script's ``main``.

    Args:
        main: the script. A KeyboardInterrupt of its own may carry a message, which is told in place of
            ``after``.
        after: what an interruption leaves and how to go on.
    """
    try:
        main()
    except KeyboardInterrupt as error:
        print(f"\ninterrupted: {error if error.args else after}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(error.status) from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
