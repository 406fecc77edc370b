"""Degradations, each against its definition; data sets of degraded pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from bbdm.data.degradations import DEGRADATIONS, Degradation
from tests.data.making import Array, load, pictures, pixels, save

NOISE = pixels(0, 40, 56)


def degraded(text: str, array: Array, name: str = "a") -> Array:
    return np.asarray(Degradation.read(text).picture(Image.fromarray(array), name), dtype=np.float64)


@pytest.mark.parametrize("text", [*DEGRADATIONS, "jpeg:5", "blur:0.7"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_size_and_mode_stay(text: str, mode: str) -> None:
    for size in ((56, 40), (37, 19), (8, 8), (1, 3)):
        picture = Image.fromarray(NOISE).crop((0, 0, *size)).convert(mode)
        made = Degradation.read(text).picture(picture.copy(), "a")
        assert (made.size, made.mode) == (size, mode)
        if size > (1, 3):
            assert made.tobytes() != picture.tobytes()


def test_sr4_keeps_low_frequencies_and_no_high_ones() -> None:
    """Waves along both sides; below 8 pixels a wave has no place in a picture of a quarter."""
    for period, kept in ((2, 0.0), (3, 0.0), (32, 1.0), (64, 1.0)):
        wave = 127.5 + 100 * np.cos(2 * np.pi * np.arange(128) / period)
        array = np.rint(np.broadcast_to(wave, (128, 128))).astype(np.uint8)
        for turned in (array, array.T.copy()):
            inside = (degraded("sr4", turned) - 127.5)[16:-16, 16:-16]
            assert abs(inside - kept * (turned - 127.5)[16:-16, 16:-16]).max() < 3


@pytest.mark.parametrize(("text", "quality"), [("jpeg", 10), ("jpeg:5", 5), ("jpeg:30", 30)])
def test_jpeg_is_a_file_of_its_quality_read_again(text: str, quality: int) -> None:
    for array in (NOISE, NOISE[..., 0].copy()):
        Image.fromarray(array).save(file := io.BytesIO(), "jpeg", quality=quality)
        assert np.array_equal(degraded(text, array), np.asarray(Image.open(file)))


@pytest.mark.parametrize(("text", "sigma"), [("blur", 2.0), ("blur:0.7", 0.7), ("blur:5", 5.0)])
def test_blur_is_gaussian(text: str, sigma: float) -> None:
    for array, sigmas in ((NOISE, (sigma, sigma, 0)), (NOISE[..., 0].copy(), sigma)):
        wanted = gaussian_filter(array.astype(np.float64), sigmas, mode="nearest")
        assert abs(degraded(text, array) - wanted).max() < 0.6  # rounded to whole numbers


def test_photo_is_weak_and_strong_and_keeps_the_mean() -> None:
    array = np.rint(gaussian_filter(NOISE.astype(float), (3, 3, 0))).astype(np.uint8)
    made = np.stack([degraded("photo", array, str(index)) for index in range(100)])
    errors = np.sqrt(np.square(made - array).mean(axis=(1, 2, 3)))
    assert np.quantile(errors, 0.1) < 3 < 6 < np.quantile(errors, 0.9)
    assert np.abs(made.mean(axis=(1, 2)) - array.mean(axis=(0, 1))).max() < 4
    assert len({each.tobytes() for each in made}) == len(made)


def test_a_picture_gets_what_its_name_and_the_seed_decide() -> None:
    first = degraded("photo@3", NOISE)
    assert np.array_equal(first, degraded("photo@3", NOISE))
    for text, name in (("photo@3", "b"), ("photo@4", "a"), ("photo@3", "deep/a"), ("photo", "a")):
        assert not np.array_equal(first, degraded(text, NOISE, name))


def test_texts() -> None:
    for text, wanted in (("jpeg@2", "jpeg:10@2"), ("blur:1.5", "blur:1.5@0"), ("sr4", "sr4@0"), ("photo@7", "photo@7")):
        assert str(Degradation.read(text)) == wanted
        assert Degradation.read(wanted) == Degradation.read(text)
    wrong = {text: f"must be one of sr4, .*, and maybe @SEED; got '{text}'" for text in ("fog", "", "sr4@x", "sr4@")}
    wrong |= {f"jpeg:{level}": "'jpeg' takes an integer from 1 to 95" for level in ("0", "7.5", "", "96")}
    wrong |= {f"blur:{level}": "'blur' takes a number from 0.1 to 20" for level in ("nan", "soft", "21")}
    for text, message in {**wrong, "sr4:2": "'sr4' takes no number, got 'sr4:2'"}.items():
        with pytest.raises(ValueError, match=message):
            Degradation.read(text)


class TestDataSet:
    @staticmethod
    def load(folder: Path, degrade: str = "photo", **settings: Any) -> Any:
        save(folder / "deep/a.png", pixels(0, 16, 20) // 3)
        return load(folder, "folder", prepare=Degradation.read(degrade), **settings)

    def test_an_example_is_degraded_and_original(self, tmp_path: Path) -> None:
        example = self.load(tmp_path, size=8).read(0)
        original = np.asarray(Image.fromarray(pixels(0, 16, 20) // 3).resize((8, 8), Image.Resampling.BILINEAR))
        assert (example.target.numpy() == original.transpose(2, 0, 1)).all()
        assert (example.source.numpy() == degraded("photo", original, "deep/a").transpose(2, 0, 1)).all()

    def test_of_a_crop_it_is_of_the_crop_and_anew_in_each_epoch(self, tmp_path: Path) -> None:
        pairs = self.load(tmp_path, crop=16)
        examples = [pairs.read(0, seed) for seed in (0, 1, 2)]
        for seed, example in enumerate(examples):
            source, target = (side.numpy().transpose(1, 2, 0) for side in example[:2])
            assert (source == degraded("photo", target, f"deep/a 0 {seed}")).all()
        assert torch.equal(pairs.read(0, 2).source, examples[2].source)

    def test_others_than_pictures_alone_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"A/0\.png.*without targets \(the data set 'folder'\)"):
            load(pictures(tmp_path / "pairs"), prepare=Degradation.read("sr4")).read(0)
        save(tmp_path / "values/0.npy", np.zeros((1, 8, 8), np.float32))
        with pytest.raises(ValueError, match=r"0\.npy: degrade is for grey and colour of 8 bits, got \(1, 8, 8\)"):
            self.load(tmp_path / "values").read(0)

    def test_it_is_part_of_digests(self, tmp_path: Path) -> None:
        digests = {self.load(tmp_path, text).digest() for text in ("photo", "photo@1", "jpeg", "jpeg:5", "blur")}
        assert len(digests | {load(tmp_path, "folder").digest()}) == 6
        assert self.load(tmp_path, "jpeg").digest() == self.load(tmp_path, "jpeg:10@0").digest()
