"""Scores of several results of each source as a distribution: how near the target is, how honest the spread.

Energy score and CRPS are proper scores (Gneiting and Raftery 2007): the true distribution has the lowest.
:data:`DISTRIBUTION` is a metric that has them all.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base.atomic import write_atomically
from bbdm.evaluation.metrics import Metric, Setup

NOMINAL = 0.9  # of the interval whose coverage and length are scored; the nearest that the samples have
BINS = 2048  # of lengths and of standard deviations, over the range of the values
POINTS = 20  # of the curve of errors against standard deviations


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


def sums(results: torch.Tensor, targets: torch.Tensor, setup: Setup) -> torch.Tensor:
    """What adds up over sources: means, ranks, lengths of intervals, and standard deviations.

    Args:
        results: (B, S, C, *S) in stored values.
        targets: (B, C, *S) in stored values.
        setup: whose values have the range.

    Returns:
        (5 + S + 1 + 7 BINS,) float64; each picture has the same weight.
    """
    width = float(np.max(setup.values.high) - np.min(setup.values.low)) / BINS
    pairs = zip(results.double().cpu().flatten(2), targets.double().cpu().flatten(1), strict=True)
    return torch.from_numpy(sum(_of_picture(*pair, width) for pair in pairs))


def _of_picture(result: torch.Tensor, target: torch.Tensor, width: float) -> Any:
    """:func:`sums` of one source, of samples (S, V) and values (V,), in bins of a width."""
    from scipy.stats import spearmanr

    samples, weight = len(result), 1 / len(target)
    std, error = result.std(0), (result.mean(0) - target).abs()
    both = bool(std.min() < std.max() and error.min() < error.max())
    related = float(spearmanr(std, error).statistic) if both else 0.0  # pyright: ignore[reportAttributeAccessIssue]
    means = [1, energy_score(result, target)[0], float(crps(result, target).mean()), related, both]
    below, equal = (result < target).sum(0).numpy(), (result == target).sum(0).numpy()
    steps = np.zeros(samples + 2)  # a target that equals samples has all of their ranks in parts
    np.add.at(steps, below, weight / (equal + 1))
    np.add.at(steps, below + equal + 1, -weight / (equal + 1))
    ordered = result.sort(0).values
    low, high = ordered[_inner(samples) - 1], ordered[-_inner(samples)]
    covered = ((low <= target) & (target <= high)).double()
    ones, length = torch.ones_like(std), high - low
    lengths = _binned(length, [ones, length, covered, error], width, weight)
    spreads = _binned(2 * std, [ones, std.square(), error.square()], width, weight)
    return np.concatenate([means, steps.cumsum()[:-1], *lengths, *spreads])


def _binned(size: torch.Tensor, rows: list[torch.Tensor], width: float, weight: float) -> list[Any]:
    """Rows of values (V,), added up in the bins of sizes."""
    index = (size / width).long().clip(0, BINS - 1).numpy()
    return [np.bincount(index, row.numpy() * weight, BINS) for row in rows]


def total(added: torch.Tensor) -> dict[str, Any]:
    """The scores of :func:`sums`, as plain values.

    ``energy``, ``crps`` and ``rank_correlation`` (Spearman's, of standard deviation and absolute error of
    the mean) are means over pictures. ``interval`` is between two ordered samples: ``expected`` is the
    share of targets inside where they are as the samples, ``coverage`` the true share. ``calibration``
    has both for all such intervals, ``ranks`` the share of targets at each rank among the samples, and
    ``error_of_std`` the root mean square error of the mean where the standard deviation is about the
    first value.
    """
    values = added.cpu().numpy()
    pictures, energy, score, related, varied = values[:5].tolist()
    ranks, lengths = values[5 : -7 * BINS] / pictures, values[-7 * BINS : -3 * BINS].reshape(4, BINS) / pictures
    samples = len(ranks) - 1
    inside = {
        k: ((samples + 1 - 2 * k) / (samples + 1), float(ranks[k : samples + 1 - k].sum())) for k in range(samples)
    }
    quartiles = [dict(zip(("share", "length", "coverage", "error"), each, strict=True)) for each in _parts(lengths, 4)]
    spreads = _parts(values[-3 * BINS :].reshape(3, BINS), POINTS)
    return {
        "samples": samples,
        "pictures": int(pictures),
        "energy": energy / pictures,
        "crps": score / pictures,
        "rank_correlation": related / varied if varied else None,
        "interval": {
            "expected": inside[_inner(samples)][0],
            "coverage": float(lengths[2].sum()),
            "length": float(lengths[1].sum()),
            "by_quartile": quartiles,
        },
        "calibration": [inside[k] for k in range(samples // 2, 0, -1)],
        "ranks": ranks.tolist(),
        "error_of_std": [(float(np.sqrt(variance)), float(np.sqrt(error))) for _, variance, error in spreads],
    }


DISTRIBUTION = Metric(sums, False, "samples", masks="pixels", joint=True, needs=lambda setup: setup, total=total)


def _parts(table: npt.NDArray[np.float64], count: int) -> list[list[float]]:
    """Bins, whose first row is their weight, as about ``count`` parts of one weight: shares and means."""
    weight = table[0]
    part = np.minimum(count * (weight.cumsum() - weight / 2) / weight.sum(), count - 1e-9).astype(int)
    added = np.stack([np.bincount(part, row, count) for row in table], axis=1)
    return [[first / weight.sum(), *(each / first for each in rest)] for first, *rest in added.tolist() if first]


def summary(scores: dict[str, Any]) -> str:
    """The scores in a line."""
    interval, related = scores["interval"], scores["rank_correlation"]
    text = "" if related is None else f", rank correlation of |error| and std {related:.2f}"
    return (
        f"distribution of {scores['samples']}: energy score {scores['energy']:.5g}, CRPS {scores['crps']:.5g}, "
        f"{100 * interval['coverage']:.1f} % of targets in intervals of {100 * interval['expected']:.1f} %, of length "
        f"{interval['length']:.5g}{text}"
    )


def draw(scores: dict[str, Any], path: Path) -> None:
    """Write a picture of three plots: calibration, error against standard deviation, and ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    calibration, errors, ranks = figure.subplots(1, 3)
    calibration.plot([0, 1], [0, 1], color="0.7")
    calibration.plot(*zip(*scores["calibration"], strict=True), marker="o")
    calibration.set(xlabel="expected share inside", ylabel="share of targets inside", title="intervals of samples")
    stds, roots = zip(*scores["error_of_std"], strict=True)
    errors.plot([0, max(*stds, *roots)], [0, max(*stds, *roots)], color="0.7")
    errors.plot(stds, roots, marker="o")
    errors.set(xlabel="standard deviation of samples", ylabel="error of their mean", title="root mean squares")
    ranks.bar(range(len(scores["ranks"])), scores["ranks"])
    ranks.axhline(1 / len(scores["ranks"]), color="0.5")
    ranks.set(xlabel="samples below the target", ylabel="share of targets", title="ranks")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
