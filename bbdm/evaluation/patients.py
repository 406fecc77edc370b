"""Scores of volumes by patient: those of each, their mean and standard deviation, and the worst."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from bbdm.evaluation.reports import title
from bbdm.evaluation.table import METRICS, metric_of

if TYPE_CHECKING:
    from bbdm.evaluation.scores import Scores
    from bbdm.translation.translator import Batch, Translator


def score(scores: Scores, translator: Translator, batches: Iterator[Batch]) -> dict[str, dict[str, float]]:
    """The scores of each volume alone, by the score's name and the volume's; each process has those of all.

    A volume without a voxel in its mask has none.

    Raises:
        ValueError: no volume has any.
    """
    own: dict[str, dict[str, float]] = {}
    for (name,), batch in batches:
        mask = batch[2]
        if mask is None or mask.any():
            scores.reset()
            scores.update(*batch)
            own[name] = scores.compute()
    found = {name: each for part in translator.processes.gather(own) for name, each in part.items()}
    if not found:
        raise ValueError("scores need volumes with voxels in their masks, and there are none")
    order = [name for name in translator.files.names if name in found]
    return {metric: {name: found[name][metric] for name in order} for metric in found[order[0]]}


def summary(metric: str, values: Mapping[str, float]) -> dict[str, Any]:
    """``mean``, ``std`` (None of one patient), the name of the ``worst`` and all ``patients`` of a score.

    What has no score, such as the Dice coefficient of volumes without bone, is None, and does not count.
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    worst = min if METRICS[metric_of(metric)].higher_is_better else max
    return {
        "mean": fmean(known.values()) if known else None,
        "std": stdev(known.values()) if len(known) > 1 else None,
        "worst": worst(known, key=lambda name: known[name]) if known else None,
        "patients": {name: known.get(name) for name in values},
    }


def table(report: dict[str, Any], metrics: Sequence[str]) -> str:
    """Markdown, a row for each score of some metrics: mean, standard deviation, and the worst patient."""
    rows = [["score by patient", "mean", "std", "worst", "of"], ["---"] * 5]
    for name, found in report["by_patient"].items():
        if metric_of(name) in metrics:
            numbers = found["mean"], found["std"], found["patients"].get(found["worst"])
            shown = ["-" if number is None else f"{number:{METRICS[metric_of(name)].form}}" for number in numbers]
            rows.append([title(name, report), *shown, found["worst"] or "-"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
