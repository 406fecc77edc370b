"""Reports of scores, as tables and as plots.

A report is a dictionary with ``settings``, ``scores``, ``solver``, ``nfe``, ``pictures`` and
``seconds_per_picture``, as :meth:`bbdm.translation.translator.Translator.run` and a metric give them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bbdm.base.atomic import write_atomically
from bbdm.evaluation.metrics import METRICS

Report = dict[str, Any]
PLOTS = {  # over which a plot is drawn: its file, and the label
    "nfe": ("quality_nfe.png", "network calls"),
    "seconds_per_picture": ("quality_seconds.png", "seconds a picture"),
}
ACRONYMS = ("fid", "lpips", "psnr", "ssim", "mae", "rmse")  # which titles have in capitals


def by_patient(metric: str, values: Mapping[str, float]) -> dict[str, Any]:
    """``mean``, ``std`` (None of one patient), the name of the ``worst`` and all ``patients`` of a score.

    What has no score, such as the Dice coefficient of volumes without bone, is None, and does not count.
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    worst = min if METRICS[metric].higher_is_better else max
    return {
        "mean": fmean(known.values()) if known else None,
        "std": stdev(known.values()) if len(known) > 1 else None,
        "worst": worst(known, key=lambda name: known[name]) if known else None,
        "patients": {name: known.get(name) for name in values},
    }


def table(reports: Sequence[Report]) -> str:
    """Markdown of the scores, a row for each report of the same metrics."""
    names = [*reports[0]["scores"]]
    rows = [["solver", "NFE", "pictures", *(title(name, reports[0]) for name in names), "s / picture"]]
    for report in reports:
        solver, nfe, pictures, seconds = (report[key] for key in ("solver", "nfe", "pictures", "seconds_per_picture"))
        scores = [_shown(name, report["scores"][name]) for name in names]
        rows.append([solver, f"{nfe}", f"{pictures}", *scores, "unknown" if seconds is None else f"{seconds:.4f}"])
    return _markdown(rows)


def patients_table(report: Report) -> str:
    """Markdown, a row for each score: mean, standard deviation, and the worst patient."""
    rows = [["score by patient", "mean", "std", "worst", "of"]]
    for name, found in report["by_patient"].items():
        numbers = found["mean"], found["std"], found["patients"].get(found["worst"])
        rows.append([title(name, report), *(_shown(name, number) for number in numbers), found["worst"] or "-"])
    return _markdown(rows)


def _shown(name: str, score: float | None) -> str:
    return "-" if score is None else f"{score:{METRICS[name].form}}"


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def draw(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write the plots that have points, over network calls and over seconds, and return their paths.

    A plot has a panel for each metric and a line for each solver.
    """
    from matplotlib.figure import Figure

    paths: list[Path] = []
    for over, (file, label) in PLOTS.items():
        measured, names = [report for report in reports if report[over]], [*reports[0]["scores"]]
        if not measured:
            continue
        figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for solver in dict.fromkeys(report["solver"] for report in measured):
                known = [r for r in measured if r["solver"] == solver and r["scores"][name] is not None]
                points = sorted((report[over], report["scores"][name]) for report in known)
                panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
            panel.set(xscale="log", xlabel=label, ylabel=title(name, measured[0]))
            if over == "nfe":
                calls = sorted({report[over] for report in measured})
                panel.set_xticks(calls, list(map(str, calls)), rotation=45)
                panel.set_xticks([], minor=True)
            panel.grid(alpha=0.3)
        figure.axes[0].legend()
        figure.suptitle(f"{measured[0]['pictures']} pictures", fontsize="medium")
        paths.append(folder / file)
        write_atomically(paths[-1], partial(figure.savefig, format="png", dpi=120))
    return paths


def title(name: str, report: Report) -> str:
    """A metric's name, its unit, and which way is better."""
    metric = METRICS[name]
    unit = report["settings"].get("target_values", {}).get("unit", "") if metric.unit else ""
    shown = name.upper() if name in ACRONYMS else name
    return " ".join(filter(None, (shown, unit, "↑" if metric.higher_is_better else "↓")))
