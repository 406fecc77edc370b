"""Translate the bundled drawings with the bundled weights: bbdm demo OUTPUT_DIR [flags].

OUTPUT_DIR, out/demo if left out, gets 16 results and grid.png: sources, results, and the artists' colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bbdm.base import demo
from bbdm.base.settings import position
from bbdm.cli.translate import Translate


@dataclass(frozen=True, kw_only=True)
class Demo(Translate):
    """A translation of the bundled drawings."""

    dataset: str = "edge2shoes"
    data_dir: str = str(demo.FOLDER)
    model: Path = demo.WEIGHTS
    output_dir: Path = position("the folder of the results", Path("out/demo"))


main = Demo.main
