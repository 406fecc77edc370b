"""Bounds of a risk against closed forms and SciPy, calibrations whose true risk is known, and seen pairs."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq as find_root
from scipy.stats import beta, binom, entropy, norm

from bbdm import BridgeSampler, Intervals, load_checkpoint, save_checkpoint
from bbdm.data.kinds import Condition
from bbdm.data.mapped import as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.trained import Trained
from bbdm.evaluation import calibration
from bbdm.evaluation.calibration import Bound, Losses, check_unseen
from tests.conftest import SIZE, MakePairs, MakeTrainer, load_pairs, newest, tiny_unet

ALPHA = DELTA = 0.1
SPREADS = np.array([0.05, 0.1, 0.2])  # of the errors of a picture, as likely as each other
BASE = 0.05  # half the length of an interval at lambda 0
PAIRS, REPEATS = 60, 1000
FALSE_ALARM = 1e-4  # the share of seeds for which a test fails although the guarantee holds


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is 0."""
    return float(find_root(function, low, high))  # pyright: ignore[reportArgumentType]


def p_value(mean: float, count: int, expectation: float) -> float:
    """The bound of Hoeffding and Bentkus (Bates et al. 2021), by SciPy."""
    low = min(mean, expectation)
    hoeffding = np.exp(-count * entropy([low, 1 - low], [expectation, 1 - expectation]))
    bentkus = np.e * binom.cdf(np.ceil(count * mean - 1e-8), count, expectation)
    return float(min(hoeffding, bentkus))


def bound_of(mean: float, count: int) -> float:
    """The expectation that a mean of losses exceeds with a probability of at most DELTA."""
    return root(
        lambda expectation: p_value(mean, count, expectation) - DELTA, mean + 1e-12, 1 - 1e-12
    )


@pytest.mark.parametrize("count", [22, 100, 1000])
@pytest.mark.parametrize("mean", [0, 0.01, 0.077, 0.3, 1])
def test_the_probability_is_that_of_the_formula(mean: float, count: int):
    """Above the mean, where it decides, and below it, where it is 1."""
    for expectation in (0.005, 0.1, 0.35, 0.9):
        expected = p_value(mean, count, expectation)
        assert calibration.p_value(mean, count, expectation) == pytest.approx(
            expected, rel=1e-9, abs=1e-300
        )


@pytest.mark.parametrize("losses", [0, 1, 10, 60, 99])
def test_the_bound_is_between_the_exact_one_of_losses_0_and_1_and_hoeffdings(losses: int):
    """Clopper and Pearson's; and mean + sqrt(ln(1/delta) / 2n), which the first half is never above.

    Of no loss it is (1 - R)^n = delta.
    """
    found = bound_of(losses / 100, 100)
    if losses == 0:
        assert found == pytest.approx(1 - DELTA ** (1 / 100), rel=1e-9)
    assert (
        beta.ppf(1 - DELTA, losses + 1, 100 - losses)
        <= found
        <= losses / 100 + np.sqrt(np.log(1 / DELTA) / 200)
    )


@pytest.mark.parametrize("count", [22, 1000])
def test_what_is_allowed_is_the_largest_mean_whose_bound_is_alpha(count: int):
    allowed = calibration.allowed(ALPHA, DELTA, "hoeffding-bentkus", count)
    assert bound_of(allowed, count) <= ALPHA + 1e-9
    assert bound_of(allowed + 1e-6, count) > ALPHA
    conformal = calibration.allowed(ALPHA, DELTA, "conformal", count)
    assert count / (count + 1) * conformal + 1 / (count + 1) == pytest.approx(ALPHA)


def test_the_least_lambda():
    """Equal values leave together, and as many are outside as the risk allows; rounded up to 1e-6."""
    losses = Losses.of([np.array([0.5, 0.1, 0.3, 0.3, 0.0]), np.zeros(0)])
    assert (losses.valued, losses.masked) == (1, 1)
    for allowed, wanted, outside in (
        (0, 0.5, 0),
        (0.19, 0.5, 0),
        (0.2, 0.3, 0.2),
        (0.6, 0.1, 0.6),
        (1, 0, 0.8),
    ):
        assert losses.least_lambda(allowed) == pytest.approx(wanted, abs=1.1e-6)
        assert losses.mean(losses.least_lambda(allowed)) == pytest.approx(outside)


def test_no_lambda_is_large_enough():
    losses = Losses.of([np.array([np.inf, 0.0, 1.0])])
    with pytest.raises(
        ValueError, match=r"all samples of 33.3 % of the values are equal.*take by='quantiles'"
    ):
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
        losses = Losses.of([each[: 0 if i < masked else values] for i, each in enumerate(excess)])
        try:
            allowed = (
                ALPHA
                if bound is None
                else calibration.allowed(ALPHA, DELTA, bound, losses.valued, losses.masked)
            )
            halves.append(BASE + losses.least_lambda(allowed))
        except ValueError:
            halves.append(np.inf)
    return np.array(halves)


@pytest.fixture(autouse=True)
def allowed_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "allowed", cache(calibration.allowed))


def test_the_guarantee_holds_in_1000_calibrations_and_intervals_are_short():
    """The share of failures may be 0.1; without the finite-sample term about half of them fail."""
    best = root(lambda half: true_risk(half) - ALPHA, 0.01, 1)
    halves = calibrations("hoeffding-bentkus", values=15)
    assert (halves < best).mean() <= DELTA
    assert halves.max() <= 2 * best
    assert (calibrations(None, values=15) < best).mean() > DELTA + 3 * np.sqrt(
        DELTA * (1 - DELTA) / REPEATS
    )


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


def check(file: Path, pairs: Any, seen: str | None = None) -> None:
    """That pairs are refused for a network's file, with their names, or are not."""
    origin = load_checkpoint(file).origin
    assert origin is not None
    message = rf"pairs were in training, by .*w\.run: {seen}: calibrate on others"
    with nullcontext() if seen is None else pytest.raises(ValueError, match=message):
        check_unseen(as_pairs(pairs), Trained.of_origin(origin))


def items(seed: int) -> list[tuple[torch.Tensor, ...]]:
    """A map-style data set."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1) for _ in range(4)]


def test_map_style_pairs_of_the_run_are_refused_and_others_are_not(
    make_trainer: MakeTrainer, tmp_path: Path
):
    """By the bytes of items, wherever the weights of the run lie; others say nothing."""
    trainer = make_trainer("w.run", train=items(0), epochs=1)
    trainer.fit()
    for file in ("w.pt", "w.run/last.pt", "alone/w.pt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        trainer.save(tmp_path / file)
    for file in (
        newest(trainer),
        tmp_path / "w.pt",
        tmp_path / "w.run/last.pt",
        tmp_path / "alone/w.pt",
    ):
        check(file, items(0), "0, 1, 2 and 1 more")
        check(file, items(1))
    save_checkpoint(tmp_path / "alone/other.pt", trainer.average, trainer.bridge)
    check(tmp_path / "alone/other.pt", items(0))


def test_files_of_the_run_are_known_whatever_is_made_of_them(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path
):
    """Training had a class of each pair, and crops; those that are to calibrate have none, one for all, or
    other names, and are some of those, or all and one more."""
    make_pairs(tmp_path / "c", 4, 2 * SIZE)
    (tmp_path / "labels.csv").write_text("name,class\n0,a\n1,b\n2,a\n3,b\n")
    folders = f"{tmp_path}/c/A,{tmp_path}/c/B,style={tmp_path}/labels.csv"
    labels = {"style": Condition("class")}
    trained = load_pairs("paired", folders, crop=SIZE, crops=2, conditions=labels)
    trainer = make_trainer(
        "w.run", unet=tiny_unet(classes={"style": ("a", "b")}), train=trained, epochs=1
    )
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    others = make_pairs(tmp_path / "others", 4)  # of the same names
    for conditions in (labels, {"style": Condition("class", size=("a", "b"), label="a")}, {}):
        pairs = load_pairs("paired", folders, size=SIZE, conditions=conditions)
        check(tmp_path / "w.pt", pairs, "0, 1, 2 and 1 more")
        check(newest(trainer), pairs.without([0, 2]), "1, 3")
    renamed = [{**row, "name": f"x{row['name']}"} for row in pairs.rows]
    new = {**others.rows[0], "name": "new"}
    check(
        tmp_path / "w.pt",
        Pairs([*renamed, new], pairs.spec),
        r"x0 \(as 0\), x1 \(as 1\), x2 \(as 2\) and 1 more",
    )
    check(tmp_path / "w.pt", others)


def test_intervals_are_not_calibrated_on_training_pairs(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path
):
    """Of 4 training pairs, 3; nothing is sampled before."""
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    sampler = BridgeSampler.from_checkpoint(tmp_path / "w.pt")
    pairs = make_pairs(tmp_path / "pairs", 4)
    with pytest.raises(
        ValueError, match=r"^3 of 3 pairs were in training, by .*w\.run: 1, 2, 3: calibrate"
    ):
        Intervals.calibrate(sampler, pairs.without([0]), 0.3, samples=2, bound="conformal")
