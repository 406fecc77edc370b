"""Files that are written in a thread while training goes on.

torch.distributed.checkpoint.async_save does the same for its own format, a folder of files. A checkpoint here
is one file, which each version reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)


class Writing:
    """Work in a thread, one piece at a time. What it raises is raised in the thread that asks for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "writing")  # a process that ends waits for it
        self._work: Future[Any] | None = None

    def start(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Begin a piece of work. Raises what the piece before raised, after waiting for its end."""
        self.wait()
        self._work = self._thread.submit(work, *arguments)

    def check(self) -> None:
        """Raise what the work raised, if it has ended."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the work has ended; raises what it raised."""
        if self._work is not None:
            error = self._work.exception()
            self._work = None
            if error is not None:
                raise error

    def settle(self) -> None:
        """Wait until the work has ended; what it raised is only logged, as something else ends the run."""
        try:
            self.wait()
        except (OSError, ValueError) as error:
            log.warning("%s", error)
