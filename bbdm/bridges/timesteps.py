"""The times that a solver visits, from the bridge's top down, and the table that a loop runs.

Times are integers or reals. The table has the weights of every step, whatever the bridge and the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.bridges import Bridge
from bbdm.bridges.path import check_steps

Timesteps = npt.NDArray[Any]  # (K,) int64, or float64 for a continuous bridge

RHO = 7  # Karras et al. 2022 (EDM), eq. 5
MOST = 10_000  # times of a continuous bridge
# noise level below a continuous top, of pairs of spread 0.5: nothing can be seen there
HIGHEST = 50.0
# noise level of the last call: a step of 8 bits is 0.008, and less costs long steps in ln nu
LOWEST = 0.01
COARSE = 0.4  # noise level of the last call of coarse, of pairs of spread 0.5
# total noise of the process that midpoint measures steps in, that of DDBM's vp; of spread 0.5
REFERENCE = 2.6
ARRAYS: dict[str, tuple[int, ...]] = {  # of a table, and the columns of each
    "timesteps": (),
    "prediction": (3,),
    "coefficients": (5,),
    "inputs": (2,),
    "network_times": (),
}


def karras(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """Noise levels equally spaced in nu^(1/7) (Karras et al. 2022, eq. 5), 10 by default.

    Where nu is infinite at the top, the list is the top, then levels from nu(top - 1) down; a single level is
    the middle of that range. Levels end at the bridge's lowest, or at 0.01 where that is less. Each is
    rounded to a free integer.
    """
    steps = _count(bridge, steps, 10)
    if not np.isinf(bridge.nu(bridge.top)):
        return _levels(bridge, bridge.top, np.linspace(0, 1, steps))
    shares = np.linspace(0, 1, steps - 1) if steps != 2 else np.array([0.5])
    return _levels(bridge, highest(bridge), shares, [bridge.top])


def noise(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """The levels of :func:`karras` without the top, so that sampling starts from noise; 10 by default.

    Two levels are the highest and one a third of the way up from the lowest.
    """
    steps = _count(bridge, steps, 10)
    return _levels(
        bridge, highest(bridge), np.linspace(0, 1, steps) if steps != 2 else np.array([0, 2 / 3])
    )


def coarse(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """The top, then noise levels equally spaced in ln nu that end at 0.4 already; 5 by default.

    The last call takes all noise below away at once, so areas of one colour come out cleaner than by the few
    calls of :func:`karras`, and textures smoother. Where nu is finite at the top, the levels begin there.
    """
    steps = _count(bridge, steps, 5)
    least = bridge.level_scale * COARSE
    most = float(bridge.nu(bridge.top))
    if np.isfinite(most):
        return _distinct(bridge.time_at(np.geomspace(most, min(least, most), steps)), bridge)
    most = float(bridge.nu(highest(bridge)))
    levels = np.geomspace(most, min(least, most), steps - 1)
    return _distinct([bridge.top, *bridge.time_at(levels)], bridge)


def midpoint(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """The top, then pairs of calls for the solver ``midpoint``; 10 by default.

    The first of each pair is equally spaced in rho^(1/7), with rho^-2 = nu^-2 + 2.6^-2, and the second lies
    midway to the next in ln rho. The last call has no second; with an odd number, nor has the one before.
    Where a real time below the top cannot be as noisy as the highest level, the top is the first of these
    levels.
    """
    steps = _count(bridge, steps, 10)
    if steps == 1:
        return _distinct([bridge.top], bridge)
    count = (steps + 1) // 2  # pairs, of which the last has one call
    high = highest(bridge)
    noise = reference_noise(bridge.nu([high, bridge.low]) / bridge.level_scale)
    most, least = noise.clip(LOWEST / bridge.level_scale).tolist()
    if high < bridge.top:
        warped = np.linspace(most ** (1 / RHO), least ** (1 / RHO), count)
    else:
        warped = np.linspace(most ** (1 / RHO), least ** (1 / RHO), count + 1)[1:]
    rho = warped**RHO
    middles = np.sqrt(rho[:-1] * rho[1:])[: steps - 1 - count]
    levels = 1 / np.sqrt(np.append(rho, middles) ** -2 - REFERENCE**-2)
    return _distinct([bridge.top, *bridge.time_at(bridge.level_scale * levels)], bridge)


def reference_noise(nu: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The noise rho of the process whose bridge has the levels nu, of spread 0.5: rho^-2 = nu^-2 + 2.6^-2."""
    with np.errstate(divide="ignore"):
        return (np.asarray(nu, dtype=np.float64) ** -2.0 + REFERENCE**-2) ** -0.5


def highest(bridge: Bridge) -> float:
    """The highest time below the top: of reals that of the noise level 50, for a spread s of 50 s / 0.5.

    Of integers it is the next, or for a spread that is not 0.5, the nearest to that level.
    """
    if bridge.level_scale == 1 and not bridge.continuous:
        return bridge.top - 1
    time = float(bridge.time_at(bridge.level_scale * HIGHEST))
    return time if bridge.continuous else min(bridge.top - 1, round(time))


def _levels(
    bridge: Bridge, high: float, shares: npt.NDArray[np.float64], first: Iterable[float] = ()
) -> Timesteps:
    """``first``, then the times of levels at shares of the way from ``high`` to the lowest, in nu^(1/7)."""
    top = float(bridge.nu(high))
    warped = top ** (1 / RHO)
    lowest = min(max(float(bridge.nu(bridge.low)), LOWEST), top) ** (1 / RHO)
    return _distinct(
        [*first, *bridge.time_at((warped + shares * (lowest - warped)) ** RHO)], bridge
    )


def uniform(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """Times equally spaced from the top to the lowest time, rounded; 200 by default."""
    return _distinct(np.linspace(bridge.top, bridge.low, _count(bridge, steps, 200)), bridge)


def paper(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """The A-Bridge paper's list: 1000..906 by 2, then 902..2 by 6, scaled to T, rounded, without duplicates.

    Raises:
        ValueError: ``steps`` was given; the length of this list follows from T.
    """
    if steps is not None:
        raise ValueError(
            f"steps must be None with the 'paper' timesteps, whose length is fixed; got steps={steps}"
        )
    if bridge.continuous:
        raise ValueError(
            f"timesteps 'paper' are integers, and {type(bridge).__name__} has real times"
        )
    listed = np.concatenate([np.arange(1000, 905, -2), np.arange(902, 1, -6)])
    scaled = np.rint(listed * bridge.num_steps / 1000).astype(np.int64)
    return np.unique(np.clip(scaled, bridge.low, bridge.top)).astype(np.int64)[::-1]


def bbdm(bridge: Bridge, steps: int | None = None) -> Timesteps:
    """The original BBDM's linear skip: down from the top by top / (steps - 2), truncated, then 1 and 0.

    One step or two are those of :func:`uniform`.

    Raises:
        ValueError: the bridge has real times.
    """
    if bridge.continuous:
        raise ValueError(
            f"timesteps 'bbdm' are integers, and {type(bridge).__name__} has real times"
        )
    steps = _count(bridge, steps, 200)
    if steps < 3:
        return uniform(bridge, steps)
    # exact floor of the real time
    middle = [bridge.top + (-k * bridge.top) // (steps - 2) for k in range(steps - 2)]
    return _distinct([*middle, bridge.low + 1, bridge.low], bridge)


SKIPS: dict[str, Callable[[Bridge, int | None], Timesteps]] = {
    skip.__name__: skip for skip in (karras, noise, coarse, midpoint, uniform, paper, bbdm)
}


def resolve(
    bridge: Bridge, timesteps: str | Iterable[float], steps: int | None = None
) -> Timesteps:
    """The times of a name or of a list.

    Args:
        bridge: the bridge that the times are of.
        timesteps: ``karras``, ``noise``, ``coarse``, ``midpoint``, ``uniform``, ``paper``, ``bbdm``, or
            strictly decreasing times from ``bridge.top`` or, to start from noise, from below it: integers or,
            of a continuous bridge, reals.
        steps: length of a named list; None for its default.

    Returns:
        (K,) int64, or float64 of a continuous bridge, strictly decreasing.

    Raises:
        ValueError: an unknown name, or a list that is empty, does not decrease, leaves the bridge or starts
            below its top where noise does not hide the target.
    """
    if isinstance(timesteps, str):
        if timesteps not in SKIPS:
            numbers = "numbers" if bridge.continuous else "integers"
            raise ValueError(
                f"timesteps must be one of {tuple(SKIPS)} or a list of {numbers}, got {timesteps!r}"
            )
        return SKIPS[timesteps](bridge, steps)
    times: Any = list(timesteps) if isinstance(timesteps, Iterable) else timesteps
    values = np.asarray(times)
    if steps is not None:
        raise ValueError(f"steps must be None with a list of timesteps, got steps={steps}")
    is_list = values.ndim == 1 and values.size > 0
    if bridge.continuous:
        numbers = "numbers"
        are_numbers = values.dtype.kind in "iuf" and bool(np.isfinite(values).all())
    else:
        numbers = "integers"
        are_numbers = values.dtype.kind in "iu"
    if not is_list or not are_numbers:
        hint = f": for as many steps, give steps={times}" if isinstance(times, int) else ""
        raise ValueError(
            f"timesteps must be a name or a non-empty list of {numbers}, got {times!r}{hint}"
        )
    values = values.astype(np.float64 if bridge.continuous else np.int64)
    if np.any(np.diff(values) >= 0):
        raise ValueError(f"timesteps must strictly decrease, got {times}")
    if values[0] > bridge.top or values[-1] < bridge.low:
        raise ValueError(f"timesteps must be in [{bridge.low}, {bridge.top}], got {times}")
    bridge.start(values[0].item())  # or it cannot start there
    return values


def _count(bridge: Bridge, steps: int | None, default: int) -> int:
    available = MOST if bridge.continuous else int(bridge.top - bridge.low) + 1
    return min(default, available) if steps is None else check_steps(steps, available)


def _distinct(times: Iterable[float], bridge: Bridge) -> Timesteps:
    """Times rounded to integers; a duplicate moves to the nearest free one, the lower of two. Reals stay."""
    if bridge.continuous:
        return np.array(sorted({float(t) for t in times}, reverse=True))
    taken: set[int] = set()
    for time in times:
        rounded = int(np.clip(np.rint(time), bridge.low, bridge.top))
        taken.add(_nearest_free(rounded, taken, bridge))
    return np.array(sorted(taken, reverse=True), dtype=np.int64)


def _nearest_free(time: int, taken: set[int], bridge: Bridge) -> int:
    """The time nearest to one that is not taken, the lower of two."""
    distance = 0
    while True:
        for candidate in (time - distance, time + distance):
            if bridge.low <= candidate <= bridge.top and candidate not in taken:
                return candidate
        distance += 1


class Row(NamedTuple):
    """The weights of a step, in the order of a table's columns."""

    p_x: float = 0.0  # x0hat = p_x x + p_y y + p_f F
    p_y: float = 0.0
    p_f: float = 0.0
    c_x: float = 0.0  # the next x = c_x x + c_y y + c_0 x0hat + c_h (the x0hat before) + c_z noise
    c_y: float = 0.0
    c_0: float = 0.0
    c_h: float = 0.0
    c_z: float = 0.0
    i_x: float = 0.0  # the network is shown i_x x + i_y y of the next x
    i_y: float = 0.0


@dataclass(frozen=True, eq=False)
class StepTable:
    """The weights of every step of a sampling loop, one row for each network call; float64.

    :func:`bbdm.solvers.table` makes one of coefficients, with what a bridge says of the rest.

    Raises:
        ValueError: an array is of another shape, or not of finite numbers; or the last row draws noise, whose
            number is that of the start.
    """

    # (K,) that the network is called at, decreasing; a time stands twice where a step is corrected at its end
    timesteps: npt.NDArray[Any]
    prediction: npt.NDArray[np.float64]  # (K, 3) x0hat as weights of x, y and the network's output
    # (K, 5) the next x as weights of x, y, x0hat, the previous x0hat, noise
    coefficients: npt.NDArray[np.float64]
    inputs: npt.NDArray[np.float64]  # (K, 2) what the network is shown, as weights of x and y
    network_times: npt.NDArray[np.float64]  # (K,) what it sees of the times
    start: tuple[float, float] = (1.0, 0.0)  # the first state as weights of y and noise

    def __post_init__(self) -> None:
        count = np.size(self.timesteps)
        for name, columns in ARRAYS.items():
            array = self._checked(name, (count, *columns))
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        of_y, of_noise = self._checked("start", (2,)).tolist()
        object.__setattr__(self, "start", (float(of_y), float(of_noise)))
        last = self.coefficients[-1, 4]
        if last != 0:
            raise ValueError(f"the last row of a table draws no noise, got the weight {last:g}")

    def _checked(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A copy of a field, which nobody else can change; ValueError unless it is numbers of a shape."""
        array = np.array(getattr(self, name), order="C")
        are_numbers = array.dtype.kind in "if" and bool(np.isfinite(array).all())
        if array.shape != shape or array.size == 0 or not are_numbers:
            raise ValueError(
                f"{name} of a table must be finite numbers of shape {shape}, got {array.shape}"
            )
        return array

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> StepTable:
        """The table of a :meth:`description`, among other values.

        Raises:
            KeyError: an array is missing.
        """
        return cls(
            **{name: np.array(values[name]) for name in ARRAYS},
            start=values.get("start", (1.0, 0.0)),
        )

    def description(self) -> dict[str, Any]:
        """Plain values, as exports hold them."""
        return {**{name: getattr(self, name).tolist() for name in ARRAYS}, "start": self.start}

    @property
    def rows(self) -> npt.NDArray[np.float64]:
        """(K, 10) each a :class:`Row`: prediction, coefficients, and the next time's inputs."""
        following = np.concatenate([self.inputs[1:], [[1.0, 0.0]]])
        return np.concatenate([self.prediction, self.coefficients, following], axis=1)

    @property
    def opening(self) -> npt.NDArray[np.float64]:
        """(10,) the row that makes the first state.

        Its noise has the number of the last row, which draws none.
        """
        of_y, of_noise = self.start
        i_x, i_y = self.inputs[0]
        return np.array(Row(c_y=of_y, c_z=of_noise, i_x=i_x, i_y=i_y))

    @property
    def noisy(self) -> list[int]:
        """The rows that need noise; the last one's is of the start."""
        return np.flatnonzero(np.append(self.coefficients[:-1, 4], self.start[1])).tolist()
