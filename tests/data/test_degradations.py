"""Degradations, each against its definition; data sets of degraded pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from bbdm.data.degradations import DEGRADATIONS, Degradation
from tests.data.making import Array, load, pictures, pixels, save

NOISE = pixels(0, 40, 56)


def degraded(text: str, array: Array, name: str = "a") -> Array:
    return np.asarray(Degradation.read(text).picture(Image.fromarray(array), name), dtype=np.float64)


@pytest.mark.parametrize("text", DEGRADATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_size_and_mode_stay(text: str, mode: str) -> None:
    for size in ((37, 19), (8, 8), (1, 3)):
        picture = Image.fromarray(NOISE).crop((0, 0, *size)).convert(mode)
        made = Degradation.read(text).picture(picture.copy(), "a")
        assert (made.size, made.mode) == (size, mode)
        assert size == (1, 3) or made.tobytes() != picture.tobytes()


def test_sr4_keeps_low_frequencies_and_no_high_ones() -> None:
    """Waves along both sides; below 8 pixels a wave has no place in a picture of a quarter."""
    for period, kept in ((2, 0.0), (3, 0.0), (32, 1.0), (64, 1.0)):
        wave = 127.5 + 100 * np.cos(2 * np.pi * np.arange(128) / period)
        array = np.rint(np.broadcast_to(wave, (64, 128))).astype(np.uint8)
        for turned in (array, array.T.copy()):
            inside = (degraded("sr4", turned) - 127.5)[16:-16, 16:-16]
            assert abs(inside - kept * (turned - 127.5)[16:-16, 16:-16]).max() < 3


@pytest.mark.parametrize("array", [NOISE, NOISE[..., 0].copy()], ids=["colour", "grey"])
def test_jpeg_is_a_file_read_again_and_blur_gaussian(array: Array) -> None:
    Image.fromarray(array).save(file := io.BytesIO(), "jpeg", quality=10)
    assert np.array_equal(degraded("jpeg", array), np.asarray(Image.open(file)))
    wanted = gaussian_filter(array.astype(np.float64), (2, 2, 0)[: array.ndim], mode="nearest")
    assert abs(degraded("blur", array) - wanted).max() < 0.6  # rounded to whole numbers


def test_photo_is_weak_and_strong_and_keeps_the_mean() -> None:
    array = np.rint(gaussian_filter(NOISE.astype(float), (3, 3, 0))).astype(np.uint8)
    made = np.stack([degraded("photo", array, str(index)) for index in range(100)])
    errors = np.sqrt(np.square(made - array).mean(axis=(1, 2, 3)))
    assert np.quantile(errors, 0.1) < 3 < 6 < np.quantile(errors, 0.9)
    assert np.abs(made.mean(axis=(1, 2)) - array.mean(axis=(0, 1))).max() < 4
    assert len({each.tobytes() for each in made}) == len(made)
    first = degraded("photo@3", NOISE)  # a function of name and seed
    assert np.array_equal(first, degraded("photo@3", NOISE))
    for text, name in (("photo@3", "b"), ("photo@4", "a"), ("photo", "a")):
        assert not np.array_equal(first, degraded(text, NOISE, name))


def test_texts() -> None:
    for text, wanted in (("jpeg@2", "jpeg@2"), ("sr4", "sr4@0"), ("photo@7", "photo@7")):
        assert str(Degradation.read(text)) == wanted
        assert Degradation.read(wanted) == Degradation.read(text)
    for text in ("fog", "", "sr4@x", "sr4@", "jpeg:5"):
        with pytest.raises(ValueError, match=f"must be one of sr4, .*, and maybe @SEED; got '{text}'"):
            Degradation.read(text)


class TestDataSet:
    @staticmethod
    def load(folder: Path, degrade: str = "photo", **settings: Any) -> Any:
        save(folder / "deep/a.png", pixels(0, 16, 20))
        return load(folder, "folder", prepare=Degradation.read(degrade), **settings)

    def test_an_example_is_degraded_and_original(self, tmp_path: Path) -> None:
        """Of a crop it is of the crop, and anew in each epoch."""
        original = np.asarray(Image.fromarray(pixels(0, 16, 20)).resize((8, 8), Image.Resampling.BILINEAR))
        assert (self.load(tmp_path, size=8).read(0).target.numpy() == original.transpose(2, 0, 1)).all()
        ways: list[tuple[Any, str, int]] = [({"size": 8}, "", 0), ({"crop": 16}, " 0 0", 0), ({"crop": 16}, " 0 1", 1)]
        for how, key, seed in ways:
            source, target = (side.numpy().transpose(1, 2, 0) for side in self.load(tmp_path, **how).read(0, seed)[:2])
            assert (source == degraded("photo", target, f"deep/a{key}")).all()
            assert (source != target).any()

    def test_others_than_pictures_alone_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"A/0\.png.*without targets \(the data set 'folder'\)"):
            load(pictures(tmp_path / "pairs"), prepare=Degradation.read("sr4")).read(0)
        save(tmp_path / "values/0.npy", np.zeros((1, 8, 8), np.float32))
        with pytest.raises(ValueError, match=r"0\.npy: degrade is for grey and colour of 8 bits, got \(1, 8, 8\)"):
            self.load(tmp_path / "values").read(0)

    def test_it_is_part_of_digests(self, tmp_path: Path) -> None:
        digests = {self.load(tmp_path, text).digest() for text in ("photo", "photo@1", "jpeg")}
        assert len(digests | {load(tmp_path, "folder").digest()}) == 4
        assert self.load(tmp_path, "jpeg").digest() == self.load(tmp_path, "jpeg@0").digest()
