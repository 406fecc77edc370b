"""`bbdm eval` as a user runs it, with networks too small to be good."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bbdm
from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.cli import eval as eval_script
from bbdm.data.spec import Spec
from bbdm.evaluation import perceptual
from bbdm.pictures.values import Values
from tests.cli.conftest import SIZE, pixels, sides
from tests.conftest import tiny_unet
from tests.evaluation.test_metrics import Features

NAMES = ("04", "05", "06")


pytestmark = pytest.mark.usefixtures("world")


def run(*flags: str, scores: tuple[str, ...] = ("psnr",), data: str = "data") -> dict[str, Any]:
    given = ["edge2shoes", data, "c.pt", "results", "-b", "2", "--steps", "3", *flags]
    eval_script.main([*given, "--metrics", *scores])
    return json.loads(Path("results/scores.json").read_text())


def test_scores_are_of_the_pictures_that_are_there(capsys: pytest.CaptureFixture[str]):
    """The report says what was done."""
    report = run("--seed", "4", "--dtype", "bf16", scores=("psnr", "ssim"))
    pairs = [(pixels(f"results/{name}.png"), sides(name)[1]) for name in NAMES]
    expected = np.mean([20 * np.log10(255 / np.sqrt(((result - target) ** 2).mean())) for result, target in pairs])
    assert report["scores"]["psnr"] == pytest.approx(expected, rel=1e-5)
    assert list(report["scores"]) == ["psnr", "ssim"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| solver | NFE | pictures | PSNR ↑ | SSIM ↑ | s / picture |"
    assert out[2].startswith(f"| dpm2m | 3 | 3 | {expected:.2f} | ")
    assert (report["solver"], report["nfe"], report["pictures"]) == ("dpm2m", 3, 3)
    assert report["seconds_per_picture"] > 0
    settings, environment = report["settings"], report["environment"]
    assert (settings["seed"], settings["dtype"], settings["image_size"]) == (4, "bfloat16", SIZE)
    assert settings["bridge"]["num_steps"] == settings["timesteps"][0] == 100
    assert len(settings["timesteps"]) == 3
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert environment["bbdm"] == bbdm.__version__
    assert environment["cpu"]


def test_diversity_needs_and_gets_several_samples(capsys: pytest.CaptureFixture[str]):
    report = run("-r", "3", scores=("diversity", "crps"))
    stacks = np.array([[pixels(f"results/{name}_{j}.png") for j in range(3)] for name in NAMES])
    assert report["scores"]["diversity"] == pytest.approx(stacks.std(axis=1).mean(), rel=1e-6)
    near = abs(stacks - np.array([sides(name)[1] for name in NAMES])[:, None]).mean()
    apart = abs(stacks[:, :, None] - stacks[:, None]).mean() * 9 / 6
    assert report["scores"]["crps"] == pytest.approx(near - apart / 2)
    assert report["pictures"] == 9
    assert "| diversity ↑ | CRPS ↓ |" in capsys.readouterr().out


def test_an_interrupted_evaluation_resumes(count: list[int], monkeypatch: pytest.MonkeyPatch):
    whole = run()
    for name in (*(f"{name}.png" for name in NAMES), "settings.json"):
        Path("results", name).unlink()
    counted = BridgeSampler.__call__

    def interrupted(self: BridgeSampler, *args: Any, **settings: Any) -> Any:
        if len(count) == 3:
            raise KeyboardInterrupt
        return counted(self, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(BridgeSampler, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert sorted(path.name for path in Path("results").glob("*.png")) == ["04.png", "05.png"]
    assert run()["scores"] == whole["scores"]
    assert run()["seconds_per_picture"] is None  # of this run
    assert count == [2, 1, 2, 1]


def test_results_of_other_settings_or_data_are_not_mixed(count: list[int]):
    """A copy of all files is the same data; one other picture of the same name makes other data."""
    run()
    shutil.copytree("data", "copy")
    run(data="copy")
    assert count == [2, 1]
    for words, difference in (
        (["--steps", "2"], "nfe 3, now 2, timesteps"),
        (["--dtype", "bf16", "-r", "2"], r"num_samples 1, now 2, dtype float32, now bfloat16\)"),
        (["--image_size", "12"], r"image_size 16, now 12\)"),
    ):
        with pytest.raises(ValueError, match=rf"results holds results of other settings \({difference}"):
            run(*words)
    Image.new("RGB", (2 * SIZE, SIZE), "red").save("copy/val/04.png")
    with pytest.raises(ValueError, match=r"other settings \(files [0-9a-f]"):
        run(data="copy")
    save_checkpoint("c.pt", tiny_unet(1), ABridge(num_steps=100), image_size=SIZE)
    with pytest.raises(ValueError, match=r"other settings \(weights "):
        run()


def test_fid_end_to_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perceptual, "inception", Features)
    assert run(scores=("fid",))["scores"]["fid"] > 0


def test_sweep(count: list[int], capsys: pytest.CaptureFixture[str]):
    """It is checked before it starts, and kept when it ended."""
    flags = ["edge2shoes", "data", "c.pt", "sweep", "-b", "2", "--metrics", "psnr", "ssim", "--sweep"]
    for words, message in (
        (["dpm2m:5", "euler:5"], "solver must be one of"),
        (["dpm2m:5,x"], "sweep .* got 'dpm2m:5,x'"),
        (["dpm2m:"], "sweep .* got 'dpm2m:'"),
        (["ancestral:7"], "takes every time"),
    ):
        with pytest.raises(ValueError, match=message):
            eval_script.main([*flags, *words])
    assert count == []
    eval_script.main([*flags, "dpm2m:1,2", "mean"])
    reports = json.loads(Path("sweep/sweep.json").read_text())
    found = [f"{report['solver']}-{report['nfe']}" for report in reports]
    assert found == ["dpm2m-1", "dpm2m-2", "mean-1"]
    assert sorted(found) == sorted(path.name for path in Path("sweep").iterdir() if path.is_dir())
    assert json.loads(Path("sweep/dpm2m-2/scores.json").read_text()) == reports[1]
    assert min(Image.open("sweep/quality_nfe.png").size) > 200
    rows = capsys.readouterr().out.splitlines()
    assert [row.count("|") for row in rows[:5]] == [7] * 5
    count.clear()
    eval_script.main([*flags, "dpm2m:1,2", "mean:1"])  # the default by its number; all kept
    assert count == []


def test_volumes_without_bone_have_no_dice(capsys: pytest.CaptureFixture[str]):
    """Nor has their mean; in the table, None is a dash."""
    random = np.random.default_rng(0)
    for folder, low, high in (("mr", 0, 4096), ("ct", -1024, 0)):
        Path(folder).mkdir()
        for name in "ab":
            np.save(f"{folder}/{name}.npy", random.integers(low, high, (1, 4, 16, 16)).astype(np.int16))
    kind = Spec(source=Values(0, 4095, dtype="int16"), target=Values(-1024, 3071, "HU", "int16"), slices="axial")
    save_checkpoint("c.pt", tiny_unet(in_channels=1, out_channels=1), ABridge(num_steps=100), pictures=kind)

    words = ["paired", "mr,ct", "c.pt", "out", "--solver", "mean", "--dice_above", "9000", "--metrics", "mae", "dice"]
    eval_script.main(words)
    report = json.loads(Path("out/scores.json").read_text())
    assert (report["scores"]["dice"], report["by_patient"]["dice"]) == (None, {"a": None, "b": None})
    out = capsys.readouterr().out
    assert f"| mean | 1 | 2 | {report['scores']['mae']:.5g} | - |" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("edge2shoes data c.pt --metrics diversity", "diversity needs at least 2 results of each source, got 1"),
        ("folder data c.pt", "'folder' has no targets: degrade"),
        ("edge2shoes data c.pt --sweep ddim:2 --steps 3", "sweep names solvers"),
        ("edge2shoes data c.pt --size keep", "image_size keep"),
        ("unpaired A,B c.pt --metrics psnr", "metrics must be fid, and num_samples 1, .* got psnr and 1"),
    ],
)
def test_what_the_command_line_refuses(flags: str, message: str):
    """So do Python's callers of the settings."""
    with pytest.raises(ValueError, match=message):
        eval_script.main(flags.split())
