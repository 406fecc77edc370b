"""Calibrate intervals of results: bbdm calibrate MODEL edge2shoes DATA [flags].

The pairs must be ones that training has not seen, of the kind that the network will be used on. The intervals
of OUT.pt are OUT.intervals.json, which bbdm translate --maps low,high and Intervals.load read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.scripts import Command
from bbdm.evaluation.calibration import CalibrateConfig, calibrate


@dataclass(frozen=True, kw_only=True)
class Calibrate(Command, CalibrateConfig):
    """A calibration."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("model", "dataset", "data_dir", "output", "alpha", "delta", "num_samples", "bound", "batch_size", "device"),
    )

    def run(self) -> None:
        """Calibrate, and print the share of values outside, lambda and the mean length."""
        intervals, output = calibrate(self)
        print(
            f"{intervals.pairs} pairs: {100 * intervals.loss:.3g} % of values outside; lambda {intervals.lambda_:.4g}"
        )
        print(f"mean length {100 * intervals.length:.3g} % of the range; {output}")


main = Calibrate.main
