"""Export the bundled networks for the page, each if it is missing or old: python -m examples.web.exports.

Writes examples/web/exports/drawings and examples/web/exports/photographs, each with its tables.json.
`npm run build` runs it. It takes half a minute on two cores.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import bbdm
from bbdm import demo
from bbdm.base import flags, scripts
from bbdm.cli.files import Export
from examples.web import tables

FOLDER = Path(__file__).parent / "exports"
WEIGHTS = {"drawings": demo.WEIGHTS, "photographs": demo.PHOTOGRAPHS}
FLAGS = ("--dtype", "fp16", "--overwrite")


def is_current(name: str) -> bool:
    """Whether an export is there, and newer than its weights and the code that writes it."""
    written = FOLDER / name / tables.TABLES  # the last file
    sources = [WEIGHTS[name], Path(tables.__file__), *Path(bbdm.__file__).parent.rglob("*.py")]
    return written.exists() and written.stat().st_mtime > max(
        path.stat().st_mtime for path in sources
    )


def write(name: str) -> None:
    """Export a network, and write the tables of other solvers beside it."""
    Export.main([str(WEIGHTS[name]), str(FOLDER / name), *FLAGS])
    tables.main([str(FOLDER / name)])


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    flags.Parser(__doc__).parse_args(argv)
    if names := [name for name in WEIGHTS if not is_current(name)]:
        # each works on one core
        with multiprocessing.get_context("spawn").Pool(len(names)) as pool:
            pool.map(write, names)


if __name__ == "__main__":
    scripts.run(main)
