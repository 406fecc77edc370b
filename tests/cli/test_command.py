"""The command ``bbdm``: its subcommands, what they cost at the start, ``bbdm info``, names of one's own."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bbdm import (
    VQGAN,
    ABridge,
    BridgeSampler,
    UNet,
    VQGANCodec,
    __version__,
    bridges,
    cli,
    demo,
    load_checkpoint,
    networks,
    save_checkpoint,
    save_vqgan,
    solvers,
)
from bbdm.base import scripts
from bbdm.base.settings import flag_fields
from bbdm.bridges import BRIDGES
from bbdm.cli import train
from bbdm.cli.files import Info
from bbdm.files.weights import IncompleteFileError
from tests.conftest import BRIDGE, ROOT, SavePicture, save_random_pairs, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

NAMES = (
    "train",
    "eval",
    "distill",
    "serve",
    "app",
    "translate_ray",
    "train_vqgan",
    "convert_vqgan",
)
SCRIPTS = {f"examples/{name}.py": name.replace("_", "-") for name in NAMES}
SCRIPTS |= {"examples/generate.py": "translate", "export/to_onnx.py": "export"}  # the papers' names
HELP = """
import contextlib, importlib, io, sys
from bbdm import cli
for name in cli.COMMANDS:
    for word in ("--help", "--no_such_flag"):
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(io.StringIO()):
            try:
                cli.main([name, word])
            except SystemExit as end:
                assert end.code == (0 if word == "--help" else 2), (name, end.code)
        assert word != "--help" or text.getvalue().startswith(f"usage: bbdm {name} "), name
print(*(each for each in ("torch", "onnx", "onnxruntime", "gradio", "ray") if each in sys.modules))
"""


@pytest.mark.parametrize("columns", ["80", "100"])
def test_helps_fit_a_screen(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """That of a command says how all flags are listed, and this has each of its flags."""
    monkeypatch.setenv("COLUMNS", columns)

    def lines(*words: str) -> list[str]:
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        return capsys.readouterr().out.splitlines()

    assert len(lines("--help")) <= 30
    for name in cli.COMMANDS:
        screen = lines(name, "--help")
        everything = lines(name, "--help", "all")
        assert len(screen) <= 24, name
        words = " ".join(everything).split()
        command = cli._imported(cli.COMMANDS[name][0])
        assert {
            f"--{each}"
            for each, about in flag_fields(command).items()
            if not about.metadata["position"]
        } <= {word.rstrip(",") for word in words}
        assert screen == everything or screen[-1].startswith("--help all lists all "), name


def test_help_and_wrong_flags_import_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--version"], 0, f"bbdm {__version__}\n"),
        ([], 2, "usage: bbdm [--import MODULE] COMMAND ..."),
        (
            ["trian"],
            2,
            "error: there is no command 'trian'; did you mean train? bbdm --help lists the commands\n",
        ),
        (["xyz"], 2, "error: there is no command 'xyz'; bbdm --help lists the commands\n"),
        (["--verson"], 2, "error: unrecognized arguments: --verson; did you mean --version?"),
        (
            ["translate", "folder", "nowhere", "nothing.pt"],
            1,
            "translating nowhere with nothing.pt\nerror: there is no checkpoint nothing.pt\n",
        ),
    ],
)
def test_the_end_of_a_command(
    words: list[str], status: int, message: str, world: Path, monkeypatch: Any, capsys: Any
):
    """Of `python -m bbdm`. The interpreter prints an end that is a text, and its status is then 1."""
    monkeypatch.setattr(sys, "argv", ["bbdm", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("bbdm", run_name="__main__")
    code = end.value.code or 0
    assert (1 if isinstance(code, str) else code) == status
    printed = capsys.readouterr()
    assert (printed.out + printed.err + (f"{code}\n" if isinstance(code, str) else "")).startswith(
        message
    )


OPENINGS = {  # of commands, with what they say before they import anything that takes seconds
    "demo": "translating 16 drawings with openmoji64 (8.7 M parameters), 5 steps of sde-dpm2m",
    "restore a.png b.png": "restoring a.png and 1 more with photographs (8.7 M parameters), 1 step of mean",
    "train paired a,b o.pt --preset demo": "training o.pt on a,b: preset demo, 50 epochs",
    "translate folder a c.pt": "translating a with c.pt",
    "calibrate c.pt edge2shoes a": "calibrating intervals of c.pt on a, 16 results of each",
    "eval edge2shoes a c.pt --sweep dpm2m:5": "scoring c.pt on a, dpm2m:5",
    "distill c.pt a o.pt --calls 2": "distilling c.pt on a into o.pt of 2 calls",
    "train-vqgan edge2shoes a o.pt": "training o.pt on a: autoencoder vq-f4, 50 epochs",
    "plot a.run b.run": "drawing a.run, b.run",
    "info c.pt": "reading c.pt",
    "export c.pt": "writing ONNX graphs of c.pt to out/c-onnx",
    "app": "starting the app of the bundled networks; its address follows when it answers",
    "serve c.pt": "starting a server of c.pt; its address follows when it answers",
    "translate-ray a b c.pt": "translating a by Ray with c.pt",
    "convert-vqgan a.ckpt o.pt": "converting a.ckpt to o.pt",
}
OPEN = """
import sys
from bbdm import cli
from bbdm.base import scripts
announce = scripts.Command.announce
def announced(command):
    announce(command)
    raise SystemExit
scripts.Command.announce = announced
for line in sys.stdin.read().splitlines():
    try:
        cli.main(line.split())
    except SystemExit as end:
        assert not end.code, end.code
print(*(each for each in ("torch", "onnx", "onnxruntime", "gradio", "ray") if each in sys.modules))
"""


def test_a_command_says_what_it_does_before_anything_heavy_is_imported(tmp_path: Path):
    """Each of them, so that a line is there within a second; and none where it is to be quiet."""
    assert {line.split()[0] for line in OPENINGS} == {*cli.COMMANDS}
    quiet = ["demo --quiet", "train paired a,b o.pt --quiet", "export c.pt --quiet"]
    about: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    about |= {
        "input": "\n".join([*OPENINGS, *quiet]),
        "capture_output": True,
        "text": True,
        "check": True,
    }
    done = subprocess.run([sys.executable, "-c", OPEN], **about)
    assert done.stderr.replace("\\", "/").splitlines() == [*OPENINGS.values()]
    assert done.stdout == "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_command_runs_without_standard_streams(tmp_path: Path):
    """As services start it. Nothing that is printed comes into a result."""
    words = [sys.executable, "-m", "bbdm", "demo", str(tmp_path / "out"), "--steps", "1"]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).verify()
    assert len([*(tmp_path / "out").glob("*.png")]) == 17


WITHOUT_EXTRAS = """
import contextlib, io, runpy, sys
for name in ("matplotlib", "onnxruntime", "scipy", "torchmetrics", "torchvision"):
    sys.modules[name] = None
for line in sys.stdin.read().splitlines():
    script, *words = line.split()
    sys.argv = [script, *words]
    run = runpy.run_path if script.endswith(".py") else runpy.run_module
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            run(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    print(code)
"""


def test_scripts_without_extras_say_so_in_one_line():
    """Where they need one; the help never does."""
    rows = {
        "examples/eval_miou.py a b c d": "eval_miou.py needs torchmetrics, which is not installed",
        "examples/convert_deeplabv3.py a b.pt": "convert_deeplabv3.py needs torchvision, which is not installed",
        "benchmarks.demo_quality a b": "flatness needs scipy, which is not installed",
    }
    names = ["examples/eval_miou.py", "examples/convert_deeplabv3.py", "benchmarks/report.py"]
    helps = [f"{name} --help" for name in (*names, "benchmarks.demo_quality", "bbdm.runtime")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])}
    about: dict[str, Any] = {
        "cwd": ROOT,
        "env": variables,
        "capture_output": True,
        "text": True,
        "check": True,
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], input="\n".join([*rows, *helps]), **about
    )
    expected = [f"error: {message}: pip install 'bbdm[eval]'" for message in rows.values()]
    assert done.stdout.splitlines() == [*expected, *["0"] * len(helps)]


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items(), ids=SCRIPTS)
def test_a_script_is_a_command(script: str, command: str, monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []
    monkeypatch.setattr(cli, "run", called.append)
    exec(compile((ROOT / script).read_text(), script, "exec"), {"__name__": "__main__"})
    assert called == [command]
    assert command in cli.COMMANDS


@pytest.mark.nightly
@pytest.mark.parametrize("latent", [[], ["-vq", "vqgan.pt"]], ids=["image", "latent"])
def test_the_commands_of_sde_bbdm(
    latent: list[str], save_picture: SavePicture, tmp_path: Path
) -> None:
    """By the scripts of its README, in the folder of the examples, with a small preset."""

    def run(*words: str | Path) -> str:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
        about = {
            "cwd": ROOT / "examples",
            "env": variables,
            "capture_output": True,
            "text": True,
            "timeout": 300,
        }
        done = subprocess.run([sys.executable, *map(str, words)], **about)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    data = save_random_pairs(tmp_path / "edges2shoes", 4, 1, save_picture, 80)
    model = tmp_path / "model.pt"
    save_vqgan(tmp_path / "vqgan.pt", VQGAN.from_preset("demo"))
    flags = [word if word == "-vq" else tmp_path / word for word in latent]
    small = [
        "--preset",
        "demo",
        "--image_size",
        "64",
        "-b",
        "2",
        "-e",
        "1",
        "--show_verbose",
        "-use_multi_gpus",
    ]
    output = run("train.py", "edge2shoes", data, model, *flags, *small)
    assert re.search(r"^epoch 1/1: loss .*, validation_loss ", output, re.MULTILINE)
    checkpoint = load_checkpoint(model)
    assert (checkpoint.codec is not None, checkpoint.image_size) == (bool(latent), 64)
    run("generate.py", "edge2shoes", data, model, tmp_path / "results", "--fast_sampling")
    assert Image.open(tmp_path / "results/04.png").size == (64, 64)


def test_info_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The bundled one, a student of latents, and the run of a bridge."""
    count = sum(
        parameter.numel() for parameter in load_checkpoint(demo.WEIGHTS).build_unet().parameters()
    )
    sampler = BridgeSampler(tiny_unet(), BRIDGE, codec=VQGANCodec(tiny_vqgan()), calls=2)
    sampler.save_pretrained(tmp_path / "model")
    for step in (5, 10):
        path = tmp_path / "run" / f"step_{step:08d}.pt"
        save_checkpoint(
            path, tiny_unet(), BRIDGE, image_size=16, training={"step": step, "epoch": 1}
        )
    bundled = {
        "network": f"unet, {count / 1e6:.1f} M parameters in float16",
        "image size": "64 x 64",
    }
    for name, ending, known in (
        (demo.WEIGHTS, "", {**bundled, "network calls": "any number"}),
        (
            "model",
            "",
            {
                "network calls": "2",
                "image size": "not stated",
                "codec": "vqgan",
                "bridge": f"{BRIDGE}",
            },
        ),
        (
            "run",
            ", step_00000010.pt of a training run",
            {"training": "10 optimizer steps, to resume from"},
        ),
    ):
        Info.main([str(tmp_path / name)])
        title, *lines = capsys.readouterr().out.splitlines()
        assert title == f"{tmp_path / name}: a checkpoint{ending}"
        assert known.items() <= {line[2:16].strip(): line[16:] for line in lines}.items()


def test_info_of_another_programs_file_needs_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(
        UNet(3, 3, model_channels=64, channel_mult=(1,), num_res_blocks=1).state_dict(),
        tmp_path / "a.pth",
    )
    with pytest.warns(UserWarning, match="assumed"):
        Info.main([str(tmp_path / "a.pth"), "-t", "50", "-l", "3"])
    assert "num_steps=50, c_lambda=3.0" in capsys.readouterr().out
    with pytest.raises(IncompleteFileError, match=r"time_steps|num_steps"):
        Info.main([str(tmp_path / "a.pth")])


MODULE = """
import torch
from bbdm import ABridge, bridges, networks, solvers
from bbdm.evaluation.metrics import METRICS, Metric

@bridges.register("late")
class LateBridge(ABridge):
    pass

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
def imported(own_names: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What commands imported; the module and its names are forgotten at the end."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(scripts, "imported", found := [])
    yield found
    sys.modules.pop("mine", None)


COMMAND = """
from dataclasses import dataclass
from typing import ClassVar

from bbdm.base.settings import from_command, setting
from bbdm.cli import COMMANDS
from bbdm.cli.train import build_network
from bbdm.cli.training import TrainingCommand
from bbdm.data.config import DataConfig
from bbdm.training.config import BridgeConfig


@dataclass(frozen=True)
class RegressConfig(BridgeConfig):
    power: float = setting(2.0, "of the error")


@dataclass(frozen=True, kw_only=True)
class Regress(TrainingCommand, DataConfig, RegressConfig):
    "Learn the target itself: bbdm regress DATASET DATA OUTPUT_MODEL"

    HEADING: ClassVar[str] = "regression"

    def build(self, team, folder, resumed):
        from bbdm.bridges import BrownianBridge
        from bbdm.training.bridge import BridgeTask
        from bbdm.training.trainer import Trainer

        class RegressTask(BridgeTask):
            def losses(self, network, batch, seeds, step):
                result = network(batch.source, seeds * 0 + self.bridge.top, self.seen(batch))
                return (result - batch.target).abs().pow(self.config.power).flatten(1).mean(1), {}

        pairs, validation = self.load_pairs(self.image_size, 3, team)
        network = build_network("demo", 3, 3)
        config = from_command(RegressConfig, self)
        return Trainer(network, BrownianBridge(), config, pairs, validation, folder, processes=team, task=RegressTask)


COMMANDS["regress"] = ("mine.Regress", "learn the target itself")
"""


@pytest.mark.usefixtures("tiny_demo", "imported")
def test_a_task_as_a_command_is_a_file_and_a_row(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """With flags, help, resume and a file like any other training."""
    monkeypatch.setattr(cli, "COMMANDS", dict(cli.COMMANDS))
    Path("mine.py").write_text(COMMAND)
    line = (
        "--import mine regress edge2shoes data out.pt --image_size 16 -b 2 --device cpu --power 3"
    )
    for epochs in ("1", "2"):
        cli.main([*line.split(), "-e", epochs])
    assert "out.pt: weights after epoch 2" in capsys.readouterr().out
    settings = json.loads(Path("out.run/config.json").read_text())
    assert settings["train"]["power"] == 3
    assert load_checkpoint("out.pt").bridge.config()["kind"] == "brownian"
    with pytest.raises(SystemExit):
        cli.main(["--import", "mine", "regress", "--help", "all"])
    assert "of the error (default: 2.0)" in capsys.readouterr().out


def test_names_of_a_module_work_in_every_command(world: Path, imported: list[str], capsys: Any):
    Path("mine.py").write_text(MODULE)
    for line in LINES:
        cli.main(["--import", "mine", *line.split()])
    assert re.search(r"LateBridge\(.*num_steps=100", capsys.readouterr().out)
    settings = json.loads(Path("results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["timesteps"], settings["bridge"]["kind"]) == (
        "halves",
        [100, 50],
        "late",
    )
    (report,) = json.loads(Path("scores/sweep.json").read_text())
    assert (report["solver"], list(report["scores"])) == ("halves", ["bias"])
    del vars(BRIDGES)["_things"]["late"]
    with pytest.raises(
        ValueError, match=r"got 'late'; import the module that registers your own bridge"
    ):
        load_checkpoint("out.pt")


def test_names_of_presets_are_taken():
    with pytest.raises(ValueError, match="'dit-s' is of a preset"):
        networks.register("dit-s")


CELL = """
@bridges.register("again")
@dataclass(frozen=True)
class Again(ABridge):
    version: int = {version}

@solvers.register("again")
def again(bridge, steps):
    return solvers.build(bridge, "ddim", steps={version})

@networks.register("again", stride={version})
def network(config):
    return None
"""


@pytest.mark.usefixtures("own_names")
def test_a_cell_that_runs_again_replaces_and_another_thing_is_refused():
    names = {
        "bridges": bridges,
        "solvers": solvers,
        "networks": networks,
        "dataclass": dataclass,
        "ABridge": ABridge,
    }
    cell: dict[str, Any] = {**names, "__name__": "notebook"}
    for version in (2, 4):
        exec(CELL.format(version=version), cell)
        bridge = bridges.from_config(
            {"kind": "again", "num_steps": 9, "c_lambda": 1.0, "objective": "residual"}
        )
        assert vars(bridge)["version"] == version
        assert len(solvers.build(ABridge(), "again")) == version
        assert train.PRESETS["again"].stride == version
    for room in (bridges, solvers, networks):
        with pytest.raises(
            ValueError, match=r"the (bridge|solver|network) 'again' is taken by notebook\."
        ):
            room.register("again")(type("Other", (ABridge,), {}))


def test_what_is_not_imported_is_one_line(capsys: pytest.CaptureFixture[str], imported: list[str]):
    words = ["translate", "folder", "data", "c.pt", "--solver", "halves"]
    for given, message in (
        (words, "--solver: invalid choice: 'halves'"),
        (["--import", "no_such_module", "info", "x"], "error: No module named 'no_such_module'"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(given)
        assert message in f"{capsys.readouterr().err}{end.value}"
    with pytest.raises(SystemExit):
        cli.main(["--import", "json", "--import", "math", "--version"])
    assert imported == ["--import", "json", "--import", "math"]  # which workers of Ray import too
