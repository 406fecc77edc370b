"""Scores of several results of each source as a distribution: how near the target is, how honest the spread.

Energy score and CRPS are proper scores (Gneiting and Raftery 2007): the true distribution has the lowest.
:data:`DISTRIBUTION` is a metric that has them all.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch

from bbdm.evaluation.metrics import Metric

NOMINAL = 0.9  # of the interval whose coverage and length are scored; the nearest that the samples have


def energy_score(results: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Energy score of (S, ...) results, and their mean distance from each other.

    E|X - x| - E|X - X'| / 2 with the Euclidean norm over all values of an image (Gneiting and Raftery 2007,
    section 4.3), of different samples X and X'. Error and collapse both raise it; lower is better.
    """
    samples = results.flatten(1)
    error = (samples - target.flatten()).norm(dim=1).mean().item()
    pairs = [(samples[i] - samples[j]).norm().item() for i, j in combinations(range(len(samples)), 2)]
    spread = float(np.mean(pairs)) if pairs else 0.0
    return error - spread / 2, spread


def crps(results: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(...) continuous ranked probability score of (S, ...) results of each value, at least 2.

    E|X - x| - E|X - X'| / 2 of different samples (Gneiting and Raftery 2007, equation 21), so its expectation
    is that of the distribution which the samples are of.
    """
    count = len(results)
    weights = torch.arange(1 - count, count, 2, device=results.device, dtype=results.dtype)
    ordered = results.sort(0).values.movedim(0, -1)
    return (results - target).abs().mean(0) - (ordered * weights).sum(-1) / (count * (count - 1))


def _inner(samples: int) -> int:
    """Samples on each side of the scored interval, with its end."""
    return max(1, round((samples + 1) * (1 - NOMINAL) / 2))


def sums(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What adds up over sources: means, and ranks.

    Args:
        results: (B, S, C, *S) in stored values.
        targets: (B, C, *S) in stored values.

    Returns:
        (5 + S + 1,) float64; each picture has the same weight.
    """
    pairs = zip(results.double().cpu().flatten(2), targets.double().cpu().flatten(1), strict=True)
    return torch.from_numpy(sum(_of_picture(*pair) for pair in pairs))


def _of_picture(result: torch.Tensor, target: torch.Tensor) -> Any:
    """:func:`sums` of one source, of samples (S, V) and values (V,)."""
    samples, weight = len(result), 1 / len(target)
    below, equal = (result < target).sum(0).numpy(), (result == target).sum(0).numpy()
    steps = np.zeros(samples + 2)  # a target that equals samples has all of their ranks in parts
    np.add.at(steps, below, weight / (equal + 1))
    np.add.at(steps, below + equal + 1, -weight / (equal + 1))
    ordered = result.sort(0).values
    low, high = ordered[_inner(samples) - 1], ordered[-_inner(samples)]
    covered = ((low <= target) & (target <= high)).double()
    numbers = [crps(result, target).mean(), (high - low).mean(), covered.mean()]
    return np.concatenate([[1, energy_score(result, target)[0], *map(float, numbers)], steps.cumsum()[:-1]])


def total(added: torch.Tensor) -> dict[str, Any]:
    """The scores of :func:`sums`, as plain values.

    ``energy`` and ``crps`` are means over pictures. ``interval`` is between two ordered samples: ``expected``
    is the share of targets inside where they are as the samples, ``coverage`` the true share, ``length`` the
    mean. ``ranks`` is the share of targets at each rank among the samples.
    """
    pictures = float(added[0])
    energy, score, length, coverage, *ranks = (added[1:] / pictures).tolist()
    samples = len(ranks) - 1
    expected = 1 - 2 * _inner(samples) / (samples + 1)
    return {
        "samples": samples,
        "pictures": int(pictures),
        "energy": energy,
        "crps": score,
        "interval": {"expected": expected, "coverage": coverage, "length": length},
        "ranks": ranks,
    }


DISTRIBUTION = Metric(sums, False, "samples", masks="pixels", total=total)


def summary(scores: dict[str, Any]) -> str:
    """The scores in a line."""
    interval = scores["interval"]
    return (
        f"distribution of {scores['samples']}: energy score {scores['energy']:.5g}, CRPS {scores['crps']:.5g}, "
        f"{100 * interval['coverage']:.1f} % of targets in intervals of {100 * interval['expected']:.1f} %, of length "
        f"{interval['length']:.5g}"
    )
