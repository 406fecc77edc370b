"""Reports of scores: read and merged with earlier ones, as a table, and as plots.

A report is a dictionary with ``settings``, ``scores``, ``solver``, ``nfe``, ``pictures`` and
``seconds_per_picture``, as :meth:`bbdm.translation.translator.Translator.run` and a metric give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bbdm.base import manifest
from bbdm.base.atomic import write_atomically
from bbdm.evaluation.table import METRICS, metric_of

Report = dict[str, Any]
LABELS = {"nfe": "network calls", "seconds_per_picture": "seconds a picture"}
SAME_PLACE = 1.05  # ratio of values whose ticks overlap
ACRONYMS = ("fid", "lpips", "psnr", "ssim", "mae", "rmse", "sam", "ergas")  # which titles have in capitals


def read(path: Path) -> list[Report]:
    """The reports in a file of one or of several; none if there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return []
    with manifest.reading(path, "give another output_dir, or delete it") as content:
        reports = content if isinstance(content, list) else [content]
        for report in reports:
            _ = report["settings"], report["scores"], report["solver"], report["nfe"]
    return reports


def with_earlier_scores(report: Report, path: Path) -> Report:
    """A report with the scores of other metrics that ``path`` has for the same settings and masks."""
    for before in read(path):
        if before["settings"] == report["settings"] and before.get("masks") == report.get("masks"):
            for name in ("lpips_net", "dice_above"):
                if report.get(name) is None and before.get(name) is not None:
                    report = {**report, name: before[name]}
            for name in ("scores", "by_patient"):
                report = {**report, name: {**before.get(name, {}), **report.get(name, {})}}
    return report


def run_of(report: Report) -> tuple[str, int]:
    """The solver and its NFE."""
    return report["solver"], report["nfe"]


def merge(before: Sequence[Report], reports: Sequence[Report]) -> list[Report]:
    """Reports of a sweep after those earlier ones that differ in solver and times alone."""

    def common(report: Report) -> dict[str, Any]:
        settings = {k: v for k, v in report["settings"].items() if k not in ("solver", "nfe", "timesteps")}
        return {"settings": settings, "masks": report.get("masks")}

    made = {run_of(report) for report in reports}
    return [*(r for r in before if common(r) == common(reports[0]) and run_of(r) not in made), *reports]


def table(reports: Sequence[Report], metrics: Sequence[str]) -> str:
    """Markdown, a row for each report, of the scores of these metrics: of all channels, and of each alone."""
    names = [name for metric in metrics for name in reports[0]["scores"] if metric_of(name) == metric]
    titles = [title(name, reports[0]) for name in names]
    rows = [["solver", "NFE", "pictures", *titles, "s / picture"], ["---"] * (len(names) + 4)]
    for report in reports:
        scores = [f"{report['scores'][name]:{METRICS[metric_of(name)].form}}" for name in names]
        solver, nfe, pictures = report["solver"], str(report["nfe"]), str(report["pictures"])
        rows.append([solver, nfe, pictures, *scores, seconds(report, 4)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def seconds(report: Report, digits: int) -> str:
    """The seconds for each picture, for printing."""
    value = report["seconds_per_picture"]
    return "unknown" if value is None else f"{value:.{digits}f}"


def draw(reports: Sequence[Report], over: Literal["nfe", "seconds_per_picture"], path: Path) -> bool:
    """Write a plot with a panel for each metric and a line for each solver; False where there is no point."""
    measured = [report for report in reports if report[over]]
    if not measured:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    names = list(dict.fromkeys(name for report in measured for name in report["scores"]))
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in measured):
            of = [report for report in measured if report["solver"] == solver and name in report["scores"]]
            points = sorted((report[over], report["scores"][name]) for report in of)
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
        panel.set(xscale="log", xlabel=LABELS[over], ylabel=title(name, measured[0]))
        panel.xaxis.set_major_locator(FixedLocator(_ticks([report[over] for report in measured])))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if over != "nfe" else f"{value:.0f}")
        panel.tick_params(axis="x", labelrotation=45)
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(f"{reports[0]['pictures']} pictures", fontsize="medium")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    return True


def _ticks(values: Sequence[float]) -> list[float]:
    """A tick for each measured value, one for several that would have the same place."""
    ticks: list[float] = []
    for value in sorted(values):
        if not ticks or value > SAME_PLACE * ticks[-1]:
            ticks.append(value)
    return ticks


def title(name: str, report: Report) -> str:
    """A score's name, its unit, and which way is better; of a metric that is not registered, the name."""
    metric = metric_of(name)
    kind = METRICS.get(metric)
    title = name.replace(metric, metric.upper()) if metric in ACRONYMS else name
    unit = report["settings"].get("target_values", {}).get("unit", "") if kind and kind.unit else ""
    better = "" if kind is None else "↑" if kind.higher_is_better else "↓"
    return " ".join(filter(None, (title, unit, better)))
