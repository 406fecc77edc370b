"""What a training run's folder shows, its metrics and grids, in one picture. Nothing here needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from PIL import Image

from bbdm.base import figures, manifest
from bbdm.base.runs import METRICS, files_by_step, folder_beside

LEFT_OUT = {"epoch", "step", "images_per_second"}  # which have no panel
SHOWN = 4  # grids of a single run
LONGEST = 32  # characters of a run's name
COLOURS = 10  # that matplotlib's default has
LEGEND_ROW = 0.22  # inches
LEGEND_COLUMN = 3.0  # inches
Curve = list[tuple[int, float]]  # optimizer steps, and what was measured after them


class Run(NamedTuple):
    """What is drawn of a training run."""

    name: str  # the path of its folder
    curves: dict[str, Curve]  # by the metric's name
    grids: dict[int, Path]  # by step, ascending


def read_run(path: Path) -> Run:
    """The metrics and grids of a run; a line that the run is writing is left out.

    Args:
        path: the run's folder, or the weights ``OUT.pt`` beside the folder ``OUT.run``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no training run's, has no metrics yet, or they are damaged.
    """
    folder = path if path.is_dir() else folder_beside(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of a training run {path}")
    file = folder / METRICS
    if not file.is_file():
        raise ValueError(f"{folder} has no {METRICS}: it is no folder of a training run")
    curves: dict[str, Curve] = {}
    with manifest.parsing(file, "repair or delete it"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                _add(curves, json.loads(line))
    if not curves:
        raise ValueError(
            f"{file} has no metrics yet: the first are written after the first validation"
        )
    grids = dict(sorted(files_by_step(folder, ".png").items()))
    return Run(folder.as_posix(), curves, grids)


def _add(curves: dict[str, Curve], metrics: Mapping[str, Any]) -> None:
    """Add the finite numbers of a line of metrics to the curves."""
    for name, value in metrics.items():
        if name not in LEFT_OUT and isinstance(value, int | float) and math.isfinite(value):
            curves.setdefault(name, []).append((metrics["step"], value))


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG: a panel for the losses and one for each other metric; below, grids of validation pairs.

    Of a single run, up to four grids are shown, from the first to the last; of several, the last of each.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    names = dict.fromkeys(name for run in runs for name in run.curves)
    panels: dict[str, list[str]] = {}
    for name in names:
        kind = "loss" if name.endswith("loss") else name
        panels.setdefault(kind, []).append(name)
    grids = _shown_grids(runs)
    width = max(4.5 * len(panels), 3.6 * len(grids))
    columns = max(1, int(width / LEGEND_COLUMN))
    heights = [3.6]
    if len(runs) > 1:
        heights[0] += LEGEND_ROW * math.ceil(len(runs) / columns)
    if grids:
        heights.append(5.0)
    figure = figures.figure(width, sum(heights), "bbdm plot")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (kind, members) in zip(
        rows[0].subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _draw_curves(panel, runs, kind, members)
    if len(runs) > 1:
        lines = rows[0].axes[0].lines[: len(runs)]  # of the first metric, one of each run
        rows[0].legend(
            lines, short_names(runs), loc="outside lower center", ncols=columns, fontsize="small"
        )
    if grids:
        for panel, (title, grid) in zip(
            rows[1].subplots(1, len(grids), squeeze=False)[0], grids, strict=True
        ):
            panel.imshow(Image.open(grid).convert("RGB"), interpolation="nearest")
            panel.set_title(title, fontsize="small")
            panel.set_axis_off()
    figures.write(figure, path)


def short_names(runs: Sequence[Run]) -> list[str]:
    """The paths of runs without the folders that all have in common, and no longer than fits a legend."""
    paths = [PurePath(run.name).parts for run in runs]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == paths[0][shared] for parts in paths):
        shared += 1
    names: list[str] = []
    for parts in paths:
        name = "/".join(parts[shared:])
        names.append(name if len(name) <= LONGEST else f"...{name[-LONGEST:]}")
    return names


def _shown_grids(runs: Sequence[Run]) -> list[tuple[str, Path]]:
    """The grids that are shown, with their titles."""
    if len(runs) > 1:
        shown: list[tuple[str, Path]] = []
        for name, run in zip(short_names(runs), runs, strict=True):
            if run.grids:
                step = max(run.grids)
                shown.append((f"{name}, step {step}", run.grids[step]))
        return shown
    steps = [*runs[0].grids]
    if len(steps) > SHOWN:
        last = len(steps) - 1
        steps = [steps[round(place * last / (SHOWN - 1))] for place in range(SHOWN)]
    return [(f"step {step}", runs[0].grids[step]) for step in steps]


def _colour(number: int, count: int) -> Any:
    """The colour of a run by its number among so many."""
    if count <= COLOURS:
        return f"C{number}"
    return hsv_to_rgb(number / count, 0.9, 0.8)


def _draw_curves(panel: Any, runs: Sequence[Run], kind: str, names: Sequence[str]) -> None:
    """The metrics of a panel, each run in its colour and each metric in its style."""
    styles = ("-", "--", ":", "-.")
    values: list[float] = []
    for place, name in enumerate(names):
        style = styles[place % len(styles)]
        for number, run in enumerate(runs):
            curve = run.curves.get(name, [])
            steps = [step for step, _ in curve]
            values += [value for _, value in curve]
            panel.plot(
                steps,
                [value for _, value in curve],
                style,
                color=_colour(number, len(runs)),
                marker=".",
            )
        panel.plot([], [], style, color="black" if len(runs) > 1 else "C0", label=name)
    if kind == "loss" and min(values) > 0:
        panel.set_yscale("log")
    panel.set(xlabel="optimizer steps", ylabel=kind)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
