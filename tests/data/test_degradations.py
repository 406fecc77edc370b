"""Degradations, each against its definition; data sets of degraded pictures."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from bbdm.data import degradations
from bbdm.data.cache import CachedExamples
from bbdm.data.degradations import DEGRADATIONS, Degradation, Kind
from bbdm.data.loading import Batches
from tests.data.making import Array, load, pictures, pixels, save

ROOT = Path(__file__).parents[2]
NOISE = pixels(0, 40, 56)
# Table K.1 of ITU-T T.81: quantisation of luminance at quality 50
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""


def degraded(text: str, array: Array, name: str = "a") -> Array:
    return np.asarray(Degradation.read(text).picture(Image.fromarray(array), name), dtype=np.float64)


def blocks(array: Array) -> Array:
    """Cosine transforms of the blocks of 8 x 8 of a grey picture, as JPEG has them."""
    height, width = array.shape
    cut = (array - 128).reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    return np.asarray(dctn(cut, axes=(2, 3), norm="ortho"))


class TestEach:
    @pytest.mark.parametrize("text", [*DEGRADATIONS, "jpeg:5", "blur:0.7"])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_keeps_size_and_mode_and_repeats_itself(self, text: str, mode: str) -> None:
        for size in ((56, 40), (37, 19), (8, 8), (1, 3)):
            picture = Image.fromarray(NOISE).crop((0, 0, *size)).convert(mode)
            before = picture.tobytes()
            made = [Degradation.read(text).picture(picture, "a") for _ in range(2)]
            assert (made[0].size, made[0].mode) == (size, mode)
            assert made[0].tobytes() == made[1].tobytes()
            assert picture.tobytes() == before
            if size > (1, 3) and (text, mode) != ("gray", "L"):
                assert made[0].tobytes() != before

    def test_sr4_keeps_low_frequencies_and_no_high_ones(self) -> None:
        """Waves along both sides; below 8 pixels a wave has no place in a picture of a quarter."""
        for period, kept in ((2, 0.0), (3, 0.0), (32, 1.0), (64, 1.0)):
            wave = 127.5 + 100 * np.cos(2 * np.pi * np.arange(128) / period)
            array = np.rint(np.broadcast_to(wave, (128, 128))).astype(np.uint8)
            for turned in (array, array.T.copy()):
                inside = (degraded("sr4", turned) - 127.5)[16:-16, 16:-16]
                assert abs(inside - kept * (turned - 127.5)[16:-16, 16:-16]).max() < 3

    @pytest.mark.parametrize(("text", "quality"), [("jpeg", 10), ("jpeg:5", 5), ("jpeg:30", 30)])
    def test_jpeg_quantises_cosine_transforms_by_the_table_of_its_quality(self, text: str, quality: int) -> None:
        """libjpeg scales the table to 5000 / quality per cent. Rounding moves a coefficient by up to 4."""
        table = np.array([int(number) for number in LUMINANCE.split()]).reshape(8, 8)
        table = ((table * (5000 // quality) + 50) // 100).clip(1, 255)
        soft = gaussian_filter(NOISE[..., 0].astype(np.float64), 1.5)
        array = np.rint(128 + 0.8 * (soft - soft.mean())).astype(np.uint8)
        wanted = np.rint(blocks(array.astype(np.float64)) / table) * table
        difference = abs(blocks(degraded(text, array)) - wanted)
        assert (difference < 4).mean() > 0.995  # a few are halfway between two multiples
        assert (wanted != 0).sum() > 10
        assert (difference[wanted != 0] < 4).mean() > 0.9
        Image.fromarray(NOISE).save(file := io.BytesIO(), "jpeg", quality=quality)  # of colours
        assert np.array_equal(degraded(text, NOISE), np.asarray(Image.open(file)))

    @pytest.mark.parametrize(("text", "sigma"), [("blur", 2.0), ("blur:0.7", 0.7), ("blur:5", 5.0)])
    def test_blur_is_gaussian(self, text: str, sigma: float) -> None:
        for array, sigmas in ((NOISE, (sigma, sigma, 0)), (NOISE[..., 0].copy(), sigma)):
            wanted = gaussian_filter(array.astype(np.float64), sigmas, mode="nearest")
            assert abs(degraded(text, array) - wanted).max() < 0.6  # rounded to whole numbers

    def test_gray_is_luminance(self) -> None:
        assert abs(degraded("gray", NOISE) - (NOISE @ [0.299, 0.587, 0.114])[..., None]).max() <= 1

    @pytest.mark.parametrize("size", [(16, 16), (24, 80), (128, 128)], ids=str)
    def test_inpaint_leaves_the_rest_as_it_is(self, size: tuple[int, int]) -> None:
        array = np.zeros((*size, 3), np.uint8)
        array[..., :2] = np.arange(size[1])[:, None] % 100  # nowhere the grey of the mask
        masks = []
        for name in "abcdefgh":
            made = degraded("inpaint", array, name)
            masks.append((made == 128).all(axis=-1))
            assert 0.2 <= masks[-1].mean() <= 0.3
            assert np.array_equal(made[~masks[-1]], array[~masks[-1]])
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        assert np.any(masks, axis=0).mean() > 0.7  # they are everywhere

    def test_photo_is_sometimes_weak_and_sometimes_strong_and_keeps_the_mean(self) -> None:
        array = np.rint(gaussian_filter(NOISE.astype(float), (3, 3, 0))).astype(np.uint8)
        made = np.stack([degraded("photo", array, str(index)) for index in range(100)])
        errors = np.sqrt(np.square(made - array).mean(axis=(1, 2, 3)))
        assert np.quantile(errors, 0.1) < 3
        assert np.quantile(errors, 0.9) > 6
        assert np.abs(made.mean(axis=(1, 2)) - array.mean(axis=(0, 1))).max() < 4
        assert len({each.tobytes() for each in made}) == len(made)

    def test_squares_of_jpeg_begin_anywhere_in_photo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(degradations, "ONLY_JPEG", 1.0)
        monkeypatch.setattr(degradations, "QUALITIES", (5, 5))
        array = np.repeat(np.linspace(100, 150, 64, dtype=np.uint8)[None], 64, axis=0)
        begins = set()
        for name in range(80):
            steps = np.abs(np.diff(degraded("photo", array, str(name)), axis=1)).mean(axis=0)  # between columns
            of_each = [steps[phase::8].mean() for phase in range(8)]
            assert max(of_each) > 2 * sorted(of_each)[-2]  # squares of one value
            begins.add(int(np.argmax(of_each)))
        assert begins == set(range(8))


def test_a_picture_gets_what_its_name_and_the_seed_decide() -> None:
    """In this process and in another."""
    first = degraded("inpaint@3", NOISE)
    assert np.array_equal(first, degraded("inpaint@3", NOISE, "a"))
    for text, name in (("inpaint@3", "b"), ("inpaint@4", "a"), ("inpaint@3", "deep/a"), ("inpaint", "a")):
        assert not np.array_equal(first, degraded(text, NOISE, name))
    script = """
import hashlib
from PIL import Image
from bbdm.data.degradations import Degradation
picture = Degradation.read("inpaint@3").picture(Image.new("L", (40, 30)), "deep/a")
print(hashlib.sha256(picture.tobytes()).hexdigest())
"""
    there = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    here = Degradation.read("inpaint@3").picture(Image.new("L", (40, 30)), "deep/a")
    assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_texts() -> None:
    for text, wanted in (("jpeg@2", "jpeg:10@2"), ("blur:1.5", "blur:1.5@0"), ("sr4", "sr4@0"), ("photo@7", "photo@7")):
        assert str(Degradation.read(text)) == wanted
        assert Degradation.read(wanted) == Degradation.read(text)
    for text, message in {
        "fog": "degrade must be one of sr4, jpeg, blur, inpaint, gray, photo, and maybe @SEED; got 'fog'",
        "": "degrade must be one of .*; got ''",
        "sr4@x": "maybe @SEED; got 'sr4@x'",
        "sr4@": "maybe @SEED; got 'sr4@'",
        "sr4:2": "degrade 'sr4' takes no number, got 'sr4:2'",
        **{f"jpeg:{level}": "degrade 'jpeg' takes an integer from 1 to 95" for level in ("0", "7.5", "", "96")},
        **{f"blur:{level}": "degrade 'blur' takes a number from 0.1 to 20" for level in ("nan", "soft", "21")},
    }.items():
        with pytest.raises(ValueError, match=message):
            Degradation.read(text)


class TestDataSet:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, name in enumerate(("a", "b", "deep/c")):
            save(tmp_path / f"{name}.png", pixels(number, 16, 20))
        return tmp_path

    @staticmethod
    def load(folder: Path, degrade: str = "inpaint", **settings: Any) -> Any:
        return load(folder, "folder", prepare=Degradation.read(degrade), **{"size": 16, **settings})

    def test_an_example_is_degraded_and_original(self, folder: Path) -> None:
        original = np.asarray(Image.fromarray(pixels(1, 16, 20)).resize((16, 16), Image.Resampling.BILINEAR))
        example = self.load(folder, "gray").read(1)
        assert (example.target.numpy() == original.transpose(2, 0, 1)).all()
        assert abs(example.source.numpy() - original @ [0.299, 0.587, 0.114]).max() <= 1
        assert self.load(folder, "gray", size=None).read(1).source.shape == (3, 16, 20)

    def test_order_and_workers_do_not_matter(self, folder: Path) -> None:
        pairs = self.load(folder)
        wanted = [degraded("inpaint", pairs.read(index).target.numpy().transpose(1, 2, 0).copy(), name) for index, name in
                  enumerate(("a", "b", "deep/c"))]  # fmt: skip
        (batch,) = Batches(pairs, 3, torch.device("cpu"), 1).stored([2, 0, 1])
        for source, index in zip(batch.source, [2, 0, 1], strict=True):
            assert (source.numpy() == wanted[index].transpose(2, 0, 1)).all()

    def test_of_a_crop_it_is_of_the_crop_and_anew_in_each_epoch(self, folder: Path) -> None:
        for name in ("a", "b", "deep/c"):
            save(folder / f"{name}.png", pixels(0, 20, 20) // 3)  # nowhere the grey of the mask
        pairs = self.load(folder, size=None, crop=16)
        examples = [pairs.read(0, seed) for seed in range(3)]
        masks = [(example.source != example.target).any(dim=0) for example in examples]
        assert all(0.2 <= float(mask.float().mean()) < 0.5 for mask in masks)
        assert not torch.equal(masks[0], masks[1])
        assert torch.equal(pairs.read(0, 2).source, examples[2].source)

    def test_a_new_one_is_one_row(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        negative = Kind(lambda picture, _: Image.eval(picture, lambda value: 255 - value))
        monkeypatch.setitem(DEGRADATIONS, "negative", negative)
        example = self.load(folder, "negative").read(0)
        assert torch.equal(example.source, 255 - example.target)

    def test_others_than_pictures_alone_are_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"A/0\.png.*without targets \(the data set 'folder'\)"):
            load(pictures(folder / "pairs"), prepare=Degradation.read("sr4")).read(0)
        save(folder / "values/0.npy", np.zeros((1, 8, 8), np.float32))
        with pytest.raises(ValueError, match=r"0\.npy: degrade is for grey and colour of 8 bits, got \(1, 8, 8\)"):
            self.load(folder / "values", size=None).read(0)

    def test_it_is_part_of_digests_and_caches(self, folder: Path, tmp_path: Path) -> None:
        texts = ["inpaint", "inpaint@1", "jpeg", "jpeg:5", "blur"]
        digests = {self.load(folder, text).digest() for text in texts}
        assert len(digests | {load(folder, "folder", size=16).digest()}) == 6
        assert self.load(folder, "jpeg").digest() == self.load(folder, "jpeg:10@0").digest()
        pairs = self.load(folder)
        cached = CachedExamples(pairs, tmp_path / "cache")
        assert all(torch.equal(cached.read(index).source, pairs.read(index).source) for index in range(3))
        with pytest.raises(ValueError, match="is of other pictures"):
            CachedExamples(self.load(folder, "inpaint@1"), tmp_path / "cache")
