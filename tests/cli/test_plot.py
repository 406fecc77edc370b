"""`bbdm plot` as a user runs it, of folders as training writes them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bbdm.cli import train
from bbdm.cli.plot import Plot
from bbdm.training.curves import Run, read_run, short_names
from tests.cli.conftest import SIZE

SHADES = [
    (200, 30, 30),
    (30, 160, 30),
    (30, 30, 200),
    (160, 160, 30),
    (30, 160, 160),
    (120, 30, 160),
]


def make_run(folder: Path, grids: int) -> Path:
    """A run of validations at each 10 steps, each of whose grids has a colour of its own."""
    folder.mkdir()
    lines: list[str] = []
    for index in range(6):
        metrics = {
            "epoch": index,
            "step": 10 * index + 10,
            "loss": 1 / (index + 1),
            "validation_loss": "NaN",
        }
        lines.append(
            json.dumps({**metrics, "images_per_second": 5.0, "learning_rate": 1e-4}) + "\n"
        )
    # as it is being written
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"epoch": 7, "st')
    for index in range(grids):
        Image.new("RGB", (60, 80), SHADES[index]).save(folder / f"step_{10 * index + 10:08d}.png")
    return folder


def shown(path: Path) -> list[int]:
    """The numbers of the grids that a picture shows."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    return [
        index for index, shade in enumerate(SHADES) if ((pixels - shade) == 0).all(-1).sum() > 5000
    ]


def test_a_run_is_drawn_with_grids_from_the_first_to_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "a.run", 6)
    output = tmp_path / "plots/a.png"
    Plot.main([str(run), "-o", str(output)])
    assert capsys.readouterr().out == f"to look at: {output}\n"
    assert shown(output) == [0, 2, 3, 5]
    Plot.main([str(run.with_suffix(".pt")), "-o", str(output)])  # the weights beside it
    assert shown(output) == [0, 2, 3, 5]


def test_several_runs_are_drawn_with_the_last_grid_of_each(tmp_path: Path):
    runs = [
        make_run(tmp_path / f"{name}.run", count) for name, count in (("a", 2), ("b", 5), ("c", 0))
    ]
    Plot.main([*map(str, runs), "-o", str(tmp_path / "all.png")])
    assert shown(tmp_path / "all.png") == [1, 4]


def test_two_runs_have_a_grid_each(tmp_path: Path):
    runs = [str(make_run(tmp_path / f"{name}.run", count)) for name, count in (("a", 2), ("b", 5))]
    Plot.main([*runs, "-o", str(tmp_path / "two.png")])
    assert shown(tmp_path / "two.png") == [1, 4]


def test_losses_have_a_logarithmic_axis_and_no_other_curve_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scales: dict[str, str] = {}
    saved = Figure.savefig

    def save(figure: Figure, *arguments: Any, **settings: Any) -> None:
        scales.update((panel.get_ylabel(), panel.get_yscale()) for panel in figure.axes)
        saved(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", save)
    Plot.main([str(make_run(tmp_path / "a.run", 0)), "-o", str(tmp_path / "a.png")])
    assert scales.pop("loss") == "log"
    assert {*scales.values()} == {"linear"}


def test_curves_of_many_runs_keep_their_height(tmp_path: Path):
    runs = [make_run(tmp_path / f"learning_rate_{number}.run", 0) for number in range(12)]
    for run in runs:  # which have two losses each
        metrics = run / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"NaN"', "0.5"))
    Plot.main([*map(str, runs), "-o", str(tmp_path / "all.png")])
    pixels = np.asarray(Image.open(tmp_path / "all.png").convert("L"), int)
    # of each column of pixels: a frame of a panel is a dark line
    frames = (pixels < 80).sum(axis=0)
    assert frames.max() > 300  # of a picture of 120 pixels an inch, whose panels are 3 inches high


def test_names_of_runs_leave_out_what_all_have(tmp_path: Path):
    paths = [
        tmp_path / "a" / "one.run",
        tmp_path / "b" / "one.run",
        tmp_path / "b" / f"{'long' * 20}.run",
    ]
    runs: list[Run] = []
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        runs.append(read_run(make_run(path, 0)))
    first, second, third = short_names(runs)
    assert (first, second) == ("a/one.run", "b/one.run")
    assert third.startswith("...")
    assert third.endswith("longlong.run")
    assert len(third) < 40


def test_names_of_runs_of_one_folder_and_of_a_single_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    runs = [read_run(make_run(Path(name), 0)) for name in ("one.run", "two.run")]
    assert short_names(runs) == ["one.run", "two.run"]
    assert short_names(runs[:1]) == ["one.run"]


@pytest.mark.usefixtures("world")
def test_what_training_writes_is_drawn(tiny_demo: None):
    flags = ["--preset", "demo", "--image_size", str(SIZE), "-b", "2", "-e", "1", "--quiet"]
    train.main(["edge2shoes", "data", "c.pt", *flags])
    Plot.main(["c.run"])
    assert min(Image.open("out/plot.png").size) > 500


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder of a training run .*nothing\.run"
    ):
        Plot.main([str(tmp_path / "nothing.run")])
    with pytest.raises(
        ValueError, match=r"has no metrics.jsonl: it is no folder of a training run"
    ):
        Plot.main([str(tmp_path)])
    run = make_run(tmp_path / "a.run", 0)
    with pytest.raises(ValueError, match=r"output is a PNG, whose name ends in \.png, got a\.jpg"):
        Plot.main([str(run), "-o", "a.jpg"])
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(
        ValueError, match="has no metrics yet: the first are written after the first validation"
    ):
        Plot.main([str(run)])
    (run / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(ValueError, match=r"cannot read .*metrics.jsonl: repair or delete it"):
        Plot.main([str(run)])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"bbdm plot needs matplotlib, .*: pip install 'bbdm\[eval\]'"
    ):
        Plot.main([str(make_run(tmp_path / "b.run", 0))])
