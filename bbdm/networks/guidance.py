"""Guidance: predictions that are moved away from those of a network that is told less, or shown worse.

Classifier-free guidance (Ho and Salimans 2022) with a weight for each condition (Liu et al. 2022), rescaled
(Lin et al. 2024, section 3.4), within an interval (Kynkaanniemi et al. 2024). Prior guidance (Chen et al.
2026) needs no training: what is shown worse is the state, while the source stays. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar, get_args

from bbdm.networks.conditions import ConditionsConfig

Corruption = Literal["blur", "noise"]
Told = TypeVar("Told")
Variant = tuple[tuple[str, ...], float]  # conditions that are left out, and the weight of the difference


class GuidanceSettings(TypedDict, total=False):
    """The arguments of a call that guide it."""

    guidance: float | Mapping[str, float] | None
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    guidance_prior: Prior | str | None


@dataclass(frozen=True)
class Prior:
    """Guidance away from what the network makes of a corrupted state.

    The estimate of the target becomes D(H(x)) + weight (D(x) - D(H(x))), where H corrupts the state x a
    little, and the source stays as it is. H changes what the network is shown of the state, a weighted sum of
    state and source.

    Args:
        corruption: ``blur`` by a Gaussian, or ``noise`` that is added.
        strength: of blur its standard deviation in pixels of the state, of noise its standard deviation.
        weight: 1 has no effect.

    Raises:
        ValueError: a value is out of range.
    """

    corruption: Corruption
    strength: float
    weight: float = 1.5

    def __post_init__(self) -> None:
        if self.corruption not in get_args(Corruption):
            raise ValueError(f"corruption must be one of {', '.join(get_args(Corruption))}, got {self.corruption!r}")
        _check("strength of guidance_prior", self.strength)
        _check("weight of guidance_prior", self.weight)
        if self.strength == 0:
            raise ValueError("strength of guidance_prior must be above 0, got 0")

    @classmethod
    def read(cls, text: str) -> Prior:
        """From text such as ``blur:1`` or ``noise:0.1:2``, a strength and a weight. ValueError for others."""
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if len(values) not in (1, 2):
            raise ValueError(f"guidance_prior must be blur:STRENGTH:WEIGHT or noise:STRENGTH:WEIGHT, got {text!r}")
        return cls(kind, *values)  # pyright: ignore[reportArgumentType]

    def offset(self, prediction: Sequence[float], seen: float) -> float:
        """The weight, in a guided prediction, of what H changes in what the network is shown.

        The estimate D = p_x x + p_y y + p F becomes D + (w - 1) (D(x) - D(H(x))), which in predictions is
        F + (w - 1) (F(x) - F(H(x))) + (w - 1) p_x / p (x - H(x)).

        Args:
            prediction: p_x, p_y and p of the step.
            seen: the weight of the state in what the network is shown, not 0.
        """
        p_x, _, p = prediction
        return (1 - self.weight) * p_x / (p * seen)

    def __str__(self) -> str:
        return f"{self.corruption}:{self.strength:g}:{self.weight:g}"


@dataclass(frozen=True)
class Guidance:
    """How the predictions of a call are guided.

    The prediction becomes F + sum of w (F - F_v) over variants v, where F is told all conditions. Besides F,
    a step evaluates each variant, in one batch.
    """

    variants: tuple[Variant, ...]
    rescale: float = 0.0  # share of the way back to the standard deviation of F
    interval: tuple[float, float] = (0.0, 1.0)  # of times as shares of the first one, in which steps are guided
    prior: Prior | None = None

    @property
    def evaluations(self) -> int:
        """Of each image in a step that is guided."""
        return 1 + len(self.variants) + (self.prior is not None)

    def guides(self, times: Sequence[float], inputs: Sequence[Sequence[float]]) -> list[bool]:
        """Which steps are guided, of a table's times, and weights of the state in what the network is shown.

        A prior guides none that shows nothing of the state.
        """
        low, high = self.interval
        seen = [bool(self.variants) or shown[0] != 0 for shown in inputs]
        return [sees and low <= time / times[0] <= high for sees, time in zip(seen, times, strict=True)]

    def told(self, full: Told, without: Callable[[tuple[str, ...]], Told]) -> list[Told]:
        """What the network is told in each evaluation, in the order of :meth:`combined`.

        Args:
            full: what is told of all conditions.
            without: gives what is left without some conditions.
        """
        return [full] * (1 + (self.prior is not None)) + [without(names) for names, _ in self.variants]

    def combined(self, predictions: Sequence[Any], offset: Any = None) -> Any:
        """The guided prediction, of tensors or arrays (B, C, *S).

        Args:
            predictions: told all, of the corrupted state where there is a prior, then of each variant.
            offset: what :attr:`prior` adds besides, or None.
        """
        full, *others = predictions
        weights = [w for _, w in self.variants]
        if self.prior is not None:
            weights.insert(0, self.prior.weight - 1)
        made = full
        for weight, other in zip(weights, others, strict=True):
            made = made + weight * (full - other)
        if offset is not None:
            made = made + offset
        if self.rescale:
            ratio = _variance(full) ** 0.5 / (_variance(made) + 1e-12) ** 0.5
            made = made * (1 + self.rescale * (ratio - 1))
        return made


def gaussian(sigma: float) -> list[float]:
    """The weights of a Gaussian filter of a standard deviation in pixels, from -3 sigma to 3 sigma."""
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    return [weight / sum(weights) for weight in weights]


def read_guidance(
    further: ConditionsConfig,
    guidance: float | Mapping[str, float] | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_prior: Prior | str | None = None,
) -> Guidance | None:
    """The guidance of a call's arguments for a network with conditions; None where predictions stay.

    Raises:
        ValueError: a value is out of range, or the network was never trained without a condition.
    """
    prior = Prior.read(guidance_prior) if isinstance(guidance_prior, str) else guidance_prior
    if not (prior is None or isinstance(prior, Prior)):
        raise ValueError(f"guidance_prior must be a Prior or text such as 'blur:1:1.5', got {guidance_prior!r}")
    _check("guidance_rescale", guidance_rescale)
    try:
        low, high = (float(value) for value in guidance_interval)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance_interval must be (low, high) in [0, 1], got {guidance_interval!r}")
    if guidance_rescale > 1:
        raise ValueError(f"guidance_rescale must be at most 1, got {guidance_rescale!r}")
    variants: list[Variant] = []
    for names, weight in _wanted(guidance, further).items():
        _check("guidance", weight)
        if missing := [name for name in names if name not in further.drop] or not names:
            which = f"without {missing[0]!r}" if isinstance(missing, list) else "without a condition"
            raise ValueError(
                f"guidance compares with predictions {which}, and the network was not trained so: see drop"
            )
        if weight != 1:
            variants.append((names, weight - 1.0))
    if prior is not None and prior.weight == 1:
        prior = None
    if not variants and prior is None:
        return None
    return Guidance(tuple(variants), float(guidance_rescale), (low, high), prior)


def read_scale(text: str) -> float | dict[str, float]:
    """The argument ``guidance`` from text: ``2``, or ``style=2,text=3``. ValueError for others."""
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise ValueError(f"guidance must be a number, or NAME=NUMBER,..., got {text!r}") from error


def read_interval(text: str) -> tuple[float, float]:
    """The argument ``guidance_interval`` from text such as ``0.2:0.8``. ValueError for others."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise ValueError(f"guidance_interval must be LOW:HIGH, got {text!r}") from error
    return low, high


def _wanted(guidance: Any, further: ConditionsConfig) -> dict[tuple[str, ...], Any]:
    """The weight of each set of conditions."""
    if guidance is None:
        return {}
    if not isinstance(guidance, Mapping):
        return {tuple(further.drop): guidance}
    if unknown := [name for name in guidance if name not in further.kinds]:
        raise ValueError(f"guidance must be for conditions, {further.wanted}, got {', '.join(map(repr, unknown))}")
    return {(name,): weight for name, weight in guidance.items()}


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def _variance(values: Any) -> Any:
    """(B, 1, ...) of all values of an image."""
    axes = tuple(range(1, values.ndim))
    mean = values.mean(axes, keepdims=True)
    return ((values - mean) ** 2).mean(axes, keepdims=True)
