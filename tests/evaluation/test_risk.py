"""Bounds of a risk against closed forms and SciPy, and calibrations whose true risk is known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq as find_root
from scipy.stats import beta, norm

from bbdm.evaluation import risk
from bbdm.evaluation.risk import Bound, Groups, Losses

ALPHA = DELTA = 0.1
SPREADS = np.array([0.05, 0.1, 0.2])  # of the errors of a picture, as likely as each other
BASE = 0.05  # half the length of an interval at lambda 0
PIXELS, PAIRS, REPEATS = 15, 60, 1000
ERROR = 3 * np.sqrt(DELTA * (1 - DELTA) / REPEATS)  # three standard errors of a share of the repetitions


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is 0."""
    return float(find_root(function, low, high))  # pyright: ignore[reportArgumentType]


def bound_of(mean: float, count: int) -> float:
    """The expectation that a mean of losses exceeds with a probability of at most DELTA."""
    return root(lambda expectation: risk.p_value(mean, count, expectation) - DELTA, mean + 1e-12, 1 - 1e-12)


@pytest.mark.parametrize("count", [22, 100, 1000])
def test_the_bound_of_no_loss_is_the_binomials(count: int):
    """(1 - R)^n = delta."""
    assert bound_of(0, count) == pytest.approx(1 - DELTA ** (1 / count), rel=1e-9)


@pytest.mark.parametrize("losses", [1, 3, 10, 60, 99])
def test_the_bound_is_between_the_exact_one_of_losses_0_and_1_and_hoeffdings(losses: int):
    """Clopper and Pearson's; and mean + sqrt(ln(1/delta) / 2n), which the first half is never above."""
    found = bound_of(losses / 100, 100)
    assert beta.ppf(1 - DELTA, losses + 1, 100 - losses) <= found <= losses / 100 + np.sqrt(np.log(1 / DELTA) / 200)


def test_the_bound_of_losses_of_1_alone_is_1():
    assert risk.p_value(1, 50, 1 - 1e-9) > DELTA


@pytest.mark.parametrize("count", [22, 50, 128, 1000])
def test_what_is_allowed_is_the_largest_mean_whose_bound_is_alpha(count: int):
    allowed = risk.allowed(ALPHA, DELTA, "hoeffding-bentkus", count)
    assert bound_of(allowed, count) <= ALPHA + 1e-9
    assert bound_of(allowed + 1e-6, count) > ALPHA
    conformal = risk.allowed(ALPHA, DELTA, "conformal", count)
    assert count / (count + 1) * conformal + 1 / (count + 1) == pytest.approx(ALPHA)


def test_how_many_pairs_are_needed():
    assert risk.needed(0.1, 0.1, "hoeffding-bentkus") == 22  # 0.9^22 = 0.098, 0.9^21 = 0.109
    assert risk.needed(0.1, 0.1, "conformal") == 9
    assert risk.needed(0.05, 0.01, "hoeffding-bentkus") == 90
    cases: list[tuple[Bound, int]] = [("hoeffding-bentkus", 22), ("conformal", 9)]
    for bound, count in cases:
        assert risk.allowed(0.1, 0.1, bound, count) == pytest.approx(0, abs=1e-3)
        with pytest.raises(ValueError, match=f"need at least {count} pairs by the bound '{bound}', got {count - 1}"):
            risk.allowed(0.1, 0.1, bound, count - 1)


def test_the_least_lambda():
    """Equal values leave together, and as many are outside as the risk allows, no more."""
    excess, weights = np.array([0.5, 0.1, 0.3, 0.3, 0.0]), np.full(5, 0.2)
    for allowed, wanted in ((0.0, 0.5), (0.19, 0.5), (0.2, 0.3), (0.4, 0.3), (0.6, 0.1), (0.8, 0.0)):
        assert risk.least(excess, weights, allowed) == wanted
    assert risk.least(excess, weights, 1.0) == -np.inf


def true_risk(lambdas: np.ndarray) -> float:
    """Of half lengths at each spread."""
    return float(2 * norm.sf(lambdas / SPREADS).mean())


def calibrations(bound: str, pixels: int = PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """True risks and lambdas of calibrations on new pairs; ``bound`` may be none."""
    rng = np.random.default_rng(1)
    allowed = ALPHA if bound == "none" else risk.allowed(ALPHA, DELTA, bound, PAIRS)  # pyright: ignore[reportArgumentType]
    risks, lambdas = [], []
    for _ in range(REPEATS):
        spread = rng.choice(SPREADS, (PAIRS, 1))
        excess = (abs(rng.standard_normal((PAIRS, pixels))) * spread - BASE).clip(0)
        losses = Losses.of(list(np.stack([excess, np.full_like(excess, 2 * BASE)], axis=1)))
        (made,) = Groups((), (0.0,)).calibrated(losses, allowed).lambdas
        risks.append(true_risk(np.full(3, BASE + made)))
        lambdas.append(made)
    return np.array(risks), np.array(lambdas)


def test_the_guarantee_holds_in_1000_calibrations_and_intervals_are_short():
    """The share of failures may be 0.1; without the finite-sample term about half of them fail."""
    risks, lambdas = calibrations("hoeffding-bentkus")
    assert (risks > ALPHA).mean() <= DELTA
    best = root(lambda half: true_risk(np.full(3, half)) - ALPHA, 0.01, 1)
    assert (BASE + lambdas).max() <= 2 * best
    naive, _ = calibrations("none")
    assert (naive > ALPHA).mean() > DELTA + ERROR


@pytest.mark.nightly
def test_the_guarantee_holds_for_losses_of_0_and_1():
    """Pictures of one pixel: the losses that Bentkus's bound is nearest to, so some calibrations fail."""
    risks, _ = calibrations("hoeffding-bentkus", pixels=1)
    assert 0.005 < (risks > ALPHA).mean() <= DELTA
    naive, _ = calibrations("none", pixels=1)
    assert (naive > ALPHA).mean() > DELTA + ERROR


@pytest.mark.nightly
def test_conformal_risk_control_holds_in_expectation():
    risks, _ = calibrations("conformal")
    error = risks.std() / np.sqrt(REPEATS)
    assert ALPHA - 0.015 < risks.mean() < ALPHA + 3 * error


def grouped(rng: np.random.Generator, pairs: int) -> Losses:
    """Pixels of known spread, a third of each; the interval at lambda 0 is their mean alone."""
    spread = np.tile(SPREADS, (pairs, PIXELS // 3))
    return Losses.of(list(np.stack([abs(rng.standard_normal((pairs, PIXELS))) * spread, spread], axis=1)))


def test_the_shortest_groups_are_those_of_equal_densities():
    """At the optimum of sum lambda_k at a risk, each group's density of errors at lambda_k is the same."""
    found = risk.shortest(grouped(np.random.default_rng(0), 4000), 3, ALPHA, by_std=False)
    assert np.array_equal(np.searchsorted(found.edges, SPREADS, side="right"), [0, 1, 2])

    def of_density(level: float) -> np.ndarray:
        return SPREADS * np.sqrt(-2 * np.log((level * SPREADS * np.sqrt(2 * np.pi)).clip(0, 1)))

    level = root(lambda level: true_risk(of_density(level)) - ALPHA, 1e-3, 1.9)
    assert true_risk(np.array(found.lambdas)) == pytest.approx(ALPHA, rel=0.03)
    assert sum(found.lambdas) == pytest.approx(of_density(level).sum(), rel=0.02)
    one = root(lambda half: true_risk(np.full(3, half)) - ALPHA, 0.01, 1)
    assert sum(found.lambdas) < 0.95 * 3 * one


@pytest.mark.nightly
def test_the_guarantee_holds_for_groups():
    rng, failed, repeats = np.random.default_rng(2), 0, 300
    allowed = risk.allowed(ALPHA, DELTA, "hoeffding-bentkus", PAIRS)
    for _ in range(repeats):
        chosen = risk.shortest(grouped(rng, 20), 3, allowed, by_std=False)
        made = chosen.calibrated(grouped(rng, PAIRS), allowed)
        failed += true_risk(made.at(SPREADS)) > ALPHA
    assert failed <= DELTA * repeats


def test_no_lambda_is_large_enough():
    losses = Losses.of([np.array([[np.inf, 0.0, 1.0], [0.0, 0.1, 0.1]])])
    with pytest.raises(ValueError, match=r"all samples of 33.3 % of the values are equal.*take by='quantiles'"):
        Groups((), (0.0,)).calibrated(losses, 0.05)
    assert Groups((), (0.0,)).calibrated(losses, 0.4).lambdas == pytest.approx((1.0,))
