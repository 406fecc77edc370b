"""Degradations, each against its definition; data sets of degraded pictures, and what keeps them apart."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from bbdm.codec import VQGANCodec
from bbdm.data import degradations
from bbdm.data.cache import ImageCache
from bbdm.data.degradations import DEGRADATIONS, Degradation, Kind
from bbdm.data.examples import PairExamples
from bbdm.data.latents import LatentDataset
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pair, PairedDataset, load_dataset
from tests.conftest import ROOT, SavePicture
from tests.networks.test_vqgan import tiny_vqgan

SIDE = 16
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (40, 56, 3), dtype=np.uint8)
# Table K.1 of ITU-T T.81: quantisation of luminance at quality 50
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""


def degraded(text: str, pixels: npt.NDArray[np.uint8], name: str = "a", seed: int = 0) -> npt.NDArray[np.float64]:
    return np.asarray(Degradation.read(text, seed)(Image.fromarray(pixels), name), dtype=np.float64)


def blocks(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine transforms of the blocks of 8 x 8 of a grey picture, as JPEG has them."""
    height, width = pixels.shape
    cut = (pixels - 128).reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    return np.asarray(dctn(cut, axes=(2, 3), norm="ortho"))


class TestEach:
    @pytest.mark.parametrize("text", [*DEGRADATIONS, "jpeg:5", "blur:0.7"])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("size", [(56, 40), (37, 19), (8, 8), (1, 3)], ids=str)
    def test_keeps_size_and_mode_and_repeats_itself(self, text: str, mode: str, size: tuple[int, int]) -> None:
        picture = Image.fromarray(NOISE).crop((0, 0, *size)).convert(mode)
        before = picture.tobytes()
        made = [Degradation.read(text)(picture, "a") for _ in range(2)]
        assert (made[0].size, made[0].mode) == (size, mode)
        assert made[0].tobytes() == made[1].tobytes()
        assert picture.tobytes() == before
        if size > (1, 3) and (text, mode) != ("gray", "L"):
            assert made[0].tobytes() != before

    def test_sr4_keeps_low_frequencies_and_no_high_ones(self) -> None:
        """Waves along both sides; below 8 pixels a wave has no place in a picture of a quarter."""
        at = np.arange(128)
        for period, kept in ((2, 0.0), (3, 0.0), (32, 1.0), (64, 1.0)):
            wave = 127.5 + 100 * np.cos(2 * np.pi * at / period)
            pixels = np.rint(np.broadcast_to(wave, (128, 128))).astype(np.uint8)
            for turned in (pixels, pixels.T.copy()):
                inside = (degraded("sr4", turned) - 127.5)[16:-16, 16:-16]
                wanted = kept * (turned - 127.5)[16:-16, 16:-16]
                assert abs(inside - wanted).max() < 3

    @pytest.mark.parametrize(("text", "quality"), [("jpeg", 10), ("jpeg:5", 5), ("jpeg:30", 30)])
    def test_jpeg_quantises_cosine_transforms_by_the_table_of_its_quality(self, text: str, quality: int) -> None:
        """libjpeg scales the table to 5000 / quality per cent. Rounding moves a coefficient by up to 4."""
        table = np.array([int(number) for number in LUMINANCE.split()]).reshape(8, 8)
        table = ((table * (5000 // quality) + 50) // 100).clip(1, 255)
        soft = gaussian_filter(NOISE[..., 0].astype(np.float64), 1.5)
        pixels = np.rint(128 + 0.8 * (soft - soft.mean())).astype(np.uint8)
        wanted = np.rint(blocks(pixels.astype(np.float64)) / table) * table
        difference = abs(blocks(degraded(text, pixels)) - wanted)
        assert (difference < 4).mean() > 0.995  # a few are halfway between two multiples
        assert (wanted != 0).sum() > 10
        assert (difference[wanted != 0] < 4).mean() > 0.9
        Image.fromarray(NOISE).save(file := io.BytesIO(), "jpeg", quality=quality)  # of colours
        assert np.array_equal(degraded(text, NOISE), np.asarray(Image.open(file)))

    @pytest.mark.parametrize(("text", "sigma"), [("blur", 2.0), ("blur:0.7", 0.7), ("blur:5", 5.0)])
    def test_blur_is_gaussian(self, text: str, sigma: float) -> None:
        wanted = gaussian_filter(NOISE.astype(np.float64), (sigma, sigma, 0), mode="nearest")
        assert abs(degraded(text, NOISE) - wanted).max() < 0.6  # rounded to whole numbers
        grey = NOISE[..., 0].copy()
        assert abs(degraded(text, grey) - gaussian_filter(grey.astype(float), sigma, mode="nearest")).max() < 0.6

    def test_gray_is_luminance(self) -> None:
        wanted = NOISE @ [0.299, 0.587, 0.114]
        assert abs(degraded("gray", NOISE) - wanted[..., None]).max() <= 1

    @pytest.mark.parametrize("size", [(16, 16), (64, 64), (24, 80), (256, 256)], ids=str)
    def test_inpaint_leaves_the_rest_as_it_is(self, size: tuple[int, int]) -> None:
        pixels = NOISE[0, 0, 0] * np.ones((*size, 3), dtype=np.uint8)
        pixels[..., :2] = np.arange(size[1])[:, None] % 100  # nowhere the grey of the mask
        masks = []
        for name in "abcdefgh":
            made = degraded("inpaint", pixels, name)
            masks.append((made == 128).all(axis=-1))
            assert 0.2 <= masks[-1].mean() <= 0.3
            assert np.array_equal(made[~masks[-1]], pixels[~masks[-1]])
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        assert np.any(masks, axis=0).mean() > 0.7  # they are everywhere

    def test_photo_is_sometimes_weak_and_sometimes_strong_and_keeps_the_mean(self) -> None:
        pixels = np.rint(gaussian_filter(NOISE.astype(float), (3, 3, 0))).astype(np.uint8)
        made = np.stack([degraded("photo", pixels, str(index)) for index in range(100)])
        errors = np.sqrt(np.square(made - pixels).mean(axis=(1, 2, 3)))
        assert np.quantile(errors, 0.1) < 3
        assert np.quantile(errors, 0.9) > 6
        assert np.abs(made.mean(axis=(1, 2)) - pixels.mean(axis=(0, 1))).max() < 4
        assert len({each.tobytes() for each in made}) == len(made)

    def test_squares_of_jpeg_begin_anywhere_in_photo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(degradations, "ONLY_JPEG", 1.0)
        monkeypatch.setattr(degradations, "QUALITIES", (5, 5))
        pixels = np.repeat(np.linspace(100, 150, 64, dtype=np.uint8)[None], 64, axis=0)
        begins = set()
        for name in range(80):
            steps = np.abs(np.diff(degraded("photo", pixels, str(name)), axis=1)).mean(axis=0)  # between columns
            of_each = [steps[phase::8].mean() for phase in range(8)]
            assert max(of_each) > 2 * sorted(of_each)[-2]  # squares of one value
            begins.add(int(np.argmax(of_each)))
        assert begins == set(range(8))


class TestSeed:
    def test_a_picture_gets_what_its_name_and_the_seed_decide(self) -> None:
        first = degraded("inpaint", NOISE, "a", seed=3)
        assert np.array_equal(first, degraded("inpaint", NOISE, "a", seed=3))
        for name, seed in (("b", 3), ("a", 4), ("deep/a", 3)):
            assert not np.array_equal(first, degraded("inpaint", NOISE, name, seed))

    def test_another_process_makes_the_same(self) -> None:
        script = """
import hashlib
from PIL import Image
from bbdm.data.degradations import Degradation
picture = Degradation.read("inpaint", 3)(Image.new("L", (40, 30)), "deep/a")
print(hashlib.sha256(picture.tobytes()).hexdigest())
"""
        there = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        here = Degradation.read("inpaint", 3)(Image.new("L", (40, 30)), "deep/a")
        assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


class TestRead:
    def test_a_level_left_out_is_the_default(self) -> None:
        assert Degradation.read("jpeg", 2) == Degradation.read("jpeg:10", 2)
        assert str(Degradation.read("jpeg", 2)) == "jpeg:10 with seed 2"
        assert str(Degradation.read("blur:1.5")) == "blur:1.5 with seed 0"
        assert str(Degradation.read("sr4")) == "sr4 with seed 0"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fog", r"degrade must be one of \['sr4', 'jpeg', 'blur', 'inpaint', 'gray', 'photo'\], got 'fog'"),
            ("", "degrade must be one of .*, got ''"),
            ("sr4:2", "degrade 'sr4' takes no number, got 'sr4:2'"),
            ("jpeg:0", "degrade 'jpeg' takes an integer from 1 to 95, got 'jpeg:0'"),
            ("jpeg:7.5", "degrade 'jpeg' takes an integer from 1 to 95, got 'jpeg:7.5'"),
            ("jpeg:", "degrade 'jpeg' takes an integer from 1 to 95, got 'jpeg:'"),
            ("blur:nan", "degrade 'blur' takes a number from 0.1 to 20, got 'blur:nan'"),
            ("blur:soft", "degrade 'blur' takes a number from 0.1 to 20, got 'blur:soft'"),
        ],
    )
    def test_bad_text(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Degradation.read(text)


@pytest.fixture
def pictures(tmp_path: Path, save_picture: SavePicture) -> Path:
    """DATA/train of three pictures and DATA/val of one, wider than high."""
    for name in ("train/a", "train/b", "train/deep/c", "val/d"):
        pixels = RANDOM.integers(0, 256, (SIDE, SIDE + 4, 3), dtype=np.uint8)
        save_picture(tmp_path / "DATA" / f"{name}.png", Image.fromarray(pixels))
    return tmp_path / "DATA"


def load(folder: Path, degrade: str = "inpaint", seed: int = 0, split: str = "train", **settings: str) -> PairExamples:
    return load_dataset("folder", str(folder), split, SIDE, degrade=degrade, degrade_seed=seed, **settings)  # pyright: ignore[reportArgumentType]


class TestDataSet:
    def test_an_item_is_degraded_and_original(self, pictures: Path) -> None:
        with Image.open(pictures / "train" / "b.png") as file:
            original = np.asarray(file.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
        source, target = (side.permute(1, 2, 0).numpy() for side in load(pictures, "gray").pixels(1))
        assert np.array_equal(target, original)
        assert abs(source - (original @ [0.299, 0.587, 0.114])[..., None]).max() <= 1
        assert np.array_equal(np.asarray(load(pictures, "gray").images(1)[0]), source)
        swapped = load(pictures, "gray", direction="BtoA").pixels(1)
        assert all(
            np.array_equal(a, b.permute(1, 2, 0).numpy()) for a, b in zip((target, source), swapped, strict=True)
        )

    def test_pictures_keep_their_shape_where_asked(self, pictures: Path) -> None:
        kept = load(pictures, resize="keep").images(0)
        assert [each and each.size for each in kept] == [(SIDE + 4, SIDE)] * 2

    @pytest.mark.parametrize("place", ["DATA", "DATA/{split}"])
    def test_splits_are_folders(self, place: str, pictures: Path) -> None:
        folder = pictures.parent / place
        assert [pair.name for pair in load(folder).pairs] == ["a", "b", "deep/c"]
        assert [pair.name for pair in load(folder, split="val").pairs] == ["d"]
        assert load(pictures / "train", split="val").pairs == load(folder).pairs  # which has none
        (pictures / "val" / "d.png").unlink()
        (pictures / "val").rmdir()
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*DATA/val"):  # and not those of train
            load(folder, split="val")

    def test_order_workers_and_neighbours_do_not_matter(self, pictures: Path) -> None:
        pairs = load(pictures)
        wanted = {pair.name: pairs.pixels(i)[0] for i, pair in enumerate(pairs.pairs)}
        again = load(pictures)
        assert torch.equal(again.pixels(2)[0], wanted["deep/c"])
        assert torch.equal(again.without({"a"}).pixels(0)[0], wanted["b"])
        for batch, name in zip(Batches(again, 1, torch.device("cpu"), 1).stored(), wanted, strict=True):
            assert torch.equal(batch.source[0], wanted[name])

    def test_a_new_one_is_one_row(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        negative = Kind(lambda picture, _: Image.eval(picture, lambda value: 255 - value))
        monkeypatch.setitem(degradations.DEGRADATIONS, "negative", negative)
        source, target = load(pictures, "negative").pixels(0)
        assert torch.equal(source, 255 - target)

    def test_pairs_with_targets_are_refused(self, pictures: Path) -> None:
        pair = Pair("a", pictures / "train" / "a.png", pictures / "train" / "b.png")
        with pytest.raises(ValueError, match=r"without targets \(the data set 'folder'\), 'a' has one"):
            PairedDataset([pair], SIDE, degradation=Degradation.read("sr4"))


OTHERS = [("blur", 0), ("inpaint", 1)]


class TestCaches:
    def test_digests_differ(self, pictures: Path) -> None:
        plain = load_dataset("folder", str(pictures), "train", SIDE)
        digests = [load(pictures, *other).digest() for other in [("inpaint", 0), ("jpeg", 0), ("jpeg:5", 0), *OTHERS]]
        assert len({plain.digest(), *digests}) == 6
        assert load(pictures, "jpeg").digest() == load(pictures, "jpeg:10").digest()

    def test_they_hold_degraded_sources(self, pictures: Path, tmp_path: Path) -> None:
        pairs, codec = load(pictures), VQGANCodec(tiny_vqgan())
        for _ in range(2):  # written, then read
            cached = ImageCache(pairs, tmp_path / "pictures")
            for i in range(3):
                assert all(torch.equal(a, b) for a, b in zip(cached.pixels(i), pairs.pixels(i), strict=True))
        for made, picture in zip(LatentDataset(pairs, codec, tmp_path / "latents")[1], pairs[1], strict=True):
            torch.testing.assert_close(made, codec.latents(picture[None])[0], rtol=1e-4, atol=1e-5)
        for degrade, seed in OTHERS:
            other = load(pictures, degrade, seed)
            message = f"pictures.degradation inpaint with seed 0, now {other.degradation}"
            with pytest.raises(ValueError, match=message):
                ImageCache(other, tmp_path / "pictures")
            with pytest.raises(ValueError, match=message):
                LatentDataset(other, codec, tmp_path / "latents")
