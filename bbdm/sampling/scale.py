"""What the numbers of a call's arrays and tensors are. Nothing here needs torch."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from bbdm.data.spec import Spec
from bbdm.pictures.values import Values

Range = tuple[float, float]  # the values of black and white in arrays of floats
UNIT: Range = (-1.0, 1.0)
WHITE_PAPER = 0.9  # the mean of a source that may be bright everywhere: a drawing on white


class Scale(NamedTuple):
    """What a call's sources and results are: their values and axes."""

    range: Range = UNIT  # of floats in arrays and tensors
    kind: Spec = Spec()  # of files and pictures
    given: bool = False  # whether arrays and tensors have the values of ``kind`` too, not those of ``range``
    axes: int = 2  # spatial, of pictures; of volumes 3: (D, H, W) where (H, W) is written below

    def scaled(self, array: Any) -> Any:
        """(..., C, H, W) in [-1, 1] of an array or a tensor."""
        if not self.given:
            return scaled(array, self.range)
        if isinstance(self.kind.source, Values):
            return self.kind.source.scaled(array)
        raise ValueError("percentiles are of pictures: give (H, W) or (H, W, C) arrays, pictures or paths in a list")

    def unscaled(self, array: Any) -> Any:
        """The result of an array or a tensor."""
        return self.kind.target.stored(array) if self.given else unscaled(array, self.range)


def scaled(values: Any, range: Range) -> Any:
    """Values of a range in [-1, 1]: an array or a tensor."""
    low, high = range
    return values if range == UNIT else (values - low) * (2 / (high - low)) - 1


def unscaled(values: Any, range: Range) -> Any:
    """The inverse of :func:`scaled`."""
    low, high = range
    return values if range == UNIT else (values + 1) * ((high - low) / 2) + low


def check_range(range: Any) -> Range:
    """The range as two floats.

    Raises:
        ValueError: it is not (low, high) with low < high.
    """
    try:
        low, high = (float(value) for value in range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"range must be (low, high), got {range!r}") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"range must be (low, high) with low < high, got {range!r}")
    return low, high


def warn_if_positive(values: Any) -> bool:
    """Warn where floats, which should be in [-1, 1], look as if they were in [0, 1]."""
    suspect = float(values.min()) >= 0 and float(values.mean()) < WHITE_PAPER
    if suspect:
        message = "source has no negative value: floats are taken to be in [-1, 1]; pass range=(0, 1) if black is 0"
        warnings.warn(message, stacklevel=7)  # the line that calls the sampler
    return suspect
