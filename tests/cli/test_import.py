"""`bbdm --import MODULE`: a bridge, a solver, a network and a metric of one's own by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bbdm import cli, load_checkpoint, networks
from bbdm.base import scripts
from tests.conftest import ROOT, SavePicture, save_random_pairs

MODULE = """
from dataclasses import dataclass
import numpy as np
import torch
from bbdm import bridges, networks, solvers
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

@networks.register("own", stride=2, call=lambda module, x, t, seen: module(torch.cat([x, seen["source"]], 1)))
def own(config):
    return torch.nn.Conv2d(config.channels + config.condition_channels, config.channels, 3, padding=1)

METRICS["bias"] = Metric(lambda results, targets: (results - targets).mean((1, 2, 3)), False, masks="pixels")
"""
SCRIPT = "import json, sys; from bbdm import cli; [cli.main(words) for words in json.loads(sys.argv[1])]"


def test_names_of_a_module_work_in_every_command(tmp_path: Path, save_picture: SavePicture):
    save_random_pairs(tmp_path / "data", 2, 1, save_picture)
    (tmp_path / "mine.py").write_text(MODULE)
    lines = (
        "train edge2shoes data out.pt --preset own --bridge late --t 100 --image_size 16 -b 2 -e 1",
        "info out.pt",
        "translate edge2shoes data out.pt results --solver halves --steps 2",
        "eval edge2shoes data out.pt scores --metrics bias --sweep halves:2",
    )
    words = json.dumps([["--import", "mine", *line.split()] for line in lines])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(1, {str(ROOT)!r}); {SCRIPT}", words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"LateBridge\(.*num_steps=100", done.stdout)
    with pytest.raises(ValueError, match=r"got 'late'; import the module that registers your own bridge"):
        load_checkpoint(tmp_path / "out.pt")
    settings = json.loads((tmp_path / "results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["timesteps"], settings["bridge"]["kind"]) == ("halves", [100, 50], "late")
    (report,) = json.loads((tmp_path / "scores/sweep.json").read_text())
    assert (report["solver"], list(report["scores"])) == ("halves", ["bias"])


def test_names_of_presets_are_taken():
    with pytest.raises(ValueError, match="'dit-s' is of a preset"):
        networks.register("dit-s")


def test_what_is_not_imported_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    words = ["translate", "folder", "data", "c.pt", "--solver", "halves"]
    for given, message in (
        (words, "--solver: invalid choice: 'halves'"),
        (["--import", "no_such_module", "info", "x"], "error: No module named 'no_such_module'"),
        (["--import"], "expected one argument"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(given)
        assert message in f"{capsys.readouterr().err}{end.value}"
    monkeypatch.setattr(scripts, "imported", found := [])
    with pytest.raises(SystemExit):
        cli.main(["--import", "json", "--import", "math", "--version"])
    assert found == ["--import", "json", "--import", "math"]  # which workers of Ray import too
