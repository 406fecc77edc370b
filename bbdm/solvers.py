"""Solvers: functions from (bridge, times) to a :class:`StepTable`, rows of :data:`SOLVERS`.

Each step of each solver is one row of weights, x_r = c_x x_s + c_y y + c_0 x0hat + c_h x0hat_prev + c_z z, so
the sampling loop does not know the bridge, the objective or the solver. All tables are float64.

Rows come from the non-Markovian step of DDIM (Song et al. 2021, eq. 12) in a bridge's marginals, with the
noise scale eta_r that a solver chooses, from DPM-Solver++(2M) (Lu et al. 2022) in pinned coordinates, as a
weight w on the previous x0hat, and from the midpoint rule of DBMSolver (CVPR 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bbdm.base.registry import Registry
from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.bridges import timesteps as skips
from bbdm.bridges.timesteps import StepTable as StepTable

Solver = Literal[
    "dpm2m",
    "sde-dpm2m",
    "midpoint",
    "ddim",
    "posterior",
    "fast",
    "consistency",
    "ancestral",
    "mean",
]
DEFAULT: Solver = "dpm2m"
DISTILLED: Solver = "consistency"  # of networks that were distilled for a number of calls
# calls, up to which networks of the density "high" end at a level that they learned much of
FEW = 8
CLEAN = (0.0, 0.0, 1.0, 0.0, 0.0)  # the last row: the estimate, without noise
Coefficients = tuple[float, float, float, float, float]  # of a row: c_x, c_y, c_0, c_h, c_z
Times = Callable[[Bridge, int | None], skips.Timesteps]
# a solver of a number of steps, or None for its own
OfSteps = Callable[[Bridge, int | None], StepTable]
AnySolver = str | StepTable | OfSteps  # a name in SOLVERS, a table, or a function that makes one
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., StepTable])

# Functions of (bridge, times), with those of (bridge, steps or None) that give times; or of the latter alone
SOLVERS: Registry[tuple[Callable[..., StepTable], Times | None]] = Registry("solver")


def register(name: str, times: Times | None = None) -> Callable[[AnyFunction], AnyFunction]:
    """A decorator that gives a name to a solver, for commands, files and exports.

    Whoever reads a file that names it imports its module before; exports hold the table, and need no module.
    A server offers the solvers of this library alone.
    The same function defined again, as by a cell of a notebook that runs twice, replaces the first.

    Args:
        name: what :func:`build` calls it.
        times: of (bridge, steps), the times where none are named, for a solver that is a function of (bridge,
            times); steps may be None. None for a function of (bridge, steps), which takes no ``timesteps``.

    Raises:
        ValueError: another solver has this name.
    """

    def named(solver: AnyFunction) -> AnyFunction:
        SOLVERS.register(name, (solver, times), solver)
        return solver

    return named


def name_of(solver: AnySolver) -> str:
    """What messages and results call a solver."""
    if isinstance(solver, StepTable):
        return f"table of {len(solver)}"
    return solver if isinstance(solver, str) else getattr(solver, "__name__", type(solver).__name__)


def build(
    bridge: Bridge,
    solver: AnySolver = DEFAULT,
    timesteps: str | Iterable[float] | None = None,
    steps: int | None = None,
) -> StepTable:
    """The table of a solver.

    Args:
        bridge: the bridge to sample.
        solver: ``dpm2m``, ``sde-dpm2m``, ``midpoint``, ``ddim``, ``posterior``, ``fast``, ``consistency``,
            ``ancestral``, or ``mean``: one call at the top, the mean of all results. Or a name of
            :func:`register`, a table, or a function of (bridge, steps) that makes one; steps may be None.
        timesteps: a name from :mod:`bbdm.bridges.timesteps`, or strictly decreasing times from
            ``bridge.top``. Times that begin below it start from noise, by
            :meth:`~bbdm.bridges.base.Bridge.start`.
        steps: the number of steps, each of which is one network call, instead of ``timesteps``.

    Raises:
        ValueError: an unknown solver; ``steps`` together with ``timesteps``; times that the bridge or the
            solver cannot take.
    """
    check_choice(solver, timesteps, steps)
    if isinstance(solver, StepTable):
        if steps is not None or timesteps is not None:
            raise ValueError(
                f"a table has its own steps, got steps={steps} and timesteps={timesteps!r} too"
            )
        return solver
    make: Callable[..., StepTable]
    make, default = SOLVERS[solver] if isinstance(solver, str) else (solver, None)
    if default is not None:
        if timesteps is None:
            times = default(bridge, steps)
        else:
            times = skips.resolve(bridge, timesteps, steps)
        return make(bridge, times)
    if timesteps is not None:
        raise ValueError(
            f"solver {name_of(solver)!r} takes steps, and no timesteps; got {timesteps!r}"
        )
    return make(bridge, steps)


def choices(bridge: Bridge, calls: int | None = None, steps: int | None = None) -> dict[str, int]:
    """The solvers that a bridge can be sampled with, and the network calls of each.

    Args:
        bridge: the bridge to sample.
        calls: those that the network was distilled for, which has its own solver alone; None for any network.
        steps: the number that is wanted; None for each solver's default.
    """
    if calls is not None:
        return {DISTILLED: calls}
    calls_of: dict[str, int] = {}
    for solver in SOLVERS:
        if solver != DISTILLED:
            with suppress(ValueError):  # the bridge has no such solver, or not with these steps
                calls_of[solver] = len(build(bridge, solver, steps=steps))
    return calls_of


def check_choice(solver: Any, timesteps: Any, steps: int | None) -> None:
    """Raise ValueError for an unknown solver, or for ``steps`` together with ``timesteps``."""
    if isinstance(solver, str):
        is_known = solver in SOLVERS
    else:
        is_known = callable(solver) or isinstance(solver, StepTable)
    if not is_known:
        names = ", ".join(map(repr, SOLVERS))
        raise ValueError(
            f"solver must be one of {names}, a StepTable or a function of (bridge, steps), got {solver!r}"
        )
    if steps is not None and timesteps is not None:
        raise ValueError(
            f"give steps or timesteps, not both; got steps={steps} and timesteps={timesteps!r}"
        )


def table(
    bridge: Bridge, times: skips.Timesteps, coefficients: npt.NDArray[np.float64]
) -> StepTable:
    """The table of (K, 5) coefficients, with what the bridge says of the network at these times."""
    seen = bridge.network_times(times)
    start = bridge.start(times[0].item())
    return StepTable(
        times, bridge.prediction(times), coefficients, bridge.input(times), seen, start
    )


def default_times(
    bridge: Bridge, steps: int | None, least: float = 40, most: float = 4
) -> skips.Timesteps:
    """Times of noise levels, which start from noise where ``most`` calls or fewer can hide the source in it.

    Networks that were distilled are trained for it. For others it saves a call, which counts up to 4, and is
    wrong by 1 / nu of a pixel's spread, which does not count where nu is 40 (of pairs of spread 0.5): see
    ``tests/gaussian.py``.
    """
    if not bridge.deterministic and np.isinf(bridge.nu(bridge.top)):
        level = float(bridge.nu(skips.highest(bridge))) / bridge.level_scale
        if level >= least and (10 if steps is None else steps) <= most:
            return skips.noise(bridge, steps)
    few = bridge.density == "high" and steps is not None and steps <= FEW
    return skips.coarse(bridge, steps) if few else skips.karras(bridge, steps)


def _posterior_times(bridge: Bridge, steps: int | None) -> skips.Timesteps:
    original = isinstance(bridge, BrownianBridge) and bridge.schedule != "exact"
    return skips.bbdm(bridge, steps) if original else skips.uniform(bridge, steps)


def _fast_times(bridge: Bridge, steps: int | None) -> skips.Timesteps:
    """The paper's, where there are as many."""
    if isinstance(bridge, ABridge | BrownianBridge) and steps in (None, len(skips.paper(bridge))):
        return skips.paper(bridge)
    return skips.karras(bridge, steps)


class Level(NamedTuple):
    """The weights of a bridge at a time; without noise, the source has the place of the noise."""

    alpha: float
    beta: float
    sigma: float
    nu: float  # infinite, if anywhere, at the top
    at_top: bool
    is_source: bool  # the state is exactly y, and has weight 0


def levels_of(bridge: Bridge, times: skips.Timesteps) -> list[Level]:
    """The levels of a bridge at times."""
    alpha, beta, sigma = bridge.at(times)
    if bridge.deterministic:
        sigma = beta
        beta = np.zeros_like(beta)
    at_top = times == bridge.top
    is_source = at_top & (not bridge.deterministic)
    columns = alpha, beta, sigma, bridge.nu(times), at_top, is_source
    return [Level(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def row(s: Level, r: Level, eta: float = 0.0, w: float = 0.0) -> Coefficients:
    """The non-Markovian step from s to r.

    Args:
        s: the level of the state, of which the noise is known.
        r: the level of the next state.
        eta: the new noise, in [0, sigma_r].
        w: the weight of the change from the estimate before to this one.
    """
    kappa = np.sqrt(r.sigma**2 - eta**2) / s.sigma
    return _coefficients(s, r, kappa, eta, w)


def row_from_source(s: Level, r: Level, eta: float) -> Coefficients:
    """The step from the source, in which there is no noise yet; ``eta`` is the new one, in [0, sigma_r]."""
    return _coefficients(s, r, 0.0, eta, 0.0)


def _coefficients(s: Level, r: Level, kappa: float, eta: float, w: float) -> Coefficients:
    gain = r.alpha - kappa * s.alpha
    return kappa, r.beta - kappa * s.beta, gain * (1 + w), -gain * w, eta


def posterior_noise(s: Level, r: Level) -> float:
    """The standard deviation of x_r given x_s, x0 and y."""
    return r.sigma * np.sqrt(1 - (r.nu / s.nu) ** 2)


def second_order(levels: Sequence[Level], i: int) -> float:
    """The weight w of row i, h / (2 h_prev) with h a difference of -ln nu; 0 first and at the top."""
    if i == 0 or levels[i - 1].at_top:
        return 0.0
    before, s, r = levels[i - 1 : i + 2]
    return 0.5 * np.log(s.nu / r.nu) / np.log(before.nu / s.nu)


def _ended(bridge: Bridge, times: skips.Timesteps, rows: Sequence[Coefficients]) -> StepTable:
    return table(bridge, times, np.array([*rows, CLEAN]))


@register("dpm2m", default_times)
def dpm2m(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """``ddim`` of second order, by the estimate before (Lu et al. 2022)."""
    levels = levels_of(bridge, times)
    rows: list[Coefficients] = []
    for i, (s, r) in enumerate(pairwise(levels)):
        if s.is_source:
            rows.append(row_from_source(s, r, r.sigma))
        else:
            rows.append(row(s, r, w=second_order(levels, i)))
    return _ended(bridge, times, rows)


@register("sde-dpm2m", default_times)
def sde_dpm2m(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """``posterior`` of second order, by the estimate before."""
    if bridge.deterministic:
        return dpm2m(bridge, times)
    levels = levels_of(bridge, times)
    rows: list[Coefficients] = []
    for i, (s, r) in enumerate(pairwise(levels)):
        if s.is_source and s.sigma == 0:
            rows.append(row_from_source(s, r, r.sigma))
        else:
            rows.append(row(s, r, posterior_noise(s, r), second_order(levels, i)))
    return _ended(bridge, times, rows)


def _midpoint_times(bridge: Bridge, steps: int | None) -> skips.Timesteps:
    return default_times(bridge, steps) if bridge.deterministic else skips.midpoint(bridge, steps)


@register("midpoint", _midpoint_times)
def midpoint(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """``ddim``, of which every second row is that of DBMSolver; without noise, ``ddim``."""
    plain = ddim(bridge, times)
    if bridge.deterministic:
        return plain
    first = 2 if times[0] == bridge.top else 1
    rows = plain.coefficients.copy()
    for i in range(first, len(times) - 1, 2):
        rows[i] = _midpoint_row(bridge, times[i - 1 : i + 2])
    return table(bridge, times, rows)


@register("ddim", default_times)
def ddim(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """The probability flow: no noise but at the source, where all of it enters (Song et al. 2021)."""
    rows: list[Coefficients] = []
    for s, r in pairwise(levels_of(bridge, times)):
        if s.is_source:
            rows.append(row_from_source(s, r, r.sigma))
        else:
            rows.append(row(s, r))
    return _ended(bridge, times, rows)


@register("posterior", _posterior_times)
def posterior(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """Steps with the noise of x_r given x_s, x0 and y: BBDM's sampler."""
    if bridge.deterministic:
        return ddim(bridge, times)
    rows: list[Coefficients] = []
    for s, r in pairwise(levels_of(bridge, times)):
        if s.is_source and s.sigma == 0:
            rows.append(row_from_source(s, r, r.sigma))
        else:
            rows.append(row(s, r, posterior_noise(s, r)))
    return _ended(bridge, times, rows)


@register("fast", _fast_times)
def fast(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """Half of the noise at each step: A-Bridge's fast sampling."""
    if bridge.deterministic:
        return ddim(bridge, times)
    rows: list[Coefficients] = []
    for s, r in pairwise(levels_of(bridge, times)):
        eta = 0.5 * r.sigma
        if s.is_source:
            rows.append(row_from_source(s, r, eta))
        else:
            rows.append(row(s, r, eta))
    return _ended(bridge, times, rows)


@register(DISTILLED, partial(default_times, least=1, most=np.inf))
def consistency(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """All noise is new at each step (Song et al. 2023)."""
    if bridge.deterministic:
        return ddim(bridge, times)
    rows = [row_from_source(s, r, r.sigma) for s, r in pairwise(levels_of(bridge, times))]
    return _ended(bridge, times, rows)


def _midpoint_row(bridge: Bridge, times: skips.Timesteps) -> list[float]:
    """The second row of a step from times[0] by times[1] to times[2] (DBMSolver, CVPR 2026).

    The state comes to times[1] by the row of ddim. x0hat is linear in -ln rho through both calls, and is
    integrated exactly along the probability flow.
    """
    alpha, beta, sigma = (weights.tolist() for weights in bridge.at(times))
    nu = bridge.nu(times) / bridge.level_scale
    level = -np.log(skips.reference_noise(nu))
    q = skips.REFERENCE / nu
    integral = level[2] - level[0] - 1 + (q[0] + np.arctan(q[2]) - np.arctan(q[0])) / q[2]
    gain = alpha[2] * integral / (level[1] - level[0])
    kept = sigma[2] / sigma[1]
    return [kept, beta[2] - kept * beta[1], gain, alpha[2] * (1 - nu[2] / nu[1]) - gain, 0.0]


@register("ancestral", lambda bridge, steps: bridge.ancestral_times(steps))
def ancestral(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """The published sampler of a bridge, outside this family: its ``ancestral``."""
    bridge.ancestral_times(None)  # or there is none
    rows: Any = bridge.ancestral
    return table(bridge, times, rows(times))


def _top(bridge: Bridge, steps: int | None) -> skips.Timesteps:
    """The bridge's top alone."""
    if steps not in (None, 1):
        raise ValueError(
            f"steps must be 1: solver 'mean' is one network call at the bridge's top, got {steps}"
        )
    return skips.uniform(bridge, 1)


@register("mean", _top)
def mean(bridge: Bridge, times: skips.Timesteps) -> StepTable:
    """One network call at the top, the mean of all results."""
    if len(times) > 1 or times[0] != bridge.top:
        raise ValueError(
            f"solver 'mean' is one network call at the bridge's top, got timesteps {times.tolist()}"
        )
    return ddim(bridge, times)
