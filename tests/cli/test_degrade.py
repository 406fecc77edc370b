"""Restoration as a user runs it: training, translating and scoring from pictures alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import bbdm
from bbdm.base.seeds import seed_of
from bbdm.cli import eval as eval_script
from bbdm.cli import train, translate
from bbdm.data.degradations import Degradation
from bbdm.pictures import images
from bbdm.translation.results import ResultsError
from tests.cli.conftest import SIZE, pixels
from tests.conftest import SavePicture, noise, same_weights

SMALL = ["--preset", "demo", "--image_size", str(SIZE), "-b", "2", "--device", "cpu", "-t", "50"]


@pytest.fixture(autouse=True)
def place(world: Path, save_picture: SavePicture, tiny_demo: None) -> None:
    """Pictures in own/train and own/val, the latter wider than high; a checkpoint; a tiny preset."""
    for index, name in enumerate(("train/1", "train/2", "train/3", "train/4", "val/a", "val/b")):
        save_picture(world / "own" / f"{name}.png", noise(index, SIZE if index < 4 else 2 * SIZE, SIZE))


def fit(output: str, *flags: str, epochs: int = 2, degrade: str = "photo") -> Any:
    given = ["folder", "own", output, *SMALL, "-e", str(epochs), "--lr_schedule", "constant", "--degrade", degrade]
    train.main([*given, *flags])
    return bbdm.load_checkpoint(output).build_unet(ema=False)


def original(name: str, size: tuple[int, int]) -> Image.Image:
    return Image.open(f"own/val/{name}.png").resize(size, Image.Resampling.BILINEAR)


def test_training_resumes_as_if_undisturbed_and_refuses_others() -> None:
    """From cached pictures too."""
    straight = fit("straight.pt", "--cache_images", "cache")
    fit("resumed.pt", "--cache_images", "cache", epochs=1)
    assert same_weights(fit("resumed.pt"), straight)
    assert not same_weights(fit("masked.pt", degrade="photo@1"), straight)
    assert "validation_loss" in json.loads(Path("straight.run/metrics.jsonl").read_text().splitlines()[-1])
    with pytest.raises(ValueError, match=r"pairs.degradation photo@0, now blur@0,.*: resume with the same"):
        fit("resumed.pt", degrade="blur")
    with pytest.raises(ValueError, match="degrade is for pictures without targets"):
        train.main(["edge2shoes", "data", "m.pt", *SMALL, "--degrade", "sr4"])


def test_results_are_of_the_degraded_pictures_and_the_grid_and_scores_of_the_originals() -> None:
    """And results of another degradation are refused."""
    words = ["folder", "own", "c.pt", "results", "--steps", "2"]
    translate.main([*words, "--degrade", "blur"])
    grid, gap = pixels("results/grid.png")[images.NAME_HEIGHT :], 2
    height, width = SIZE // 2, SIZE  # val pictures fit inside SIZE x SIZE with their shape
    cells = [grid[gap:, gap + i * (width + gap) :][:height, :width] for i in range(3)]
    clean = np.asarray(original("a", (width, height)))
    assert np.array_equal(cells[2], clean)
    blurred = gaussian_filter(clean.astype(np.float64), (2, 2, 0), mode="nearest")
    assert abs(cells[0] - blurred).max() < 0.6  # rounded to whole numbers
    assert np.array_equal(cells[1], pixels("results/a.png"))
    with pytest.raises(ResultsError, match="degradation blur@0, now sr4@0"):
        translate.main([*words, "--degrade", "sr4"])
    eval_script.main([*words[:3], "scored", *words[4:], "--metrics", "psnr", "--degrade", "photo"])
    report, wanted = json.loads(Path("scored/scores.json").read_text()), list[float]()
    for name in "ab":
        source = Degradation.read("photo").picture(original(name, (SIZE, SIZE)), name)
        (result,) = bbdm.BridgeSampler.from_checkpoint("c.pt", steps=2)([source], seed=seed_of(name))
        assert abs(pixels(f"scored/{name}.png") - np.asarray(result, dtype=int)).max() <= 1
        gap = pixels(f"scored/{name}.png") - np.asarray(original(name, (SIZE, SIZE)), float)
        wanted.append(20 * np.log10(255 / np.sqrt((gap**2).mean())))
    assert report["scores"]["psnr"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert report["settings"]["degradation"] == "photo@0"
