"""Each bridge's weights against its paper's formulas, written out here; its settings, and what is refused."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import DDBM, ECSI, GOUB, I2SB, ABridge, BrownianBridge, solvers
from bbdm.bridges import Bridge, from_config, register


def numbers(bridge: Bridge, t: float) -> list[float]:
    return [float(v) for v in bridge.marginal(t)]


def test_brownian_bridges():
    bridge = ABridge(1000, c_lambda=2.0)
    assert numbers(bridge, 250) == pytest.approx(
        [0.75, 0.25, 2 * 0.75 * math.sqrt(math.log(4 / 3))], rel=1e-14
    )
    assert bridge.nu(250) == pytest.approx(2 * math.sqrt(math.log(4 / 3)), rel=1e-14)
    bridge = BrownianBridge(10, max_variance=3.0)
    assert numbers(bridge, 5)[2] == pytest.approx(math.sqrt(2 * 0.25 * 3))
    assert bridge.nu(5) == pytest.approx(math.sqrt(2 * 3 * 1.0))
    for bridge in (ABridge(), BrownianBridge(), ABridge(2)):
        T = bridge.num_steps
        assert (numbers(bridge, 0), numbers(bridge, T)) == ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
        assert (bridge.nu(0), bridge.nu(T)) == (0, np.inf)


def test_abridge_ancestral_is_a_step_of_the_reverse_sde():
    """x_s = x_t - (f - g^2 score) + g z at s = t - 1; f = (y - x) / (T - s), g^2 = c^2 (1 - s / T) / T."""
    bridge = ABridge(50, c_lambda=1.5)
    table = solvers.build(bridge, "ancestral")
    x, x0, y = 0.3, -0.7, 0.9
    times = table.timesteps.tolist()
    for t, row in zip(times[1:-1], table.coefficients[1:-1], strict=True):
        alpha, beta, sigma = numbers(bridge, t - 1)
        following = row[:3] @ [x, y, x0]
        drift = (y - following) / (50 - (t - 1))
        variance = 1.5**2 * (1 - (t - 1) / 50) / 50
        score = -(following - alpha * x0 - beta * y) / sigma**2
        assert following == pytest.approx(x - drift + variance * score, rel=1e-9)
        # its terms in x_s are on the left of the table's equation, whose factor divides the noise too
        noise = 0.0 if t == 2 else math.sqrt(variance) * row[0]
        assert row[4] == pytest.approx(noise, rel=1e-9)


@pytest.mark.parametrize("objective", ["residual", "displacement", "noise", "scaled"])
def test_networks_of_published_objectives_are_shown_x_t_alone(objective: Any):
    assert I2SB(objective=objective).input(500).tolist() == [1, 0]


def test_bbdm_schedules_stop_short_of_the_endpoints():
    linear, sin = BrownianBridge(schedule="linear"), BrownianBridge(schedule="sin")
    assert (linear.low, linear.top, linear.train_range) == (0, 999, (0, 999))
    assert linear.at([0, 999]).beta == pytest.approx([0.001, 0.999], rel=1e-12)
    assert linear.at(999).sigma == pytest.approx(math.sqrt(2 * 0.999 * 0.001))  # 0.0447
    assert sin.at([0, 999]).beta == pytest.approx([1.0075**-1000.0, 0.999], rel=1e-12)
    assert np.all(np.diff(sin.at(np.arange(1000)).beta) > 0)


@pytest.mark.parametrize("t", [1e-4, 0.3, 0.7, 1.0])
def test_ddbm(t: float):
    """By signal-to-noise ratios, as the paper's equation 8 has it; of ``ve``, 80 t."""
    assert numbers(DDBM("ve"), 80 * t) == pytest.approx(
        (1 - t**2, t**2, 80 * t * math.sqrt(1 - t**2)), abs=1e-12
    )

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
    bridge = DDBM("ve", t_max=20.0, t_min=0.0005)
    table = solvers.build(bridge, steps=4)
    np.testing.assert_allclose(table.network_times, 250 * np.log(table.timesteps))
    assert bridge.seen(torch.tensor([3.0, 7.0])).tolist() == pytest.approx(
        [250 * math.log(3), 250 * math.log(7)]
    )


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
    ode = I2SB(beta_max=beta_max, deterministic=True)
    assert numbers(ode, n) == pytest.approx((*expected[:2], 0), rel=1e-10)
    assert replace(ode, spread=1.5).level_scale == 1.0  # its levels are no noise
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


@pytest.mark.parametrize("t", [1, 50, 99])
def test_goub(t: int):
    """m, n and the standard deviation of the paper's equation 6, with n in its own words."""
    kept = [math.cos((i / 102 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(103)]
    rates = [1 - value / kept[0] for value in kept[1:-1]]
    cumulated = [sum(rates[: i + 1]) - rates[0] for i in range(101)]
    theta = [value * -math.log(0.005) / cumulated[-1] for value in cumulated]
    scale = (30 / 255) ** 2

    def variance(pull: float) -> float:
        return scale * (1 - math.exp(-2 * pull))

    before, after, whole = variance(theta[t]), variance(theta[100] - theta[t]), variance(theta[100])
    alpha = math.exp(-theta[t]) * after / whole
    left = math.exp(-2 * (theta[100] - theta[t]))
    beta = ((1 - math.exp(-theta[t])) * after + left * before) / whole
    assert numbers(GOUB(), t) == pytest.approx(
        (alpha, beta, math.sqrt(before * after / whole)), rel=1e-9
    )


def test_ecsi():
    """Its marginal; its preconditioning at t = 0.5, with the covariance's square in c_skip as in its code."""
    bridge = ECSI(gamma_max=0.25)
    assert numbers(bridge, 0.2) == pytest.approx([0.8, 0.2, 2 * 0.25 * 0.4])
    assert (bridge.low, bridge.top, bridge.end) == (1e-4, 1.0, 1.0)
    assert bridge.network_time([0.1, 1.0]) == pytest.approx([250 * np.log(0.1), 0.0])
    _, _, p_x, p_y, p_f = ECSI(gamma_max=0.5).weights(0.5)
    total = 0.25 / 4 + 0.25 / 4 + 0.25
    assert [p_x, p_y, p_f] == pytest.approx(
        [0.125 / total, 0, np.sqrt((0.25 / 16 + 0.25 / 4) / total)]
    )
    i_x, _, p_x, _, p_f = ECSI(gamma_max=0.5, cov=0.125).weights(0.5)
    total += 2 * 0.25 * 0.125
    assert [i_x, p_x] == pytest.approx([total**-0.5, (0.125 + 0.5 * 0.125**2) / total])
    assert p_f == pytest.approx(np.sqrt((0.25 * (1 / 16 - 1 / 64) + 0.25 / 4) / total))


def test_a_flow_s_steps_are_euler_s():
    """dx/dt = y - x0hat along alpha = 1 - t, where the source is what x and x0hat say it is."""
    table = solvers.build(
        BrownianBridge(100, 0.0, "displacement"), "ddim", timesteps=[100, 60, 30, 10]
    )
    x, x0hat = 0.7, -0.2
    for t, following, row in zip([100, 60, 30], [60, 30, 10], table.coefficients, strict=False):
        y = (x - (1 - t / 100) * x0hat) / (t / 100)
        expected = x + (following - t) / 100 * (y - x0hat)
        assert row @ [x, 99.0, x0hat, 99.0, 99.0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bridge", "times", "cov"),
    [
        (DDBM("vp", cov=0.1), (0.4,), 0.1),
        (ABridge(objective="pinned"), (1, 300, 900, 999), 0.125),
        (BrownianBridge(objective="pinned", spread=0.067), (1, 10, 300, 900), 0.25 - 0.067**2 / 2),
    ],
    ids=["preconditioned", "pinned", "pinned, of small differences"],
)
def test_inputs_and_targets_have_unit_variance(
    bridge: Bridge, times: tuple[float, ...], cov: float
):
    """Over many x0, y and noise; and the best linear guess is taken off already."""
    generator = np.random.default_rng(0)
    x0, y = generator.multivariate_normal([0, 0], [[0.25, cov], [cov, 0.25]], 400_000).T
    noise = generator.standard_normal(len(x0))
    for t in times:
        weights = bridge.training_weights(t)
        shown, target = (weights[:3] @ [x0, y, noise]), (weights[3:] @ [x0, y, noise])
        assert (shown.std(), target.std()) == pytest.approx((1, 1), abs=1e-2)
        assert abs(np.mean(shown * target)) < 1e-2


def test_at_the_top_a_pinned_network_is_shown_nothing_and_predicts_the_difference():
    bridge = ABridge(objective="pinned")
    assert (bridge.input(1000).tolist(), bridge.prediction(1000).tolist()) == ([0, 0], [0, 1, 0.5])


def test_where_sampling_and_training_begin_and_end():
    bridge = ABridge(10, objective="noise")
    assert (bridge.top, bridge.train_range) == (9, (1, 9))
    with pytest.raises(ValueError, match="no x0hat at t = 10; use t <= 9"):
        bridge.prediction(10)
    assert DDBM(objective="noise").top == pytest.approx(1 - 1e-4, abs=1e-7)
    assert np.isfinite(DDBM(objective="noise").prediction(DDBM(objective="noise").top)).all()
    assert ABridge(10).train_range == (1, 10)
    assert (BrownianBridge(10).top, BrownianBridge(10).train_range) == (10, (1, 9))
    bridge = BrownianBridge(max_variance=0.5)  # nu = sqrt(m / (1 - m)), which is 1 in the middle
    assert bridge.start(500) == (1.0, pytest.approx(np.hypot(0.5, 0.25)))
    bridge = BrownianBridge(objective="pinned", spread=0.1)
    (alpha, beta, sigma), (y, noise) = bridge.marginal(970), bridge.start(970)
    assert (y, noise**2) == (
        pytest.approx(alpha + beta),
        pytest.approx(sigma**2 + alpha**2 * 0.1**2),
    )
    with pytest.raises(ValueError, match=r"at least 0\.2"):
        bridge.start(15)


# Files


@pytest.mark.parametrize(
    "bridge",
    [
        DDBM("ve", t_max=20.0, cov=0.1, density="log-normal", spread=0.2),
        ECSI(0.25, 1e-3, cov=0.125),
        I2SB(200, 1.0, True),
        BrownianBridge(
            max_variance=0.0, objective="displacement", sigma_data=0.4, sigma_source=0.41
        ),
    ],
    ids=repr,
)
def test_configs_are_plain_and_come_back(bridge: Bridge):
    assert from_config(json.loads(json.dumps(bridge.config(), allow_nan=False))) == bridge


class Straight(ABridge):
    """A user's own bridge, which leaves its settings unchecked."""

    def __post_init__(self) -> None:
        pass


POSITIVE = {
    "spread": ECSI,
    "sigma_data": ABridge,
    "sigma_source": I2SB,
    "gamma_max": ECSI,
    "c_lambda": ABridge,
}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ABridge, {"num_steps": 1}, "num_steps must be an integer of at least 2, got 1"),
        (ABridge, {"num_steps": 10.0}, "num_steps must be an integer"),
        *(
            (each, {n: v}, f"{n} must be a positive number, got {v}")
            for n, each in POSITIVE.items()
            for v in (0.0, math.nan)
        ),
        (BrownianBridge, {"max_variance": -1.0}, "max_variance must be 0 or a positive number"),
        (
            BrownianBridge,
            {"max_variance": 0.0, "objective": "noise"},
            "objective 'noise' needs noise",
        ),
        (BrownianBridge, {"schedule": "cos"}, "schedule must be"),
        (DDBM, {"kind": "sde"}, r"kind must be one of \('ve', 'vp'\), got 'sde'"),
        (DDBM, {"t_min": 2.0}, "t_min and t_max must be 0 < t_min < t_max, got 2.0 and 1.0"),
        (DDBM, {"kind": "ve", "t_max": np.inf}, "0 < t_min < t_max, got 0.002 and inf"),
        (DDBM, {"cov": 0.3}, "cov must be below 0.25 in size"),
        (I2SB, {"beta_max": 0.0}, "beta_max must be a positive number"),
        (GOUB, {"noise_scale": 0.0}, "noise_scale must be a positive number, got 0.0"),
        (ABridge, {"density": "normal"}, "density must be one of"),
        (ABridge, {"density": "top"}, "density 'top' is of the objective 'pinned', got 'residual'"),
        (ABridge, {"objective": "grad"}, "objective must be one of .*, got 'grad'"),
        (lambda: Straight(objective="grad").check(), {}, "objective must be one of .*, got 'grad'"),  # pyright: ignore[reportArgumentType]
        (
            lambda: Straight().config(),
            {},
            r"is registered: @bbdm.bridges.register\('name'\) above Straight$",
        ),
        (
            lambda: register("abridge")(I2SB),
            {},
            r"the bridge 'abridge' is taken by bbdm\.bridges\.brownian\.ABridge",
        ),
        *(
            (
                from_config,
                {"config": {"kind": kind}},
                r"kind must be one of \['abridge', .*, got .*; import the mo",
            )
            for kind in ("gbm", None, ["abridge"])
        ),
    ],
)
def test_bad_settings(make: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(**settings)


IMAGE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("t", "y", "message"),
    [
        ([0, 1], IMAGE, r"t must be in \[1, 1000\], got \[0, 1\]"),
        ([1, 1001], IMAGE, r"t must be in \[1, 1000\]"),
        ([1.0, 2.0], IMAGE, "t must be 2 integers"),
        ([1], IMAGE, "t must be 2 integers"),
        (
            [1, 2],
            IMAGE[:, :1],
            r"y must be a float tensor of shape \(2, 3, 4, 4\), got \(2, 1, 4, 4\)",
        ),
    ],
    ids=["low", "high", "float", "number", "shape"],
)
def test_what_cannot_be_noised_is_refused(t: list[float], y: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        ABridge().add_noise(IMAGE, y, torch.tensor(t), IMAGE)
    none = IMAGE[:0]
    # none is a batch
    assert len(ABridge().add_noise(none, none, torch.tensor([1])[:0], none)[0]) == 0


@pytest.mark.parametrize("t", [-1, 1001, math.nan])
def test_times_outside_the_bridge(t: float):
    for function in (
        ABridge().marginal,
        ABridge().nu,
        ABridge().prediction,
        BrownianBridge(schedule="linear").at,
    ):
        with pytest.raises(ValueError, match=r"t must be in \[0, "):
            function(t)
