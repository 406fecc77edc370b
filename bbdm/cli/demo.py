"""Translate the bundled drawings with the bundled weights: bbdm demo [OUTPUT_DIR] [flags].

OUTPUT_DIR, out/demo if left out, gets 16 results and grid.png: sources, results, and the artists' colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bbdm.base import demo
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values, named
from bbdm.cli.translate import translate
from bbdm.evaluation.config import MapsConfig


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    parser = Parser(__doc__, prog="bbdm demo")
    parser.add_argument("output_dir", type=Path, nargs="?", default=Path("out/demo"), help="where results are written")
    add_flags(parser, MapsConfig)
    given: dict[str, Any] = {"dataset": "edge2shoes", "data_dir": str(demo.FOLDER), "model": demo.WEIGHTS}
    args = vars(parser.parse_args(argv))
    given |= {"named": named(parser, argv, MapsConfig)}
    translate(from_values(MapsConfig, {**args, **given}), ["demo", *argv])
