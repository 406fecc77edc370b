"""Scores of several results of each source as a distribution: how near the target is, how honest the spread.

Energy score and CRPS are proper scores (Gneiting and Raftery 2007): the true distribution has the lowest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bbdm.base.atomic import write_atomically
from bbdm.execution.processes import Processes
from bbdm.pictures.values import Values

if TYPE_CHECKING:
    from bbdm.translation.translator import Batch

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


class DistributionScores:
    """Scores of several results of each source over a data set.

    Args:
        samples: results of each source, at least 2.
        values: of targets and results, whose unit energy score, CRPS, lengths and errors have.
    """

    def __init__(self, samples: int, values: Values) -> None:
        if samples < 2:
            raise ValueError(f"scores of distributions need at least 2 results of each source, got {samples}")
        self.samples = samples
        self._range = float(np.max(values.high) - np.min(values.low))
        self._inner = max(1, round((samples + 1) * (1 - NOMINAL) / 2))  # samples on each side, with the interval's end
        zeros = {"means": 5, "ranks": samples + 1, "lengths": (4, BINS), "spreads": (3, BINS)}
        self._sums: dict[str, Any] = {name: np.zeros(shape) for name, shape in zeros.items()}

    @torch.inference_mode()
    def update(self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None = None) -> None:
        """Add pictures; the arguments are those of :meth:`bbdm.evaluation.scores.Scores.update`.

        Args:
            results: (B, S, C, *S) in stored values.
            targets: (B, C, *S) in stored values.
            masks: (B, 1, *S), not 0 where pixels count; None where all do.
        """
        for number, (result, target) in enumerate(zip(results.double(), targets.double(), strict=True)):
            if masks is not None:
                inside = (masks[number] != 0).expand(target.shape)
                result, target = result[:, inside], target[inside]
            if target.numel():
                self._add(result.flatten(1).cpu(), target.flatten().cpu())

    def _add(self, result: torch.Tensor, target: torch.Tensor) -> None:
        """Add the values (S, V) and (V,) of a picture; each picture has the same weight."""
        from scipy.stats import spearmanr

        weight = 1 / len(target)
        std, error = result.std(0), (result.mean(0) - target).abs()
        both = bool(std.min() < std.max() and error.min() < error.max())
        related = float(spearmanr(std, error).statistic) if both else 0.0  # pyright: ignore[reportAttributeAccessIssue]
        self._sums["means"] += 1, energy_score(result, target)[0], float(crps(result, target).mean()), related, both
        below, equal = (result < target).sum(0), (result == target).sum(0)
        share = weight / (equal + 1).numpy()  # a target that equals samples has all of their ranks in parts
        steps = np.zeros(self.samples + 2)
        np.add.at(steps, below.numpy(), share)
        np.add.at(steps, (below + equal + 1).numpy(), -share)
        self._sums["ranks"] += steps.cumsum()[:-1]
        ordered = result.sort(0).values
        low, high = ordered[self._inner - 1], ordered[-self._inner]
        covered = (low <= target) & (target <= high)
        for name, size, of in (
            ("lengths", high - low, (high - low, covered.double(), error)),
            ("spreads", 2 * std, (std.square(), error.square())),
        ):
            place = (size * (BINS / self._range)).long().clip(0, BINS - 1)
            for row, values in enumerate((torch.ones_like(size), *of)):
                self._sums[name][row] += np.bincount(place, values * weight, BINS)

    def counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each counted before it passes."""
        for names, batch in batches:
            self.update(*batch)
            yield names, batch

    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        _, *others = processes.gather(self._sums)
        for sums in others if processes.first else []:
            for name, value in sums.items():
                self._sums[name] += value

    def compute(self) -> dict[str, Any]:
        """The scores of all pictures so far, as plain values.

        ``energy``, ``crps`` and ``rank_correlation`` (Spearman's, of standard deviation and absolute error of
        the mean) are means over pictures. ``interval`` is between two ordered samples: ``expected`` is the
        share of targets inside where they are as the samples, ``coverage`` the true share. ``calibration``
        has both for all such intervals, ``ranks`` the share of targets at each rank among the samples, and
        ``error_of_std`` the root mean square error of the mean where the standard deviation is about the
        first value.

        Raises:
            ValueError: there are no pictures.
        """
        pictures, energy, score, related, varied = self._sums["means"]
        if not pictures:
            raise ValueError("scores of distributions need pictures with pixels in their masks, got none")
        ranks, count = self._sums["ranks"] / pictures, self.samples
        lengths = self._sums["lengths"] / pictures
        curve = [
            ((count + 1 - 2 * k) / (count + 1), float(ranks[k : count + 1 - k].sum())) for k in range(count // 2, 0, -1)
        ]
        spreads = _parts(self._sums["spreads"], POINTS)
        return {
            "samples": count,
            "pictures": int(pictures),
            "energy": energy / pictures,
            "crps": score / pictures,
            "rank_correlation": related / varied if varied else None,
            "interval": {
                "expected": (count + 1 - 2 * self._inner) / (count + 1),
                "coverage": float(lengths[2].sum()),
                "length": float(lengths[1].sum()),
                "by_quartile": [
                    dict(zip(("share", "length", "coverage", "error"), (share, *means), strict=True))
                    for share, *means in _parts(self._sums["lengths"], 4)
                ],
            },
            "calibration": curve,
            "ranks": ranks.tolist(),
            "error_of_std": [(float(np.sqrt(variance)), float(np.sqrt(error))) for _, variance, error in spreads],
        }


def _parts(table: Any, count: int) -> list[list[float]]:
    """Bins, whose first row is their weight, as about ``count`` parts of one weight: shares and means."""
    weight = table[0]
    place = np.minimum(count * (weight.cumsum() - weight / 2) / weight.sum(), count - 1e-9).astype(int)
    sums = np.stack([np.bincount(place, row, count) for row in table], axis=1)
    return [[total / weight.sum(), *(each / total for each in rest)] for total, *rest in sums.tolist() if total]


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
