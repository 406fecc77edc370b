"""The times that solvers visit, and those that networks learn from."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from bbdm import DDBM, ECSI, GOUB, I2SB, ABridge, BrownianBridge, solvers
from bbdm.bridges import Bridge, timesteps
from bbdm.bridges.path import quantiles
from bbdm.kernels import philox

SEEDS = torch.arange(20_000) * 7919


# Solvers


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (timesteps.paper(ABridge()), [*range(1000, 905, -2), *range(902, 1, -6)]),  # 199
        (timesteps.paper(ABridge(num_steps=2000))[:3], [2000, 1996, 1992]),
        (timesteps.paper(ABridge(num_steps=100)), [*range(100, 0, -1)]),  # many fall on one time
        (timesteps.uniform(ABridge(num_steps=10), 4), [10, 7, 4, 1]),
        (
            timesteps.bbdm(BrownianBridge(schedule="linear")),
            [*(int(999 - k * 999 / 198) for k in range(198)), 1, 0],
        ),
        (timesteps.bbdm(BrownianBridge(schedule="linear"), 3), [999, 1, 0]),
        (timesteps.coarse(ABridge(), 1), [1000]),
        (timesteps.karras(BrownianBridge(schedule="linear"), 10)[[0, -1]], [999, 0]),
        # a duplicate moves to the nearest free time
        (timesteps.karras(ABridge(num_steps=5), 5), [5, 4, 3, 2, 1]),
        (timesteps.karras(ABridge(num_steps=4)), [4, 3, 2, 1]),
        (timesteps.noise(ABridge(), 1), [999]),
        (timesteps.noise(ABridge(), 9), timesteps.karras(ABridge(), 10)[1:].tolist()),
    ],
    ids=lambda value: str(value) if isinstance(value, list) and len(value) < 6 else "",
)
def test_lists_by_hand(times: timesteps.Timesteps, expected: list[int]):
    assert times.tolist() == expected


LONG = ABridge(num_steps=10**6)  # its lowest level is 0.002, and 0.01 is low enough


def sevenths(bridge: Bridge, shares: list[float]) -> list[float]:
    """Levels at shares of the way from the highest below the top to 0.01, in the seventh root."""
    high, low = float(bridge.nu(bridge.top - 1)) ** (1 / 7), 0.01 ** (1 / 7)
    return [(high + share * (low - high)) ** 7 for share in shares]


@pytest.mark.parametrize(
    ("bridge", "times", "levels"),
    [
        (LONG, timesteps.karras(LONG, 9), [np.inf, *sevenths(LONG, [i / 7 for i in range(8)])]),
        (LONG, timesteps.karras(LONG, 2), [np.inf, *sevenths(LONG, [1 / 2])]),
        (LONG, timesteps.noise(LONG, 2), sevenths(LONG, [0, 2 / 3])),
        (DDBM("ve"), timesteps.noise(DDBM("ve"), 3), [50, 2.4, 0.01]),  # equal steps in nu^(1/7)
        (DDBM("ve"), timesteps.coarse(DDBM("ve")), [np.inf, 50, 10, 2, 0.4]),  # a factor of 5 each
        # a factor of (44.7 / 0.4)^(1/3) = 4.82
        (BrownianBridge(), timesteps.coarse(BrownianBridge()), [np.inf, 44.7, 9.27, 1.93, 0.4]),
        # its top is of a finite level: (14.1 / 0.4)^(1/4) = 2.437
        (I2SB(), timesteps.coarse(I2SB()), [14.1, 5.79, 2.375, 0.974, 0.4]),
    ],
)
def test_levels_by_hand(bridge: Bridge, times: timesteps.Timesteps, levels: list[float]):
    assert bridge.nu(times) == pytest.approx(levels, rel=0.01)


@pytest.mark.parametrize(
    ("bridge", "name", "steps", "message"),
    [
        *(
            (ABridge(), each, None, "non-empty list of integers")
            for each in ([], [10.5, 3], ["top"])
        ),
        (
            ABridge(),
            10,
            None,
            "timesteps must be a name or a non-empty list of integers, got 10: .* give steps=10",
        ),
        (ABridge(), "cosine", None, "timesteps must be one of .*, got 'cosine'"),
        (
            ABridge(),
            [5, 3],
            None,
            "start at the bridge's top .*, or where the noise level is at least 1, got 5",
        ),
        (ABridge(), [1001, 1], None, r"timesteps must be in \[1, 1000\]"),
        (BrownianBridge(schedule="linear"), [999, -1], None, r"timesteps must be in \[0, 999\]"),
        (ABridge(), [1000, 7, 7], None, "must strictly decrease"),
        (DDBM(), [1.0, np.nan], None, "a non-empty list of numbers, got"),
        *(
            (DDBM(), name, None, f"'{name}' are integers, and DDBM has real times")
            for name in ("paper", "bbdm")
        ),
        *(
            (ABridge(), name, steps, r"steps must be an integer in \[1, 1000\]")
            for name in ("karras", "uniform", "bbdm")
            for steps in (0, 1001, 2.5, True)
        ),
        (ABridge(), "paper", 10, "steps must be None with the 'paper' timesteps"),
        (ABridge(), [1000, 5], 2, "steps must be None with a list of timesteps, got steps=2"),
    ],
)
def test_bad_times(bridge: Bridge, name: Any, steps: Any, message: str):
    with pytest.raises(ValueError, match=message):
        timesteps.resolve(bridge, name, steps)


# Training


@pytest.mark.parametrize(
    ("kind", "density", "mean", "spread"),
    [("vp", "log-normal", -0.9, 1.2), ("ve", "wide", -0.4, 1.6), ("vp", "high", 1.0, 1.4)],
)
def test_log_normal_of_real_times(kind: Any, density: Any, mean: float, spread: float):
    """95 % of ln nu is N(mean, spread^2), cut to the bridge's range, and 5 % of t is uniform."""
    bridge = DDBM(kind, density=density)
    times = quantiles(bridge, bridge.density)
    low, high = (norm.cdf(np.log(bridge.nu(t)), mean, spread) for t in (bridge.low, bridge.top))

    def cumulative(t: np.ndarray) -> np.ndarray:
        normal = (norm.cdf(np.log(bridge.nu(t)), mean, spread) - low) / (high - low)
        return 0.05 * (t - bridge.low) / (bridge.top - bridge.low) + 0.95 * normal

    assert kstest(times, cumulative).statistic < 1e-3
    assert np.all(np.diff(times) >= 0)


def test_uniform_real_times_are_the_middles_of_equal_parts():
    bridge = DDBM("vp", density="uniform")
    low, high = bridge.train_range
    times = quantiles(bridge, "uniform")
    parts = np.linspace(low, high, len(times) + 1)
    np.testing.assert_allclose(times, (parts[:-1] + parts[1:]) / 2, rtol=1e-9)


def test_log_normal_of_integers_has_the_mass_between_midpoints():
    bridge = ABridge(100, density="log-normal")
    times, counts = np.unique(quantiles(bridge, bridge.density), return_counts=True)
    assert np.array_equal(times, np.arange(1, 101))
    edges = np.array([1, *np.arange(1.5, 100), 100])
    mass = norm.cdf(np.log(bridge.nu(edges)), -0.9, 1.2)
    wanted = 0.05 * np.diff(edges) / 99 + 0.95 * np.diff(mass) / (mass[-1] - mass[0])
    np.testing.assert_allclose(counts / counts.sum(), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "bridge",
    [
        ABridge(50),
        ABridge(50, density="log-normal"),
        DDBM("vp"),
        DDBM("ve", density="log-normal"),
        BrownianBridge(50),
    ],
    ids=repr,
)
def test_drawn_times_follow_the_density(bridge: Bridge):
    drawn, (low, high) = bridge.draw_times(SEEDS, 3), bridge.train_range
    assert drawn.is_floating_point() == bridge.continuous
    assert low <= drawn.min() <= drawn.max() <= high
    drawn_by_quantile = bridge.density != "uniform" or bridge.continuous
    wanted = quantiles(bridge, bridge.density) if drawn_by_quantile else np.arange(low, high + 1)
    assert abs(drawn.double().mean() - wanted.mean()) < 4 * wanted.std() / len(SEEDS) ** 0.5
    assert torch.equal(drawn, bridge.draw_times(SEEDS, 3))
    assert not torch.equal(drawn, bridge.draw_times(SEEDS, 4))
    # so runs that began before there were densities go on with the same times
    if not drawn_by_quantile:
        assert torch.equal(drawn, philox.timesteps(SEEDS, 3, int(low), int(high)))


@pytest.mark.parametrize("make", [ABridge, BrownianBridge, partial(DDBM, "ve"), GOUB])
def test_the_pinned_objective_learns_at_the_top(make: Any):
    """There it is shown nothing of the state, and sampling calls it first; with ``top``, there alone."""
    for density in ("uniform", "wide"):
        bridge = make(objective="pinned", density=density)
        drawn = bridge.draw_times(SEEDS, 0)
        assert 0.015 < (drawn == bridge.top).double().mean() < 0.025
        assert drawn.min() < bridge.low + 0.1 * (bridge.top - bridge.low)
    assert (make(objective="pinned", density="top").draw_times(SEEDS, 3) == bridge.top).all()


# whose nu is finite at a real top
NOISY = [ECSI(objective="noise"), DDBM("vp", objective="noise", spread=5.0)]


@pytest.mark.parametrize("steps", [2, 4, 5, 12])
@pytest.mark.parametrize(
    "bridge", [DDBM("vp"), I2SB(), *NOISY], ids=["ddbm", "i2sb", "ecsi-noise", "ddbm-noise"]
)
def test_midpoint_is_every_second_time_midway(bridge: Bridge, steps: int):
    """Midway in ln rho; the others are equally spaced in rho^(1/7), but for rounding of integers."""
    times = timesteps.midpoint(bridge, steps)
    assert len(times) == steps
    rho = ((bridge.nu(times) / (bridge.spread / 0.5)) ** -2.0 + 2.6**-2) ** -0.5
    pairs = rho[1:]
    firsts = pairs[::2] if len(pairs) % 2 else [*pairs[:-1:2], pairs[-1]]
    assert np.diff(np.array(firsts) ** (1 / 7), 2) == pytest.approx(0, abs=2e-3)
    for i in range(1, len(pairs) - 1, 2):
        assert pairs[i] == pytest.approx(
            np.sqrt(pairs[i - 1] * pairs[i + 1]), rel=1e-9 if bridge.continuous else 0.1
        )


FACTOR = 0.5  # pictures of half the contrast
UNITS: list[tuple[Any, float, int, float, dict[str, Any]]] = [  # and noise by a power of the factor
    (partial(BrownianBridge, 1000), 1.0, 2, 0.0, {"objective": "pinned", "density": "high"}),
    (partial(ABridge, 1000), 2.0, 1, 0.0, {"objective": "pinned", "density": "wide"}),
    (partial(ECSI, t_min=1e-3), 0.5, 1, 0.0, {"objective": "pinned", "density": "log-normal"}),
    (partial(BrownianBridge, 1000), 1.0, 2, 0.1, {"objective": "preconditioned"}),
]


@pytest.mark.parametrize(("make", "noise", "power", "cov", "settings"), UNITS)
def test_units_do_not_matter(
    make: Any, noise: float, power: int, cov: float, settings: dict[str, Any]
):
    half = dict.fromkeys(("spread", "sigma_data", "sigma_source"), 0.5 * FACTOR)
    bridge = make(noise, cov=cov, **settings)
    smaller = make(noise * FACTOR**power, cov=cov * FACTOR**2, **settings, **half)
    np.testing.assert_allclose(
        *(quantiles(each, each.density) for each in (bridge, smaller)), rtol=1e-6
    )
    for solver in ("dpm2m", "sde-dpm2m", "midpoint", "consistency"):
        skip = timesteps.midpoint if solver == "midpoint" else timesteps.coarse
        times = [skip(each, 6) for each in (bridge, smaller)]
        # the lowest level is of 8-bit pictures
        np.testing.assert_allclose(times[1][:-1], times[0][:-1], rtol=1e-6)
        wanted, found = (solvers.build(each, solver, times[0]) for each in (bridge, smaller))
        np.testing.assert_allclose(
            found.prediction, wanted.prediction * [1, 1, FACTOR], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(found.inputs, wanted.inputs / FACTOR, rtol=1e-9)
        rows = wanted.coefficients * [1, 1, 1, 1, FACTOR]
        np.testing.assert_allclose(found.coefficients, rows, rtol=1e-9, atol=1e-12)
