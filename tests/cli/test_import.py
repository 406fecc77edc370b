"""`bbdm --import MODULE`: a bridge, a solver, a network and a metric of one's own by name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bbdm import cli, load_checkpoint, networks
from bbdm.base.scripts import import_modules
from bbdm.cli.train import Train
from bbdm.cli.translate import Translate
from bbdm.files.weights import IncompleteFileError
from bbdm.networks import WrappedConfig
from bbdm.networks.config import FACTORIES, OWN
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
        "train edge2shoes data brownian.pt --preset own --bridge brownian --image_size 16 -b 2 -e 1",
        "distill brownian.pt data student.pt --calls 2 --results 2 -b 2 -e 1 --precision fp32",
        "translate edge2shoes data out.pt results --solver halves --steps 2",
        "eval edge2shoes data out.pt scores --metrics bias --sweep halves:2",
        "export out.pt onnx --solver halves --steps 2 --no-check",
    )
    words = json.dumps([["--import", "mine", *line.split()] for line in lines])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(1, {str(ROOT)!r}); {SCRIPT}", words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"LateBridge\(.*num_steps=100", done.stdout)
    student = load_checkpoint(tmp_path / "student.pt")  # its name and settings are known here, and not its code
    assert (student.unet.config, student.calls) == (WrappedConfig("own", 3, 2, condition_channels=3), 2)
    with pytest.raises(IncompleteFileError, match=r"weights of a own .*--import MODULE"):
        student.build_unet()
    settings = json.loads((tmp_path / "results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["timesteps"], settings["bridge"]["kind"]) == ("halves", [100, 50], "late")
    (report,) = json.loads((tmp_path / "scores/sweep.json").read_text())
    assert (report["solver"], list(report["scores"])) == ("halves", ["bias"])
    exported = json.loads((tmp_path / "onnx/bridge.json").read_text())
    assert (exported["solver"], exported["timesteps"]) == ("halves", [100, 50])


def test_a_preset_of_the_library_keeps_its_name():
    with pytest.raises(ValueError, match="'dit-s' is of a preset"):
        networks.register("dit-s")


def test_networks_of_ones_own_keep_their_activations():
    networks.register("registered")(lambda config: None)
    try:
        with pytest.raises(ValueError, match=r"gradient_checkpointing .* got preset registered"):
            Train.of(dataset="edge2shoes", data_dir="d", output_model=Path("o.pt"), preset="registered",
                     gradient_checkpointing=True)  # fmt: skip
    finally:
        del OWN["registered"], FACTORIES["registered"]


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
