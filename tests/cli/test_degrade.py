"""`--degrade` as a user runs it: results and scores from pictures alone."""

import json
from pathlib import Path

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
from tests.conftest import SavePicture, noise


@pytest.fixture(autouse=True)
def place(world: Path, save_picture: SavePicture) -> None:
    """Pictures in own/val, wider than high; a checkpoint."""
    for index, name in enumerate("ab"):
        save_picture(world / "own" / "val" / f"{name}.png", noise(index, 2 * SIZE, SIZE))


def test_training_degrades_and_refuses_another_degradation(tiny_demo: None) -> None:
    """From cached pictures too; `val` is what there is to train on."""
    Path("own/val").rename("own/train")
    words = ["folder", "own", "m.pt", "--preset", "demo", "--image_size", str(SIZE), "-b", "2", "-e", "1"]
    train.main([*words, "--degrade", "photo", "--cache_images", "cache"])
    assert json.loads(Path("m.run/config.json").read_text())["pairs"]["degradation"] == "photo@0"
    with pytest.raises(ValueError, match=r"pairs.degradation photo@0, now blur:2@0,.*: resume with the same"):
        train.main([*words, "--degrade", "blur", "-e", "2"])
    with pytest.raises(ValueError, match="degrade is for pictures without targets"):
        train.main(["edge2shoes", "data", *words[2:], "--degrade", "sr4"])


def original(name: str, size: tuple[int, int]) -> Image.Image:
    return Image.open(f"own/val/{name}.png").resize(size, Image.Resampling.BILINEAR)


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
    with pytest.raises(ResultsError, match="degradation blur:2@0, now sr4@0"):
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
