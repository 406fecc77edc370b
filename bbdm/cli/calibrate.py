"""Calibrate intervals of results: bbdm calibrate MODEL edge2shoes DATA [flags].

The pairs must be ones that training has not seen, of the kind that the network will be used on. The intervals
of OUT.pt are OUT.intervals.json, which bbdm translate --maps low,high and Intervals.load read. After an
interruption, the same command resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.cli.training import DATA_DIR, add_layout
from bbdm.evaluation.calibration import CalibrateConfig, calibrate


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    parser = Parser(__doc__, prog="bbdm calibrate")
    parser.add_argument("model", type=Path, help="a file, or a name on the Hub")
    add_layout(parser, help="'folder' is of pictures alone, and needs --degrade")
    parser.add_argument("data_dir", help=DATA_DIR)
    add_flags(parser, CalibrateConfig)
    made, output = calibrate(from_values(CalibrateConfig, vars(parser.parse_args(argv))))
    print(f"{made.pairs} pairs: {100 * made.loss:.3g} % of values outside; lambda {made.lambda_:.4g}")
    print(f"mean length {100 * made.length:.3g} % of the range; {output}")
