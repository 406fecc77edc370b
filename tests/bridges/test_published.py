"""DDBM, I2SB, GOUB and flows against their papers' formulas, written out here."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from bbdm import DDBM, GOUB, I2SB, ABridge, BrownianBridge, solvers
from bbdm.bridges import Bridge, from_config, register
from tests.gaussian import CASES, w2


def numbers(bridge: Bridge, t: float) -> tuple[float, float, float]:
    alpha, beta, sigma = (float(v) for v in bridge.marginal(t))
    return alpha, beta, sigma


@pytest.mark.parametrize("t", [0.002, 1.0, 40.0, 79.9, 80.0])
def test_ddbm_ve(t: float):
    q = t**2 / 80**2
    assert numbers(DDBM("ve"), t) == pytest.approx((1 - q, q, t * math.sqrt(1 - q)), abs=1e-12)


@pytest.mark.parametrize("t", [1e-4, 0.3, 0.7, 1.0])
def test_ddbm_vp(t: float):
    """By signal-to-noise ratios, as the paper's equation 8 has it."""

    def log_snr(t: float) -> float:
        return -math.log(math.exp(0.5 * 2 * t**2 + 0.1 * t) - 1)

    def log_scale(t: float) -> float:
        return -0.25 * 2 * t**2 - 0.5 * 0.1 * t

    ratio = math.exp(log_snr(1) - log_snr(t))
    alpha = math.exp(log_scale(t)) * (1 - ratio)
    beta = ratio * math.exp(log_scale(t) - log_scale(1))
    sigma = math.sqrt(1 - ratio) * math.exp(log_scale(t) - log_snr(t) / 2)
    assert numbers(DDBM("vp"), t) == pytest.approx((alpha, beta, sigma), abs=1e-12)


def test_ddbm_shows_the_network_the_logarithm_of_the_time():
    assert DDBM("vp").network_time(0.5) == pytest.approx(250 * math.log(0.5))
    bridge = DDBM("ve", t_max=20.0, t_min=0.0005)
    table = solvers.build(bridge, steps=4)
    np.testing.assert_allclose(table.network_times, 250 * np.log(table.timesteps))
    assert bridge.seen(torch.tensor([3.0, 7.0])).tolist() == pytest.approx([250 * math.log(3), 250 * math.log(7)])


def test_preconditioning_gives_unit_variance():
    """Of inputs and targets, over many x0, y and noise of the stated spreads and covariance."""
    bridge, t = DDBM("vp", cov=0.1), 0.4
    generator = np.random.default_rng(0)
    x0, y = generator.multivariate_normal([0, 0], [[0.25, 0.1], [0.1, 0.25]], 400_000).T
    noise = generator.standard_normal(len(x0))
    weights = bridge.training_weights(t)
    shown, target = (weights[:3] @ [x0, y, noise]), (weights[3:] @ [x0, y, noise])
    assert (shown.std(), target.std()) == pytest.approx((1, 1), abs=5e-3)
    assert abs(np.mean(shown * target)) < 5e-3  # the best linear guess is taken off already


def test_pinned_inputs_and_targets_have_unit_variance():
    bridge = ABridge(objective="pinned")
    generator = np.random.default_rng(0)
    y, noise, residual = generator.standard_normal((3, 400_000))
    x0 = y + 0.5 * residual
    for t in (1, 300, 900, 999):
        weights = bridge.training_weights(t)
        shown, target = (weights[:3] @ [x0, y, noise]), (weights[3:] @ [x0, y, noise])
        assert (shown.std(), target.std()) == pytest.approx((1, 1), abs=1e-2)
    assert bridge.input(1000).tolist() == [0, 0]
    assert bridge.prediction(1000).tolist() == [0, 1, 0.5]


def increments(steps: int, beta_max: float) -> np.ndarray:
    roots = [0.01 + (math.sqrt(beta_max / steps) - 0.01) * i / (steps - 1) for i in range(steps)]
    half = [root**2 for root in roots[: steps // 2]]
    return np.array(half + half[::-1])


@pytest.mark.parametrize("n", [0, 1, 400, 998, 999])
@pytest.mark.parametrize("beta_max", [0.3, 1.0])
def test_i2sb(n: int, beta_max: float):
    b = increments(1000, beta_max)
    forward, backward = b[: n + 1].sum(), b[n:].sum()
    total = forward + backward
    expected = backward / total, forward / total, math.sqrt(forward * backward / total)
    assert numbers(I2SB(beta_max=beta_max), n) == pytest.approx(expected, rel=1e-10)
    assert numbers(I2SB(beta_max=beta_max, deterministic=True), n) == pytest.approx((*expected[:2], 0), rel=1e-10)
    assert float(I2SB(beta_max=beta_max).prediction(n)[2]) == pytest.approx(-math.sqrt(forward))
    assert float(I2SB().network_time(n)) == pytest.approx((1e-4 + (1 - 1e-4) * n / 999) * 1000)


def test_i2sb_ancestral_is_its_posterior():
    """p(x_m | x0, x_n) of a diffusion with the increments' variances: two Gaussians multiplied."""
    table = solvers.build(I2SB(), "ancestral", steps=5)
    b = increments(1000, 0.3)
    assert table.timesteps.tolist() == [999, 799, 599, 400, 200]  # np.rint of 999 k / 5
    following = [*table.timesteps.tolist()[1:], 0]
    for n, m, row in zip(table.timesteps.tolist(), following, table.coefficients, strict=True):
        first, second = b[: m + 1].sum(), b[m + 1 : n + 1].sum()
        precision = 1 / first + 1 / second
        share = (1 / second) / precision
        noise = 0.0 if m == 0 else math.sqrt(1 / precision)
        np.testing.assert_allclose(row, [share, 0, 1 - share, 0, noise], rtol=1e-9, atol=1e-12)
    ode = solvers.build(I2SB(deterministic=True), "ancestral", steps=5)
    np.testing.assert_array_equal(ode.coefficients[:, :4], table.coefficients[:, :4])
    assert not ode.coefficients[:, 4].any()
    assert len(solvers.build(I2SB(), "ancestral")) == 999
    with pytest.raises(ValueError, match=r"steps must be an integer in \[1, 999\] for this sampler, got 0"):
        solvers.build(I2SB(), "ancestral", steps=0)


def pulls() -> list[float]:
    """The cumulated theta of GOUB's cosine schedule, T = 100."""
    kept = [math.cos((i / 102 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(103)]
    rates = [1 - value / kept[0] for value in kept[1:-1]]
    cumulated = [sum(rates[: i + 1]) - rates[0] for i in range(101)]
    return [value * -math.log(0.005) / cumulated[-1] for value in cumulated]


@pytest.mark.parametrize("t", [1, 50, 99])
def test_goub(t: int):
    """m, n and the standard deviation of the paper's equation 6, with n in its own words."""
    theta, scale = pulls(), (30 / 255) ** 2

    def variance(pull: float) -> float:
        return scale * (1 - math.exp(-2 * pull))

    before, after, whole = variance(theta[t]), variance(theta[100] - theta[t]), variance(theta[100])
    alpha = math.exp(-theta[t]) * after / whole
    left = math.exp(-2 * (theta[100] - theta[t]))
    beta = ((1 - math.exp(-theta[t])) * after + left * before) / whole
    assert numbers(GOUB(), t) == pytest.approx((alpha, beta, math.sqrt(before * after / whole)), rel=1e-9)
    gamma = 1e3
    softer = math.exp(-theta[t]) * (1 + gamma * after) / (1 + gamma * whole)
    assert numbers(GOUB(gamma=gamma), t)[:2] == pytest.approx((softer, 1 - softer), rel=1e-9)


def test_a_flow_s_steps_are_euler_s():
    """dx/dt = y - x0hat along alpha = 1 - t, where the source is what x and x0hat say it is."""
    table = solvers.build(BrownianBridge(100, 0.0, "displacement"), "ddim", timesteps=[100, 60, 30, 10])
    x, x0hat = 0.7, -0.2
    for t, following, row in zip([100, 60, 30], [60, 30, 10], table.coefficients, strict=False):
        y = (x - (1 - t / 100) * x0hat) / (t / 100)
        expected = x + (following - t) / 100 * (y - x0hat)
        assert row @ [x, 99.0, x0hat, 99.0, 99.0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "bridge",
    [
        DDBM("ve", t_max=20.0),
        DDBM(cov=0.1, density="log-normal"),
        I2SB(200, 1.0, True),
        GOUB(gamma=1e7, objective="residual"),
        GOUB(),
        BrownianBridge(max_variance=0.0, objective="displacement"),
        ABridge(objective="pinned", density="log-normal"),
    ],
    ids=repr,
)
def test_configs_are_plain_and_come_back(bridge: Bridge):
    import json

    assert from_config(json.loads(json.dumps(bridge.config(), allow_nan=False))) == bridge


def test_configs_of_earlier_versions_are_unchanged():
    assert ABridge().config() == {"kind": "abridge", "num_steps": 1000, "c_lambda": 2.0, "objective": "residual"}
    brownian = {"kind": "brownian", "num_steps": 1000, "max_variance": 1.0, "objective": "residual"}
    assert BrownianBridge().config() == {**brownian, "schedule": "exact"}


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="bridge kind 'abridge' is taken by"):
        register("abridge")(I2SB)


NOISY = {"ddbm-vp": DDBM("vp"), "ddbm-ve": DDBM("ve"), "i2sb": I2SB(), "goub": GOUB()}


CONVERGING = [*product(NOISY, ["dpm2m", "sde-dpm2m", "ddim", "posterior"])]
CONVERGING.remove(("ddbm-ve", "posterior"))  # whose equal times are too coarse where t spans four decades


@pytest.mark.parametrize(("name", "solver"), CONVERGING)
def test_solvers_converge_to_the_true_conditional(name: str, solver: str):
    """At 90 times."""
    bridge = NOISY[name]
    for mu, s in CASES:
        assert w2(bridge, solvers.build(bridge, solver, steps=90), mu, s) < 0.08
        ten, ninety = (w2(bridge, solvers.build(bridge, solver, steps=n), mu, s) for n in (10, 90))
        assert ninety < ten


@pytest.mark.parametrize("bridge", NOISY.values(), ids=NOISY.keys())
def test_ten_calls_beat_ten_of_first_order(bridge: Bridge):
    for mu, s in CASES:
        first, second = (w2(bridge, solvers.build(bridge, name, steps=10), mu, s) for name in ("ddim", "dpm2m"))
        assert second < first
