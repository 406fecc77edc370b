"""Quality against seconds: python -m benchmarks.quality_plot OUT.png NAME=A.json NAME=B.json ...

Each file is of benchmarks/demo_quality.py, all on the same validation pairs; NAME is what its weights are
called in the plot. Each solver of each file is a line, with the number of calls beside each point.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bbdm.base import scripts


@dataclass(frozen=True)
class Point:
    """A run: seconds an image, energy score with its standard error, and network calls."""

    seconds: float
    energy: float
    error: float
    calls: int


def lines_of(name: str, runs: dict[str, dict[str, list[float] | float]]) -> Iterator[tuple[str, list[Point]]]:
    """The label and the points, by seconds, of each solver of a file."""
    solvers: dict[str, list[Point]] = {}
    for run, found in runs.items():
        solver, calls = run.split(":")[:2]
        energy = np.asarray(found["energy"])
        error = energy.std(ddof=1) / np.sqrt(len(energy))
        point = Point(float(np.mean(found["seconds_per_image"])), float(energy.mean()), float(error), int(calls))
        solvers.setdefault(solver, []).append(point)
    for solver, points in solvers.items():
        yield f"{name}, {solver}", sorted(points, key=lambda point: point.seconds)


def plot(files: dict[str, dict[str, dict[str, list[float] | float]]]) -> Figure:
    """The picture of several files' runs, by the names of their weights."""
    figure = Figure(figsize=(8, 4.2), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for name, runs in files.items():
        for label, points in lines_of(name, runs):
            seconds, energy = [p.seconds for p in points], [p.energy for p in points]
            drawn = axes.errorbar(
                seconds, energy, [p.error for p in points], marker="o", markersize=4, capsize=2, label=label, lw=1.2
            )
            colour = drawn[0].get_color()
            for point in points:
                where = (point.seconds, point.energy)
                axes.annotate(f"{point.calls}", where, (4, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("seconds for an image; numbers at the points are network calls")
    axes.set_ylabel("energy score, lower is better")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE.json")
    args = parser.parse_args(argv)
    given = dict(each.split("=", 1) if "=" in each else (Path(each).stem, each) for each in args.files)
    found = {name: json.loads(Path(file).read_text()) for name, file in given.items()}
    pairs = {name: each["setting"]["pairs"] for name, each in found.items()}
    if len(set(pairs.values())) > 1:
        raise SystemExit(f"the files are of different data sets: numbers of pairs {pairs}")
    plot({name: each["runs"] for name, each in found.items()}).savefig(args.output)


if __name__ == "__main__":
    main()
