"""Solver quality where the true distribution is known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bbdm import DDBM, ECSI, GOUB, I2SB, ABridge, BrownianBridge, solvers
from bbdm.bridges import Bridge, timesteps
from tests.gaussian import AREA, CASES, end_distribution, mean_w2, w2

FROM_NOISE: dict[str, Bridge] = {
    "brownian": BrownianBridge(),
    "ve": DDBM("ve"),
    "vp": DDBM("vp"),
    "ecsi": ECSI(),
    "goub": GOUB(objective="residual"),
}
PUBLISHED = [
    (ABridge(), "fast"),
    (BrownianBridge(), "posterior"),
    (BrownianBridge(schedule="linear"), "posterior"),
]


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "ddim", "posterior"])
@pytest.mark.parametrize("bridge", [ABridge(), BrownianBridge()], ids=["abridge", "brownian"])
@pytest.mark.parametrize(("mu", "s"), [(1.0, 0.5), (0.5, 1.0)])
def test_solvers_converge_to_the_true_conditional(
    solver: str, bridge: ABridge | BrownianBridge, mu: float, s: float
):
    """At all times two known errors remain, and 0.01 for a thousand first-order steps."""
    # the clean image is x0hat at t = 1: nu(1) of noise taken off a spread s
    last = float(bridge.nu(1)) ** 2 / s
    first = 0.0
    # the first step draws noise around E[x0], a spread of nu instead of hypot(nu, s)
    if solver in ("ddim", "dpm2m"):
        nu = float(bridge.nu(bridge.top - 1))
        first = s * (1 - nu / np.hypot(nu, s))
    assert w2(bridge, solvers.build(bridge, solver, steps=1000), mu, s) < first + last + 0.01


def heun(bridge: Bridge, times: timesteps.Timesteps) -> solvers.StepTable:
    """Steps of ddim, each corrected by the mean of the estimates at its two ends: times stand twice."""
    steps = solvers.build(bridge, "ddim", times).coefficients
    visited = [times[0]]
    rows = [steps[0]]
    for index in range(1, len(times) - 1):
        half = steps[index, 2] / 2
        visited += [times[index], times[index + 1]]
        rows += [steps[index], np.array([1, 0, half, -half, 0])]
    return solvers.table(bridge, np.array([*visited, times[-1]]), np.array([*rows, steps[-1]]))


@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("dpm2m", 2), ("midpoint", 2), (heun, 2)]
)
def test_half_the_step_is_half_the_error_or_a_quarter_by_the_order(
    solver: str | Callable[[Bridge, timesteps.Timesteps], solvers.StepTable], order: int
):
    bridge, mu, s = ABridge(num_steps=10**6), 1.0, 0.5

    def error(steps: int) -> float:
        # Equal steps in ln nu from 4 to 0.4, so that only the step size changes; T is large enough not to
        # round.
        levels = bridge.time_at(np.geomspace(4.0, 0.4, steps + 1)).astype(int)
        times = np.array([bridge.top, *levels])
        if isinstance(solver, str):
            table = solvers.build(bridge, solver, times)
        else:
            table = solver(bridge, times)
        rows = table.coefficients.copy()
        rows[-1] = 1.0, 0.0, 0.0, 0.0, 0.0  # stay at the last time
        mean, std = end_distribution(bridge, replace(table, coefficients=rows), mu, s)
        alpha, _, sigma = (float(v) for v in bridge.marginal(times[-1]))
        # The first step draws x_r with noise sigma_r around the ideal denoiser's mean: that is the true x_r
        # less s, and the flow scales by standard deviations.
        alpha_r, _, sigma_r = (float(v) for v in bridge.marginal(times[1]))
        true_std = np.hypot(alpha * s, sigma) * sigma_r / np.hypot(alpha_r * s, sigma_r)
        return abs(std - true_std) + abs(mean - alpha * mu)

    assert np.log2(error(64) / error(128)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ["ve", "vp", "goub", "i2sb"])
def test_solvers_of_other_bridges_converge_and_the_second_order_is_nearer(name: str):
    """At 90 times; equal times are too coarse for ve, where t spans four decades."""
    bridge = FROM_NOISE.get(name, I2SB())
    for mu, s in CASES:
        at = {
            (solver, n): w2(bridge, solvers.build(bridge, solver, steps=n), mu, s)
            for solver in ("dpm2m", "sde-dpm2m", "ddim", "posterior")
            for n in (10, 90)
        }
        assert all(
            at[solver, 90] < min(0.08, at[solver, 10])
            for solver, _ in at
            if (name, solver) != ("ve", "posterior")
        )
        assert at["dpm2m", 10] < at["ddim", 10]


@pytest.mark.parametrize(("bridge", "solver"), PUBLISHED, ids=repr)
def test_dpm2m_with_20_evaluations_is_nearer_than_the_published_sampler(
    bridge: Bridge, solver: str
):
    published = solvers.build(bridge, solver)
    assert len(published) >= 199
    assert mean_w2(bridge, solvers.build(bridge, "dpm2m", steps=20)) < mean_w2(bridge, published)


@pytest.mark.parametrize("name", FROM_NOISE)
def test_midpoint_is_nearer_than_dpm2m_from_10_calls_on(name: str):
    """By more than half, at 10 calls and at 20, where sampling begins at a high noise level."""
    bridge = FROM_NOISE[name]
    for steps in (10, 20):
        ours, other = (
            mean_w2(bridge, solvers.build(bridge, solver, steps=steps))
            for solver in ("midpoint", "dpm2m")
        )
        assert ours < 0.45 * other


@pytest.mark.parametrize("pixels", [1, AREA])
@pytest.mark.parametrize("name", FROM_NOISE)
@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "ddim", "consistency"])
def test_a_start_from_noise_is_nearer_where_it_is_the_default(name: str, solver: str, pixels: int):
    bridge = FROM_NOISE[name]
    for steps in (1, 2, 3, 4):
        made = solvers.build(bridge, solver, steps=steps)
        assert made.timesteps[0] != bridge.top
        other = solvers.build(bridge, solver, timesteps=timesteps.karras(bridge, steps))
        assert mean_w2(bridge, made, pixels) < mean_w2(bridge, other, pixels)


def test_areas_keep_their_spread_only_where_the_bridge_has_high_noise_levels():
    """The distances of 10 calls for 256 pixels of one colour, as the documentation has them."""
    bridges = [ABridge(), ABridge(c_lambda=4.0), BrownianBridge(), DDBM("vp")]
    distances = [
        mean_w2(bridge, solvers.build(bridge, "dpm2m", steps=10), AREA) for bridge in bridges
    ]
    assert distances == pytest.approx([0.305, 0.184, 0.016, 0.021], abs=0.005)
