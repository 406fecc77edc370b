"""Write the tables of several solvers beside an export: python examples/web/tables.py FOLDER [TABLE ...].

TABLE is SOLVER:CALLS,CALLS. A page has no code that builds tables. It offers these, besides the one in
bridge.json, which is the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bbdm import bridges, solvers
from bbdm.base import flags, scripts
from bbdm.base.atomic import write_atomically
from bbdm.files.bridge_json import read_settings

TABLES = "tables.json"
PAIRS = ("dpm2m:3,5,10,20", "sde-dpm2m:5,10,20", "mean:1")  # for networks that were not distilled


def tables(settings: dict[str, Any], words: list[str]) -> Iterator[dict[str, Any]]:
    """The tables of ``SOLVER:CALLS,CALLS`` for the bridge of an export, as bridge.json has its own.

    Raises:
        ValueError: a word of another form, or a solver or a number of calls that the bridge cannot take.
    """
    bridge = bridges.from_config(settings["bridge"])
    for word in words:
        solver, _, numbers = word.partition(":")
        if not all(number.isdecimal() for number in numbers.split(",")):
            raise ValueError(f"tables are named SOLVER:CALLS,CALLS, got {word!r}")
        for calls in map(int, numbers.split(",")):
            yield {"solver": solver, **solvers.build(bridge, solver, steps=calls).description()}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = flags.Parser(__doc__)
    parser.add_argument("folder", type=Path, help="an export of `bbdm export`")
    default = f"{' '.join(PAIRS)}; for a distilled network, {solvers.DISTILLED} with each number up to its own"
    parser.add_argument("tables", nargs="*", metavar="SOLVER:CALLS,CALLS", help=f"({default})")
    args = parser.parse_args(argv)
    settings = read_settings(args.folder)
    calls = settings.get("calls")
    distilled = (
        [f"{solvers.DISTILLED}:{','.join(str(n + 1) for n in range(calls))}"] if calls else None
    )
    made = list(tables(settings, args.tables or distilled or list(PAIRS)))
    text = json.dumps({"bridge": settings["bridge"], "tables": made}) + "\n"
    write_atomically(args.folder / TABLES, lambda path: path.write_text(text))
    names = [f"{table['solver']}:{len(table['timesteps'])}" for table in made]
    print(f"{args.folder / TABLES}: {', '.join(names)}")


if __name__ == "__main__":
    scripts.run(main)
