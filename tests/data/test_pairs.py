"""Photographs as examples: grey or in colours, resized, degraded; their order, and what replaces bad ones."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from bbdm.data.degradations import DEGRADATIONS, Degradation
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import same_rows
from bbdm.data.rows import BadPicturesError
from bbdm.data.spec import Spec
from bbdm.pictures import Geometry, Picture
from bbdm.pictures.values import Values
from tests.data.making import SIZE, Array, damage, folders, load, pictures, pixels, save, valued

NOISE = pixels(0, 40, 56)


def chw(image: Any) -> Array:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def alone(path: Path, **settings: Any) -> Pairs:
    """A picture that is its own target."""
    return Pairs([{"name": "7", "source": path, "target": path}], Spec(**settings))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_examples_are_what_pillow_reads(suffix: str, tmp_path: Path) -> None:
    for number in (0, 1):
        save(tmp_path / "AB"[number] / f"7{suffix}", pixels(number, 6, 5))
    pairs = load(f"{tmp_path}/A,{tmp_path}/B")
    example = pairs.read(0)
    assert (example.name, example.conditions, example.mask) == ("7", {}, None)
    for tensor, floats, side in zip(example[:2], pairs[0], "AB", strict=True):
        wanted = chw(Image.open(tmp_path / side / f"7{suffix}"))
        assert tensor.dtype == torch.uint8
        assert (tensor.numpy() == wanted).all()
        np.testing.assert_allclose(floats.numpy(), wanted / 127.5 - 1, atol=1e-6)
    assert (pairs.image_size, pairs.channels, pairs.source_channels, pairs.spec.eight_bit) == (
        (6, 5),
        3,
        3,
        True,
    )
    swapped = load(f"{tmp_path}/A,{tmp_path}/B", direction="BtoA").read(0)
    assert torch.equal(swapped.source, example.target)
    assert torch.equal(swapped.target, example.source)


@pytest.mark.parametrize(
    ("stored", "channels"), [(3, 1), (1, 3), (4, 3), (4, 1), (3, None), (1, None)]
)
def test_grey_and_colours_become_one_another(
    stored: int, channels: int | None, tmp_path: Path
) -> None:
    """Luminance is that of ITU-R BT.601, with rounding; what is transparent is on white."""
    array = pixels(0, channels=stored)
    path = save(tmp_path / "7.png", array)
    found = alone(path, channels=channels).read(0).source.numpy()
    colours = (
        array[..., :3].astype(float) if stored > 1 else np.stack([array] * 3, -1).astype(float)
    )
    if stored == 4:
        share = array[..., 3:] / 255
        colours = share * colours + (1 - share) * 255
    wanted = colours @ [0.299, 0.587, 0.114] if (channels or stored) == 1 else colours
    assert abs(found - chw(wanted)).max() <= 1
    assert len(found) == (channels or min(stored, 3))
    # which is made while it is decoded
    sized = alone(path, channels=channels, size=SIZE).read(0).source
    assert (sized.numpy() == found).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_pillows_bilinear_filter(channels: int, tmp_path: Path) -> None:
    """Height comes before width in sizes, and after it in Pillow. Other values are resized by channel."""
    image = Image.fromarray(pixels(0, 16, 12, channels))
    path = save(tmp_path / "7.png", np.asarray(image))
    sizes: list[Any] = [
        (SIZE, "stretch", (8, 8)),
        ((4, 6), "stretch", (6, 4)),
        (SIZE, "fit", (6, 8)),
    ]
    for size, resize, wanted in [*sizes, ((4, 24), "fit", (3, 4))]:
        found = alone(path, size=size, resize=resize).read(0).source.numpy()
        assert (found == chw(image.resize(wanted, Image.Resampling.BILINEAR))).all()
    found = valued(folders(tmp_path), size=(10, 12)).read(1).source.numpy()
    stored = Image.fromarray(np.load(tmp_path / "A/1.npy")[0].astype(np.float32))
    wanted = np.asarray(stored.resize((12, 10), Image.Resampling.BILINEAR)) / 2000 - 1
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)


@given(seed=st.integers(0, 2**32), crops=st.integers(1, 3), cut=st.integers(0, 15))
def test_an_order_is_a_permutation_of_which_any_part_can_be_asked_for(
    seed: int, crops: int, cut: int
) -> None:
    row = {"source": np.zeros((3, 4, 4), np.uint8), "target": np.zeros((3, 4, 4), np.uint8)}
    pairs = Pairs([{"name": str(i), **row} for i in range(5)], Spec(crop=2, crops=crops))
    whole = pairs.order(seed)(0, len(pairs))
    assert sorted(whole) == list(range(5 * crops))
    assert whole == pairs.order(seed)(0, cut) + pairs.order(seed)(cut, len(pairs))
    # of one picture
    assert all(whole[i] // crops == whole[i - i % crops] // crops for i in range(len(whole)))
    # of 120 permutations
    assert len({tuple(pairs.order(seed + i)(0, len(pairs))) for i in range(60)}) > 30


class TestBad:
    def test_a_picture_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        pairs = load(pictures(tmp_path))
        whole = (tmp_path / "A/1.png").read_bytes()
        for content in (whole[:-60], b"", b"this is text"):
            (tmp_path / "A/1.png").write_bytes(content)
            with pytest.raises(BadPicturesError, match=r"A/1\.png.*; skip_bad leaves it out"):
                pairs.read(1)
        (tmp_path / "B/0.png").unlink()
        with pytest.raises(BadPicturesError, match=r"B/0\.png"):
            pairs.read(0)
        pairs = valued(folders(tmp_path / "values", count=2))
        save(tmp_path / "values/A/1.npy", np.zeros((1, 20, 24), np.uint8))
        with pytest.raises(
            BadPicturesError, match=r"A/1\.npy: its source has values of uint8, and .* other bits"
        ):
            pairs.read(1)

    def test_the_next_pair_takes_the_place(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data_dir = pictures(tmp_path)
        whole = load(data_dir)
        for name in ("A/1", "B/2", "A/4"):
            damage(tmp_path / f"{name}.png")
        pairs = load(data_dir, skip_bad=True)
        assert pairs.order(3)(0, 5) == whole.order(3)(0, 5)
        assert [pairs.read(index).name for index in range(5)] == ["0", "3", "3", "3", "0"]
        assert len(list(iter(pairs))) == 5
        assert torch.equal(pairs[-1][0], pairs[0][0])
        assert torch.equal(pairs.read(1).source, whole.read(3).source)
        assert [
            str(tmp_path / name) in pairs.read(1).left_out for name in ("A/1", "B/2", "A/4")
        ] == [True, True, False]
        lines = [record.getMessage() for record in caplog.records]
        # each once
        assert [line.rpartition(" (")[2] for line in lines] == [
            f"{count} so far)" for count in (1, 2, 3)
        ]
        assert pairs.names_digest() == whole.names_digest()
        with pytest.raises(IndexError):
            pairs[5]

    def test_the_first_may_be_bad_and_not_all(self, tmp_path: Path) -> None:
        data_dir = pictures(tmp_path, 2)
        damage(tmp_path / "A/0.png")
        (tmp_path / "A/0.png").write_bytes(b"")
        with pytest.raises(BadPicturesError, match=r"A/0\.png"):
            load(data_dir)
        pairs = load(data_dir, skip_bad=True)
        assert pairs.read(0).name == "1"
        damage(tmp_path / "A/1.png")
        with pytest.raises(
            BadPicturesError, match=r"none of 2 pairs can be read; the first: .*A/1\.png"
        ):
            pairs.read(1)
        with pytest.raises(ValueError, match="there are no rows"):
            Pairs([])

    def test_sources_alone_have_no_target(self, tmp_path: Path) -> None:
        save(tmp_path / "7.png", pixels(0))
        for skip_bad in (False, True):
            with pytest.raises(BadPicturesError, match=r"7\.png has no target"):
                load(tmp_path, "folder", skip_bad=skip_bad).read(0)
        with pytest.raises(
            ValueError, match=r"7\.png: direction 'BtoA' needs one source and one target"
        ):
            load(tmp_path, "folder", direction="BtoA")


def test_two_sets_may_lie_anywhere_in_other_processes_too(tmp_path: Path) -> None:
    for side, west in (("A", 5), ("B", 500)):
        save(tmp_path / side / "0.tif", np.ones((4, 4), np.int16), nodata=-1, west=west)
    values: dict[str, Any] = {
        "source": Values(0, 9, dtype="int16"),
        "target": Values(0, 9, dtype="int16"),
    }
    for crop in (None, 2):
        pairs = pickle.loads(
            pickle.dumps(load(f"{tmp_path}/A,{tmp_path}/B", "unpaired", crop=crop, **values))
        )
        assert pairs.read(0).source.shape == (1, crop or 4, crop or 4)
    with pytest.raises(
        ValueError, match=r"A/0\.tif and .*B/0\.tif lie on different grids, .*, or gdalwarp"
    ):
        load(f"{tmp_path}/A,{tmp_path}/B", **values).read(0)


@pytest.mark.parametrize(("empty", "resized_empty"), [(0, 0), (2, 2)], ids=["no hole", "a hole"])
def test_a_resized_value_does_not_become_nodata(
    empty: int, resized_empty: int, tmp_path: Path
) -> None:
    """The mean of 4 and 6 is 5, which stands for none; a resized row is of four."""
    array = np.tile(np.array([4, 6], np.uint8), (8, 4))
    array[:empty] = 5
    pairs = alone(save(tmp_path / "0.tif", array, nodata=5), size=(4, 4))
    source = pairs.reader.whole(pairs.rows[0])["source"]
    resized = Picture(source.array, source.pictures[0].geometry)
    expected = np.zeros((4, 4), bool)
    expected[:resized_empty] = True
    np.testing.assert_array_equal(resized.absent(), expected)
    assert set(np.asarray(resized)[0, ~expected]) <= {4, 6}


@pytest.mark.parametrize("crop", [None, 2], ids=["whole", "crops"])
def test_pairs_of_two_reference_systems_are_refused(crop: int | None, tmp_path: Path) -> None:
    """Also where their numbers are the same."""
    affine = ((0.0, 10.0, 499980.0), (-10.0, 0.0, 4600020.0), (0.0, 0.0, 1.0))
    for side, system in (("A", "EPSG:32632"), ("B", "EPSG:32633")):
        (tmp_path / side).mkdir()
        place = Geometry(affine, "geotiff", {"crs": system})
        Picture(np.ones((1, 4, 4), np.uint8), place).save(tmp_path / side / "0.tif")
    with pytest.raises(
        ValueError, match=r"different coordinate reference systems, .* 32N and .* 33N"
    ):
        load(f"{tmp_path}/A,{tmp_path}/B", crop=crop).read(0)


def test_digests_are_of_names_and_content_wherever_files_lie(tmp_path: Path) -> None:
    before = load(pictures(tmp_path))
    known = before.digest(), before.names_digest(), before.provenance().contents
    (tmp_path / "A").rename(tmp_path / "moved")
    moved = load(f"{tmp_path}/moved,{tmp_path}/B")
    assert (moved.digest(), moved.names_digest(), moved.provenance().contents) == known
    assert (same_rows(before.rows, moved.rows), same_rows(moved.rows, moved.rows)) == (False, True)
    save(tmp_path / "moved/0.png", pixels(77, SIZE + 3))
    assert (moved.digest() == known[0], moved.names_digest() == known[1]) == (False, True)
    left = moved.without([1, 3])
    assert [row["name"] for row in left.rows] == ["0", "2", "4"]
    assert left.names_digest() != known[1]


def test_files_that_are_missing_have_digests_where_they_may_be_left_out(tmp_path: Path) -> None:
    where = pictures(tmp_path, 3)
    whole = load(where).provenance().contents
    pairs = load(where, skip_bad=True)
    assert pairs.provenance().contents == whole
    (tmp_path / "B/1.png").unlink()
    (tmp_path / "B/1.png").symlink_to("gone.png")
    link = r"^there is no picture .*B/1\.png: it is a link to gone\.png, .*git annex get"
    for digest in (load(where).digest, load(where).provenance):
        with pytest.raises(FileNotFoundError, match=link):
            digest()
    assert pairs.provenance().contents == {name: whole[name] for name in ("0", "2")}


def test_pixels_without_a_value_are_least_and_do_not_count(tmp_path: Path) -> None:
    """Of 8 bits, 0; and of slices with neighbours, their own."""
    for side, at in (("A", 2), ("B", 5)):
        array = np.full((4, 8), 9, np.uint8)
        array[0, at] = 7
        save(tmp_path / side / "0.tif", array, nodata=7)
    example = load(f"{tmp_path}/A,{tmp_path}/B").read(0)
    assert example.source[0, 0].tolist() == [9, 9, 0, 9, 9, 9, 9, 9]
    assert example.mask[0, 0].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    resized = Image.fromarray(example.mask[0].numpy()).resize((4, 2), Image.Resampling.BILINEAR)
    small = load(f"{tmp_path}/A,{tmp_path}/B", size=(2, 4)).read(0)
    assert small.source.unique().tolist() == [9]  # of the pixels with a value alone
    assert (
        small.mask[0].tolist()
        == (np.asarray(resized) == 1).tolist()
        == [[0, 0, 0, 0], [1, 1, 1, 1]]
    )
    volume = np.ones((1, 3, 4, 5), np.int16)
    volume[0, 1, 2, 3] = -1
    Picture(volume, Geometry(nodata=-1)).save(tmp_path / "0.tif")
    row = {"name": "0", "source": tmp_path / "0.tif", "target": tmp_path / "0.tif"}
    values = Values(0, 9, dtype="int16")
    pairs = Pairs([row], Spec(slices="axial", neighbours=1, source=values, target=values))
    assert [int((pairs.read(index).mask == 0).sum()) for index in range(3)] == [0, 1, 0]
    assert [int((pairs.read(index).source == -1).sum()) for index in range(3)] == [1, 1, 1]


def degraded(text: str, array: Array, name: str = "a") -> Array:
    return np.asarray(
        Degradation.read(text).picture(Image.fromarray(array), name), dtype=np.float64
    )


@pytest.mark.parametrize("text", DEGRADATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_size_and_mode_stay(text: str, mode: str) -> None:
    for size in ((37, 19), (8, 8), (1, 3)):
        picture = Image.fromarray(NOISE).crop((0, 0, *size)).convert(mode)
        made = Degradation.read(text).picture(picture.copy(), "a")
        assert (made.size, made.mode) == (size, mode)
        if size != (1, 3) and (text, mode) != ("grey", "L"):
            assert made.tobytes() != picture.tobytes()


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
    """A function of name and seed."""
    array = np.rint(gaussian_filter(NOISE.astype(float), (3, 3, 0))).astype(np.uint8)
    made = np.stack([degraded("photo", array, str(index)) for index in range(100)])
    errors = np.sqrt(np.square(made - array).mean(axis=(1, 2, 3)))
    assert np.quantile(errors, 0.1) < 3 < 6 < np.quantile(errors, 0.9)
    assert np.abs(made.mean(axis=(1, 2)) - array.mean(axis=(0, 1))).max() < 4
    assert len({each.tobytes() for each in made}) == len(made)
    ways = ("photo@3", "a"), ("photo@3", "a"), ("photo@3", "b"), ("photo@4", "a"), ("photo", "a")
    first, *others = (degraded(text, NOISE, name) for text, name in ways)
    assert [np.array_equal(first, each) for each in others] == [True, False, False, False]


def test_an_example_is_degraded_and_original(tmp_path: Path) -> None:
    """Of a crop it is of the crop, and anew in each epoch."""
    original = Image.fromarray(pixels(0, 16, 20))
    save(tmp_path / "deep/a.png", np.asarray(original))
    ways: list[tuple[Any, str, int]] = [
        ({"size": 8}, "", 0),
        ({"crop": 16}, " 0 0", 0),
        ({"crop": 16}, " 0 1", 1),
    ]
    for how, key, seed in ways:
        pairs = load(tmp_path, "folder", prepare=Degradation.read("photo"), **how)
        source, target = (side.numpy().transpose(1, 2, 0) for side in pairs.read(0, seed)[:2])
        assert (source == degraded("photo", target, f"deep/a{key}")).all()
        assert (source != target).any()
        assert (
            key or (target == np.asarray(original.resize((8, 8), Image.Resampling.BILINEAR))).all()
        )
    digests = [load(tmp_path, "folder").digest()]
    for text in ("photo", "photo@1", "jpeg", "jpeg@0"):
        digests.append(load(tmp_path, "folder", prepare=Degradation.read(text)).digest())
    assert len(set(digests)) == 4


def test_what_cannot_be_degraded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A/0\.png.*without targets \(the data set 'folder'\)"):
        load(pictures(tmp_path / "pairs"), prepare=Degradation.read("sr4")).read(0)
    save(tmp_path / "values/0.npy", np.zeros((1, 8, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"0\.npy: degrade is for grey and colour of 8 bits, got \(1, 8, 8\)"
    ):
        load(tmp_path / "values", "folder", prepare=Degradation.read("sr4")).read(0)
    assert [str(Degradation.read(text)) for text in ("jpeg@2", "sr4")] == ["jpeg@2", "sr4@0"]
    for text in ("fog", "", "sr4@x", "sr4@", "jpeg:5"):
        with pytest.raises(
            ValueError, match=f"must be one of sr4, .*, and maybe @SEED; got '{text}'"
        ):
            Degradation.read(text)
