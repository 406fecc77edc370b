"""The command ``python -m bbdm.runtime``; see :mod:`bbdm.runtime.command`."""

import sys

from bbdm.base import scripts


def main() -> None:
    """Run the command; the import says what is not installed."""
    from bbdm.runtime.command import Runtime

    Runtime.main(scripts.import_modules(sys.argv[1:]))


if __name__ == "__main__":
    scripts.run(main)
