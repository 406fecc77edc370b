"""Tables and a plot of benchmark results: python benchmarks/report.py RESULTS.json [--svg PLOT.svg].

RESULTS.json comes from pytest benchmarks/ --benchmark-only --benchmark-json=RESULTS.json. The tables are
markdown, on standard output; the plot shows UNet call, translation, training step and cold start.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbdm.base import flags, scripts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTTED = ("UNet call", "Translation", "Training step", "Cold start")  # how the cases begin
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
BLUE, GREY = "#1f6feb", "#a3adb8"  # bars of bbdm, and of others
OTHERS = ("sde-bbdm", "ONNX Runtime", "OpenVINO")  # how rows that are not bbdm's begin


def percent(share: float) -> str:
    """A share, such as 71 % or 1.4 %."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


# of extra_info: the column's title, and how a value is written
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "times_as_fast": ("times as fast", "{:.2f}".format),
    "evaluations": ("evaluations", str),
    "images_per_s": ("images/s", "{:.3g}".format),
    "gb_per_s": ("GB/s", "{:.3g}".format),
    "share_of_copy": ("of a large copy's rate", percent),
    "share_of_equal_copy": ("of an equal copy's", percent),
    "tflops": ("TFLOP/s", "{:.3g}".format),
    "share_of_peak": ("of peak", percent),
    "outside_network": ("outside network", percent),
    "peak_bytes": ("peak memory", lambda size: f"{size / 1e9:.2f} GB"),
    "package_bytes": ("package", lambda size: f"{size / 1e6:.3g} MB"),
    "relative_error": ("relative error", lambda error: f"{error:.1e}" if error else "0"),
    "image_error": ("mean error of the image", percent),
    "image_error_max": ("largest", percent),
    "dtype": ("dtype", str),
    "samples": ("samples", str),
}


@dataclass(frozen=True)
class Row:
    """The measurements of one row of a comparison."""

    name: str
    median: float  # seconds
    info: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The content of a results file."""

    hardware: str  # in one line, with versions
    comparisons: dict[str, list[Row]]  # of each case, the plotted ones first


def read(path: Path) -> Results:
    """Read a file of pytest-benchmark.

    Raises:
        ValueError: it is not JSON, not of this suite, or has no result.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    wanted = "want what pytest benchmarks/ --benchmark-only --benchmark-json=FILE writes"
    try:
        machine, benchmarks = content["machine_info"]["bbdm"], content["benchmarks"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of these benchmarks, {wanted}") from error
    if not benchmarks:
        raise ValueError(f"{path} holds no result, {wanted}")
    comparisons: dict[str, list[Row]] = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        row = Row(info["row"], benchmark["stats"]["median"], info)
        comparisons.setdefault(benchmark["group"], []).append(row)
    comparisons = dict(sorted(comparisons.items(), key=lambda item: rank(item[0])))
    return Results(describe(machine, benchmarks[0]["extra_info"]["peaks"]), comparisons)


def rank(case: str) -> int:
    """The place of a case in a report; those that are not plotted come last."""
    return next(
        (place for place, start in enumerate(PLOTTED) if case.startswith(start)), len(PLOTTED)
    )


def describe(machine: dict[str, Any], peaks: dict[str, float]) -> str:
    """Hardware, its measured peaks, and versions, in one line."""
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    cpu = f"{machine['cpu']}{flags}, {machine['cores']} cores, {machine['threads']} threads, {machine['ram_gb']:.0f} GB"
    rates = ", ".join(
        f"{peaks[dtype] / 1e12:.3g} TFLOP/s {dtype}" for dtype in ("float32", "bfloat16")
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"{machine['gpu']}; {cpu}" if machine["gpu"] else cpu,
        f"measured peaks {rates}, copy {peaks['copy'] / 1e9:.3g} GB/s",
        f"Python {machine['python']}, {versions}",
    ]
    return "; ".join(parts) + (
        "; --quick: a small network, 3 x 32 x 32" if machine["quick"] else ""
    )


def duration(seconds: float) -> str:
    """A time to three digits, such as 12.3 ms."""
    unit, size = next((one for one in UNITS if seconds >= 0.9995 * one[1]), UNITS[-1])
    value = seconds / size
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def table(rows: list[Row]) -> str:
    """Markdown: a line for each row, and a column for each value that at least one of them has."""
    columns = {
        key: column for key, column in COLUMNS.items() if any(key in row.info for row in rows)
    }
    lines = [
        ["", "median", *(title for title, _ in columns.values())],
        ["---"] * (2 + len(columns)),
    ]
    for row in rows:
        cells = [
            write(row.info[key]) if key in row.info else "" for key, (_, write) in columns.items()
        ]
        lines.append([row.name, duration(row.median), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: Results) -> str:
    """The line about the hardware, and a table for each comparison."""
    tables = [f"**{case}**\n\n{table(rows)}" for case, rows in results.comparisons.items()]
    return "\n\n".join([results.hardware, *tables])


def plot(results: Results) -> Figure:
    """Bars of the main comparisons, slowest first.

    Raises:
        ValueError: there are none.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = {case: rows for case, rows in results.comparisons.items() if rank(case) < len(PLOTTED)}
    if not shown:
        raise ValueError(
            f"nothing to plot: want one of {PLOTTED}, got {tuple(results.comparisons)}"
        )
    counts = [len(rows) for rows in shown.values()]
    layout = ConstrainedLayoutEngine(h_pad=0.1)
    figure = Figure(
        figsize=(8, 0.28 * sum(counts) + 0.6 * len(counts) + 0.8), facecolor="white", layout=layout
    )
    panels = figure.subplots(len(shown), squeeze=False, height_ratios=counts)[:, 0]
    for axes, (case, rows) in zip(panels, shown.items(), strict=True):
        rows = sorted(rows, key=lambda row: row.median, reverse=True)
        others = [row.name.startswith(OTHERS) for row in rows]
        names = [
            row.name if other else f"bbdm {row.name}"
            for row, other in zip(rows, others, strict=True)
        ]
        colors = [GREY if other else BLUE for other in others]
        bars = axes.barh(names, [row.median for row in rows], color=colors, height=0.72)
        axes.bar_label(bars, [duration(row.median) for row in rows], padding=4, fontsize=9)
        axes.set_title(case, loc="left", fontsize=11, fontweight="bold")
        axes.set(xlim=(0, 1.12 * rows[0].median), ylim=(len(rows) - 0.5, -0.5), xticks=[])
        axes.tick_params(length=0, labelsize=9)
        axes.spines[:].set_visible(False)
    figure.supxlabel(
        textwrap.fill(f"Medians, shorter is faster. {results.hardware}", 130),
        x=0.02,
        ha="left",
        fontsize=7,
        color="#57606a",
    )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write SVG, the same bytes for the same results."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "bbdm"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument("results", type=Path, help="what pytest-benchmark wrote")
    parser.add_argument("--svg", type=Path, help="where to draw the main comparisons")
    args = parser.parse_args(argv)
    results = read(args.results)
    print(markdown(results))
    if args.svg is not None:
        save(plot(results), args.svg)


if __name__ == "__main__":
    scripts.run(main)
