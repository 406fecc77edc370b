"""The command ``bbdm``: its subcommands, what they cost at the start, completion, and ``bbdm info``."""

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import VQGAN, BridgeSampler, UNet, VQGANCodec, __version__, cli, demo, save_checkpoint, save_vqgan
from bbdm.cli import demo as demo_command
from bbdm.cli import info
from bbdm.evaluation.config import TranslateConfig
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.weights import IncompleteFileError
from tests.conftest import BRIDGE, ROOT, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

SCRIPTS = {  # the papers' names, and ours
    **{f"examples/{name}.py": name.replace("_", "-") for name in ("train", "eval", "eval_miou", "distill", "serve")},
    **{f"examples/{name}.py": name.replace("_", "-") for name in ("app", "translate_ray", "train_vqgan")},
    "examples/generate.py": "translate",
    "examples/convert_vqgan.py": "convert-vqgan",
    "examples/convert_deeplabv3.py": "convert-deeplab",
    "export/to_onnx.py": "export",
}
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


def bbdm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bbdm", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_help_and_wrong_flags_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--version"], 0, f"bbdm {__version__}\n"),
        ([], 2, "error: the following arguments are required: COMMAND; --help lists the flags\n"),
        (["train", "--preset", "demos"], 2, "error: argument --preset: invalid choice: 'demos' (choose from"),
        (["trin"], 2, "error: argument COMMAND: invalid choice: 'trin' (choose from"),
        (
            ["train", "edge2shoes", "x", "y.pt", "--epoch", "x"],
            2,
            "error: argument -e/--epochs: invalid int value: 'x'",
        ),
        (["translate", "folder", "nowhere", "nothing.pt"], 1, "error: there is no checkpoint nothing.pt\n"),
    ],
)
def test_the_end_of_a_command(words: list[str], status: int, message: str, monkeypatch: Any, capsys: Any):
    """Of `python -m bbdm`. The interpreter prints an end that is a text, and its status is then 1."""
    monkeypatch.setattr(sys, "argv", ["bbdm", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("bbdm", run_name="__main__")
    code = end.value.code or 0
    assert (1 if isinstance(code, str) else code) == status
    printed = capsys.readouterr()
    assert (printed.out + printed.err + (f"{code}\n" if isinstance(code, str) else "")).startswith(message)


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items(), ids=SCRIPTS)
def test_a_script_is_a_command(script: str, command: str, monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []
    monkeypatch.setattr(cli, "run", called.append)
    code = compile((ROOT / script).read_text(), script, "exec")
    exec(code, {"__name__": "__main__"})
    assert called == [command]
    assert command in cli.COMMANDS


def test_every_hint_is_of_an_error_of_the_library():
    files = (ROOT / "bbdm").rglob("*.py")
    classes = {
        node.name for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)
    }
    assert set(cli.HINTS) <= classes


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("bbdm tr", {"train", "train-vqgan", "translate", "translate-ray"}),
        ("bbdm train --warm", {"--warmup_steps"}),
        ("bbdm eval cel", {"celeba"}),
        ("bbdm translate-ray A B c.pt --over", {"--overlap", "--overwrite"}),
    ],
)
def test_completion(line: str, wanted: set[str], tmp_path: Path):
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = bbdm(**shell, _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "words"))
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in (tmp_path / "words").read_text().split("\n")} == wanted


class TestInfo:
    @staticmethod
    def rows(file: Path | str, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, dict[str, str]]:
        info.main([str(file), *flags])
        title, *lines = capsys.readouterr().out.splitlines()
        return title.removeprefix(f"{file}: "), {line[2:16].strip(): line[16:] for line in lines}

    def test_the_bundled_weights(self, capsys: pytest.CaptureFixture[str]):
        title, rows = self.rows(demo.WEIGHTS, capsys)
        network = load_checkpoint(demo.WEIGHTS).build_unet()
        count = sum(parameter.numel() for parameter in network.parameters())
        assert title == "a checkpoint of bbdm"
        assert rows["network"] == f"unet, {count / 1e6:.1f} M parameters in float16"
        assert (rows["image size"], rows["objective"], rows["network calls"]) == ("64 x 64", "pinned", "any number")

    def test_an_export(self, exported: Path, capsys: pytest.CaptureFixture[str]):
        title, rows = self.rows(exported, capsys)
        settings = json.loads((exported / "bridge.json").read_text())
        assert title == "an ONNX export"
        assert rows["solver"] == f"{settings['solver']}, {len(settings['timesteps'])} steps"
        assert f"torch {settings['versions']['torch']}" in rows["made by"]

    def test_a_student_of_latents_in_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        sampler = BridgeSampler(tiny_unet(), BRIDGE, codec=VQGANCodec(tiny_vqgan()), calls=2)
        sampler.save_pretrained(tmp_path / "model")
        title, rows = self.rows(tmp_path / "model", capsys)
        assert (title, rows["network calls"], rows["image size"]) == ("a checkpoint of bbdm", "2", "not stated")
        assert rows["codec"].startswith("vqgan, ")

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_an_autoencoder(self, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        vqgan: VQGAN = tiny_vqgan()
        save_vqgan(tmp_path / f"v{suffix}", vqgan)
        title, rows = self.rows(tmp_path / f"v{suffix}", capsys)
        assert title == "an autoencoder of bbdm"
        assert rows["latents"].startswith(f"{vqgan.config.latent_channels} channels, one position for ")

    def test_the_folder_of_a_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        for step in (5, 10):
            path = tmp_path / f"step_{step:08d}.pt"
            save_checkpoint(path, tiny_unet(), BRIDGE, image_size=16, training={"step": step, "epoch": 1})
        title, rows = self.rows(tmp_path, capsys)
        assert title == "a checkpoint of bbdm, step_00000010.pt of a training run"
        assert rows["training"] == "10 optimizer steps, to resume from"
        save_vqgan(tmp_path / "v" / "step_00000004.pt", tiny_vqgan(), training={"step": 4})
        title, rows = self.rows(tmp_path / "v", capsys)
        assert title == "an autoencoder of bbdm, step_00000004.pt of a training run"
        assert rows["autoencoder"].startswith("VQGAN, ")

    def test_a_file_of_another_program(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        torch.save(UNet(3, 3, model_channels=64, channel_mult=(1,), num_res_blocks=1).state_dict(), tmp_path / "a.pth")
        with pytest.raises(IncompleteFileError):
            self.rows(tmp_path / "a.pth", capsys)
        with pytest.warns(UserWarning, match="assumed"):
            title, rows = self.rows(tmp_path / "a.pth", capsys, "-t", "50", "-l", "3")
        assert title == "a checkpoint of sde-bbdm"
        assert rows["bridge"].startswith("ABridge(num_steps=50, c_lambda=3.0")

    def test_what_is_no_model_is_refused(self, tmp_path: Path):
        (tmp_path / "a.pt").write_text("text")
        with pytest.raises(ValueError, match=re.escape(f"cannot read {tmp_path / 'a.pt'} as a checkpoint")):
            info.describe(tmp_path / "a.pt", info.FileConfig())
        with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*b\.pt"):
            info.describe(tmp_path / "b.pt", info.FileConfig())
        with pytest.raises(
            ValueError, match=r"holds a\.pt, and info takes a file of weights, or the folder of a run, "
        ):
            info.describe(tmp_path, info.FileConfig())


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], (None, None, False)),
        (["--solver", "dpm2m"], ("dpm2m", None, False)),
        (["--steps", "3"], (None, 3, False)),
        (["--fast_sampling"], (None, None, True)),
    ],
)
def test_the_demo_is_translated_as_asked(flags: list[str], wanted: Any, monkeypatch: pytest.MonkeyPatch):
    made: list[TranslateConfig] = []
    monkeypatch.setattr(demo_command, "translate", lambda config, words: made.append(config))
    demo_command.main(flags)
    assert (made[0].solver, made[0].steps, made[0].fast_sampling) == wanted
    assert made[0].model == demo.WEIGHTS


def test_a_hint_names_flags_that_the_command_has(monkeypatch: pytest.MonkeyPatch):
    def fail(words: list[str]) -> None:
        raise IncompleteFileError("it leaves something out")

    ends: dict[str, Any] = {}
    for name in ("app", "translate"):
        module = importlib.import_module(f"bbdm.cli.{name}")
        monkeypatch.setattr(module, "main", fail)
        with pytest.raises(SystemExit) as end:
            cli.run(name, [])
        ends[name] = end.value.code
    assert ends["app"] == "error: it leaves something out"
    assert ends["translate"] == "error: it leaves something out; the flags are -t, -l, -vq and --config"
