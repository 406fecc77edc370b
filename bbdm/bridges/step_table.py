"""The table that a sampling loop runs: the weights of every step, whatever the bridge and the solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ARRAYS: dict[str, tuple[int, ...]] = {  # of a table, and the columns of each
    "timesteps": (),
    "prediction": (3,),
    "coefficients": (5,),
    "inputs": (2,),
    "network_times": (),
}


@dataclass(frozen=True, eq=False)
class StepTable:
    """The weights of every step of a sampling loop, one row for each network call; float64.

    :func:`bbdm.solvers.table` makes one of coefficients, with what a bridge says of the rest.

    Raises:
        ValueError: an array is of another shape, or not of finite numbers.
    """

    timesteps: npt.NDArray[Any]  # (K,) strictly decreasing; the times that the network is called at
    prediction: npt.NDArray[np.float64]  # (K, 3) x0hat as weights of x, y and the network's output
    coefficients: npt.NDArray[np.float64]  # (K, 5) the next x as weights of x, y, x0hat, the previous x0hat, noise
    inputs: npt.NDArray[np.float64]  # (K, 2) what the network is shown, as weights of x and y
    network_times: npt.NDArray[np.float64]  # (K,) what it sees of the times
    start: tuple[float, float] = (1.0, 0.0)  # the first state as weights of y and noise

    def __post_init__(self) -> None:
        count = np.size(self.timesteps)
        for name, columns in {**ARRAYS, "start": None}.items():
            array = np.array(getattr(self, name), order="C")  # a copy, which nobody else can change
            shape = (2,) if columns is None else (count, *columns)
            if array.dtype.kind not in "if" or array.shape != shape or not count or not np.isfinite(array).all():
                raise ValueError(f"{name} of a table must be finite numbers of shape {shape}, got {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, tuple(map(float, array)) if columns is None else array)

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> StepTable:
        """The table of a :meth:`description`, among other values.

        Raises:
            ValueError: an array is missing, of another shape, or not of finite numbers.
        """
        if missing := [name for name in ARRAYS if name not in values]:
            raise ValueError(f"a table needs {missing[0]}")
        return cls(**{name: np.array(values[name]) for name in ARRAYS}, start=values.get("start", (1.0, 0.0)))

    def description(self) -> dict[str, Any]:
        """Plain values, as exports hold them."""
        return {**{name: getattr(self, name).tolist() for name in ARRAYS}, "start": self.start}

    @property
    def rows(self) -> npt.NDArray[np.float64]:
        """(K, 10) prediction, coefficients, and the next time's inputs side by side, as a step takes them."""
        following = np.concatenate([self.inputs[1:], [[1.0, 0.0]]])
        return np.concatenate([self.prediction, self.coefficients, following], axis=1)

    @property
    def opening(self) -> npt.NDArray[np.float64]:
        """(K, 10) rows as :attr:`rows`, of which only the last is used: it makes the first state.

        So noise of the start has the number of the last row, which takes none itself.
        """
        opening = np.zeros((len(self), 10))
        opening[-1, [4, 7, 8, 9]] = *self.start, *self.inputs[0]
        return opening

    @property
    def noisy(self) -> list[int]:
        """The rows that need noise; the last one's is of the start."""
        return np.flatnonzero(np.append(self.coefficients[:-1, 4], self.start[1])).tolist()
