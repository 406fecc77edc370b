"""Bridges: Gaussian paths between a source image y and a target image x0.

A bridge is three functions of time, x_t = alpha(t) x0 + beta(t) y + sigma(t) eps, and the quantity that the
network predicts. All tables are float64. Solvers, networks and files are not known here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
Objective = Literal["residual", "displacement", "noise"]


class Marginal(NamedTuple):
    """Weights of x0, y and noise in x_t, each the shape of t."""

    alpha: Array
    beta: Array
    sigma: Array


class Bridge(ABC):
    """The base class of bridges, which are frozen dataclasses: :class:`ABridge` and :class:`BrownianBridge`.

    Times are the integers ``low``..``top``. At ``top`` the state is the source, and sampling starts there.
    The objective is the quantity that the network predicts: ``residual`` x_t - x0, ``displacement`` y - x0,
    or ``noise`` eps.
    """

    num_steps: int
    objective: Objective

    @abstractmethod
    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """alpha, beta and sigma at real times t in [0, ``num_steps``], float64.

        Raises:
            ValueError: a time outside the bridge.
        """

    @property
    def low(self) -> int:
        """The smallest time in training."""
        return 1

    @property
    def top(self) -> int:
        """The time at which sampling starts: T, or T - 1 for the noise objective, which has no x0hat at T."""
        return self.num_steps - (self.objective == "noise")

    @property
    def train_range(self) -> tuple[int, int]:
        """The first and the last time that training draws, both included."""
        return self.low, self.top

    def alpha(self, t: npt.ArrayLike) -> Array:
        """Weight of x0 in x_t."""
        return self.marginal(t).alpha

    def beta(self, t: npt.ArrayLike) -> Array:
        """Weight of y in x_t."""
        return self.marginal(t).beta

    def sigma(self, t: npt.ArrayLike) -> Array:
        """Standard deviation of x_t given x0 and y."""
        return self.marginal(t).sigma

    @abstractmethod
    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level sigma / alpha of (x_t - beta y) / alpha; increasing, and infinite where alpha is 0."""

    def _time(self, t: npt.ArrayLike) -> Array:
        """Times as float64; ValueError where one lies outside the bridge."""
        time = np.asarray(t, dtype=np.float64)
        end = self.num_steps if self.low else self.top
        if not np.all((time >= 0) & (time <= end)):
            raise ValueError(f"t must be in [0, {end}], got {t!r}")
        return time

    def time_at(self, nu: npt.ArrayLike) -> Array:
        """The real time in [``low``, ``top``] of noise level ``nu``, by bisection of the increasing nu(t)."""
        level = np.asarray(nu, dtype=np.float64)
        left, right = np.full_like(level, self.low), np.full_like(level, self.top)
        for _ in range(64):
            middle = (left + right) / 2
            below = self.nu(middle) < level
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        return (left + right) / 2

    def prediction(self, t: npt.ArrayLike) -> Array:
        """(..., 3) weights of x_t, y and the network's output in x0hat.

        Raises:
            ValueError: for the noise objective where alpha is 0.
        """
        alpha, beta, sigma = self.marginal(t)
        one, zero = np.ones_like(alpha), np.zeros_like(alpha)
        if self.objective == "residual":
            weights = (one, zero, -one)
        elif self.objective == "displacement":
            weights = (zero, one, -one)
        else:
            if np.any(alpha == 0):
                raise ValueError(f"objective 'noise' has no x0hat at t = {self.num_steps}; use t <= {self.top}")
            weights = (1 / alpha, -beta / alpha, -sigma / alpha)
        return np.stack(weights, axis=-1)

    @cached_property
    def noise_table(self) -> Array:
        """(top + 1, 6): weights of x0, y and noise in x_t, then in the training target, for t = 0..top."""
        alpha, beta, sigma = self.marginal(np.arange(self.top + 1))
        one, zero = np.ones_like(alpha), np.zeros_like(alpha)
        target = {
            "residual": (alpha - 1, beta, sigma),
            "displacement": (-one, one, zero),
            "noise": (zero, zero, one),
        }[self.objective]
        return np.stack([alpha, beta, sigma, *target], axis=-1)

    @cached_property
    def _device_tables(self) -> dict[tuple[torch.device, torch.dtype], torch.Tensor]:
        return {}

    def add_noise(
        self,
        x0: torch.Tensor,
        y: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor | None = None,
        *,
        seeds: torch.Tensor | None = None,
        step: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward diffusion.

        Args:
            x0: (B, C, H, W) target images.
            y: (B, C, H, W) source images.
            t: (B,) integer times in [``low``, ``top``].
            noise: (B, C, H, W) standard normals; or
            seeds: (B,) int64, one for each image, from which they are drawn, with
            step: the optimizer step.

        Returns:
            x_t and the training target, each (B, C, H, W).

        Raises:
            ValueError: shapes differ, or t is not a (B,) integer tensor in range. The range is checked only
                on the CPU, where that costs no synchronisation.
        """
        import torch  # here, as tables are built without it

        from bbdm.kernels.noise_step import noise_step

        shapes = [tuple(v.shape) for v in (x0, y, noise) if v is not None]
        if len(set(shapes)) > 1:
            raise ValueError(f"x0, y and noise must have one shape, got {shapes}")
        if t.shape != x0.shape[:1] or t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"t must be {len(x0)} integers, got shape {tuple(t.shape)} of {t.dtype}")
        if t.device.type == "cpu" and len(t) and not (self.low <= int(t.min()) and int(t.max()) <= self.top):
            raise ValueError(f"t must be in [{self.low}, {self.top}], got [{int(t.min())}, {int(t.max())}]")
        key = x0.device, torch.float64 if x0.dtype == torch.float64 else torch.float32
        if key not in self._device_tables:
            self._device_tables[key] = torch.from_numpy(self.noise_table).to(device=key[0], dtype=key[1])
        return noise_step(x0, y, t, self._device_tables[key], noise, seeds, step)

    def config(self) -> dict[str, Any]:
        """Plain values from which :func:`from_config` builds this bridge.

        Raises:
            ValueError: the class is not one of ``BRIDGES``, so that no file can name it.
        """
        if type(self) not in KIND_OF:
            known = ", ".join(f"{bridge.__name__} ({kind!r})" for kind, bridge in BRIDGES.items())
            raise ValueError(f"a bridge that has a config must be one of {known}, got a {type(self).__qualname__}")
        return {"kind": KIND_OF[type(self)], **asdict(cast(Any, self))}

    def _check_common(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 2:
            raise ValueError(f"num_steps must be an integer of at least 2, got {self.num_steps!r}")
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {get_args(Objective)}, got {self.objective!r}")


@dataclass(frozen=True)
class ABridge(Bridge):
    """Score-based Brownian bridge (ACM MM 2024): sigma = c_lambda (1 - m) sqrt(ln(1 / (1 - m))), m = t / T.

    Args:
        num_steps: T, at least 2.
        c_lambda: noise scale, above 0.
        objective: the quantity that the network predicts.

    Raises:
        ValueError: an argument is out of range.
    """

    num_steps: int = 1000
    c_lambda: float = 2.0
    objective: Objective = "residual"

    def __post_init__(self) -> None:
        self._check_common()
        if not (np.isfinite(self.c_lambda) and self.c_lambda > 0):
            raise ValueError(f"c_lambda must be a positive number, got {self.c_lambda!r}")

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        m = self._time(t) / self.num_steps
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = np.where(m < 1, self.c_lambda * (1 - m) * np.sqrt(-np.log1p(-m)), 0.0)
        return Marginal(1 - m, m, sigma)

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level in pinned coordinates."""
        m = self._time(t) / self.num_steps
        with np.errstate(divide="ignore"):
            return self.c_lambda * np.sqrt(-np.log1p(-m))


@dataclass(frozen=True)
class BrownianBridge(Bridge):
    """Brownian bridge (BBDM, Li et al., CVPR 2023): sigma = sqrt(2 (m - m^2) max_variance).

    Args:
        num_steps: T, at least 2.
        max_variance: twice the variance at the middle of the bridge, above 0.
        objective: the quantity that the network predicts.
        schedule: ``exact`` is m = t / T on 1..T. ``linear`` and ``sin`` are the original code's schedules on
            the indices 0..T-1, which stop just short of both endpoints; see :meth:`bbdm`.

    Raises:
        ValueError: an argument is out of range.
    """

    num_steps: int = 1000
    max_variance: float = 1.0
    objective: Objective = "residual"
    schedule: Literal["exact", "linear", "sin"] = "exact"

    def __post_init__(self) -> None:
        self._check_common()
        if not (np.isfinite(self.max_variance) and self.max_variance > 0):
            raise ValueError(f"max_variance must be a positive number, got {self.max_variance!r}")
        if self.schedule not in ("exact", "linear", "sin"):
            raise ValueError(f"schedule must be 'exact', 'linear' or 'sin', got {self.schedule!r}")

    @classmethod
    def bbdm(
        cls,
        num_steps: int = 1000,
        max_variance: float = 1.0,
        schedule: Literal["linear", "sin"] = "linear",
        objective: Objective = "residual",
    ) -> BrownianBridge:
        """The original BBDM code's bridge: indices 0..T-1, m from 0.001 (linear schedule) to 0.999."""
        if schedule not in ("linear", "sin"):
            raise ValueError(f"schedule must be 'linear' or 'sin', got {schedule!r}")
        return cls(num_steps, max_variance, objective, schedule)

    @property
    def low(self) -> int:
        """1, or 0 for the original code's indices."""
        return 1 if self.schedule == "exact" else 0

    @property
    def top(self) -> int:
        """T, or T - 1 for the original code's indices and the noise objective."""
        return super().top if self.schedule == "exact" else self.num_steps - 1

    @property
    def train_range(self) -> tuple[int, int]:
        """``low`` to T - 1, the times that BBDM trains on."""
        return self.low, self.num_steps - 1

    @cached_property
    def _knots(self) -> Array:
        """The m at the indices 0..T-1 of the original code's schedules."""
        if self.schedule == "linear":
            return np.linspace(0.001, 0.999, self.num_steps)
        exponents = np.linspace(0, self.num_steps, self.num_steps)
        m = 1.0075 ** (exponents - exponents[-1])  # divided by the last value, without overflow
        m[-1] = 0.999
        return m

    def _m(self, t: npt.ArrayLike) -> Array:
        time = self._time(t)
        if self.schedule == "exact":
            return time / self.num_steps
        return np.interp(time, np.arange(self.num_steps), self._knots)

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        """Weights at times in [0, T]."""
        m = self._m(t)
        return Marginal(1 - m, m, np.sqrt(2 * (m - m * m) * self.max_variance))

    def nu(self, t: npt.ArrayLike) -> Array:
        """Noise level in pinned coordinates."""
        m = self._m(t)
        with np.errstate(divide="ignore"):
            return np.sqrt(2 * self.max_variance * m / (1 - m))


BRIDGES: dict[str, type[Bridge]] = {"abridge": ABridge, "brownian": BrownianBridge}
KIND_OF = {bridge: kind for kind, bridge in BRIDGES.items()}


def from_config(config: dict[str, Any]) -> Bridge:
    """The bridge that :meth:`Bridge.config` describes.

    Raises:
        ValueError: the kind is unknown or a value is out of range.
    """
    values = dict(config)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in BRIDGES:
        raise ValueError(f"bridge kind must be one of {sorted(BRIDGES)}, got {kind!r}")
    try:
        return BRIDGES[kind](**values)
    except TypeError as error:
        raise ValueError(f"bridge {kind!r} does not take these settings: {error}") from error
