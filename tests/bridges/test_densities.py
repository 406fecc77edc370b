"""The times that a network learns from."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from bbdm import DDBM, GOUB, ABridge
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.bridges.densities import quantiles

SEEDS = torch.arange(20_000) * 7919


@pytest.mark.parametrize(
    ("density", "mean", "spread"), [("log-normal", -0.9, 1.2), ("wide", -0.4, 1.6), ("high", 1.0, 1.4)]
)
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_log_normal_of_real_times(kind: Any, density: Any, mean: float, spread: float):
    """95 % of ln nu is N(mean, spread^2), cut to the bridge's range, and 5 % of t is uniform."""
    bridge = DDBM(kind, density=density)
    times = quantiles(bridge, bridge.density)
    low, high = np.log(bridge.nu(bridge.low)), np.inf

    def cumulative(t: np.ndarray) -> np.ndarray:
        a, b = (norm.cdf(v, mean, spread) for v in (low, high))
        normal = (norm.cdf(np.log(bridge.nu(t)), mean, spread) - a) / (b - a)
        return 0.05 * (t - bridge.low) / (bridge.top - bridge.low) + 0.95 * normal

    assert kstest(times, cumulative).statistic < 1e-3
    assert np.all(np.diff(times) >= 0)


def test_log_normal_of_integers_has_the_mass_between_midpoints():
    bridge = ABridge(100, density="log-normal")
    times, counts = np.unique(quantiles(bridge, bridge.density), return_counts=True)
    assert np.array_equal(times, np.arange(1, 101))
    edges = np.log(bridge.nu(np.array([1, *np.arange(1.5, 100), 100])))
    mass = norm.cdf(edges, -0.9, 1.2)
    uniform = np.diff([1, *np.arange(1.5, 100), 100]) / 99
    wanted = 0.05 * uniform + 0.95 * np.diff(mass) / (mass[-1] - mass[0])
    np.testing.assert_allclose(counts / counts.sum(), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "bridge",
    [ABridge(50), ABridge(50, density="log-normal"), DDBM("vp"), DDBM("ve", density="log-normal"), BrownianBridge(50)],
    ids=repr,
)
def test_drawn_times_follow_the_density(bridge: Bridge):
    drawn = bridge.draw_times(SEEDS, 3)
    low, high = bridge.train_range
    assert drawn.is_floating_point() == bridge.continuous
    assert low <= drawn.min()
    assert drawn.max() <= high
    drawn_by_quantile = bridge.density != "uniform" or bridge.continuous
    wanted = quantiles(bridge, bridge.density) if drawn_by_quantile else np.arange(low, high + 1)
    mean, spread = wanted.mean(), wanted.std()
    assert abs(drawn.double().mean() - mean) < 4 * spread / len(SEEDS) ** 0.5
    assert torch.equal(drawn, bridge.draw_times(SEEDS, 3))
    assert not torch.equal(drawn, bridge.draw_times(SEEDS, 4))


def test_uniform_integers_are_those_of_earlier_versions():
    """Runs that began before densities go on with the same times."""
    from bbdm.kernels import philox

    assert torch.equal(ABridge().draw_times(SEEDS, 5), philox.timesteps(SEEDS, 5, 1, 1000))


@pytest.mark.parametrize("density", ["uniform", "wide"])
@pytest.mark.parametrize("make", [ABridge, BrownianBridge, partial(DDBM, "ve"), GOUB])
def test_the_pinned_objective_learns_at_the_top(make: Any, density: Any):
    """There the network is shown nothing of the state, as nowhere else, and sampling calls it first."""
    bridge = make(objective="pinned", density=density)
    drawn = bridge.draw_times(SEEDS, 0)
    assert 0.015 < (drawn == bridge.top).double().mean() < 0.025
    assert drawn.min() < bridge.low + 0.1 * (bridge.top - bridge.low)


@pytest.mark.parametrize("make", [ABridge, BrownianBridge, partial(DDBM, "ve"), GOUB])
def test_the_density_top_is_a_regression(make: Any):
    """The network is shown the source alone: the prediction at the top is of any noise the same."""
    bridge = make(objective="pinned", density="top")
    assert (bridge.draw_times(SEEDS, 3) == bridge.top).all()
    with pytest.raises(ValueError, match="density 'top' is of the objective 'pinned', got 'residual'"):
        make(objective="residual", density="top")
