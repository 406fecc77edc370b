"""Rows of the step tables against formulas in another form."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from bbdm import DDBM, ECSI, GOUB, I2SB, ABridge, BrownianBridge, solvers
from bbdm.bridges import Bridge, timesteps
from bbdm.defaults import Defaults

BRIDGES: list[Bridge] = [
    ABridge(),
    ABridge(num_steps=2),
    ABridge(num_steps=50, c_lambda=0.3, objective="displacement"),
    ABridge(num_steps=50, objective="noise"),
    BrownianBridge(),
    BrownianBridge(schedule="linear"),
    BrownianBridge(schedule="sin"),
]
FAMILY = ["dpm2m", "sde-dpm2m", "midpoint", "ddim", "posterior", "fast"]
CLEAN = [0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("bridge", BRIDGES, ids=repr)
@pytest.mark.parametrize("solver", FAMILY)
def test_rows_keep_a_known_pair_on_the_bridge(bridge: Bridge, solver: str):
    """With the true x0, each step has the mean alpha x0 + beta y, and never more noise than sigma."""
    table = solvers.build(bridge, solver)
    alpha, beta, sigma = bridge.marginal(table.timesteps)
    variance, noisy = sigma[0] ** 2, solver in ("sde-dpm2m", "posterior")
    for i, (c_x, c_y, c_0, c_h, c_z) in enumerate(table.coefficients[:-1]):
        if i or c_x:  # the first row starts at x = y, where no x0 is in the state
            assert c_x * alpha[i] + c_0 + c_h == pytest.approx(alpha[i + 1], abs=1e-12)
            assert c_x * beta[i] + c_y == pytest.approx(beta[i + 1], abs=1e-12)
            variance = c_x**2 * variance + c_z**2
        else:
            assert c_0 == pytest.approx(alpha[1])
            assert c_y == pytest.approx(beta[1])
            variance = c_z**2
        if solver != "fast":  # its published first step lacks three quarters of the variance
            assert variance == pytest.approx(sigma[i + 1] ** 2, abs=1e-12)
        if i:
            assert (c_z > 0) == (noisy or solver == "fast")
    kappa, _, _, c_h, c_z = table.coefficients[0]
    assert c_h == 0
    if noisy and sigma[0] > 0:
        assert kappa > 0
    else:
        assert (kappa, c_z) == (0, pytest.approx(sigma[1] / (2 if solver == "fast" else 1)))
    assert table.coefficients[-1].tolist() == CLEAN


def test_posterior_row_is_bayes_rule():
    """q(x_r | x_s, x0, y) of the original BBDM (Li et al. 2023, eq. 11), from Gaussian conditioning."""
    bridge, s, r, x0, y, x_s = BrownianBridge(), 600, 400, 0.3, -0.7, 0.9
    table = solvers.build(bridge, "posterior", timesteps=[1000, s, r])
    a_s, b_s, v_s = (float(v) for v in bridge.marginal(s))
    a_r, b_r, v_r = (float(v) for v in bridge.marginal(r))
    # x_s = (a_s / a_r) x_r + (b_s - b_r a_s / a_r) y + noise of the remaining variance
    slope, left = a_s / a_r, v_s**2 - (a_s / a_r * v_r) ** 2
    precision = 1 / v_r**2 + slope**2 / left
    mean = (
        (a_r * x0 + b_r * y) / v_r**2 + slope * (x_s - (b_s - slope * b_r) * y) / left
    ) / precision
    c_x, c_y, c_0, _, c_z = table.coefficients[1]
    assert c_x * x_s + c_y * y + c_0 * x0 == pytest.approx(mean, rel=1e-12)
    assert c_z == pytest.approx(precision**-0.5, rel=1e-12)


def test_dpm2m_row_is_dpm_solver_plus_plus():
    """In pinned coordinates: x~_r = (nu_r/nu_s) x~_s + (1 - nu_r/nu_s) ((1 + w) x0 - w x0_prev)."""
    bridge, times = ABridge(), [1000, 800, 500, 200, 50]
    table = solvers.build(bridge, "dpm2m", timesteps=times)
    x, y, x0, x0_prev = 0.8, -0.4, 0.2, 0.5
    for i in (2, 3):
        (a_s, b_s, _), (a_r, b_r, _) = bridge.marginal(times[i]), bridge.marginal(times[i + 1])
        nu_prev, nu_s, nu_r = bridge.nu(times[i - 1 : i + 2])
        h, h_prev = np.log(nu_s) - np.log(nu_r), np.log(nu_prev) - np.log(nu_s)
        x0_ahead = x0 + (x0 - x0_prev) * h / h_prev / 2
        pinned = nu_r / nu_s * (x - b_s * y) / a_s + (1 - nu_r / nu_s) * x0_ahead
        row = table.coefficients[i]
        assert row[:4] @ [x, y, x0, x0_prev] == pytest.approx(a_r * pinned + b_r * y, rel=1e-12)
    assert table.coefficients[[0, 1, -1], 3].tolist() == [0, 0, 0]


def test_sde_dpm2m_adds_the_noise_of_the_posterior():
    sde, posterior = (
        solvers.build(ABridge(), s, timesteps="karras") for s in ("sde-dpm2m", "posterior")
    )
    assert np.array_equal(sde.coefficients[:, 4], posterior.coefficients[:, 4])
    assert np.array_equal(sde.coefficients[:, :2], posterior.coefficients[:, :2])
    assert sde.coefficients[:, 2:4].sum(1) == pytest.approx(posterior.coefficients[:, 2], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 999])
def test_ancestral_brownian_steps_of_any_length(steps: int):
    """Those of a Brownian motion of variance 2 max_variance, at times that fall as a square."""
    bridge = BrownianBridge(max_variance=0.5)
    times = solvers.build(bridge, "ancestral", steps=steps).timesteps
    assert len(times) == steps
    assert times[0] == 1000
    assert np.all(np.diff(times) < 0)
    ideal = 1000 * (1 - np.arange(steps) / steps) ** 2
    # or each time is taken
    assert np.all((np.abs(times - ideal) < 0.501) | (times == steps - np.arange(steps)))
    rows = solvers.build(bridge, "ancestral", [1000, 400, 3]).coefficients
    assert rows[:2, 4] == pytest.approx([0.6**0.5, 0.397**0.5])
    assert rows[:, 0] == pytest.approx([0.4, 3 / 400, 0])
    assert rows[:, 2] == pytest.approx(1 - rows[:, 0])


def test_choices():
    every = {
        "dpm2m": 10,
        "sde-dpm2m": 10,
        "midpoint": 10,
        "ddim": 10,
        "posterior": 200,
        "fast": 199,
        "ancestral": 1000,
    }
    assert solvers.choices(ABridge()) == {**every, "mean": 1}
    assert solvers.choices(ABridge(), steps=5) == dict.fromkeys(FAMILY, 5)
    # whose ancestral sampler is another
    original = solvers.choices(BrownianBridge(schedule="linear"))
    assert original.keys() == {*FAMILY, "mean"}
    assert solvers.choices(ABridge(), calls=2) == {"consistency": 2}


@pytest.mark.parametrize("bridge", [ABridge(), ABridge(num_steps=50), BrownianBridge()])
def test_as_many_calls_as_the_published_list_has_are_that_list(bridge: Bridge):
    published = solvers.build(bridge, "fast", timesteps="paper").timesteps.tolist()
    assert solvers.build(bridge, "fast").timesteps.tolist() == published
    assert solvers.build(bridge, "fast", steps=len(published)).timesteps.tolist() == published
    assert len(solvers.build(bridge, "fast", steps=len(published) - 1)) == len(published) - 1


def test_one_step_is_the_first_guess_and_so_is_the_mean():
    for bridge in (ABridge(), BrownianBridge(schedule="linear")):
        table = solvers.build(bridge, "mean")
        assert (table.timesteps.tolist(), table.coefficients.tolist()) == ([bridge.top], [CLEAN])
        assert solvers.build(ABridge(), "dpm2m", steps=1).coefficients.tolist() == [CLEAN]
        assert not table.noisy
        for times, steps in ((None, 2), ("karras", None), ([bridge.top, bridge.low], None)):
            with pytest.raises(
                ValueError, match="solver 'mean' is one network call at the bridge's top"
            ):
                solvers.build(bridge, "mean", times, steps)


def test_a_table_comes_back_from_its_description():
    # from noise; its network is shown more than x and t
    table = solvers.build(DDBM("ve"), "consistency", steps=3)
    described = table.description()
    assert solvers.StepTable.from_description(described).description() == described
    with pytest.raises(KeyError, match="inputs"):
        solvers.StepTable.from_description({k: v for k, v in described.items() if k != "inputs"})
    with pytest.raises(
        ValueError, match=r"start of a table must be finite numbers of shape \(2,\), got \(2,\)"
    ):
        solvers.StepTable.from_description({**described, "start": [np.nan, 0.0]})
    with pytest.raises(
        ValueError, match=r"coefficients of a table must be finite numbers of shape \(3, 5\)"
    ):
        replace(table, coefficients=np.ones((3, 4)))


def test_the_last_row_of_a_table_draws_no_noise():
    """Noise of its number is that of the start, of which it would be a copy."""
    rows = solvers.build(ABridge(), "ddim", steps=3).coefficients.copy()
    rows[-1, 4] = 0.5
    with pytest.raises(
        ValueError, match=r"^the last row of a table draws no noise, got the weight 0\.5$"
    ):
        solvers.table(ABridge(), np.array([1000, 500, 1]), rows)


@pytest.mark.usefixtures("own_names")
def test_a_solver_of_one_s_own():
    @solvers.register("jump", timesteps.uniform)
    def jump(bridge: Bridge, times: timesteps.Timesteps) -> solvers.StepTable:
        return solvers.table(bridge, times, np.tile(CLEAN, (len(times), 1)))

    table = solvers.build(ABridge(), "jump", steps=3)
    assert solvers.build(ABridge(), table) is table
    with pytest.raises(ValueError, match="read-only"):
        table.coefficients[0, 0] = 1.0
    assert (table.timesteps.tolist(), table.coefficients.tolist()) == ([1000, 500, 1], [CLEAN] * 3)
    assert solvers.choices(ABridge())["jump"] == 200
    with pytest.raises(
        ValueError, match=r"the solver 'jump' is taken by tests\.test_solvers\..*jump"
    ):
        solvers.register("jump")(solvers.ddim)

    @solvers.register("halves")
    def halves(bridge: Bridge, steps: int | None) -> solvers.StepTable:
        return solvers.build(bridge, "ddim", [1000 >> i for i in range(steps or 5)])

    for solver in ("halves", halves):
        assert solvers.build(ABridge(), solver, steps=3).timesteps.tolist() == [1000, 500, 250]
        with pytest.raises(ValueError, match=r"'halves' takes steps, and no timesteps; got \[3\]"):
            solvers.build(ABridge(), solver, timesteps=[3])
    assert len(Defaults("halves").table(ABridge())) == 5


def test_a_file_of_a_solver_that_is_not_here_opens_with_the_default():
    content = {"solver": "theirs", "steps": 3, "calls": 2}
    with pytest.warns(UserWarning, match="the solver 'theirs', which no module has registered"):
        assert Defaults.from_config(content) == Defaults(calls=2)


def test_the_names_are_those_that_commands_offer():
    message = "a solver's name is in solvers.Solver, in the order of registration"
    assert tuple(solvers.SOLVERS) == get_args(solvers.Solver), message


STEPS = "steps must be an integer in "


@pytest.mark.parametrize(
    ("solver", "bridge", "request_", "message"),
    [
        (
            "euler",
            ABridge(),
            {},
            r"solver must be one of 'dpm2m', .*, a StepTable or a function of .*, got 'euler'",
        ),
        ("ddim", ECSI(), {"timesteps": "sines"}, r"or a list of numbers, got 'sines'"),
        ("ddim", ABridge(), {"timesteps": "sines"}, r"or a list of integers, got 'sines'"),
        (
            "ddim",
            I2SB(deterministic=True),
            {"timesteps": [900, 1]},
            r"must start at the bridge's top \d+, got 900$",
        ),
        ("dpm2m", ABridge(), {"steps": 10, "timesteps": "karras"}, "steps or timesteps, not both"),
        (
            solvers.build(ABridge()),
            ABridge(),
            {"steps": 2},
            "a table has its own steps, got steps=2",
        ),
        ("ancestral", ABridge(), {"steps": 10}, "steps=1000; got steps=10"),
        ("ancestral", ABridge(4), {"timesteps": [4, 3, 1]}, "consecutive"),
        (
            "ancestral",
            ABridge(4),
            {"timesteps": [4, 3, 2]},
            r"timesteps down to 1, got \[4, 3, 2\]",
        ),
        ("ancestral", I2SB(), {"steps": 10.0}, STEPS + r"\[1, 999\] for .*, got 10.0"),
        ("ancestral", I2SB(), {"steps": 0}, STEPS + r"\[1, 999\] for .*, got 0"),
        ("ancestral", BrownianBridge(4), {"steps": 5}, STEPS + r"\[1, 4\] for .*, got 5"),
        (
            "ancestral",
            BrownianBridge(schedule="linear"),
            {},
            "does not exist for the original BBDM",
        ),
    ],
)
def test_bad_requests(
    solver: solvers.AnySolver, bridge: Bridge, request_: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        solvers.build(bridge, solver, **request_)


NOISY = [
    ABridge(),
    ABridge(c_lambda=4.0),
    BrownianBridge(),
    DDBM("vp"),
    ECSI(),
    GOUB(objective="residual"),
]


@pytest.mark.parametrize("bridge", NOISY, ids=repr)
@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "ddim", "posterior", "consistency"])
def test_a_start_from_noise_is_on_the_bridge_for_targets_near_the_source(
    bridge: Bridge, solver: str
):
    """With x0 = y + 0.5 z, every state of the table has mean y, and the variance of the bridge's marginal."""
    table = solvers.build(bridge, solver, timesteps=timesteps.noise(bridge, 5))
    alpha, beta, sigma = bridge.marginal(table.timesteps)
    of_y, of_z = table.start
    assert of_y == pytest.approx(alpha[0] + beta[0])
    assert of_z**2 == pytest.approx(sigma[0] ** 2 + (0.5 * alpha[0]) ** 2)
    # the true x0hat is y on average
    for i, (c_x, c_y, c_0, c_h, _) in enumerate(table.coefficients[:-1]):
        of_y = c_x * of_y + c_y + c_0 + c_h
        assert of_y == pytest.approx(alpha[i + 1] + beta[i + 1], abs=1e-12)
    assert table.coefficients[0, 3] == 0
    assert (table.coefficients[1:-1, 3] != 0).all() == ("2m" in solver)


def test_which_tables_start_from_noise_by_default():
    def from_noise(bridge: Bridge, solver: str) -> list[int]:
        tables = {n: solvers.build(bridge, solver, steps=n) for n in range(1, 12)}
        return [n for n, table in tables.items() if table.timesteps[0] != bridge.top]

    for bridge in [*NOISY, ABridge(c_lambda=0.5)]:  # whose highest level is 0.5 sqrt(ln 1000) = 1.3
        assert from_noise(bridge, "consistency") == list(range(1, 12))
        high = [] if isinstance(bridge, ABridge) else [1, 2, 3, 4]
        assert (
            from_noise(bridge, "dpm2m")
            == from_noise(bridge, "sde-dpm2m")
            == from_noise(bridge, "ddim")
            == high
        )
        assert from_noise(bridge, "posterior") == []
    for bridge in (
        BrownianBridge(max_variance=0.0),
        BrownianBridge(schedule="linear"),
        ABridge(c_lambda=0.1),
    ):
        assert from_noise(bridge, "consistency") == from_noise(bridge, "dpm2m") == []


def test_consistency_draws_all_noise_again():
    bridge = ABridge()
    table = solvers.build(bridge, "consistency", timesteps=[1000, 900, 400, 20])
    alpha, beta, sigma = (weights[1:] for weights in bridge.marginal(table.timesteps))
    expected = np.stack([0 * alpha, beta, alpha, 0 * alpha, sigma], axis=1)
    np.testing.assert_allclose(table.coefficients[:-1], expected, rtol=1e-12)
    assert table.start == (1.0, 0.0)
