"""`bbdm calibrate` and `bbdm translate --maps` as a user runs them, with networks too small to be good."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm import ABridge, BridgeSampler, Intervals, Values, pictures, save_checkpoint
from bbdm.cli import translate
from bbdm.cli.eval import Calibrate
from bbdm.data.spec import Spec
from bbdm.pictures import Picture
from bbdm.sampling.options import GuidanceOptions
from tests.cli.conftest import SIZE, pixels, sides
from tests.conftest import SavePicture, load_pairs, noise, tiny_unet

FLAGS = ["--samples", "3", "--bound", "conformal", "--steps", "2", "--solver", "sde-dpm2m", "--quiet"]
MAPS = ["edge2shoes", "data", "c.pt", "maps", "--maps", "low,high", "--quiet"]
SAMPLES = [[2 + 4 * j for j in range(3)]]  # the seeds of the third of four sources


@pytest.fixture
def place(world: Path, save_picture: SavePicture) -> Path:
    """With a fourth pair for validation, so that alpha may be 0.2."""
    save_picture(world / "data" / "val" / "07.png", noise(7, 2 * SIZE, SIZE))
    return world


def run(*flags: str) -> dict[str, Any]:
    Calibrate.main(["c.pt", "edge2shoes", "data", "--alpha", "0.2", *FLAGS, *flags])
    return json.loads(Path("c.intervals.json").read_text())


def calibrated() -> BridgeSampler:
    return BridgeSampler.from_checkpoint("c.pt", solver="sde-dpm2m", steps=2)


def test_the_file_has_the_intervals_of_the_library(place: Path, capsys: pytest.CaptureFixture[str]):
    made, sampler = run("--seed", "5"), calibrated()
    pairs = load_pairs("edge2shoes", "data", "val", size=SIZE)
    wanted = Intervals.calibrate(sampler, pairs, 0.2, samples=3, bound="conformal", seed=5)
    assert vars(Intervals.load("c.intervals.json", sampler)) == vars(wanted)
    assert made["pairs"] == 4
    assert capsys.readouterr().out.startswith("4 pairs: ")
    with pytest.raises(ValueError, match=r"c.intervals.json exists already"):
        run()
    assert run("--overwrite", "--alpha", "0.3")["alpha"] == 0.3


def test_pairs_that_were_in_training_are_refused(place: Path):
    """By their content in the part train."""
    copied = place / "data" / "train" / "copy.png"
    copied.write_bytes((place / "data" / "val" / "05.png").read_bytes())
    with pytest.raises(ValueError, match=r"val/05.png has the content of data/train/copy.png, a training pair"):
        run()


def test_maps_of_intervals(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Solver, steps and samples are those of the file."""
    run()
    translate.main(MAPS)
    found = Intervals.load("c.intervals.json", calibrated())
    for kind, end in zip(("low", "high"), found(sides("06")[0], seed=SAMPLES), strict=True):
        assert np.array_equal(pixels(f"maps/06_{kind}.png"), np.asarray(end[0]))
    with monkeypatch.context() as patch:
        patch.setattr(BridgeSampler, "distribution", None)  # nothing is sampled before
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
        ("-r 1", "num_samples is 1, and .* num_samples 3"),
        ("--window none", "window is None, and .* window 8"),
        ("--overlap 0.25", "overlap is 0.25, and .* overlap 0.5"),
        ("--guidance 1.5", "guidance is 1.5, and .* guidance None"),
    ],
)
def test_flags_that_contradict_intervals(place: Path, monkeypatch: pytest.MonkeyPatch, flags: str, message: str):
    """Also those that name the command's default, which another calibration lacks."""
    options = GuidanceOptions(window=8, overlap=0.5)
    sampled = {"solver": "sde-dpm2m", "timesteps": [1.0, 0.5]}
    values = 0.1, 0.1, 3, "std", "conformal", 1.0, 10, 0.0, 0.1, (SIZE, SIZE), sampled, asdict(options)
    Intervals(None, *values).save("c.intervals.json")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(BridgeSampler, "distribution", None)
    with pytest.raises(ValueError, match=message):
        translate.main([*MAPS, *flags.split()])


def test_windows_are_those_of_the_calibration(place: Path):
    """And pictures have the size of training, as there; flags that say so too are taken."""
    save_checkpoint("c.pt", tiny_unet(attention_resolutions=()), ABridge(num_steps=100), image_size=SIZE)
    assert run("--window", "8", "--overlap", "0.5")["options"]["window"] == 8
    translate.main(MAPS)
    sampler, source = calibrated(), sides("06")[0]
    low, _ = Intervals.load("c.intervals.json", sampler)(source, seed=SAMPLES)
    written = pixels("maps/06_low.png")
    assert np.array_equal(written, np.asarray(low[0]))
    other = sampler.distribution(source, 3, SAMPLES, window=None)
    assert not np.array_equal(written, np.asarray(Intervals.load("c.intervals.json", sampler).of(other)[0][0]))
    translate.main([*MAPS, *FLAGS[4:], "--samples", "3", "--window", "8", "--overlap", "0.5", "--size", "train"])


def test_volumes_by_their_slices(place: Path):
    """A volume is one of the pairs that calibrate; its maps are volumes on its grid."""
    rng, hu = np.random.default_rng(0), Values(-1024, 3071, "HU", "int16")
    for name in (f"{side}/{i}" for side in ("MR", "CT") for i in range(4)):
        Path(name).parent.mkdir(exist_ok=True)
        Picture(rng.integers(-1024, 3072, (1, 3, SIZE, SIZE), dtype=np.int16)).save(f"{name}.npy")
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    kind = Spec(source=hu, target=hu, slices="axial")
    save_checkpoint("c.pt", unet, ABridge(num_steps=100), image_size=SIZE, pictures=kind)
    Calibrate.main(["c.pt", "paired", "MR,CT", *FLAGS, "--alpha", "0.4"])
    made = json.loads(Path("c.intervals.json").read_text())
    assert (made["pairs"], made["size"]) == (4, [SIZE, SIZE])
    translate.main(["paired", "MR,CT", "c.pt", "out", *FLAGS[:2], *FLAGS[4:], "--maps", "low,mean,high,std"])
    low, mean, high, std = (pictures.read(f"out/2_{name}.npy") for name in ("low", "mean", "high", "std"))
    assert (std.shape, std.dtype) == ((1, 3, SIZE, SIZE), np.int16)
    assert ((low <= mean) & (mean <= high)).all()
    each = [np.asarray(calibrated()(Path("MR/2.npy"), seed=2 + 4 * j)[0], float) for j in range(3)]
    assert abs(np.mean(each, axis=0) - mean).max() <= 1.5
