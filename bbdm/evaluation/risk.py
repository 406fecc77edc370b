"""Bounds of a risk, an expected loss in [0, 1], of which some losses are known; the least lambda they allow.

The bounds are those of Angelopoulos et al. 2022 (arXiv:2202.05265) and of conformal risk control
(Angelopoulos et al. 2024, ICLR). Nothing here needs torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional

Array = npt.NDArray[Any]
Bound = Literal["hoeffding-bentkus", "conformal"]
STEPS = 60  # of a bisection, beyond float64
CANDIDATES = 256  # values of lambda that are tried for each group
MARGIN = 1e-6  # lambda is rounded up to a multiple, so that rounding of float32 leaves no pixel outside


class NoLambdaError(ValueError):
    """No lambda is large enough, since samples do not differ from each other."""


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


def needed(alpha: float, delta: float, bound: Bound) -> int:
    """The least number of losses with which a mean of 0 is small enough."""
    if bound == "conformal":
        return math.ceil(1 / alpha - 1 - 1e-9)
    return math.ceil(math.log(delta) / math.log1p(-alpha) - 1e-9)


def allowed(alpha: float, delta: float, bound: Bound, count: int) -> float:
    """The largest mean of losses whose bound is at most alpha; the bound grows with the mean.

    ``conformal`` bounds the expectation over calibrations too: n/(n + 1) mean + 1/(n + 1).

    Raises:
        ValueError: there are too few losses for a mean of 0.
    """
    least = needed(alpha, delta, bound)
    if count < least:
        given = f"alpha {alpha:g}" + ("" if bound == "conformal" else f" and delta {delta:g}")
        raise ValueError(f"{given} need at least {least} pairs by the bound {bound!r}, got {count}")
    if bound == "conformal":
        return max(0.0, ((count + 1) * alpha - 1) / count)
    low, high = 0.0, alpha
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, count, alpha) <= delta else (low, middle)
    return low


class Losses(NamedTuple):
    """Values (V,) of all images, one after another. An image without values does not count."""

    excess: Array  # the lambda from which on each value is inside its interval, at least 0
    uncertainty: Array  # the interval's length at lambda 0, or the standard deviation
    weights: Array  # the share of each value in the mean of the images' losses

    @classmethod
    def of(cls, images: list[Array]) -> Losses:
        """Those of (2, values) of each image: excess and uncertainty."""
        images = [each for each in images if each.shape[1]]
        weights = [np.full(each.shape[1], 1 / (len(images) * each.shape[1])) for each in images]
        excess, uncertainty = np.concatenate(images, axis=1)
        return cls(excess, uncertainty, np.concatenate(weights))


def least(excess: Array, weights: Array, risk: float) -> float:
    """The least lambda at which the weights of values whose excess is larger are at most ``risk`` together.

    It is -inf where all may be outside.
    """
    order = np.argsort(-excess, kind="stable")
    outside = np.searchsorted(np.cumsum(weights[order]), risk + 1e-12, side="right")
    return float(excess[order[outside]]) if outside < len(order) else -math.inf


class Groups(NamedTuple):
    """Groups of values by their uncertainty, each with its lambda."""

    edges: tuple[float, ...]  # of K groups the K - 1 values of the uncertainty between them
    lambdas: tuple[float, ...]

    def at(self, uncertainty: Array) -> Array:
        """The lambda of each value."""
        return np.array(self.lambdas)[np.searchsorted(np.array(self.edges), uncertainty, side="right")]

    def shifted(self, by: float) -> Groups:
        """All lambdas greater by a number, and at least 0."""
        raised = (max(0.0, each + by) for each in self.lambdas)
        return self._replace(lambdas=tuple(math.ceil(each / MARGIN) * MARGIN for each in raised))

    def calibrated(self, losses: Losses, risk: float) -> Groups:
        """The lambdas, shifted together by the least number at which the mean loss is at most ``risk``.

        Raises:
            NoLambdaError: no number is large enough.
        """
        excess = np.where(losses.excess > 0, losses.excess - self.at(losses.uncertainty), -math.inf)
        shift = max(least(excess, losses.weights, risk), -max(self.lambdas))
        if shift == math.inf:
            share = losses.weights[np.isinf(losses.excess)].sum()
            raise NoLambdaError(
                f"no lambda is large enough: all samples of {100 * share:.3g} % of the values are equal, and differ "
                "from the target; take by='quantiles'"
            )
        return self.shifted(shift)

    def loss(self, losses: Losses) -> float:
        """The mean over images of the share of values outside."""
        return float(losses.weights[losses.excess > self.at(losses.uncertainty)].sum())


def shortest(losses: Losses, groups: int, risk: float, by_std: bool) -> Groups:
    """The groups, of about as many values each, whose intervals are shortest at a mean loss of ``risk``.

    The mean length is a sum over groups, and so is the mean loss: with a price of a value that is outside,
    each group has a lambda of its own that is best, and the price is found by bisection (Teneggi et al. 2023,
    arXiv:2302.03791, solve a convex relaxation).
    """
    quantiles = np.quantile(losses.uncertainty, np.arange(1, groups) / groups)
    edges = np.unique(quantiles)
    number = np.searchsorted(edges, losses.uncertainty, side="right")
    tables: list[tuple[Array, Array, Array]] = []  # of each group: lambdas, their lengths, and what is outside
    for k in range(len(edges) + 1):
        excess, weights = losses.excess[number == k], losses.weights[number == k]
        finite = excess[np.isfinite(excess)]
        tried = np.unique(np.quantile(finite, np.linspace(0, 1, CANDIDATES))) if len(finite) else np.zeros(1)
        tried = np.union1d(tried, [0.0])
        order = np.argsort(excess)
        below = np.concatenate([[0.0], np.cumsum(weights[order])])
        outside = below[-1] - below[np.searchsorted(excess[order], tried, side="right")]
        each = weights * losses.uncertainty[number == k] if by_std else weights
        tables.append((tried, 2 * tried * each.sum(), outside))

    def best(price: float) -> tuple[tuple[float, ...], float]:
        places = [int(np.argmin(length + price * outside)) for _, length, outside in tables]
        chosen = [(tried[i], outside[i]) for i, (tried, _, outside) in zip(places, tables, strict=True)]
        return tuple(float(each) for each, _ in chosen), float(sum(loss for _, loss in chosen))

    low, high = 1e-6, 1e6
    for _ in range(STEPS):
        price = math.sqrt(low * high)
        low, high = (low, price) if best(price)[1] <= risk else (price, high)
    return Groups(tuple(edges.tolist()), best(high)[0])
