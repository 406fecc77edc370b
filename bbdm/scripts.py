"""How a script ends: what its user can mend, and an interruption, are one line and no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130  # the exit status that shells give to Ctrl-C


def run(main: Callable[[], None], after: str = "the same command starts anew") -> None:
    """Run a script's ``main``.

    Args:
        main: the script. A KeyboardInterrupt of its own may carry a message, which is told in place of ``after``.
        after: what an interruption leaves and how to go on.
    """
    try:
        main()
    except KeyboardInterrupt as error:
        print(f"\ninterrupted: {error if error.args else after}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
