"""Bridges that are fitted to the spread of their data."""

from __future__ import annotations

import numpy as np
import pytest

from bbdm import solvers
from bbdm.bridges import DDBM, ECSI, ABridge, Bridge, BrownianBridge, densities, from_config, timesteps

FACTOR = 0.5  # pictures of half the contrast
PAIRS = [  # a bridge, and the same one in other units: noise and spreads are multiplied by the factor
    (
        BrownianBridge(objective="pinned", density="high"),
        BrownianBridge(max_variance=FACTOR**2, objective="pinned", density="high", spread=0.5 * FACTOR),
    ),
    (
        ABridge(objective="pinned", density="wide"),
        ABridge(c_lambda=2 * FACTOR, objective="pinned", density="wide", spread=0.5 * FACTOR),
    ),
    (
        ECSI(gamma_max=0.5, t_min=1e-3, objective="pinned", density="log-normal"),
        ECSI(gamma_max=0.5 * FACTOR, t_min=1e-3, objective="pinned", density="log-normal", spread=0.5 * FACTOR),
    ),
    (
        BrownianBridge(cov=0.1, objective="preconditioned"),
        BrownianBridge(
            max_variance=FACTOR**2,
            objective="preconditioned",
            spread=0.5 * FACTOR,
            sigma_data=0.5 * FACTOR,
            sigma_source=0.5 * FACTOR,
            cov=0.1 * FACTOR**2,
        ),
    ),
]


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "midpoint", "consistency"])
@pytest.mark.parametrize(("bridge", "smaller"), PAIRS)
def test_units_do_not_matter(bridge: Bridge, smaller: Bridge, solver: str) -> None:
    times = [timesteps.SKIPS["midpoint" if solver == "midpoint" else "coarse"](each, 6) for each in (bridge, smaller)]
    keep = slice(0, -1)  # the lowest level is of 8-bit pictures, in any units
    np.testing.assert_allclose(times[1][keep], times[0][keep], rtol=1e-6)
    wanted, found = (solvers.build(each, solver, times[0]) for each in (bridge, smaller))
    np.testing.assert_allclose(found.prediction, wanted.prediction * [1, 1, FACTOR], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.inputs, wanted.inputs / FACTOR, rtol=1e-9)
    np.testing.assert_allclose(found.coefficients, wanted.coefficients * [1, 1, 1, 1, FACTOR], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("bridge", "smaller"), PAIRS)
def test_training_times_are_the_same_in_other_units(bridge: Bridge, smaller: Bridge) -> None:
    times = [densities.quantiles(each, each.density) for each in (bridge, smaller)]
    np.testing.assert_allclose(times[1], times[0], rtol=1e-6)


def test_a_pinned_network_sees_and_predicts_unit_variance() -> None:
    bridge, draws = BrownianBridge(objective="pinned", spread=0.067), np.random.default_rng(0)
    difference, y, noise = 0.067 * draws.standard_normal(10**5), 0.3, draws.standard_normal(10**5)
    for row in bridge.training_weights(np.array([1, 10, 300, 900])):
        for weights in (row[:3], row[3:]):
            values = weights @ np.stack([y + difference, np.full_like(noise, y), noise])
            assert values.std() == pytest.approx(1, abs=0.02)


def test_the_start_below_the_top_has_the_spread_of_the_data() -> None:
    bridge = BrownianBridge(objective="pinned", spread=0.1)
    alpha, beta, sigma = bridge.marginal(970)
    y, noise = bridge.start(970)
    assert y == pytest.approx(alpha + beta)
    assert noise**2 == pytest.approx(sigma**2 + alpha**2 * 0.1**2)
    with pytest.raises(ValueError, match=r"at least 0\.2"):
        bridge.start(15)


def test_files_hold_the_statistics_unless_they_are_those_of_older_files() -> None:
    assert "spread" not in BrownianBridge().config()
    fitted = BrownianBridge(objective="pinned", spread=0.067, sigma_data=0.4, sigma_source=0.41, cov=0.15)
    assert fitted.config() == {
        **BrownianBridge(objective="pinned").config(),
        **{"spread": 0.067, "sigma_data": 0.4, "sigma_source": 0.41, "cov": 0.15},
    }
    assert from_config(fitted.config()) == fitted
    assert from_config(DDBM(spread=0.2).config()).spread == 0.2


@pytest.mark.parametrize("name", ["spread", "sigma_data", "sigma_source"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_spread_is_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        from_config({"kind": "abridge", name: value})
