"""What a command says of its work on standard error: what it begins, and how far it is.

How far it is, is a bar on a terminal, and a line each minute elsewhere, as in the log of a cluster. Whoever
translates, trains, scores or fills a cache counts with a :class:`Meter`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar

Shown = bool | Literal["bar"]  # whether work shows how far it is; "bar": as on a terminal
Item = TypeVar("Item")
LINE_EVERY = 60.0  # seconds between lines in a log
BAR_EVERY = 1.0  # seconds between notes beside a bar, for which a GPU may have to be waited
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0

clock: Callable[[], float] = time.monotonic  # seconds


def say(line: str) -> None:
    """Print a line on standard error, in the first of several processes."""
    if sys.stderr is not None and os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def write(line: str) -> None:
    """Print a line on standard output that does not cut a bar of the same screen."""
    from tqdm.auto import tqdm

    tqdm.write(line)


def logged(logger: logging.Logger) -> AbstractContextManager[None]:
    """A context in which a log goes to standard error, and cuts no bar."""
    from tqdm.auto import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm([logger], tqdm)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """A time for people, such as ``40 s``, ``12 min``, ``2.5 h`` or ``3.1 days``."""
    if seconds < 1.5 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.1f} h"
    return f"{seconds / DAY:.1f} days"


class Meter:
    """How far work is. Shown on a terminal, it is a bar, which goes when the work ends; else lines.

    Args:
        what: that is done, such as ``translating``.
        total: how much there is to do.
        unit: what is counted, in the plural.
        shown: whether it is shown, and how.
        done: how much was done before.

    Attributes:
        done: how much is done; of a picture, also a part.
        note: what is said besides, such as a loss.
    """

    def __init__(self, what: str, total: int, unit: str, shown: Shown, done: int = 0) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = float(done)
        self.note = ""
        self._first = done
        self._whole: float | None = None  # what was done before a part that goes on
        self._began = clock()
        self._last = self._began  # when something was shown
        self._shown = bool(shown) and sys.stderr is not None
        self._bar: Any = None
        if self._shown and (shown == "bar" or _is_terminal()):
            self._bar = self._open()

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def due(self) -> bool:
        """Whether a note would be shown now: what costs something is computed for it alone."""
        if not self._shown:
            return False
        every = LINE_EVERY if self._bar is None else BAR_EVERY
        return clock() - self._last >= every

    def advance(self, count: float = 1.0) -> None:
        """So much more is done."""
        self.reach(self.done + count)

    def reach(self, done: float) -> None:
        """So much is done, all in all."""
        step = done - self.done
        self.done = done
        if not self._shown:
            return
        is_due = self.due
        if is_due:
            self._last = clock()
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(step)
        elif is_due:
            say(self._text() + self._left())

    @contextmanager
    def part(self, count: float) -> Iterator[None]:
        """A context at whose end so much more is done, whatever was counted and noted in it.

        Within it, the bar moves, and the number is that of before: of a batch, no result is done yet.
        """
        before = self.done
        self._whole = before
        try:
            yield
        finally:
            self._whole = None
        self.note = ""
        self.reach(before + count)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> Any:
        """A bar on standard error."""
        from tqdm.auto import tqdm

        return tqdm(
            desc=self._text(),
            total=self.total,
            initial=self._first,
            bar_format=BAR,
            miniters=0,  # a step may take longer than those before
            leave=False,
            file=sys.stderr,
        )

    def _text(self) -> str:
        """What is done, and how much."""
        done = self.done if self._whole is None else self._whole
        text = f"{self.what}: {int(done + 1e-6)} of {self.total} {self.unit}"
        return f"{text}, {self.note}" if self.note else text

    def _left(self) -> str:
        """How long the rest takes, at the pace so far."""
        done = self.done - self._first
        if done <= 0:
            return ""
        seconds = (self.total - self.done) * (clock() - self._began) / done
        return f"; about {duration(seconds)} left"


def counted(
    items: Iterable[Item], what: str, total: int, unit: str, shown: Shown
) -> Iterator[Item]:
    """The items, each of which is done when the next one is asked for; else as of a :class:`Meter`."""
    with Meter(what, total, unit, shown) as meter:
        for item in items:
            yield item
            meter.advance()
