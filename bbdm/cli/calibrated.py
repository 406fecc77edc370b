"""Commands whose results may be those of a calibration."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from bbdm.cli import GPUsCommand
from bbdm.translation.config import TranslateConfig

Self = TypeVar("Self", bound="CalibratedCommand")


@dataclass(frozen=True, kw_only=True)
class CalibratedCommand(GPUsCommand, TranslateConfig):
    """A command that makes results, also with calibrated intervals."""

    def as_calibrated(self: Self, path: Path) -> Self:
        """The command with what a file of intervals fixes: solver, steps, samples, windows and guidance.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a setting that was named, or is not the default, says otherwise.
        """
        from bbdm.evaluation.intervals import Intervals

        intervals = Intervals.load(path, None)
        fixed: dict[str, Any] = {**intervals.fixed, "num_samples": intervals.samples}
        usual = {field.name: field.default for field in fields(self)}
        for name, value in fixed.items():
            chosen = getattr(self, name)
            is_chosen = name in self.named or chosen != usual[name]
            if is_chosen and chosen != value:
                raise ValueError(
                    f"--{name} is {chosen}, and {path} was calibrated with {value}: leave it out, or calibrate again"
                )
        # which keeps pictures as they are, if named
        if self.image_size is None and self.window != fixed["window"]:
            fixed["image_size"] = self.usual_size
        return replace(self, **fixed, intervals=path, fast_sampling=False)
