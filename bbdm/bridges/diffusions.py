"""Bridges of diffusions: DDBM and ECSI in real time, I2SB and GOUB by tables at integer times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from bbdm.bridges.base import BRIDGES, Bridge, register
from bbdm.bridges.path import (
    OBJECTIVES,
    Array,
    Marginal,
    Objective,
    ObjectiveFunction,
    Weights,
    check_steps,
)

# of the target at the end of GOUB, before the bridge pulls it to the source: exp(-theta_T)
LEFT = 0.005
OFFSET = 0.008  # of its cosine schedule
TIMES = {"ve": (0.002, 80.0), "vp": (1e-4, 1.0)}  # t_min and t_max


class RealTimeBridge(Bridge):
    """A bridge in real time from ``t_min`` to ``t_max``, as the code of DDBM has it."""

    continuous: ClassVar[bool] = True
    t_min: Any
    t_max: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.t_min < self.t_max < np.inf:
            raise ValueError(
                f"t_min and t_max must be 0 < t_min < t_max, got {self.t_min} and {self.t_max}"
            )
        top = self.t_max
        if self.objective == "noise":  # it has no x0hat at the end
            top = self.t_max - 1e-4 * (self.t_max - self.t_min)
        self._assign(low=self.t_min, top=top, end=self.t_max)

    def network_time(self, t: npt.ArrayLike) -> Array:
        """250 ln t."""
        return 250 * np.log(np.asarray(t, dtype=np.float64) + 1e-44)


@dataclass(frozen=True)
class DDBM(RealTimeBridge):
    """Denoising diffusion bridge (Zhou et al., ICLR 2024), variance exploding or preserving.

    With a_t and rho_t of the diffusion, and q = rho_t^2 / rho_T^2: alpha = a_t (1 - q), beta = a_t / a_T q,
    sigma = a_t rho_t sqrt(1 - q). ``ve`` has a_t = 1 and rho_t = t; ``vp`` has a_t = exp(-beta_d t^2 / 4 -
    beta_min t / 2) and rho_t^2 = exp(beta_d t^2 / 2 + beta_min t) - 1. Times are real.

    Args:
        kind: ``ve`` explodes the variance, ``vp`` preserves it.
        t_min: the smallest time; None for the paper's, 0.002 or 1e-4.
        t_max: T; None for the paper's, 80 or 1.
        beta_d: the growth of beta in ``vp``.
        beta_min: the least beta in ``vp``.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    positive = ("beta_d", "beta_min")

    kind: Literal["ve", "vp"] = "vp"
    t_min: float | None = None
    t_max: float | None = None
    beta_d: float = 2.0
    beta_min: float = 0.1
    objective: Objective = "preconditioned"

    def __post_init__(self) -> None:
        if self.kind not in TIMES:
            raise ValueError(f"kind must be one of {tuple(TIMES)}, got {self.kind!r}")
        for name, default in zip(("t_min", "t_max"), TIMES[self.kind], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  (of others one name)
        """``ddbm-ve`` or ``ddbm-vp``."""
        return f"ddbm-{self.kind}"

    def _diffusion(self, t: Array) -> tuple[Array, Array]:
        """a_t and rho_t^2."""
        if self.kind == "ve":
            return np.ones_like(t), t**2
        grown = self.beta_d * t**2 / 2 + self.beta_min * t
        return np.exp(-grown / 2), np.expm1(grown)

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        a, rho2 = self._diffusion(self._time(t))
        a_end, rho2_end = self._diffusion(np.asarray(self.end))
        q = rho2 / rho2_end
        return Marginal(a * (1 - q), a / a_end * q, a * np.sqrt(rho2 * (1 - q)))


BRIDGES.register("ddbm-ve", partial(DDBM, "ve"), DDBM)
BRIDGES.register("ddbm-vp", partial(DDBM, "vp"), DDBM)


def preconditioned(bridge: ECSI, t: npt.ArrayLike) -> Weights:
    """As for other bridges, but c_skip has the square of the covariance where the formula has the covariance.

    So has the published code, on which the published networks were trained.
    """
    weights = OBJECTIVES["preconditioned"](bridge, t)
    alpha, beta, _ = bridge.at(t)
    return weights._replace(
        p_x=(alpha * bridge.sigma_data**2 + beta * bridge.cov**2) * weights.i_x**2
    )


@register("ecsi")
@dataclass(frozen=True)
class ECSI(RealTimeBridge):
    """The linear path of endpoint-conditioned stochastic interpolants (Zhang et al. 2024), as in its code.

    alpha = 1 - t, beta = t, sigma = 2 gamma_max sqrt(t (1 - t)). Times are real, up to 1. The marginals are
    those of :class:`~bbdm.bridges.BrownianBridge` with max_variance 2 gamma_max^2; the network sees the time
    as DDBM's does.

    Args:
        gamma_max: the noise in the middle; the paper's are 0.125 (edges2handbags) and 0.25 (DIODE).
        t_min: the smallest time, above 0.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    objectives: ClassVar[Mapping[str, ObjectiveFunction]] = {
        **OBJECTIVES,
        "preconditioned": preconditioned,
    }
    positive = ("gamma_max",)
    t_max: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]  (fixed here)

    gamma_max: float = 0.125
    t_min: float = 1e-4
    objective: Objective = "preconditioned"

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, 1]."""
        time = self._time(t)
        return Marginal(1 - time, time, 2 * self.gamma_max * np.sqrt(time * (1 - time)))


def scaled(bridge: I2SB, t: npt.ArrayLike) -> Weights:
    """F = (x_t - x0) / sqrt(S)."""
    return Weights(1.0, 0.0, 1.0, 0.0, -np.sqrt(bridge._at(t)[0]))


@register("i2sb")
@dataclass(frozen=True)
class I2SB(Bridge):
    """Image-to-image Schroedinger bridge (Liu et al., ICML 2023), stochastic or as an optimal-transport ODE.

    With S_n and R_n the variances that the forward and the backward diffusion have added at index n: alpha =
    R / (S + R), beta = S / (S + R), sigma^2 = S R / (S + R). Times are the indices 0..N-1.

    Args:
        num_steps: N, at least 2.
        beta_max: the largest increment of variance, times N.
        deterministic: the ODE, without noise.
        objective: ``scaled`` is the paper's, (x_t - x0) / sqrt(S).

    Raises:
        ValueError: an argument is out of range.
    """

    objectives: ClassVar[Mapping[str, ObjectiveFunction]] = {**OBJECTIVES, "scaled": scaled}

    positive = ("beta_max",)

    num_steps: int = 1000
    beta_max: float = 0.3
    deterministic: bool = False
    objective: Objective | Literal["scaled"] = "scaled"

    closed, low = False, 0  # a little of the other end is left at both

    @cached_property
    def _variances(self) -> tuple[Array, Array]:
        """S_n and R_n at all indices."""
        roots = np.linspace(np.sqrt(1e-4), np.sqrt(self.beta_max / self.num_steps), self.num_steps)
        half = roots[: self.num_steps // 2] ** 2
        increments = np.concatenate(
            [half, roots[len(half) : self.num_steps - len(half)] ** 2, half[::-1]]
        )
        return np.cumsum(increments), np.cumsum(increments[::-1])[::-1]

    def _at(self, t: npt.ArrayLike) -> tuple[Array, Array]:
        time = self._time(t)
        indices = np.arange(self.num_steps)
        forward, backward = (np.interp(time, indices, values) for values in self._variances)
        return forward, backward

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, N - 1]."""
        forward, backward = self._at(t)
        total = forward + backward
        sigma = np.sqrt(forward * backward / total)
        return Marginal(
            backward / total, forward / total, 0 * sigma if self.deterministic else sigma
        )

    def network_time(self, t: npt.ArrayLike) -> Array:
        """The noise level that the paper's network sees, from N 1e-4 at index 0 to N at N - 1."""
        levels = np.linspace(1e-4, 1, self.num_steps)
        return np.interp(np.asarray(t), np.arange(self.num_steps), levels) * self.num_steps

    def ancestral_times(self, steps: int | None) -> npt.NDArray[np.int64]:
        """``steps`` equally spaced indices from N - 1, rounded, the last above 0; all of them by default.

        Raises:
            ValueError: another number of steps than 1..N-1.
        """
        last = self.num_steps - 1
        steps = last if steps is None else check_steps(steps, last)
        return np.rint(np.linspace(last, 0, steps + 1)[:-1]).astype(np.int64)

    def ancestral(self, times: npt.NDArray[Any]) -> Array:
        """The published sampler: the posterior of the forward diffusion, which does not use the source.

        The last row goes to index 0, without noise.
        """
        following = np.append(times[1:], 0)
        before = self._variances[0][times]
        after = self._variances[0][following]
        share = np.where(times == 0, 0.0, after / before)
        noise = np.where(following > 0, np.sqrt(share * (before - after)), 0.0)
        if self.deterministic:
            noise = np.zeros_like(noise)
        return np.stack([share, 0 * share, 1 - share, 0 * share, noise], axis=1)


@register("goub")
@dataclass(frozen=True)
class GOUB(Bridge):
    """Generalised Ornstein-Uhlenbeck bridge (Yue et al., ICML 2024).

    theta_t is the cumulated pull to the source, by a cosine schedule. V_t = noise_scale^2 (1 - exp(-2
    theta_t)) is the variance that it leaves, and V_tT the same from t to T. alpha = exp(-theta_t) V_tT / V_T,
    beta = 1 - alpha, sigma^2 = V_t V_tT / V_T.

    Args:
        num_steps: T, at least 2.
        noise_scale: lambda, in units of pictures in [-1, 1].
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    positive = ("noise_scale",)
    learns_top = False

    num_steps: int = 100
    noise_scale: float = 30 / 255
    objective: Objective = "noise"

    @cached_property
    def _pulled(self) -> Array:
        """Theta at the times 0..T."""
        x = np.arange(self.num_steps + 3) / (self.num_steps + 2)
        kept = np.cos((x + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
        rates = 1 - kept[1:-1] / kept[0]
        cumulated = np.cumsum(rates) - rates[0]
        return cumulated * -np.log(LEFT) / cumulated[-1]

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        pulled = np.interp(self._time(t), np.arange(self.num_steps + 1), self._pulled)
        end = self._pulled[-1]
        # variances in units of noise_scale^2
        before = -np.expm1(-2 * pulled)
        after = -np.expm1(-2 * (end - pulled))
        whole = -np.expm1(-2 * end)
        alpha = np.exp(-pulled) * after / whole
        return Marginal(alpha, 1 - alpha, self.noise_scale * np.sqrt(before * after / whole))
