"""What a bridge is: a path from a target x0 to a source y, what the network sees and predicts, and its name.

All tables are float64. Solvers, networks and files are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt

from bbdm.base.registry import Registry
from bbdm.bridges.path import (
    ENDS,
    HIDDEN,
    OBJECTIVES,
    PICTURES,
    POINTS,
    Array,
    Density,
    ObjectiveFunction,
    Path,
    Weights,
    quantiles,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

ROUNDING = 1e-13  # of weights that cancel


@dataclass(frozen=True)
class Bridge(Path):
    """The base class of bridges, which are frozen dataclasses.

    A subclass has :meth:`~bbdm.bridges.path.Path.marginal`, and the fields ``num_steps`` and ``objective``.
    :meth:`check` says what they must satisfy. To be saved it is registered under a name: see
    :func:`bbdm.bridges.register`. Every bridge has the arguments below, by keyword. The first four are
    statistics of training pairs, over all pixels and channels, in the space of the bridge.

    Args:
        spread: the root mean square of x0 - y: the scale of the objective ``pinned``, of noise levels in
            densities of training times, and of the highest levels of timesteps.
        sigma_data: the standard deviation of targets, for the objective ``preconditioned``.
        sigma_source: the standard deviation of sources, for the objective ``preconditioned``.
        cov: the covariance of targets and sources, for the objective ``preconditioned``.
        density: of training times, a name; see :func:`bbdm.bridges.path.quantiles`.
        noise_range: the least and the largest noise level that the pretrained network of the objective
            ``denoiser`` knows; None for other objectives.

    Raises:
        ValueError: a setting is none that a bridge can have.
    """

    name: ClassVar[str]  # in files
    # a bridge's own may stand beside them
    objectives: ClassVar[Mapping[str, ObjectiveFunction]] = OBJECTIVES
    positive: ClassVar[tuple[str, ...]] = ()  # fields that must be finite numbers above 0
    spread: float = field(default=PICTURES, kw_only=True, repr=False)
    sigma_data: float = field(default=PICTURES, kw_only=True, repr=False)
    sigma_source: float = field(default=PICTURES, kw_only=True, repr=False)
    cov: float = field(default=0.0, kw_only=True, repr=False)
    density: Density = field(default="uniform", kw_only=True)
    noise_range: tuple[float, float] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        steps = 2 if self.continuous else self.num_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"num_steps must be an integer of at least 2, got {self.num_steps!r}")
        if self.objective not in self.objectives:
            raise ValueError(
                f"objective must be one of {tuple(self.objectives)}, got {self.objective!r}"
            )
        if self.deterministic and self.objective in ("noise", *HIDDEN):
            raise ValueError(
                f"objective {self.objective!r} needs noise, and this {type(self).__name__} has none"
            )
        if self.density not in get_args(Density):
            raise ValueError(f"density must be one of {get_args(Density)}, got {self.density!r}")
        if self.density == "top" and self.objective != "pinned":
            raise ValueError(f"density 'top' is of the objective 'pinned', got {self.objective!r}")
        for name in ("spread", "sigma_data", "sigma_source", *self.positive):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        self._check_noise_range()
        limit = self.sigma_data * self.sigma_source
        if not abs(self.cov) < limit:
            raise ValueError(
                f"cov must be below {limit:g} in size, the product of the spreads, got {self.cov!r}"
            )

    def _check_noise_range(self) -> None:
        """Raise ValueError unless levels of a pretrained denoiser go with its objective, and are a range."""
        if (self.objective == "denoiser") != (self.noise_range is not None):
            raise ValueError(
                f"noise_range is of the objective 'denoiser' alone, got {self.noise_range!r}"
            )
        if self.noise_range is None:
            return
        low, high = self.noise_range
        object.__setattr__(self, "noise_range", (low, high))  # of a file, a list
        if not 0 < low < high < np.inf:
            raise ValueError(
                f"noise_range must be two numbers, 0 < low < high, got {self.noise_range!r}"
            )

    def check(self) -> None:
        """Check settings, and that times give a path from a target to a source, as samplers and trainings do.

        - alpha, beta and sigma are finite at all times.
        - The path is ``closed``: x0 at time 0, and y at ``end``, where alpha and sigma are 0, both to 1e-6. A
          bridge with ``closed = False`` stops short of one of them, as some published schedules do.
        - The noise level nu = sigma / alpha, without noise beta / alpha, increases from ``low`` to ``top``.
        - ``network_time`` is finite. Networks of this library embed times from 0 to about 1,000.
        - Densities but ``uniform`` are of nu, in units of ``spread``.

        Raises:
            ValueError: one of these does not hold; the message says which, and at what time.
        """
        Bridge.__post_init__(self)  # of a subclass whose own is another, too
        if self.continuous:
            times = np.linspace(self.low, self.end, 1001)
        else:
            times = np.arange(self.low, self.end + 1)
        for function, values in self.marginal(times)._asdict().items():
            self._check_finite(function, times, values)
        self._check_finite("network_time", times, self.network_times(times))
        if self.closed:
            self._check_end(0, (1, 0, 0))
            self._check_end(self.end, (0, 1, 0))
        self._check_increasing(times[times <= self.top])

    def _check_finite(self, function: str, times: Array, values: Any) -> None:
        """Raise ValueError where a function of time is NaN or infinite."""
        bad = times[~np.isfinite(np.broadcast_to(values, times.shape))]
        if len(bad):
            name = type(self).__name__
            raise ValueError(
                f"{function} of {name} must be finite, got NaN or infinity at t = {bad[0]:g}"
            )

    def _check_end(self, time: float, expected: tuple[float, float, float]) -> None:
        """Raise ValueError where the path does not end in the target, or in the source."""
        weights = [float(weight) for weight in self.marginal(time)]
        if np.max(np.abs(np.subtract(weights, expected))) > ENDS:
            name = type(self).__name__
            raise ValueError(
                f"alpha, beta and sigma of {name} must be {expected} at t = {time:g}, got {weights}: mend "
                "marginal, or set closed = False where the path stops short of its ends"
            )

    def _check_increasing(self, times: Array) -> None:
        """Raise ValueError where the noise level does not increase; NaN does not."""
        levels = self.nu(times)
        bad = np.flatnonzero(~(np.diff(levels) > 0))
        if len(bad):
            first = bad[0]
            before = f"{levels[first]:g} at t = {times[first]:g}"
            after = f"{levels[first + 1]:g} at t = {times[first + 1]:g}"
            name = type(self).__name__
            raise ValueError(f"the noise level of {name} must increase, got {before} and {after}")

    @property
    def statistics(self) -> dict[str, float]:
        """The statistics of pairs by name."""
        return {
            name: getattr(self, name) for name in ("spread", "sigma_data", "sigma_source", "cov")
        }

    def weights(self, t: npt.ArrayLike) -> Weights:
        """What the network is shown, and x0hat from what it predicts; see :mod:`bbdm.bridges.path`.

        Raises:
            ValueError: a time outside the bridge, or of the noise objective one where alpha is 0.
        """
        weights = self.objectives[self.objective](self, t)
        return Weights(*np.broadcast_arrays(*weights, np.zeros_like(self._time(t)))[:-1])

    @property
    def markov(self) -> bool:
        """Whether a network that does not see the source may simulate it: a path forgets where it began.

        What the network is shown and x0hat have no part of y, and the path is a bridge of a diffusion, with
        sigma^2 in proportion to alpha beta. Then a step of the solver ``posterior`` has no part of y either.
        """
        if self.continuous:
            times = np.linspace(self.low, self.top, 65)[:-1]
        else:
            times = np.arange(self.low, self.top)
        alpha, beta, sigma = self.at(times)
        if self.deterministic or not times.size or not np.all(sigma > 0):
            return False
        _, i_y, _, p_y, _ = self.weights(times)
        if np.any(i_y) or np.any(p_y):
            return False
        ratio = alpha * beta / sigma**2
        return bool(np.allclose(ratio, ratio[0]))

    def input(self, t: npt.ArrayLike) -> Array:
        """(..., 2) weights of x_t and y in what the network is shown."""
        return np.stack(self.weights(t)[:2], axis=-1)

    def prediction(self, t: npt.ArrayLike) -> Array:
        """(..., 3) weights of x_t, y and the network's output in x0hat; errors as for :meth:`weights`."""
        return np.stack(self.weights(t)[2:], axis=-1)

    def ancestral_times(self, steps: int | None) -> npt.NDArray[np.int64]:
        """The times of the solver ``ancestral``: every one, downwards, unless a subclass says otherwise.

        Raises:
            ValueError: there is no such solver, or not with this number of steps.
        """
        if self.ancestral is None:
            raise ValueError(
                f"solver 'ancestral' does not exist for {type(self).__name__}; use 'posterior'"
            )
        times = np.arange(self.top, self.low - 1, -1).astype(np.int64)
        if steps is not None and steps != len(times):
            raise ValueError(
                f"solver 'ancestral' takes every time, steps={len(times)}; got steps={steps}"
            )
        return times

    def training_weights(self, t: npt.ArrayLike) -> Array:
        """(..., 6) weights of x0, y and noise in what the network is shown, then in the training target.

        The target follows from x0hat = p_x x_t + p_y y + p_f F: it is the F that gives x0.
        """
        alpha, beta, sigma = self.at(t)
        i_x, i_y, p_x, p_y, p_f = self.weights(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            target = (1 - p_x * alpha) / p_f, -(p_x * beta + p_y) / p_f, -p_x * sigma / p_f
        columns = np.stack([i_x * alpha, i_x * beta + i_y, i_x * sigma, *target], axis=-1)
        # at times without noise, F may have no weight
        known = np.isfinite(columns) & (np.abs(columns) > ROUNDING)
        return np.where(known, columns, 0.0)

    def _state(self, t: npt.ArrayLike) -> Array:
        return np.stack(self.at(t), axis=-1)

    def _assign(self, **attributes: Any) -> None:
        """Set attributes that follow from the settings, while the frozen bridge is made."""
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    @cached_property
    def _tables(self) -> dict[Any, Tensor]:
        """Arrays on devices, by name, device and dtype."""
        return {}

    def _on_device(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """An array of this bridge, or a method's at the integers 0..top, copied to a device once."""
        import torch

        key = (name, device, dtype)
        if key not in self._tables:
            attribute = getattr(self, name)
            array = attribute(np.arange(self.top + 1)) if callable(attribute) else attribute
            self._tables[key] = torch.from_numpy(array).to(device=device, dtype=dtype)
        return self._tables[key]

    def _rows(self, name: str, t: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of (B,) times in a table of a method, and the table, for images (B, C, H, W)."""
        import torch

        is_number = not t.is_complex() and t.dtype != torch.bool
        if t.is_floating_point() and not self.continuous:
            is_number = False
        if t.shape != images.shape[:1] or not is_number:
            kind = "numbers" if self.continuous else "integers"
            raise ValueError(
                f"t must be {len(images)} {kind}, got shape {tuple(t.shape)} of {t.dtype}"
            )
        if t.device.type == "cpu" and len(t):  # on a GPU, a look would wait for it
            first = t.min().item()
            last = t.max().item()
            if not (self.low <= first and last <= self.top):  # NaN too
                raise ValueError(f"t must be in [{self.low}, {self.top}], got [{first}, {last}]")
        device = images.device
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        if not self.continuous:
            return t, self._on_device(name, device, dtype)
        # a step waited for the device anyway
        rows = torch.from_numpy(getattr(self, name)(t.double().cpu().numpy()))
        return torch.arange(len(t), device=device), rows.to(device=device, dtype=dtype)

    def _sum(self, name: str, t: Tensor, *images: Tensor) -> Tensor:
        """Three images, each times its column of a table of a method."""
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"images must have one shape, got {sorted(shapes)}")
        rows, table = self._rows(name, t, images[0])
        first, second, third = table[rows.long()].view(-1, 3, *[1] * (images[0].ndim - 1)).unbind(1)
        return first * images[0] + second * images[1] + third * images[2]

    def draw_times(self, seeds: Tensor, step: int) -> Tensor:
        """(B,) times of training by ``density``: a function of (B,) int64 seeds and the optimizer step."""
        import torch

        from bbdm.kernels import philox

        low, high = self.train_range
        if self.density == "uniform" and self.objective not in HIDDEN and not self.continuous:
            return philox.timesteps(seeds, step, int(low), int(high))
        rows = philox.timesteps(seeds, step, 0, POINTS - 1)
        dtype = torch.float64 if self.continuous else torch.int64  # not every device has float64
        return self._on_device("_training_times", seeds.device, dtype)[rows]

    @cached_property
    def _training_times(self) -> Array:
        return np.asarray(quantiles(self, self.density), dtype=np.float64)

    def add_noise(
        self,
        x0: Tensor,
        y: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        *,
        seeds: Tensor | None = None,
        step: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Forward diffusion.

        Args:
            x0: (B, C, H, W) target images.
            y: (B, C, H, W) source images.
            t: (B,) times in [``low``, ``top``], integers or, of a continuous bridge, reals.
            noise: (B, C, H, W) standard normals; None where there are seeds.
            seeds: (B,) int64, one for each image, from which noise is drawn in its place.
            step: the optimizer step, which the noise of seeds depends on.

        Returns:
            What the network is shown, which is x_t unless the objective scales it, and the training target,
            each (B, C, H, W).

        Raises:
            ValueError: shapes differ, or t is not a (B,) tensor of times in range. The range is checked only
                on the CPU, where that costs no synchronisation.
        """
        from bbdm.kernels.noise_step import noise_step  # here, as tables are built without torch

        return noise_step(x0, y, *self._rows("training_weights", t, x0), noise, seeds, step)

    def state(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t (B, C, H, W) itself, differentiable; arguments and errors are those of :meth:`add_noise`."""
        return self._sum("_state", t, x0, y, noise)

    def estimate(self, x_t: Tensor, y: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x0hat, the target that a network's output stands for: p_x x_t + p_y y + p_F F; differentiable.

        Args:
            x_t: (B, C, H, W) the state, see :meth:`state`.
            y: (B, C, H, W) source images.
            prediction: (B, C, H, W) the network's output F.
            t: (B,) times in [``low``, ``top``], as for :meth:`add_noise`.

        Raises:
            ValueError: shapes differ, or t is not a (B,) tensor of times in range.
        """
        return self._sum("prediction", t, x_t, y, prediction)

    def network_times(self, t: npt.ArrayLike) -> Array:
        """What the network sees of times, float64: ln nu of a ``denoiser``, else :meth:`network_time`."""
        if self.objective == "denoiser":
            return np.log(self.denoiser_level(t))
        return self.network_time(t)

    def seen(self, t: Tensor) -> Tensor:
        """(B,) what the network sees of (B,) times, float32; of a denoiser, which maps them, float64."""
        import torch

        dtype = torch.float32
        if self.objective == "denoiser" and t.device.type != "mps":  # which has no float64
            dtype = torch.float64
        elif type(self).network_time is Bridge.network_time:
            return t.float()
        if not t.is_floating_point():
            return self._on_device("network_times", t.device, dtype)[t.long()]
        return torch.from_numpy(self.network_times(t.double().cpu().numpy())).to(t.device, dtype)

    def config(self) -> dict[str, Any]:
        """Plain values from which :func:`bbdm.bridges.from_config` builds this bridge.

        Raises:
            ValueError: the class is not registered, so that no file can name it.
        """
        if "name" not in vars(type(self)):
            mine = type(self).__qualname__
            raise ValueError(
                f"a bridge that has a config is registered: @bbdm.bridges.register('name') above {mine}"
            )
        settings = asdict(cast(Any, self))
        if self.noise_range is None:  # of most bridges
            del settings["noise_range"]
        return {**settings, "kind": self.name}  # DDBM has a field of that name

    @property
    def turned(self) -> Self:
        """The bridge from targets to sources of the same pairs, whose statistics change places.

        ``spread`` and ``cov`` are the same both ways, and the others count for ``preconditioned`` alone.
        """
        if self.objective != "preconditioned" or self.sigma_data == self.sigma_source:
            return self
        return cast(
            Any,
            replace(cast(Any, self), sigma_data=self.sigma_source, sigma_source=self.sigma_data),
        )


BRIDGES: Registry[Callable[..., Bridge]] = Registry("bridge")  # what builds them, by name
Kind = TypeVar("Kind", bound=type[Bridge])


def register(kind: str) -> Callable[[Kind], Kind]:
    """A decorator that gives a bridge its name in files: ``@register("mine")`` above the dataclass.

    Whoever loads such a file has to import the class before. The same class defined again, as by a cell of a
    notebook that runs twice, replaces the first.

    Raises:
        ValueError: another class has this name.
    """

    def named(bridge: Kind) -> Kind:
        BRIDGES.register(kind, bridge)
        bridge.name = kind
        return bridge

    return named


def from_config(config: dict[str, Any]) -> Bridge:
    """The bridge that :meth:`Bridge.config` describes.

    Raises:
        ValueError: the kind is unknown or a value is out of range.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a bridge's settings must be a dictionary, got {config!r}")
    values = dict(config)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in BRIDGES:
        hint = "; import the module that registers your own bridge"
        raise ValueError(f"bridge kind must be one of {sorted(BRIDGES)}, got {kind!r}{hint}")
    try:
        return BRIDGES[kind](**values)
    except TypeError as error:
        raise ValueError(f"bridge {kind!r} does not take these settings: {error}") from error
