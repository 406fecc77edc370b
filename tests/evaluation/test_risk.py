"""Bounds of a risk against closed forms and SciPy, and calibrations whose true risk is known."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy.optimize import brentq as find_root
from scipy.stats import beta, binom, norm

from bbdm.evaluation import risk
from bbdm.evaluation.risk import Bound, Losses, NoLambdaError, TooFewPairsError

ALPHA = DELTA = 0.1
SPREADS = np.array([0.05, 0.1, 0.2])  # of the errors of a picture, as likely as each other
BASE = 0.05  # half the length of an interval at lambda 0
PAIRS, REPEATS = 60, 1000
FALSE_ALARM = 1e-4  # the share of seeds for which a test fails although the guarantee holds


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is 0."""
    return float(find_root(function, low, high))  # pyright: ignore[reportArgumentType]


def bound_of(mean: float, count: int) -> float:
    """The expectation that a mean of losses exceeds with a probability of at most DELTA."""
    return root(lambda expectation: risk.p_value(mean, count, expectation) - DELTA, mean + 1e-12, 1 - 1e-12)


@pytest.mark.parametrize("losses", [0, 1, 10, 60, 99])
def test_the_bound_is_between_the_exact_one_of_losses_0_and_1_and_hoeffdings(losses: int):
    """Clopper and Pearson's; and mean + sqrt(ln(1/delta) / 2n), which the first half is never above.

    Of no loss it is (1 - R)^n = delta.
    """
    found = bound_of(losses / 100, 100)
    if losses == 0:
        assert found == pytest.approx(1 - DELTA ** (1 / 100), rel=1e-9)
    assert beta.ppf(1 - DELTA, losses + 1, 100 - losses) <= found <= losses / 100 + np.sqrt(np.log(1 / DELTA) / 200)


@pytest.mark.parametrize("count", [22, 1000])
def test_what_is_allowed_is_the_largest_mean_whose_bound_is_alpha(count: int):
    allowed = risk.allowed(ALPHA, DELTA, "hoeffding-bentkus", count)
    assert bound_of(allowed, count) <= ALPHA + 1e-9
    assert bound_of(allowed + 1e-6, count) > ALPHA
    conformal = risk.allowed(ALPHA, DELTA, "conformal", count)
    assert count / (count + 1) * conformal + 1 / (count + 1) == pytest.approx(ALPHA)


@pytest.mark.parametrize(
    ("alpha", "delta", "bound", "least", "needs"),
    [
        (0.1, 0.1, "hoeffding-bentkus", 22, "alpha 0.1 and delta 0.1 need"),  # 0.9^22 = 0.098, 0.9^21 = 0.109
        (0.1, 0.1, "conformal", 9, "alpha 0.1 needs"),
        (0.05, 0.01, "hoeffding-bentkus", 90, "alpha 0.05 and delta 0.01 need"),
    ],
)
def test_how_many_pairs_are_needed(alpha: float, delta: float, bound: Bound, least: int, needs: str):
    """Those that have values: others do not count."""
    assert risk.allowed(alpha, delta, bound, least, masked=100) == pytest.approx(0, abs=2e-3)
    for masked, got in ((0, f"{least - 1}$"), (21, f"{least - 1} that have values, and 21 that are wholly masked$")):
        with pytest.raises(
            TooFewPairsError, match=f"^{needs} at least {least} pairs by the bound '{bound}', got {got}"
        ):
            risk.allowed(alpha, delta, bound, least - 1, masked)
    with pytest.raises(TooFewPairsError, match="all 22 pairs are wholly masked"):
        risk.allowed(alpha, delta, bound, 0, masked=22)


def test_the_least_lambda():
    """Equal values leave together, and as many are outside as the risk allows; rounded up to 1e-6."""
    losses = Losses.of([np.array([[0.5, 0.1, 0.3, 0.3, 0.0], [0, 0, 0, 0, 0]]), np.zeros((2, 0))])
    assert (losses.valued, losses.masked) == (1, 1)
    for allowed, wanted, outside in ((0, 0.5, 0), (0.19, 0.5, 0), (0.2, 0.3, 0.2), (0.6, 0.1, 0.6), (1, 0, 0.8)):
        assert losses.least_lambda(allowed) == pytest.approx(wanted, abs=1.1e-6)
        assert losses.mean(losses.least_lambda(allowed)) == pytest.approx(outside)


def test_no_lambda_is_large_enough():
    losses = Losses.of([np.array([[np.inf, 0.0, 1.0], [0.0, 0.1, 0.1]])])
    with pytest.raises(NoLambdaError, match=r"all samples of 33.3 % of the values are equal.*take by='quantiles'"):
        losses.least_lambda(0.05)
    assert losses.least_lambda(0.4) == pytest.approx(1.0)


def true_risk(half: float) -> float:
    """Of half a length of all intervals."""
    return float(2 * norm.sf(half / SPREADS).mean())


def calibrations(
    bound: Bound | None, values: int, pairs: int = PAIRS, masked: int = 0, repeats: int = REPEATS
) -> np.ndarray:
    """Half lengths of calibrations on new pairs, of which the first are masked; infinite where refused."""
    rng, halves = np.random.default_rng(1), []
    for _ in range(repeats):
        spread = rng.choice(SPREADS, (pairs, 1))
        excess = (abs(rng.standard_normal((pairs, values))) * spread - BASE).clip(0)
        pictures = np.stack([excess, np.full_like(excess, 2 * BASE)], axis=1)
        losses = Losses.of([each[:, : 0 if i < masked else values] for i, each in enumerate(pictures)])
        try:
            allowed = ALPHA if bound is None else risk.allowed(ALPHA, DELTA, bound, losses.valued, losses.masked)
            halves.append(BASE + losses.least_lambda(allowed))
        except TooFewPairsError:
            halves.append(np.inf)
    return np.array(halves)


@pytest.fixture(autouse=True)
def allowed_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risk, "allowed", cache(risk.allowed))


def test_the_guarantee_holds_in_1000_calibrations_and_intervals_are_short():
    """The share of failures may be 0.1; without the finite-sample term about half of them fail."""
    best = root(lambda half: true_risk(half) - ALPHA, 0.01, 1)
    halves = calibrations("hoeffding-bentkus", values=15)
    assert (halves < best).mean() <= DELTA
    assert halves.max() <= 2 * best
    assert (calibrations(None, values=15) < best).mean() > DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / REPEATS)


@pytest.mark.parametrize(
    ("bound", "pairs", "masked", "refused"),
    [
        ("hoeffding-bentkus", 22, 11, True),
        ("hoeffding-bentkus", 44, 22, False),
        ("conformal", 18, 9, False),
    ],
)
def test_the_guarantee_holds_where_half_of_the_pictures_are_masked(
    bound: Bound, pairs: int, masked: int, refused: bool
):
    """Of pictures of one value, whose losses of 0 and 1 are nearest to the bounds.

    At most delta of the calibrations fail by Hoeffding and Bentkus, and the conformal risk is at most alpha
    in the mean. Where that is so, each case fails for FALSE_ALARM of all seeds.
    """
    risks = np.array([true_risk(half) for half in calibrations(bound, 1, pairs, masked)])
    assert (risks == 0).all() if refused else (risks > 0).all()
    if bound == "conformal":
        assert risks.mean() <= ALPHA + norm.isf(FALSE_ALARM) * risks.std() / np.sqrt(REPEATS)
    else:
        assert (risks > ALPHA).sum() <= binom.ppf(1 - FALSE_ALARM, REPEATS, DELTA)
