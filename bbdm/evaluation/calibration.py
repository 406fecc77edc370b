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
    from bbdm.data.trained import Trained

Array = npt.NDArray[Any]
Bound = Literal["hoeffding-bentkus", "conformal"]
STEPS = 60  # of a bisection, beyond float64
# lambda is rounded up to a multiple, so that rounding of float32 leaves no pixel outside
MARGIN = 1e-6


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
    a = min(risk, bound)
    b = bound
    entropy = 0.0
    if a > 0:
        entropy += a * math.log(a / b)
    if a < 1:
        entropy += (1 - a) * math.log((1 - a) / (1 - b))
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
    if bound == "conformal":
        risk = f"alpha {alpha:g} needs"
        least = 1 / alpha - 1  # pairs with which a mean of 0 is small enough
    else:
        risk = f"alpha {alpha:g} and delta {delta:g} need"
        least = math.log(delta) / math.log1p(-alpha)
    least = math.ceil(least - 1e-9)
    if count < least:
        got = f"{count}"
        if masked:
            got = f"{count} that have values, and {masked} that are wholly masked"
        raise ValueError(f"{risk} at least {least} pairs by the bound {bound!r}, got {got}")
    if bound == "conformal":
        return max(0.0, ((count + 1) * alpha - 1) / count)
    low = 0.0
    high = alpha
    for _ in range(STEPS):
        middle = (low + high) / 2
        if p_value(middle, count, alpha) <= delta:
            low = middle
        else:
            high = middle
    return low


class Ends(NamedTuple):
    """The ends of intervals that lambda moves apart, in [-1, 1]: arrays of one shape."""

    low: Array  # at lambda 0
    high: Array  # at lambda 0
    step: Array  # how far a lambda of 1 moves each end: 1, or a standard deviation

    def at(self, lambda_: float) -> tuple[Array, Array]:
        """The low and the high ends at a lambda, within [-1, 1]."""
        moved = lambda_ * self.step
        return (self.low - moved).clip(-1, 1), (self.high + moved).clip(-1, 1)

    def lambda_of(self, lower: Array, upper: Array) -> Array:
        """The lambda from which on low is at most ``lower`` and high at least ``upper``, or infinity."""
        distance = np.maximum(np.maximum(self.low - lower, upper - self.high), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(distance > 0, distance / self.step, 0)


class Losses(NamedTuple):
    """The losses of pictures as functions of lambda: the share of each one's values that are outside.

    A picture that is wholly masked has no loss, and does not count. Values (V,) are those of all pictures,
    one after another.
    """

    excess: Array  # the lambda from which on each value is inside its interval, at least 0
    weights: Array  # the share of each value in the mean loss
    valued: int  # pictures that have values
    masked: int  # pictures that have none

    @classmethod
    def of(cls, pictures: Sequence[Array]) -> Losses:
        """The losses of the ``excess`` (V,) of each picture; V is 0 where it is wholly masked."""
        valued = sum(len(excess) > 0 for excess in pictures)
        weights = [
            np.full(len(excess), 1 / (valued * len(excess))) for excess in pictures if len(excess)
        ]
        return cls(
            excess=np.concatenate([np.zeros(0), *pictures]),
            weights=np.concatenate([np.zeros(0), *weights]),
            valued=valued,
            masked=len(pictures) - valued,
        )

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
        if outside == len(order):
            return 0.0
        least = float(self.excess[order[outside]])
        if least == math.inf:
            share = self.weights[np.isinf(self.excess)].sum()
            raise ValueError(
                f"no lambda is large enough: all samples of {100 * share:.3g} % of the values are equal, and differ "
                "from the target; take by='quantiles'"
            )
        return math.ceil(least / MARGIN) * MARGIN


def check_unseen(pairs: Pairs, *trained: Trained | None) -> None:
    """Raise ValueError where a pair, its target or its source, or a group of pairs, was in training.

    They are compared by the content of their files, whatever their names are; see
    :meth:`bbdm.data.trained.Trained.overlap`.

    Args:
        pairs: that are to be judged on.
        trained: what is known of training pairs; None where nothing is.
    """
    for part in trained:
        if part is not None:
            overlap = part.overlap(pairs)
            if overlap.names:
                raise ValueError(f"{overlap}: calibrate on others")
            overlap.check_groups("calibrate on other groups")
