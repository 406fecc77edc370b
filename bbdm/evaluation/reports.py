"""Reports of scores, as a table and as a plot.

A report is a dictionary with ``settings``, ``scores``, ``solver``, ``nfe``, ``pictures`` and
``seconds_per_picture``, as :meth:`bbdm.translation.translator.Translator.run` and a metric give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bbdm.base.atomic import write_atomically
from bbdm.evaluation.metrics import METRICS

Report = dict[str, Any]
ACRONYMS = ("fid", "lpips", "psnr", "ssim", "mae", "rmse", "crps")  # which titles have in capitals


def table(reports: Sequence[Report]) -> str:
    """Markdown of the scores, a row for each report of the same metrics."""
    names = [*reports[0]["scores"]]
    rows = [["solver", "NFE", "pictures", *(title(name, reports[0]) for name in names), "s / picture"]]
    rows.append(["---"] * len(rows[0]))
    for report in reports:
        found, seconds = report["scores"], report["seconds_per_picture"]
        scores = ["-" if found[name] is None else f"{found[name]:{METRICS[name].form}}" for name in names]
        counts = [f"{report[key]}" for key in ("solver", "nfe", "pictures")]
        rows.append([*counts, *scores, "unknown" if seconds is None else f"{seconds:.4f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(reports: Sequence[Report], path: Path) -> None:
    """Write a plot over network calls: a panel for each metric, and a line for each solver."""
    from matplotlib.figure import Figure

    names = [*reports[0]["scores"]]
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    calls = sorted({report["nfe"] for report in reports})
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in reports):
            known = [r for r in reports if r["solver"] == solver and r["scores"][name] is not None]
            points = sorted((report["nfe"], report["scores"][name]) for report in known)
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
        panel.set(xscale="log", xlabel="network calls", ylabel=title(name, reports[0]))
        panel.set_xticks(calls, list(map(str, calls)), rotation=45)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(f"{reports[0]['pictures']} pictures", fontsize="medium")
    write_atomically(path, partial(figure.savefig, format="png", dpi=120))


def title(name: str, report: Report) -> str:
    """A metric's name, its unit, and which way is better."""
    metric = METRICS[name]
    unit = report["settings"].get("target_values", {}).get("unit", "") if metric.unit else ""
    shown = name.upper() if name in ACRONYMS else name
    return " ".join(filter(None, (shown, unit, "↑" if metric.higher_is_better else "↓")))
