"""Classifier-free guidance: predictions that are moved away from those of a network without conditions.

Ho and Salimans 2022, with a weight for each condition (Liu et al. 2022), rescaled (Lin et al. 2024, section
3.4), within an interval (Kynkaanniemi et al. 2024). Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bbdm.networks.arrays import concatenated
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.windows import Predict

Variant = tuple[tuple[str, ...], float]  # conditions that are left out, and the weight of the difference
Scale = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Guidance:
    """How the predictions of a call are guided.

    The prediction becomes F + sum of w (F - F_v) over variants v, where F sees all conditions. Besides F, a
    step evaluates each variant.
    """

    variants: tuple[Variant, ...]
    rescale: float = 0.0  # share of the way back to the standard deviation of F
    interval: tuple[float, float] = (0.0, 1.0)  # of times as shares of the first one, in which steps are guided

    @property
    def evaluations(self) -> int:
        """Of each image in a step that is guided."""
        return 1 + len(self.variants)

    def guides(self, times: Sequence[float]) -> list[bool]:
        """Which steps are guided, of a table's times."""
        low, high = self.interval
        return [low <= time / times[0] <= high for time in times]

    def predict(self, network: Predict, x: Any, index: int, conditions: Sequence[Mapping[str, Any]]) -> Any:
        """The guided prediction of a step, (B, C, *S).

        Args:
            network: returns predictions of at least 32 bits.
            x: (B, C, *S) what the network is shown.
            index: the number of the step.
            conditions: of each evaluation, (B, ...); or one mapping of all, (N B, ...), for one batch.
        """
        if len(conditions) > 1:
            return self.combined([network(x, index, each) for each in conditions])
        together = network(concatenated([x] * self.evaluations), index, conditions[0])
        return self.combined([together[i * len(x) : (i + 1) * len(x)] for i in range(self.evaluations)])

    def combined(self, predictions: Sequence[Any]) -> Any:
        """The guided prediction of those with all conditions, then of each variant, (B, C, *S) each."""
        full, *others = predictions
        guided = full
        for (_, weight), other in zip(self.variants, others, strict=True):
            guided = guided + weight * (full - other)
        if self.rescale:
            ratio = _variance(full) ** 0.5 / (_variance(guided) + 1e-12) ** 0.5
            guided = guided * (1 + self.rescale * (ratio - 1))
        return guided


def read_guidance(
    conditions: ConditionsConfig, guidance: Scale, rescale: float, interval: tuple[float, float]
) -> Guidance | None:
    """The guidance of a call's arguments for a network with conditions; None where predictions stay.

    Raises:
        ValueError: a value is out of range, or the network was never trained without a condition.
    """
    weights = guidance if isinstance(guidance, Mapping) else {} if guidance is None else {None: guidance}
    if unknown := [name for name in weights if name is not None and name not in conditions.each]:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"guidance must be for conditions, {conditions.described}, got {names}")
    variants: list[Variant] = []
    for name, weight in weights.items():
        check_number("guidance", weight)
        names = tuple(conditions.drop) if name is None else (name,)
        if missing := [each for each in names if each not in conditions.drop] or not names:
            which = f"without {missing[0]!r}" if isinstance(missing, list) else "without a condition"
            raise ValueError(
                f"guidance compares with predictions {which}, and the network was not trained so: see drop"
            )
        if weight != 1:
            variants.append((names, weight - 1.0))
    return Guidance(tuple(variants), float(rescale), interval) if variants else None


def check_number(name: str, value: Any, most: float = math.inf) -> None:
    """Raise ValueError unless a value is a finite number from 0 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, got {value!r}")


def check_interval(value: Any) -> tuple[float, float]:
    """The interval (low, high) of guided steps. ValueError unless it is in [0, 1]."""
    try:
        low, high = (float(each) for each in value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low < high <= 1:
        raise ValueError(f"guidance_interval must be (low, high) in [0, 1], got {value!r}")
    return low, high


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


def _variance(values: Any) -> Any:
    """(B, 1, ...) of all values of an image."""
    axes = tuple(range(1, values.ndim))
    mean = values.mean(axes, keepdims=True)
    return ((values - mean) ** 2).mean(axes, keepdims=True)
