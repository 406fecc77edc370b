"""What a calibration of intervals needs: a bound of the risk, the least lambda, unseen pairs.

The risk is an expected loss in [0, 1], of which some losses are known. The bounds are those of Angelopoulos
et al. 2022 (arXiv:2202.05265) and of conformal risk control (Angelopoulos et al. 2024, ICLR). Nothing here
needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.data.provenance import Trained

Array = npt.NDArray[Any]
Bound = Literal["hoeffding-bentkus", "conformal"]
STEPS = 60  # of a bisection, beyond float64
MARGIN = 1e-6  # lambda is rounded up to a multiple, so that rounding of float32 leaves no pixel outside


def p_value(risk: float, count: int, bound: float) -> float:
    """A bound of the probability that losses of an expectation ``bound`` have a mean of at most ``risk``.

    min(exp(-n h(min(risk, bound), bound)), e P[Bin(n, bound) <= ceil(n risk)]) with h(a, b) = a ln(a/b) +
    (1 - a) ln((1 - a)/(1 - b)): Hoeffding's bound and Bentkus's.

    Args:
        risk: the mean of the losses, in [0, 1].
        count: the number of losses.
        bound: the expectation, in (0, 1).
    """
    binom = optional.package("scipy.stats", "the bound of Hoeffding and Bentkus").binom
    a, b = min(risk, bound), bound
    entropy = (a * math.log(a / b) if a else 0.0) + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)
    bentkus = math.e * float(binom.cdf(math.ceil(count * risk - 1e-9), count, bound))
    return min(math.exp(-count * entropy), bentkus)


def allowed(alpha: float, delta: float, bound: Bound, count: int, masked: int = 0) -> float:
    """The largest mean of losses whose bound is at most alpha; the bound grows with the mean.

    ``conformal`` bounds the expectation over calibrations too: n/(n + 1) mean + 1/(n + 1).

    Args:
        alpha: the largest risk, in (0, 1).
        delta: the probability that the risk is larger; it counts for nothing by ``conformal``.
        bound: the bound of the risk.
        count: the number n of losses, each of a picture that has values.
        masked: the number of pictures that have none, which are no losses.

    Raises:
        ValueError: a mean of 0 of so many losses is not small enough.
    """
    if masked and not count:
        raise ValueError(f"all {masked} pairs are wholly masked: they have no value that counts")
    need, least = f"alpha {alpha:g} needs", 1 / alpha - 1  # with which a mean of 0 is small enough
    if bound != "conformal":
        need, least = f"alpha {alpha:g} and delta {delta:g} need", math.log(delta) / math.log1p(-alpha)
    if count < (least := math.ceil(least - 1e-9)):
        got = f"{count} that have values, and {masked} that are wholly masked" if masked else count
        raise ValueError(f"{need} at least {least} pairs by the bound {bound!r}, got {got}")
    if bound == "conformal":
        return max(0.0, ((count + 1) * alpha - 1) / count)
    low, high = 0.0, alpha
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, count, alpha) <= delta else (low, middle)
    return low


class Losses(NamedTuple):
    """The losses of pictures as functions of lambda: the share of each one's values that are outside.

    A picture that is wholly masked has no loss, and does not count. Values (V,) are those of all pictures,
    one after another.
    """

    excess: Array  # the lambda from which on each value is inside its interval, at least 0
    uncertainty: Array  # the interval's length at lambda 0, or the standard deviation
    weights: Array  # the share of each value in the mean loss
    valued: int  # pictures that have values
    masked: int  # pictures that have none

    @classmethod
    def of(cls, pictures: Sequence[Array]) -> Losses:
        """Those of (2, values) of each picture: excess and uncertainty."""
        images, none = [each for each in pictures if each.shape[1]], np.zeros((2, 0))
        weights = [np.full(each.shape[1], 1 / (len(images) * each.shape[1])) for each in images]
        excess, uncertainty = np.concatenate([none, *images], axis=1)
        return cls(excess, uncertainty, np.concatenate([none[0], *weights]), len(images), len(pictures) - len(images))

    def mean(self, lambda_: float) -> float:
        """The mean loss."""
        return float(self.weights[self.excess > lambda_].sum())

    def least_lambda(self, risk: float) -> float:
        """The least lambda, at least 0, whose mean loss is at most ``risk``, rounded up to 1e-6.

        Raises:
            ValueError: no lambda is large enough.
        """
        order = np.argsort(-self.excess, kind="stable")
        outside = np.searchsorted(np.cumsum(self.weights[order]), risk + 1e-12, side="right")
        least = float(self.excess[order[outside]]) if outside < len(order) else 0.0
        if least == math.inf:
            share = self.weights[np.isinf(self.excess)].sum()
            raise ValueError(
                f"no lambda is large enough: all samples of {100 * share:.3g} % of the values are equal, and differ "
                "from the target; take by='quantiles'"
            )
        return math.ceil(least / MARGIN) * MARGIN


def check_unseen(pairs: Pairs, *trained: Trained | None) -> None:
    """Raise ValueError where a pair, or a group of pairs, was in training.

    Pairs are compared by the content of their files, whatever their names are.

    Args:
        pairs: that are to be judged on.
        trained: what is known of training pairs; None where nothing is.
    """
    for each in trained:
        if each is not None:
            overlap = each.overlap(pairs.rows, pairs.skip_bad)
            if overlap.pairs:
                raise ValueError(f"{overlap}: calibrate on others")
            overlap.check_groups("calibrate on other groups")
