"""Pictures of any values and channels: in crops, as slices of volumes, as volumes; masks and grids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bbdm.data.crops import crop_window
from bbdm.data.pairs import Pairs
from bbdm.data.spec import AXES, Spec
from bbdm.pictures.values import Percentiles, Values, read_values
from tests.data.making import SOURCE, TARGET, folders, load, located, numbers, pictures, pixels, save, valued

HEIGHT, WIDTH, CROP = 20, 24, 8
VOLUME = (4, 5, 6)


def mask_of(root: Path, number: int, shape: Sequence[int], *inside: tuple[int, ...]) -> None:
    array = np.zeros((1, *shape), np.uint8)
    for index in inside:
        array[(0, *index)] = 200
    save(root / "M" / f"{number}.npy", array)


def masked(root: Path) -> str:
    return f"{root}/A,{root}/B,mask={root}/M"


class TestValues:
    @given(low=st.integers(-2000, 2000), span=st.integers(1, 4000), seed=st.integers(0, 99))
    def test_are_the_formula_in_float64_clipped(self, low: int, span: int, seed: int) -> None:
        stored = np.random.default_rng(seed).integers(-3000, 7000, (2, 4, 5)).astype(np.int16)
        values = Values(low, low + span, dtype="float32")
        example = Pairs([{"name": "a", "source": stored, "target": stored}], Spec(source=values, target=values)).read(0)
        wanted = (2 * (stored.astype(np.float64) - low) / span - 1).clip(-1, 1)
        assert example.source.dtype == torch.float32
        np.testing.assert_allclose(example.source.numpy(), wanted, atol=2e-6)
        assert torch.equal(example.source, example.target)

    def test_each_side_and_channel_has_its_own(self, tmp_path: Path) -> None:
        pairs = valued(folders(tmp_path))
        assert torch.equal(*pairs[1])
        assert (numbers(pairs.read(1).source) == located(1, (HEIGHT, WIDTH))).all()
        folders(tmp_path / "several", count=1)
        save(tmp_path / "several/C/0.npy", np.stack([located(2, (HEIGHT, WIDTH)), located(3, (HEIGHT, WIDTH))]))
        bands = read_values("0:4000,0:8000,-4000:4000")
        root = tmp_path / "several"
        several = load(f"{root}/C,{root}/A;{root}/B", source=bands, target=TARGET, crop=1)
        assert (several.source_channels, several.channels) == (3, 1)
        at = round((several.read(0).target.item() + 1) * 2000)
        wanted = [(2000 + at) / 2000 - 1, (3000 + at) / 4000 - 1, at / 4000]
        np.testing.assert_allclose(several.read(0).source.flatten().tolist(), wanted, atol=1e-6)

    def test_percentiles_are_of_the_whole_picture(self, tmp_path: Path) -> None:
        pairs = valued(folders(tmp_path), source=Percentiles(10, 90), crop=CROP)
        example = pairs.read(2, 3)
        low, high = np.percentile(located(2, (HEIGHT * WIDTH,)), [10, 90])
        stored = numbers(example.target)
        wanted = (2 * (stored - low) / (high - low) - 1).clip(-1, 1)
        np.testing.assert_allclose(example.source[0].numpy(), wanted, atol=1e-5)
        assert (pairs.pictures.values(2, "source").low, pairs.pictures.values(2, "source").high) == ((low,), (high,))

    def test_floats_in_the_unit_range_are_taken_as_they_are(self, tmp_path: Path) -> None:
        array = np.linspace(-1, 1, 20, dtype=np.float32).reshape(1, 4, 5)
        save(tmp_path / "0.npy", array)
        assert (load(f"{tmp_path},{tmp_path}").read(0).source.numpy() == array).all()

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((1, 4, 5), 3000, np.float32), r"values from 3000 to 3000 in float32: give their range"),
            (np.full((1, 4, 5), 9, np.uint16), r"values from 9 to 9 in uint16: give their range, such as 0:255"),
            (np.where(np.arange(20) == 7, np.nan, 0).reshape(1, 4, 5), r"nan stands in channel 0 at \(1, 2\)"),
        ],
        ids=["range", "integers", "nan"],
    )
    def test_others_are_refused_with_the_files_name(self, array: Any, message: str, tmp_path: Path) -> None:
        save(tmp_path / "A/0.npy", array)
        save(tmp_path / "B/0.npy", np.zeros((1, 4, 5), np.float32))
        with pytest.raises(ValueError, match=rf"A/0\.npy.*{message}"):
            load(f"{tmp_path}/A,{tmp_path}/B").read(0)

    @pytest.mark.parametrize("crop", [None, CROP])
    def test_nan_is_refused_at_its_place_in_the_picture(self, crop: int | None, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, count=1)
        array = np.full((1, HEIGHT, WIDTH), 5, np.float32)
        array[0, 11, 13] = np.inf
        save(tmp_path / "B/0.npy", array)
        pairs = valued(data_dir, crop=crop)
        with pytest.raises(ValueError, match=r"/0\.npy.*inf stands in channel 0 at \(11, 13\)"):
            for seed in range(50):
                pairs.read(0, seed)


class TestNodata:
    def test_pixels_without_a_value_are_least_and_not_in_the_mask(self, tmp_path: Path) -> None:
        array = located(1, (HEIGHT, WIDTH))
        array[3, 4] = -9999
        for side in "AB":
            save(tmp_path / side / "0.tif", array, nodata=-9999)
        example = valued(f"{tmp_path}/A,{tmp_path}/B").read(0)
        assert (example.mask == 0).nonzero().tolist() == [[0, 3, 4]]
        assert example.source[0, 3, 4] == example.target[0, 3, 4] == -1
        array[3, 4] = 1000
        assert (numbers(example.source)[example.mask[0] == 1] == array[example.mask[0].numpy() == 1]).all()

    def test_each_source_has_its_own(self, tmp_path: Path) -> None:
        for side, nodata, at in (("A", -1.0, 3), ("C", np.nan, 4), ("B", -5.0, 0)):
            array = np.ones((HEIGHT, WIDTH), np.float32)
            if side != "B":
                array[at, at] = nodata
            save(tmp_path / side / "0.tif", array, nodata=nodata)
        mask = valued(f"{tmp_path}/A,{tmp_path}/C;{tmp_path}/B").read(0).mask
        assert (mask == 0).nonzero().tolist() == [[0, 3, 3], [0, 4, 4]]

    def test_they_do_not_count_in_percentiles(self, tmp_path: Path) -> None:
        array = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
        array[0] = -9999
        save(tmp_path / "0.tif", array, nodata=-9999)
        found = load(f"{tmp_path},{tmp_path}", source=Percentiles(0, 100), target=SOURCE).pictures.values(0, "source")
        assert (found.low, found.high) == ((WIDTH,), (HEIGHT * WIDTH - 1,))


class TestCrops:
    @settings(max_examples=40)
    @given(data=st.data())
    def test_a_window_lies_inside_and_is_a_function_of_key_and_seed(self, data: st.DataObject) -> None:
        sides = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
        size = [data.draw(st.integers(1, side)) for side in sides]
        key, seed = data.draw(st.text()), data.draw(st.integers(0, 2**40))
        inside = np.zeros(sides, np.uint8)
        at = tuple(data.draw(st.integers(0, side - 1)) for side in sides)
        inside[at] = 1
        window = crop_window(sides, size, key, seed)
        assert window == crop_window(sides, size, key, seed)
        centred = crop_window(sides, size, key, seed, 1.0, lambda: inside)
        for part, other, side, length, middle in zip(window, centred, sides, size, at, strict=True):
            assert 0 <= part.start <= part.stop == part.start + length <= side
            assert other.start <= middle < other.stop  # as near to the middle as the picture's edges let it
            assert other.start == min(max(middle - length // 2, 0), side - length)

    def test_windows_are_everywhere(self) -> None:
        """16 places, 1600 draws: each count within 5 sigma of 100, sigma sqrt(1600 / 16 * 15 / 16)."""
        windows = [crop_window((8, 8), (5, 5), key, seed) for key in ("a 0", "a 1") for seed in range(800)]
        counts = np.zeros((4, 4))
        for down, right in windows:
            counts[down.start, right.start] += 1
        assert abs(counts - 100).max() < 5 * np.sqrt(1600 / 16 * 15 / 16)
        assert windows[:800] != windows[800:]  # of another key

    def test_are_parts_of_both_pictures(self, tmp_path: Path) -> None:
        pairs = valued(folders(tmp_path), crop=(CROP, CROP + 2), crops=2)
        assert (len(pairs), pairs.image_size) == (6, (CROP, CROP + 2))
        corners: set[Any] = set()
        for seed in range(30):
            example = pairs.read(3, seed)
            array = numbers(example.source)
            top, left = divmod(int(array[0, 0]) - 1000, WIDTH)  # of picture 1
            assert (array == located(1, (HEIGHT, WIDTH))[top : top + CROP, left : left + CROP + 2]).all()
            assert torch.equal(example.source, example.target)
            assert torch.equal(example.source, pairs.read(3, seed).source)
            corners.add((top, left))
        assert len(corners) > 20  # another epoch has others
        assert numbers(pairs.read(2).source)[0, 0] != numbers(pairs.read(3).source)[0, 0]  # the next of the picture

    def test_of_photographs_stay_8_bits(self, tmp_path: Path) -> None:
        save(tmp_path / "0.png", array := pixels(0, HEIGHT, WIDTH))
        example = load(f"{tmp_path},{tmp_path}", crop=CROP).read(0, 4)
        assert example.source.dtype == torch.uint8
        windows = np.lib.stride_tricks.sliding_window_view(array, (CROP, CROP), axis=(0, 1))  # pyright: ignore
        assert (windows == example.source.numpy()).all(axis=(2, 3, 4)).sum() == 1
        assert load(f"{tmp_path},{tmp_path}", crop=CROP, channels=1).read(0).source.shape == (1, CROP, CROP)

    def test_a_share_is_centred_in_the_mask(self, tmp_path: Path) -> None:
        folders(tmp_path, count=1)
        mask_of(tmp_path, 0, (HEIGHT, WIDTH), (9, 11))
        pairs = valued(masked(tmp_path), crop=CROP, in_mask=1.0)
        for seed in range(5):
            example = pairs.read(0, seed)
            assert numbers(example.source)[CROP // 2, CROP // 2] == 9 * WIDTH + 11
            assert example.mask.nonzero().tolist() == [[0, CROP // 2, CROP // 2]]
            assert example.mask.dtype == torch.float32
        half = valued(masked(tmp_path), crop=CROP, in_mask=0.5)
        middles = [numbers(half.read(0, seed).source)[CROP // 2, CROP // 2] for seed in range(200)]
        assert 0.4 < np.mean(np.array(middles) == 9 * WIDTH + 11) < 0.6  # binomial, 3 sigma

    def test_smaller_pictures_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"A/0\.npy: it has 20 x 24 pixels, and crops have 30 x 30"):
            valued(folders(tmp_path), crop=30).read(0)


class TestSlices:
    @pytest.mark.parametrize("plane", AXES)
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".npy"])
    def test_are_examples(self, plane: Any, suffix: str, tmp_path: Path) -> None:
        pairs = valued(folders(tmp_path, suffix, 2, VOLUME), slices=plane)
        axis = ["axial", "coronal", "sagittal"].index(plane)
        count = VOLUME[axis]
        assert (len(pairs), list(pairs.ends)) == (2 * count, [count, 2 * count])
        for number in range(count):
            example = pairs.read(count + number)
            assert (numbers(example.source) == located(1, VOLUME).take(number, axis)).all()
            assert torch.equal(example.source, example.target)
            assert example.name == f"1/{number:04d}"

    @pytest.mark.parametrize("plane", AXES)
    def test_have_neighbours_of_which_the_ends_repeat(self, plane: Any, tmp_path: Path) -> None:
        """Channels from low to high; the target stays one slice."""
        pairs = valued(folders(tmp_path, count=2, size=VOLUME), slices=plane, neighbours=2)
        axis = AXES[plane]
        count, volume = VOLUME[axis], located(1, VOLUME)
        assert (pairs.source_channels, pairs.channels) == (5, 1)
        for number in range(count):
            example = pairs.read(count + number)
            seen = np.clip(np.arange(number - 2, number + 3), 0, count - 1)
            for channel, index in zip(example.source, seen, strict=True):
                assert (numbers(channel[None]) == volume.take(index, axis)).all()
            assert (numbers(example.target) == volume.take(number, axis)).all()

    def test_in_crops_with_neighbours(self, tmp_path: Path) -> None:
        pairs = valued(folders(tmp_path, count=1, size=VOLUME), slices="coronal", neighbours=1, crop=(2, 3))
        source = np.stack([numbers(channel[None]) for channel in pairs.read(2, 3).source])
        assert source.shape == (3, 2, 3)
        assert (np.diff(source, axis=0) == 6).all()  # the next slice's values are a row further
        assert (np.diff(source, axis=1) == 30).all()
        assert (np.diff(source, axis=2) == 1).all()

    def test_of_which_nothing_is_in_the_mask_are_left_out(self, tmp_path: Path) -> None:
        folders(tmp_path, count=2, size=VOLUME)
        mask_of(tmp_path, 0, VOLUME, (1, 2, 3), (3, 2, 3))
        mask_of(tmp_path, 1, VOLUME, (2, 2, 3))
        pairs = valued(masked(tmp_path), slices="axial", neighbours=1)
        examples = [pairs.read(index) for index in range(len(pairs))]
        assert [example.name for example in examples] == ["0/0001", "0/0003", "1/0002"]
        assert (numbers(examples[0].source[:1]) == located(0, VOLUME)[0]).all()  # what is outside is seen
        assert examples[2].mask.nonzero().tolist() == [[0, 2, 3]]
        for number in range(2):
            mask_of(tmp_path, number, VOLUME)
        with pytest.raises(ValueError, match="no slice has anything in its mask"):
            valued(masked(tmp_path), slices="axial")

    def test_of_a_damaged_volume_are_left_out(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".nii", 3, VOLUME)
        (tmp_path / "B/1.nii").write_bytes(b"")
        with pytest.raises(ValueError, match=r"B/1\.nii"):
            valued(data_dir, slices="axial")
        pairs = valued(data_dir, slices="axial", skip_bad=True)
        assert [pairs.read(index).name[0] for index in range(len(pairs))] == ["0"] * 4 + ["2"] * 4
        assert len(pairs.left_out) == 1

    def test_of_pictures_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"A/0\.npy has 2 axes"):
            valued(folders(tmp_path), slices="axial")


class TestVolumes:
    SIZE = (9, 10, 11)

    def test_in_crops(self, tmp_path: Path) -> None:
        folders(tmp_path, count=1, size=self.SIZE)
        mask_of(tmp_path, 0, self.SIZE, (4, 5, 6))
        pairs = valued(masked(tmp_path), axes=3, crop=(3, 4, 5))
        volume, corners = located(0, self.SIZE), set[Any]()
        for seed in range(20):
            example = pairs.read(0, seed)
            crop = numbers(example.source)
            first = np.unravel_index(crop[0, 0, 0], self.SIZE)
            window = tuple(slice(at, at + side) for at, side in zip(first, (3, 4, 5), strict=True))
            assert (crop == volume[window]).all()
            assert torch.equal(example.source, example.target)
            assert int(example.mask.sum()) == int((crop == volume[4, 5, 6]).sum())
            corners.add(int(crop[0, 0, 0]))
        assert len(corners) > 10
        inside = valued(masked(tmp_path), axes=3, crop=(3, 4, 5), in_mask=1.0)
        assert {int(numbers(inside.read(0, seed).source)[1, 2, 2]) for seed in range(5)} == {int(volume[4, 5, 6])}
        assert valued(masked(tmp_path), axes=3, crop=4).read(0).source.shape == (1, 4, 4, 4)  # a cube

    def test_whole(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".mha", 1, VOLUME)
        example = valued(data_dir, axes=3).read(0)
        assert (numbers(example.source) == located(0, VOLUME)).all()
        with pytest.raises(ValueError, match=r"A/0\.mha has 3 axes, and examples 2: say which slices"):
            valued(data_dir)
        with pytest.raises(ValueError, match=r"A/0\.png has 2 axes, and examples 3: this network is of volumes"):
            load(pictures(tmp_path / "flat", 1), axes=3)

    def test_their_spacing_is_the_median(self, tmp_path: Path) -> None:
        """Along (D, H, W), where NIfTI's are (x, y, z)."""
        for number, length in enumerate((1.0, 2.0, 9.0)):
            for side in "AB":
                save(tmp_path / side / f"{number}.nii", located(0, VOLUME), affine=np.diag([length, 1, 2, 1]))
        data_dir = f"{tmp_path}/A,{tmp_path}/B"
        assert valued(data_dir, slices="coronal").spacing == valued(data_dir, axes=3).spacing == (2, 1, 2)
        assert valued(folders(tmp_path / "none", size=VOLUME), axes=3).spacing is None
        assert valued(folders(tmp_path / "flat")).spacing is None


class TestGrids:
    def test_that_differ_are_named_with_the_way_to_resample(self, tmp_path: Path) -> None:
        for side, step in (("A", 2.0), ("B", 1.0)):
            save(tmp_path / side / "0.mha", located(0, VOLUME), spacing=(1.0, 1.0, step))
        message = r"A/0\.mha and .*B/0\.mha lie on different grids, 4 x 5 x 6 at .*2\.0.* and 4 x 5 x 6 at .*SimpleITK"
        for how in ({"slices": "axial"}, {"axes": 3}, {"axes": 3, "crop": 2}):
            with pytest.raises(ValueError, match=message):
                valued(f"{tmp_path}/A,{tmp_path}/B", **how).read(0)

    def test_of_geotiffs(self, tmp_path: Path) -> None:
        save(tmp_path / "A/0.tif", np.ones((4, 5), np.int16), nodata=-1)
        save(tmp_path / "B/0.tif", np.ones((4, 6), np.int16), nodata=-1)
        with pytest.raises(ValueError, match=r"A/0\.tif and .*B/0\.tif .* 4 x 5 at .* 4 x 6 at .*gdalwarp"):
            valued(f"{tmp_path}/A,{tmp_path}/B").read(0)

    def test_sizes_alone_may_differ_where_pictures_are_resized(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, count=1)
        save(tmp_path / "B/0.npy", located(0, (1, HEIGHT + 1, WIDTH)))
        for how in ({}, {"crop": CROP}):
            with pytest.raises(ValueError, match=r"A/0\.npy and .*B/0\.npy .* 20 x 24 and 21 x 24: resample"):
                valued(data_dir, **how).read(0)
        assert valued(data_dir, size=6).read(0).source.shape == (1, 6, 6)

    def test_a_mask_has_that_of_the_target(self, tmp_path: Path) -> None:
        folders(tmp_path, count=1)
        mask_of(tmp_path, 0, (HEIGHT, WIDTH - 1), (1, 1))
        for how in ({}, {"crop": CROP}):
            with pytest.raises(ValueError, match=r"M/0\.npy and .*B/0\.npy lie on different grids, 20 x 23 and 20 x 24"):
                valued(masked(tmp_path), **how).read(0)

    def test_channels_must_fit_the_values(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has 1 channels, and there are values of 2"):
            valued(folders(tmp_path), source=read_values("0:1,0:1"))


@pytest.mark.parametrize("how", [{"slices": "axial"}, {"slices": "sagittal", "neighbours": 1}, {"axes": 3}], ids=str)
def test_crops_by_the_cache_of_decoded_files_are_the_same(how: dict[str, Any], tmp_path: Path) -> None:
    data_dir = folders(tmp_path / "pairs", ".nii.gz", 2, (4, 9, 9))
    plain = valued(data_dir, crop=3, **how)
    cached = valued(data_dir, crop=3, cache=tmp_path / "cache", **how)
    for index in range(len(plain)):
        assert torch.equal(cached.read(index, 1).source, plain.read(index, 1).source)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    for path in (tmp_path / "pairs").rglob("*.gz"):  # is not decoded again
        stat = path.stat()
        path.write_bytes(path.read_bytes()[:352] + bytes(stat.st_size - 352))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = valued(data_dir, crop=3, cache=tmp_path / "cache", **how)
    assert torch.equal(again.read(1, 1).source, cached.read(1, 1).source)
