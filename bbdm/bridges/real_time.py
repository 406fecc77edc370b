"""What the bridges of DDBM and ECSI share: real times, of which the network sees the logarithm."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bbdm.bridges.base import Bridge
from bbdm.bridges.path import Array


class RealTimeBridge(Bridge):
    """A bridge in real time, as the code of DDBM has it; a subclass has ``low`` and ``end`` besides."""

    continuous: ClassVar[bool] = True

    @property
    def top(self) -> float:
        """The end; for the noise objective, which has no x0hat there, just below it."""
        return self.end - (self.objective == "noise") * 1e-4 * (self.end - self.low)

    def network_time(self, t: npt.ArrayLike) -> Array:
        """250 ln t."""
        return 250 * np.log(np.asarray(t, dtype=np.float64) + 1e-44)
