"""Reports of scores: the best solvers, and plots as they come out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bbdm.evaluation import reports


def report(solver: str, nfe: int, **scores: float | None) -> dict[str, Any]:
    return {
        "solver": solver,
        "nfe": nfe,
        "pictures": 3,
        "scores": scores,
        "settings": {},
        "seconds_per_picture": 0.1,
    }


def test_the_best_solver_is_by_each_metrics_own_direction():
    """PSNR the highest, MAE the lowest; of equal scores the fewest calls; diversity alone is no quality."""
    sweep = [
        report("dpm2m", 10, psnr=20.0, mae=816.0, ssim=0.9, dice=None, diversity=30.0),
        report("sde-dpm2m", 5, psnr=22.0, mae=532.0, ssim=0.9, dice=None, diversity=9.0),
        report("mean", 1, psnr=float("inf"), mae=600.0, ssim=None, dice=None, diversity=0.0),
    ]
    assert reports.best(sweep) == [
        "best psnr: mean:1, inf",
        "best mae: sde-dpm2m:5, 532",
        "best ssim: sde-dpm2m:5, 0.9000",
    ]


def test_the_distribution_of_scores_has_a_panel_for_each_metric_that_has_some(tmp_path: Path):
    of_sources = {
        "psnr": [20.0, 21.5, float("inf")],
        "mae": [3.0, float("nan")],
        "dice": [float("nan")],
    }
    about = report("mean", 1, psnr=20.0, mae=3.0, dice=None)
    assert reports.draw_scores(about, of_sources, tmp_path / "two.png")
    assert reports.draw_scores(about, {"psnr": of_sources["psnr"]}, tmp_path / "one.png")
    two, one = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("two", "one"))
    assert (two.width, two.height) == (2 * one.width, one.height)
    assert not reports.draw_scores(about, {"dice": of_sources["dice"]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    for half in (
        two.crop((0, 0, one.width, one.height)),
        two.crop((one.width, 0, two.width, two.height)),
    ):
        assert has_colour(half, (214, 39, 40))  # the line of the mean


def test_coverage_has_the_last_panel(tmp_path: Path):
    shares = [{"expected": 0.6, "found": 0.5}, {"expected": 0.2, "found": 0.1}]
    about = report("dpm2m", 5, psnr=20.0)
    assert reports.draw_scores(about, {"psnr": [20.0, 21.0]}, tmp_path / "scores.png")
    assert reports.draw_scores(
        {**about, "coverage": shares}, {"psnr": [20.0, 21.0]}, tmp_path / "both.png"
    )
    # as beside FID
    assert reports.draw_scores({**about, "coverage": shares}, {}, tmp_path / "coverage.png")
    scores, both, coverage = (
        Image.open(tmp_path / f"{name}.png") for name in ("scores", "both", "coverage")
    )
    assert both.size == (2 * scores.width, scores.height)
    assert coverage.size == scores.size
    assert has_colour(coverage.convert("RGB"), (31, 119, 180))  # the line of what was found


def test_a_sweep_has_a_line_for_each_solver_over_its_own_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A score that is missing is left out; points are in the order of calls."""
    sweep = [
        report("dpm2m", 10, psnr=21.0, mae=700.0),
        report("sde-dpm2m", 5, psnr=22.0, mae=532.0),
        report("dpm2m", 5, psnr=20.0, mae=None),
    ]
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    saved = Figure.savefig

    def save(figure: Figure, *arguments: Any, **settings: Any) -> None:
        for panel in figure.axes:
            for line in panel.get_lines():
                points = [(float(x), float(y)) for x, y in line.get_xydata()]  # pyright: ignore[reportGeneralTypeIssues]
                lines[panel.get_ylabel().split()[0].lower(), str(line.get_label())] = points
        saved(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", save)
    reports.draw_sweep(sweep, tmp_path / "sweep.png")
    assert lines["psnr", "dpm2m"] == [(5, 20.0), (10, 21.0)]
    assert lines["psnr", "sde-dpm2m"] == [(5, 22.0)]
    assert lines["mae", "dpm2m"] == [(10, 700.0)]
    assert lines["mae", "sde-dpm2m"] == [(5, 532.0)]


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether any pixel is near a colour."""
    distances = np.abs(np.asarray(image, int) - np.array(colour)).max(-1)
    return bool((distances < 8).any())
