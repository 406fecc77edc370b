"""`bbdm --import MODULE`: a bridge, a solver and a metric of one's own by their names in all commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bbdm import cli
from bbdm.base.scripts import import_modules
from bbdm.cli.translate import Translate
from tests.conftest import ROOT, SavePicture, save_random_pairs

MODULE = """
from dataclasses import dataclass
import numpy as np
from bbdm import bridges, solvers
from bbdm.bridges import Bridge, Marginal
from bbdm.evaluation.metrics import METRICS, Metric

@bridges.register("late")
@dataclass(frozen=True)
class LateBridge(Bridge):
    num_steps: int = 1000
    scale: float = 1.0
    objective: str = "residual"

    def marginal(self, t):
        m = np.asarray(t, dtype=np.float64) / self.num_steps
        return Marginal(1 - m, m, self.scale * m * np.sqrt(1 - m))

@solvers.register("halves")
def halves(bridge, steps):
    return solvers.build(bridge, "ddim", [int(bridge.top) >> i for i in range(steps or 8)])

METRICS["bias"] = Metric(lambda results, targets: (results - targets).mean((1, 2, 3)), False, masks="pixels")
"""
SCRIPT = "import json, sys; from bbdm import cli; [cli.main(words) for words in json.loads(sys.argv[1])]"


def test_names_of_a_module_work_in_every_command(tmp_path: Path, save_picture: SavePicture):
    save_random_pairs(tmp_path / "data", 2, 1, save_picture)
    (tmp_path / "mine.py").write_text(MODULE)
    lines = (
        "train edge2shoes data out.pt --preset demo --bridge late --density uniform --t 100 --image_size 16 -b 2 -e 1",
        "info out.pt",
        "translate edge2shoes data out.pt results --solver halves --steps 2",
        "eval edge2shoes data out.pt scores --metrics bias --sweep halves:2",
        "export out.pt onnx --solver halves --steps 2 --no-check",
    )
    words = json.dumps([["--import", "mine", *line.split()] for line in lines])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(1, {str(ROOT)!r}); {SCRIPT}", words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"LateBridge\(.*num_steps=100", done.stdout)
    settings = json.loads((tmp_path / "results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["timesteps"], settings["bridge"]["kind"]) == ("halves", [100, 50], "late")
    (report,) = json.loads((tmp_path / "scores/sweep.json").read_text())
    assert (report["solver"], list(report["scores"])) == ("halves", ["bias"])
    exported = json.loads((tmp_path / "onnx/bridge.json").read_text())
    assert (exported["solver"], exported["timesteps"]) == ("halves", [100, 50])


def test_without_the_module_the_names_are_unknown(capsys: pytest.CaptureFixture[str]):
    for words, message in ((["--solver", "halves"], "--solver: invalid choice: 'halves'"),):
        with pytest.raises(SystemExit, match="2"):
            Translate.parse(["folder", "data", "c.pt", *words])
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"solver must be one of .*, got 'halves'"):
        Translate(dataset="folder", data_dir="data", model=Path("c.pt"), solver="halves")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--import", "no_such_module", "info", "x"], "error: No module named 'no_such_module'"), (["--import"], "2")],
)
def test_what_cannot_be_imported_is_one_line(words: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        cli.main(words)


def test_several_modules_come_before_the_command_in_each_process(monkeypatch: pytest.MonkeyPatch):
    found: list[list[str]] = []
    monkeypatch.setattr("bbdm.base.scripts.imported", [])
    monkeypatch.setattr("bbdm.execution.processes.start_on_each_gpu", lambda words, script: found.append(words))
    monkeypatch.setattr(Translate, "run", lambda self: None)
    words = ["folder", "data", "c.pt", "--use_multi_gpus"]
    assert import_modules(["--import", "json", "--import", "math", *words]) == words
    Translate.main(words)
    assert found == [["--import", "json", "--import", "math", "translate", *words]]
