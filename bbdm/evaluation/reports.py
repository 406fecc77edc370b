"""Reports of scores: a table, the best solvers, and plots.

Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbdm.base import figures
from bbdm.evaluation.metrics import METRICS

# settings, scores, solver, nfe, pictures, seconds_per_picture: of Translator.run and a metric
Report = dict[str, Any]
PANEL = (4.5, 3.6)  # inches of a panel: width, height
PLOT = "scores.png"  # beside scores.json
BINS = 20  # of a histogram
FLICKER = {  # columns of sequences by their key in a report, which has the flicker of each
    "flicker": "flicker",
    "flicker_of_stills": "flicker where the source stays",
}


def table(reports: Sequence[Report]) -> str:
    """Markdown of the scores, a row for each report of the same metrics."""
    names = [*reports[0]["scores"]]
    heading = ["solver", "NFE", "pictures", *(title(name, reports[0]) for name in names)]
    flickers = [key for key in FLICKER if key in reports[0]]
    heading += [FLICKER[key] for key in flickers]
    rows = [[*heading, "s / picture"]]
    rows.append(["---"] * len(rows[0]))
    for report in reports:
        row = [f"{report[key]}" for key in ("solver", "nfe", "pictures")]
        for name in names:
            score = report["scores"][name]
            row.append("-" if score is None else f"{score:{METRICS[name].form}}")
        for key in flickers:
            of_sequences = report[key].values()
            row.append(f"{sum(of_sequences) / len(of_sequences):.3f}" if of_sequences else "-")
        seconds = report["seconds_per_picture"]
        row.append("unknown" if seconds is None else f"{seconds:.4f}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def best(reports: Sequence[Report]) -> list[str]:
    """A line for each metric that has scores: the solver with the best one, and its network calls.

    Which way is better is that of :data:`bbdm.evaluation.metrics.METRICS`. Of equal scores, the first with
    the fewest calls is the best.
    """
    lines: list[str] = []
    for name in reports[0]["scores"]:
        metric = METRICS[name]
        if metric.higher_is_better is None:
            continue
        sign = -1 if metric.higher_is_better else 1
        # what is least of the best, with the report's index
        order: list[tuple[float, int, int]] = []
        for index, report in enumerate(reports):
            score = report["scores"][name]
            if score is not None:
                order.append((sign * score, report["nfe"], index))
        if order:
            best_report = reports[min(order)[2]]
            score = f"{best_report['scores'][name]:{metric.form}}"
            lines.append(f"best {name}: {best_report['solver']}:{best_report['nfe']}, {score}")
    return lines


def title(name: str, report: Report) -> str:
    """A metric's name, its unit, and which way is better."""
    metric = METRICS[name]
    words = [metric.label or name]
    unit = report["settings"].get("target_values", {}).get("unit", "")
    if metric.unit and unit:
        words.append(unit)
    if metric.higher_is_better is not None:
        words.append("↑" if metric.higher_is_better else "↓")
    return " ".join(words)


def draw_sweep(reports: Sequence[Report], path: Path) -> None:
    """Write a plot over network calls: a panel for each metric, and a line for each solver."""
    names = [*reports[0]["scores"]]
    figure, panels = _panels(len(names))
    calls = sorted({report["nfe"] for report in reports})
    for panel, name in zip(panels, names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in reports):
            points: list[tuple[int, float]] = []
            for report in reports:
                score = report["scores"][name]
                if report["solver"] == solver and score is not None:
                    points.append((report["nfe"], score))
            points.sort()
            panel.plot(
                [nfe for nfe, _ in points], [score for _, score in points], marker="o", label=solver
            )
        panel.set(xscale="log", xlabel="network calls", ylabel=title(name, reports[0]))
        panel.set_xticks(calls, list(map(str, calls)), rotation=45)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"{reports[0]['pictures']} pictures", fontsize="medium")
    figures.write(figure, path)


def draw_scores(report: Report, scores: Mapping[str, Sequence[float]], path: Path) -> bool:
    """Write a plot of how the scores of a test set's sources are distributed, a panel for each metric.

    Of several results of each source, the last panel is their coverage; of intervals, the error by length.

    Args:
        report: says solver, calls and unit, the coverage of several results, and what is known of intervals.
        scores: those of each source, by the metric's name.
        path: the PNG file that is written.

    Returns:
        Whether there was anything to draw: by FID alone, no source has a score.
    """
    finite: dict[str, list[float]] = {}
    for name, values in scores.items():
        known = [value for value in values if math.isfinite(value)]
        if known:
            finite[name] = known
    shares = report.get("coverage", [])
    intervals = report.get("intervals")
    count = len(finite)
    if shares or intervals:  # which are of the mean of several results
        count += 1
    if count == 0:
        return False
    figure, panels = _panels(count)
    for panel, (name, values) in zip(panels, finite.items(), strict=False):
        _draw_histogram(panel, values, title(name, report), METRICS[name].form)
    if shares:
        _draw_coverage(panels[-1], shares)
    elif intervals:
        unit = report["settings"].get("target_values", {}).get("unit", "")
        _draw_lengths(panels[-1], intervals, f", {unit}" if unit else "")
    figure.suptitle(f"{report['solver']}, network calls: {report['nfe']}", fontsize="medium")
    figures.write(figure, path)
    return True


def _draw_coverage(panel: Any, shares: Sequence[Mapping[str, float]]) -> None:
    """How often targets lie within intervals of results, against how often they should."""
    panel.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="as it should be")
    wanted = [share["expected"] for share in shares]
    shares_within = [share["found"] for share in shares]
    panel.plot(wanted, shares_within, color="C0", marker="o", label="found")
    panel.set(
        xlabel="expected coverage of intervals",
        ylabel="share of targets within",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    panel.grid(alpha=0.3)
    panel.legend()


def _draw_lengths(panel: Any, intervals: Mapping[str, Any], unit: str) -> None:
    """The error against the length of intervals, and the error of targets that are anywhere within alike."""
    parts = intervals["by_length"]
    lengths = [part["length"] for part in parts]
    panel.plot(lengths, [part["error"] for part in parts], color="C0", marker="o", label="found")
    uniform = [length / 4 for length in lengths]  # of a uniform distribution around the middle
    panel.plot(lengths, uniform, color="0.6", linestyle="--", label="targets anywhere within")
    title = f"{100 * intervals['coverage']:.1f} % within, expected {100 * intervals['expected']:.3g} % or more"
    panel.set_title(title, fontsize="medium")
    panel.set(
        xlabel=f"length of intervals{unit}", ylabel=f"mean absolute error{unit}", ylim=(0, None)
    )
    panel.grid(alpha=0.3)
    panel.legend()


def _draw_histogram(panel: Any, values: Sequence[float], label: str, form: str) -> None:
    """How many sources have which score, with the mean."""
    mean = math.fsum(values) / len(values)
    panel.hist(values, bins=min(BINS, max(5, len(values))), color="C0", alpha=0.7)
    panel.axvline(mean, color="C3", label=f"mean {mean:{form}}")
    panel.set(xlabel=label, ylabel=f"sources, of {len(values)}")
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.legend()


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with panels side by side, at most four in a row."""
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = figures.figure(PANEL[0] * columns, PANEL[1] * rows, "a plot")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]
