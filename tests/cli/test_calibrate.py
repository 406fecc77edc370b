"""`bbdm calibrate` and `bbdm translate --maps` as a user runs them, with networks too small to be good."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm import ABridge, BridgeSampler, Intervals, Values, cli, pictures, save_checkpoint
from bbdm.cli import calibrate, translate
from bbdm.data.spec import Spec
from bbdm.evaluation.intervals import OtherSamplerError
from bbdm.evaluation.pairs import SeenPairsError
from bbdm.pictures import Picture
from bbdm.sampling.options import GuidanceOptions
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, MakeTrainer, SavePicture, load_pairs, newest, save_random_pairs, tiny_unet

SIZE = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> Path:
    """Ten pairs for validation and two for training in the layout of edge2shoes, and a checkpoint."""
    save_random_pairs(tmp_path / "data", 2, 10, save_picture)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["--samples", "3", "--bound", "conformal", "--steps", "2", "--solver", "sde-dpm2m", "--quiet"]


def run(*flags: str) -> dict[str, Any]:
    calibrate.main(["c.pt", "edge2shoes", "data", *FLAGS, *flags])
    return json.loads(Path("c.intervals.json").read_text())


def test_the_file_has_the_intervals_of_the_library(place: Path, capsys: pytest.CaptureFixture[str]):
    made = run("--alpha", "0.2", "--seed", "5")
    sampler = BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)
    pairs = load_pairs("edge2shoes", "data", "val", size=SIZE)
    wanted = Intervals.calibrate(sampler, pairs, 0.2, samples=3, bound="conformal", seed=5)
    assert vars(Intervals.load("c.intervals.json", sampler)) == vars(wanted)
    assert made["pairs"] == 10
    assert capsys.readouterr().out.startswith("10 pairs: ")
    with pytest.raises(ValueError, match=r"c.intervals.json exists already"):
        run()
    assert run("--overwrite")["alpha"] == 0.1


def test_pairs_that_were_in_training_are_refused(place: Path):
    """By their content in the part train."""
    data = place / "data"
    copied = data / "train" / "copy.png"
    copied.write_bytes((data / "val" / "05.png").read_bytes())
    with pytest.raises(SeenPairsError, match=r"val/05.png has the content of data/train/copy.png, a training pair"):
        run()


@pytest.mark.parametrize("spec", [{"size": 16}, {"size": 12}, {"crop": 8, "crops": 3}], ids=["same", "size", "crops"])
def test_pairs_of_a_run_are_refused(spec: dict[str, Any], place: Path):
    """By their files in the record of the run's folder, whatever was made of them."""
    pairs = load_pairs("edge2shoes", "data", "val", **spec)
    Trainer(tiny_unet(), BRIDGE, TrainConfig(epochs=1, batch_size=10), pairs, None, Path("c.run")).fit()
    with pytest.raises(SeenPairsError, match=r"these 10 pairs were in training, by c.run/config.json"):
        run()


def test_pairs_of_a_checkpoint_that_training_resumes_from(place: Path, make_trainer: MakeTrainer):
    trainer = make_trainer(epochs=1)
    trainer.fit()
    file = newest(trainer)
    with pytest.raises(SeenPairsError, match=r"these 4 pairs were in training, by their names"):
        calibrate.main([str(file), "paired", f"{place}/pairs/A,{place}/pairs/B", *FLAGS, "--alpha", "0.4"])


def test_a_folder_of_pictures_alone_is_refused():
    with pytest.raises(ValueError, match="the data set 'folder' has no targets: degrade makes"):
        calibrate.main(["c.pt", "folder", "data"])


def test_too_few_pairs_are_said_before_any_network_call(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BridgeSampler, "distribution", None)
    with pytest.raises(ValueError, match=r"alpha 0.05 needs at least 19 pairs.*, got 10"):
        run("--alpha", "0.05")


def test_maps_are_those_of_the_results_in_files(place: Path):
    """Of the 8-bit results of -r, whose rounding moves a mean by half a level."""
    translate.main(["edge2shoes", "data", "c.pt", "results", *FLAGS[4:], "-r", "4", "--seed", "3"])
    maps = ["--samples", "4", "--maps", "mean,std,q25,q100", "-b", "3"]
    translate.main(["edge2shoes", "data", "c.pt", "maps", *FLAGS[4:], *maps, "--seed", "3"])
    assert len(list(Path("maps").glob("*.png"))) == 10 * 4 + 1
    for name in ("02", "11"):
        results = np.stack([np.asarray(Image.open(f"results/{name}_{j}.png"), float) for j in range(4)])
        for kind, wanted in {
            "mean": results.mean(0),
            "std": results.std(0, ddof=1),
            "q25": np.quantile(results, 0.25, axis=0),
            "q100": results.max(0),
        }.items():
            made = np.asarray(Image.open(f"maps/{name}_{kind}.png"), float)
            assert abs(made - wanted).max() <= 1.1, kind


MAPS = ["edge2shoes", "data", "c.pt", "maps", "--maps", "low,high", "--quiet"]


def test_maps_of_intervals(place: Path):
    """Solver, steps and samples are those of the file."""
    run("--alpha", "0.2")
    translate.main(MAPS)
    sampler = BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)
    found = Intervals.load("c.intervals.json", sampler)
    source = Image.open("data/val/06.png").crop((0, 0, SIZE, SIZE))
    for kind, end in zip(("low", "high"), found(source, seed=[[4 + 10 * j for j in range(3)]]), strict=True):
        assert np.array_equal(np.asarray(Image.open(f"maps/06_{kind}.png")), np.asarray(end[0]))
    with pytest.raises(ValueError, match=r"on pictures of 16 x 16, got 8 x 8: calibrate on pictures of this size"):
        translate.main([*MAPS, "--overwrite", "--size", "8"])
    Path("c.intervals.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there are no intervals c.intervals.json: bbdm calibrate"):
        translate.main([*MAPS, "--overwrite"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--solver dpm2m", "solver is dpm2m, and c.intervals.json was calibrated with solver sde-dpm2m: leave it out"),
        ("--fast_sampling", "solver is fast, and .* solver sde-dpm2m"),
        ("--steps 3", "steps is 3, and .* steps 2"),
        ("--samples 16", "num_samples is 16, and .* num_samples 3"),
        ("-r 1", "num_samples is 1, and .* num_samples 3"),
        ("--window none", "window is None, and .* window 8"),
        ("--window auto", "window is auto, and .* window 8"),
        ("--overlap 0.25", "overlap is 0.25, and .* overlap 0.5"),
        ("--margin 2", "margin is 2, and .* margin 0"),
        ("--guidance 1.5", "guidance is 1.5, and .* guidance None"),
        ("--guidance_rescale 0.5", "guidance_rescale is 0.5, and .* guidance_rescale 0.0"),
        ("--guidance_interval 0:0.5", r"guidance_interval is \(0.0, 0.5\), and .* guidance_interval \(0.0, 1.0\)"),
    ],
)
def test_flags_that_contradict_intervals(place: Path, monkeypatch: pytest.MonkeyPatch, flags: str, message: str):
    """Also those that name the command's default, which another calibration lacks."""
    options = GuidanceOptions(window=8, overlap=0.5)
    sampled = {"solver": "sde-dpm2m", "timesteps": [1.0, 0.5]}
    values = 0.1, 0.1, 3, "std", "conformal", 1.0, 10, 0.0, 0.1, (SIZE, SIZE), "", sampled, asdict(options)
    Intervals(None, *values).save("c.intervals.json")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(BridgeSampler, "distribution", None)
    with pytest.raises(OtherSamplerError, match=message):
        translate.main([*MAPS, *flags.split()])


def test_windows_are_those_of_the_calibration(place: Path):
    """And pictures have the size of training, as there; flags that say so too are taken."""
    save_checkpoint("c.pt", tiny_unet(attention_resolutions=()), ABridge(num_steps=100), image_size=SIZE)
    assert run("--alpha", "0.2", "--window", "8", "--overlap", "0.5")["options"]["window"] == 8
    translate.main(MAPS)
    sampler = BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)
    source = Image.open("data/val/06.png").crop((0, 0, SIZE, SIZE))
    seeds = [[4 + 10 * j for j in range(3)]]
    low, _ = Intervals.load("c.intervals.json", sampler)(source, seed=seeds)
    written = np.asarray(Image.open("maps/06_low.png"))
    assert np.array_equal(written, np.asarray(low[0]))
    other = sampler.distribution(source, 3, seeds, window=None)
    assert not np.array_equal(written, np.asarray(Intervals.load("c.intervals.json", sampler).of(other)[0][0]))
    translate.main([*MAPS, *FLAGS[4:], "--samples", "3", "--window", "8", "--overlap", "0.5", "--size", "train"])


@pytest.mark.parametrize(
    ("maps", "message"),
    [("mean,median", "mean, std, low, high and quantiles .*, got 'median'"), ("mean,q101", "got 'q101'"),
     ("mean", "num_samples must be at least 2, got 1")],
)  # fmt: skip
def test_maps_that_there_are_not(maps: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.run("translate", ["edge2shoes", "data", "c.pt", "--maps", maps])
    assert re.search(message, f"{capsys.readouterr().err}{end.value}")


def test_maps_of_values_have_their_type_and_place(tmp_path: Path):
    """A map of a TIFF of 16 bits is one, in the unit of the target."""
    rng = np.random.default_rng(0)
    for name in ("A/0", "A/1", "B/0", "B/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Picture(rng.integers(0, 4096, (1, SIZE, SIZE), dtype=np.uint16)).save(tmp_path / f"{name}.tif")
    kind = Spec(source=Values(0, 4095, dtype="uint16"), target=Values(0, 4095, dtype="uint16"))
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    save_checkpoint(tmp_path / "c.pt", unet, ABridge(num_steps=100), image_size=SIZE, pictures=kind)
    out, data = tmp_path / "out", f"{tmp_path}/A,{tmp_path}/B"
    flags = ["paired", data, str(tmp_path / "c.pt"), str(out), *FLAGS[4:], "-r", "3"]
    translate.main([*flags, "--maps", "mean,std"])
    translate.main([*flags[:3], str(tmp_path / "all"), *flags[4:]])
    results = np.stack([pictures.read(tmp_path / "all" / f"1_{j}.tif").astype(float) for j in range(3)])
    std = pictures.read(out / "1_std.tif")
    assert std.dtype == np.uint16
    assert abs(std - results.std(0, ddof=1)).max() <= 1.2


def test_volumes_by_their_slices(tmp_path: Path):
    """A volume is one of the pairs that calibrate; its maps are volumes on its grid."""
    rng, hu = np.random.default_rng(0), Values(-1024, 3071, "HU", "int16")
    for name in (f"{side}/{i}" for side in ("MR", "CT") for i in range(4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Picture(rng.integers(-1024, 3072, (1, 3, SIZE, SIZE), dtype=np.int16)).save(tmp_path / f"{name}.npy")
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    kind = Spec(source=hu, target=hu, slices="axial")
    save_checkpoint(tmp_path / "c.pt", unet, ABridge(num_steps=100), image_size=SIZE, pictures=kind)
    words = ["paired", f"{tmp_path}/MR,{tmp_path}/CT", *FLAGS]
    calibrate.main([str(tmp_path / "c.pt"), *words, "--alpha", "0.4"])
    made = json.loads((tmp_path / "c.intervals.json").read_text())
    assert (made["pairs"], made["size"]) == (4, [SIZE, SIZE])
    maps = ["--maps", "low,mean,high,std", "--seed", "9"]
    translate.main([*words[:2], str(tmp_path / "c.pt"), str(tmp_path / "out"), *FLAGS[:2], *FLAGS[4:], *maps])
    names = ("low", "mean", "high", "std")
    low, mean, high, std = (pictures.read(tmp_path / "out" / f"2_{name}.npy") for name in names)
    assert low.shape == std.shape == (1, 3, SIZE, SIZE)
    assert std.dtype == np.int16
    assert ((low <= mean) & (mean <= high)).all()
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt", solver="sde-dpm2m", steps=2)
    each = [np.asarray(sampler(tmp_path / "MR" / "2.npy", seed=9 + 2 + 4 * j)[0], float) for j in range(3)]
    assert abs(np.mean(each, axis=0) - mean).max() <= 1.5
