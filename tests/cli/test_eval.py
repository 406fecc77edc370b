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
from bbdm import ABridge, BridgeSampler, VQGANCodec, save_checkpoint, save_vqgan
from bbdm.cli import eval as eval_script
from bbdm.cli.eval import Eval
from bbdm.data.spec import Spec
from bbdm.evaluation import perceptual
from bbdm.evaluation.metrics import Setup, defaults
from bbdm.pictures.values import Values
from bbdm.translation.results import ResultsError
from tests.conftest import SavePicture, noise, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.training.watched_script import Features

SIZE = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> Path:
    """Five pairs in the layout of edge2shoes, and a checkpoint; the working directory."""
    for index, name in enumerate("abcde"):
        save_picture(tmp_path / "data" / "val" / f"{name}.png", noise(index, 2 * SIZE, SIZE))
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags: str, steps: str = "3", scores: tuple[str, ...] = ("psnr", "ssim")) -> dict[str, Any]:
    given = ["edge2shoes", "data", "c.pt", "results", "-b", "2", "--steps", steps, *flags]
    eval_script.main([*given, "--metrics", *scores])
    return json.loads(Path("results/scores.json").read_text())


def test_scores_are_of_the_pictures_that_are_there(place: Path, capsys: pytest.CaptureFixture[str]):
    report = run()
    targets = [np.asarray(Image.open(f"data/val/{name}.png"))[:, SIZE:].astype(float) for name in "abcde"]
    results = [np.asarray(Image.open(f"results/{name}.png")).astype(float) for name in "abcde"]
    expected = np.mean(
        [20 * np.log10(255 / np.sqrt(((r - t) ** 2).mean())) for r, t in zip(results, targets, strict=True)]
    )
    assert report["scores"]["psnr"] == pytest.approx(expected, rel=1e-5)
    assert list(report["scores"]) == ["psnr", "ssim"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| solver | NFE | pictures | PSNR ↑ | SSIM ↑ | s / picture |"
    assert out[2].startswith(f"| dpm2m | 3 | 5 | {expected:.2f} | ")


def test_the_report_says_what_was_done(place: Path):
    report = run("--seed", "4", "--dtype", "bf16")
    assert (report["solver"], report["nfe"], report["pictures"]) == ("dpm2m", 3, 5)
    assert report["seconds_per_picture"] > 0
    settings = report["settings"]
    assert settings["bridge"]["num_steps"] == 100
    assert (settings["seed"], settings["dtype"], settings["image_size"]) == (4, "bfloat16", SIZE)
    assert settings["timesteps"][0] == 100
    assert len(settings["timesteps"]) == 3
    assert torch.__version__.startswith(report["environment"]["versions"]["torch"])
    assert report["environment"]["bbdm"] == bbdm.__version__
    assert report["environment"]["cpu"]


def test_diversity_needs_and_gets_several_samples(place: Path, capsys: pytest.CaptureFixture[str]):
    report = run("-r", "3", scores=("diversity", "psnr"))
    stacks = [
        np.stack([np.asarray(Image.open(f"results/{n}_{j}.png"), dtype=float) for j in range(3)]) for n in "abcde"
    ]
    assert report["scores"]["diversity"] == pytest.approx(np.mean([s.std(axis=0).mean() for s in stacks]), rel=1e-6)
    assert report["pictures"] == 15
    assert report["distribution"]["samples"] == 3
    targets = [np.asarray(Image.open(f"data/val/{n}.png"))[:, SIZE:].astype(float) for n in "abcde"]
    low, high = np.min(stacks, axis=1), np.max(stacks, axis=1)
    inside = np.mean((low <= targets) & (targets <= high))
    assert report["distribution"]["interval"]["coverage"] == pytest.approx(inside)
    assert "distribution of 3: energy score" in capsys.readouterr().out
    with pytest.raises(ValueError, match="diversity needs at least 2 results of each source, got 1"):
        run(scores=("diversity",))


def test_an_interrupted_evaluation_resumes(place: Path, count: list[int], monkeypatch: pytest.MonkeyPatch):
    """And where it overwrites, it leaves nothing old."""
    whole = run()
    assert count == [2, 2, 1]
    for name in "abcde":
        Path(f"results/{name}.png").unlink()
    Path("results/settings.json").unlink()
    counted, last = BridgeSampler.__call__, 5

    def interrupted(self: BridgeSampler, *args: Any, **settings: Any) -> Any:
        if len(count) == last:
            raise KeyboardInterrupt
        return counted(self, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(BridgeSampler, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert sorted(path.name for path in Path("results").glob("*.png")) == ["a.png", "b.png", "c.png", "d.png"]
    count.clear()
    assert run()["scores"] == whole["scores"]
    assert count == [1]
    assert run()["seconds_per_picture"] is None  # of this run
    assert count == [1]
    last = 1
    monkeypatch.setattr(BridgeSampler, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("--overwrite", "--seed", "1")
    assert list(Path("results").glob("*.png")) == []


def test_results_of_other_settings_are_not_mixed(place: Path, count: list[int]):
    run()
    before = Path("results/a.png").read_bytes()
    for flags, difference in (
        (["--seed", "1"], "seed 0, now 1"),
        (["-r", "2"], "num_samples 1, now 2"),
        (["--dtype", "bf16"], "dtype float32, now bfloat16"),
        (["--image_size", "12"], "image_size 16, now 12"),
    ):
        with pytest.raises(ResultsError, match=rf"results holds results of other settings \({difference}\)"):
            run(*flags)
    with pytest.raises(ValueError, match=r"nfe 3, now 2, timesteps"):
        run(steps="2")
    save_checkpoint("c.pt", tiny_unet(1), ABridge(num_steps=100), image_size=SIZE)
    with pytest.raises(ValueError, match=r"other settings \(weights "):
        run()
    assert Path("results/a.png").read_bytes() == before
    count.clear()
    run("--overwrite")
    assert sum(count) == 5
    assert Path("results/a.png").read_bytes() != before


def test_results_of_other_data_are_not_mixed(place: Path, count: list[int]):
    """A copy of all files is the same data; one other picture of the same name makes other data."""
    run()
    before = Path("results/a.png").read_bytes()
    shutil.copytree("data", "copy")
    flags = ["c.pt", "results", "-b", "2", "--steps", "3", "--metrics", "psnr"]
    count.clear()
    eval_script.main(["edge2shoes", "copy", *flags])
    assert count == []
    Image.new("RGB", (2 * SIZE, SIZE), "red").save("copy/val/a.png")
    with pytest.raises(ValueError, match=r"other settings \(files [0-9a-f]"):
        eval_script.main(["edge2shoes", "copy", *flags])
    assert Path("results/a.png").read_bytes() == before
    eval_script.main(["edge2shoes", "copy", *flags, "--overwrite"])
    assert Path("results/a.png").read_bytes() != before


def test_the_codec_counts_and_not_its_file(place: Path, count: list[int]):
    save_vqgan("vqgan.pt", tiny_vqgan())
    save_checkpoint("c.pt", tiny_unet(), ABridge(num_steps=100), codec=VQGANCodec(tiny_vqgan()), image_size=SIZE)
    run()
    count.clear()
    settings = run("-vq", "vqgan.pt")["settings"]
    assert count == []
    assert settings["codec"]["config"]["latent_channels"] == settings["unet"]["in_channels"] == 3


def test_fid_end_to_end(place: Path, count: list[int], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"there is no file none.pth of Inception weights"):
        run("--fid_weights", "none.pth", scores=("fid",))
    assert count == []
    given: list[Path | None] = []
    monkeypatch.setattr(perceptual, "inception", lambda weights: given.append(weights) or Features())
    report = run("--fid_weights", "inception.pth", scores=("fid",))
    assert given == [Path("inception.pth")]
    assert report["scores"]["fid"] > 0


def test_sweep(place: Path, count: list[int], capsys: pytest.CaptureFixture[str]):
    flags = ["edge2shoes", "data", "c.pt", "sweep", "-b", "2", "--metrics", "psnr", "ssim", "--sweep", "dpm2m:3,5"]
    eval_script.main([*flags, "fast", "ddim:2"])
    reports = json.loads(Path("sweep/sweep.json").read_text())
    found = [(report["solver"], report["nfe"]) for report in reports]
    assert found[:2] + found[3:] == [("dpm2m", 3), ("dpm2m", 5), ("ddim", 2)]
    solver, nfe = found[2]
    assert solver == "fast"
    assert nfe > 10
    folders = sorted(path.name for path in Path("sweep").iterdir() if path.is_dir())
    assert folders == sorted(["ddim-2", "dpm2m-3", "dpm2m-5", f"fast-{nfe}"])
    assert json.loads(Path("sweep/dpm2m-5/scores.json").read_text()) == reports[1]
    for name in ("quality_nfe.png", "quality_seconds.png"):
        assert min(Image.open(f"sweep/{name}").size) > 200
    rows = capsys.readouterr().out.splitlines()
    assert [row.count("|") for row in rows[:6]] == [7] * 6
    count.clear()
    eval_script.main([*flags, f"fast:{nfe}", "ddim:2"])  # the published list by its number; all kept
    assert count == []


def test_a_sweep_is_checked_before_it_starts(place: Path, count: list[int]):
    for words, message in (
        (["dpm2m:5", "euler:5"], "solver must be one of"),
        (["dpm2m:5,x"], "sweep .* got 'dpm2m:5,x'"),
        (["dpm2m:"], "sweep .* got 'dpm2m:'"),
        (["ancestral:7"], "takes every time"),
    ):
        with pytest.raises(ValueError, match=message):
            eval_script.main(["edge2shoes", "data", "c.pt", "sweep", "--metrics", "psnr", "--sweep", *words])
    assert count == []


def test_volumes_without_bone_have_no_dice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nor has their mean, and those with bone alone count; in the table, None is a dash."""
    random = np.random.default_rng(0)
    for folder, low, high in (("mr", 0, 4096), ("ct", -1024, 0)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            np.save(tmp_path / folder / f"{name}.npy", random.integers(low, high, (1, 4, 16, 16)).astype(np.int16))
    kind = Spec(source=Values(0, 4095, dtype="int16"), target=Values(-1024, 3071, "HU", "int16"), slices="axial")
    save_checkpoint(tmp_path / "c.pt", tiny_unet(in_channels=1, out_channels=1), ABridge(num_steps=100), pictures=kind)
    words = [
        "paired",
        f"{tmp_path}/mr,{tmp_path}/ct",
        str(tmp_path / "c.pt"),
        str(tmp_path / "out"),
        "--solver",
        "mean",
    ]
    eval_script.main([*words, "--metrics", "mae", "dice", "--dice_above", "9000"])
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert report["scores"]["dice"] is None
    assert report["by_patient"]["dice"] == {
        "mean": None,
        "std": None,
        "worst": None,
        "patients": {"a": None, "b": None},
    }
    out = capsys.readouterr().out
    assert f"| mean | 1 | 2 | {report['scores']['mae']:.5g} | - |" in out
    assert "| dice ↑ | - | - | - | - |" in out
    np.save(tmp_path / "ct" / "a.npy", np.full((1, 4, 16, 16), 9001, np.int16))
    eval_script.main([*words, "--metrics", "dice", "--dice_above", "9000", "--overwrite"])
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["dice"] == 0


def test_flags_of_the_public_code(place: Path):
    flags = ["edge2shoes", "data", "c.pt", "--fast_sampling", "--t", "1000", "-r", "2", "-l", "2", "-b", "8"]
    config = Eval.parse([*flags, "-vq", "vqgan.pt", "--show_verbose"])
    assert (config.chosen_solver, config.time_steps, config.num_samples, config.c_lambda) == ("fast", 1000, 2, 2.0)
    assert (config.vqgan_path, config.folder) == (Path("vqgan.pt"), Path("out/c-eval"))
    assert config.metrics is None
    assert defaults(Setup(samples=2)) == ["fid", "lpips", "diversity"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["folder", "data", "c.pt"], "'folder' has no targets: degrade"),
        (["edge2shoes", "data", "c.pt", "--metrics", "kid"], "metrics must be among fid, .* got kid"),
        (["edge2shoes", "data", "c.pt", "--sweep", "ddim:2", "--steps", "3"], "sweep names solvers"),
        (["edge2shoes", "data", "c.pt", "--size", "keep"], "image_size keep"),
        (["edge2shoes", "data", "c.pt", "-r", "0"], "num_samples must be at least 1, got 0"),
    ],
)
def test_what_the_command_line_refuses(flags: list[str], message: str):
    """So do Python's callers of the settings."""
    with pytest.raises(ValueError, match=message):
        Eval.parse(flags)
