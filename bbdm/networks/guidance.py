"""Classifier-free guidance: predictions are moved away from those without conditions. Nothing needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bbdm.networks.arrays import concatenated
from bbdm.networks.conditions import ConditionsConfig

# conditions that are left out, and the weight of the difference
Variant = tuple[tuple[str, ...], float]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a call: predictions are moved away from those without conditions.

    Ho and Salimans 2022, with a weight for each condition (Liu et al. 2022): the prediction becomes F + sum
    of w (F - F_v) over variants v, where F sees all conditions. Besides F, a step evaluates each variant.
    """

    variants: tuple[Variant, ...]

    def predict(
        self, network: Callable[..., Any], x: Any, conditions: Sequence[Mapping[str, Any]]
    ) -> Any:
        """The guided prediction of a step, (B, C, *S), of a network that returns at least 32 bits.

        ``conditions`` are those of each evaluation, (B, ...); or of all, (N B, ...), for one batch.
        """
        count = 1 + len(self.variants)
        if len(conditions) > 1:
            full, *others = [network(x, evaluated) for evaluated in conditions]
        else:
            together = network(concatenated([x] * count), conditions[0])
            full, *others = [together[i * len(x) : (i + 1) * len(x)] for i in range(count)]
        guided = full
        for (_, weight), other in zip(self.variants, others, strict=True):
            guided = guided + weight * (full - other)
        return guided


def read_guidance(
    conditions: ConditionsConfig, guidance: float | Mapping[str, float]
) -> Guidance | None:
    """The guidance of a call's argument for a network with conditions; None where predictions stay.

    Raises:
        ValueError: a weight is out of range, or the network was never trained without a condition.
    """
    if isinstance(guidance, Mapping):
        unknown = [repr(name) for name in guidance if name not in conditions.each]
        if unknown:
            names = ", ".join(unknown)
            raise ValueError(
                f"guidance must be for conditions, {conditions.described}, got {names}"
            )
        weights = {(name,): weight for name, weight in guidance.items()}
    else:
        weights = {tuple(conditions.drop): guidance}
    variants: list[Variant] = []
    for names, weight in weights.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 <= weight < math.inf
        ):
            raise ValueError(f"guidance must be a number of at least 0, got {weight!r}")
        never_left_out = [repr(name) for name in names if name not in conditions.drop]
        if not names:
            never_left_out = ["a condition"]
        if never_left_out:
            rule = f"guidance compares with predictions without {never_left_out[0]}"
            raise ValueError(f"{rule}, and the network was not trained so: see drop")
        if weight != 1:
            variants.append((names, weight - 1.0))
    if not variants:
        return None
    return Guidance(tuple(variants))


def read_scale(text: str) -> float | dict[str, float]:
    """The argument ``guidance`` from text: ``2``, or ``style=2,text=3``. ValueError for others."""
    try:
        if "=" not in text:
            return float(text)
        weights: dict[str, float] = {}
        for part in text.split(","):
            name, weight = part.split("=")
            weights[name] = float(weight)
        return weights
    except ValueError as error:
        raise ValueError(f"guidance must be a number, or NAME=NUMBER,..., got {text!r}") from error
