"""Classifier-free guidance: predictions that are moved away from those of a network without conditions.

Ho and Salimans 2022, with a weight for each condition (Liu et al. 2022). Nothing here needs torch.
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

    def predict(self, network: Predict, x: Any, index: int, conditions: Sequence[Mapping[str, Any]]) -> Any:
        """The guided prediction of a step, (B, C, *S).

        Args:
            network: returns predictions of at least 32 bits.
            x: (B, C, *S) what the network is shown.
            index: the number of the step.
            conditions: of each evaluation, (B, ...); or one mapping of all, (N B, ...), for one batch.
        """
        count = 1 + len(self.variants)
        if len(conditions) > 1:
            full, *others = [network(x, index, each) for each in conditions]
        else:
            together = network(concatenated([x] * count), index, conditions[0])
            full, *others = [together[i * len(x) : (i + 1) * len(x)] for i in range(count)]
        guided = full
        for (_, weight), other in zip(self.variants, others, strict=True):
            guided = guided + weight * (full - other)
        return guided


def read_guidance(conditions: ConditionsConfig, guidance: Scale) -> Guidance | None:
    """The guidance of a call's argument for a network with conditions; None where predictions stay.

    Raises:
        ValueError: a weight is out of range, or the network was never trained without a condition.
    """
    weights = guidance if isinstance(guidance, Mapping) else {} if guidance is None else {None: guidance}
    if unknown := [name for name in weights if name is not None and name not in conditions.each]:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"guidance must be for conditions, {conditions.described}, got {names}")
    variants: list[Variant] = []
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"guidance must be a number of at least 0, got {weight!r}")
        names = tuple(conditions.drop) if name is None else (name,)
        if missing := [each for each in names if each not in conditions.drop] or not names:
            which = f"without {missing[0]!r}" if isinstance(missing, list) else "without a condition"
            raise ValueError(
                f"guidance compares with predictions {which}, and the network was not trained so: see drop"
            )
        if weight != 1:
            variants.append((names, weight - 1.0))
    return Guidance(tuple(variants)) if variants else None


def read_scale(text: str) -> float | dict[str, float]:
    """The argument ``guidance`` from text: ``2``, or ``style=2,text=3``. ValueError for others."""
    try:
        if "=" not in text:
            return float(text)
        return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise ValueError(f"guidance must be a number, or NAME=NUMBER,..., got {text!r}") from error
