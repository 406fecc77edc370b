"""`bbdm --import MODULE`: a bridge, a solver, a network and a metric of one's own by name."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbdm import cli, load_checkpoint, networks, solvers
from bbdm.base import scripts
from bbdm.bridges import BRIDGES
from bbdm.evaluation.metrics import METRICS
from bbdm.networks.config import OWN

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
LINES = (
    "train edge2shoes data out.pt --preset own --bridge late --t 100 --image_size 16 -b 2 -e 1",
    "info out.pt",
    "translate edge2shoes data out.pt results --solver halves --steps 2",
    "eval edge2shoes data out.pt scores --metrics bias --sweep halves:2",
)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What commands imported; its names are forgotten at the end."""
    tables: list[dict[str, Any]] = [BRIDGES, solvers.SOLVERS, OWN, METRICS]
    before = [dict(table) for table in tables]
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(scripts, "imported", found := [])
    yield found
    for table, known in zip(tables, before, strict=True):
        for name in table.keys() - known.keys():
            del table[name]
    sys.modules.pop("mine", None)


def test_names_of_a_module_work_in_every_command(world: Path, imported: list[str], capsys: Any):
    Path("mine.py").write_text(MODULE)
    for line in LINES:
        cli.main(["--import", "mine", *line.split()])
    assert re.search(r"LateBridge\(.*num_steps=100", capsys.readouterr().out)
    settings = json.loads(Path("results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["timesteps"], settings["bridge"]["kind"]) == ("halves", [100, 50], "late")
    (report,) = json.loads(Path("scores/sweep.json").read_text())
    assert (report["solver"], list(report["scores"])) == ("halves", ["bias"])
    del BRIDGES["late"]
    with pytest.raises(ValueError, match=r"got 'late'; import the module that registers your own bridge"):
        load_checkpoint("out.pt")


def test_names_of_presets_are_taken():
    with pytest.raises(ValueError, match="'dit-s' is of a preset"):
        networks.register("dit-s")


def test_what_is_not_imported_is_one_line(capsys: pytest.CaptureFixture[str], imported: list[str]):
    words = ["translate", "folder", "data", "c.pt", "--solver", "halves"]
    for given, message in (
        (words, "--solver: invalid choice: 'halves'"),
        (["--import", "no_such_module", "info", "x"], "error: No module named 'no_such_module'"),
        (["--import"], "expected one argument"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(given)
        assert message in f"{capsys.readouterr().err}{end.value}"
    with pytest.raises(SystemExit):
        cli.main(["--import", "json", "--import", "math", "--version"])
    assert imported == ["--import", "json", "--import", "math"]  # which workers of Ray import too
