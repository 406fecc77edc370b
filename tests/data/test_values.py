"""Pictures of any values and channels: in crops, as slices of volumes, as volumes; masks and grids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.data import opening, reading
from bbdm.data.cells import FileCell
from bbdm.data.loading import first_look
from bbdm.data.pairs import Pairs
from bbdm.data.spec import AXES, Spec
from bbdm.pictures.values import Percentiles, Values, read_values
from tests.data.making import (
    SOURCE,
    TARGET,
    folders,
    load,
    located,
    numbers,
    pictures,
    save,
    valued,
)

HEIGHT, WIDTH, CROP = 20, 24, 8
VOLUME = (4, 5, 6)


def masked(root: Path, shape: Sequence[int], *inside: Sequence[tuple[int, ...]]) -> str:
    """A mask M for each picture in A, and B: the places that are inside."""
    for number, places in enumerate(inside):
        array = np.zeros((1, *shape), np.uint8)
        for index in places:
            array[(0, *index)] = 200
        save(root / "M" / f"{number}.npy", array)
    return f"{root}/A,{root}/B,mask={root}/M"


def test_each_side_and_channel_has_its_own_values(tmp_path: Path) -> None:
    assert torch.equal(*valued(folders(tmp_path, count=1))[0])
    save(tmp_path / "C/0.npy", np.stack([located(2, (HEIGHT, WIDTH)), located(3, (HEIGHT, WIDTH))]))
    bands = read_values("0:4000,0:8000,-4000:4000")
    several = load(f"{tmp_path}/C,{tmp_path}/A;{tmp_path}/B", source=bands, target=TARGET, crop=1)
    assert (several.source_channels, several.channels) == (3, 1)
    at = round((several.read(0).target.item() + 1) * 2000)
    wanted = [(2000 + at) / 2000 - 1, (3000 + at) / 4000 - 1, at / 4000]
    np.testing.assert_allclose(several.read(0).source.flatten().tolist(), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="has 1 channels, and there are values of 2"):
        valued(f"{tmp_path}/A,{tmp_path}/B", source=read_values("0:1,0:1")).read(0)


@pytest.mark.parametrize(
    ("side", "fill", "kind", "how", "message"),
    [
        (
            "A",
            3000,
            "float32",
            {"source": None},
            "values from 5 to 3000 in float32: give their range",
        ),
        (
            "A",
            9,
            "uint16",
            {"source": None},
            "values from 5 to 9 in uint16: give their range, such as 0:255",
        ),
        ("A", np.nan, "float32", {"source": None}, "nan stands in channel 0"),
        ("B", np.inf, "float32", {"crop": (16, 20)}, "inf stands in channel 0"),
        (
            "A",
            np.inf,
            "float32",
            {"source": Percentiles(0, 100)},
            "NaN or infinity is among the values",
        ),
        ("A", 0, "uint16", {"source": None}, "values from 0 to 1 in uint16: give their range"),
        (
            "A",
            1.6,
            "float32",
            {"source": None},
            "values from 1 to 1.6 in float32: give their range",
        ),
    ],
)
def test_what_has_no_range_is_named(
    side: str, fill: float, kind: str, how: Any, message: str, tmp_path: Path
) -> None:
    data_dir = folders(tmp_path, count=1)
    array = np.full((1, HEIGHT, WIDTH), 1 if fill < 5 else 5, kind)
    array[0, 11, 13] = fill
    save(tmp_path / side / "0.npy", array)
    with pytest.raises(ValueError, match=rf"/0\.npy.*{message}"):
        valued(data_dir, **how).read(0)


def test_nodata_of_each_picture_is_the_least_and_not_in_the_mask(tmp_path: Path) -> None:
    """Nor in the percentiles, which are of each of several sources."""
    stored = located(0, (HEIGHT, WIDTH), "float32")
    for side, nodata, at in (("A", -1.0, 3), ("C", np.nan, 4), ("B", -5.0, 5)):
        array = stored.copy()
        array[at, at + 1] = nodata
        save(tmp_path / side / "0.tif", array, nodata=nodata)
    for source, high in ((SOURCE, 4000), (Percentiles(0, 100), stored.max())):
        example = valued(f"{tmp_path}/A,{tmp_path}/C;{tmp_path}/B", source=source).read(0)
        assert (example.mask == 0).nonzero().tolist() == [[0, 3, 4], [0, 4, 5], [0, 5, 6]]
        assert example.source[0, 3, 4] == example.source[1, 4, 5] == example.target[0, 5, 6] == -1
        inside = example.mask[0].numpy() == 1
        for band in example.source.numpy():
            np.testing.assert_allclose(band[inside], 2 * stored[inside] / high - 1, atol=1e-6)


def test_floats_without_a_range_are_those_of_the_unit_where_they_have_a_value(
    tmp_path: Path,
) -> None:
    """Up to 1.5, as filters overshoot."""
    array = np.array([[-1.5, 0.25, 1.5, -9999]], np.float32)
    path = save(tmp_path / "0.tif", array, nodata=-9999)
    example = Pairs([{"name": "0", "source": path, "target": path}]).read(0)
    assert example.source.flatten().tolist() == [-1.5, 0.25, 1.5, -1]


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_0_to_255_is_a_range_like_any_other(kind: str, tmp_path: Path) -> None:
    stored = np.linspace(-20, 300, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH).astype(kind)
    for side in "AB":
        save(tmp_path / side / "0.npy", stored)
    values = read_values("0:255")
    source, target = load(f"{tmp_path}/A,{tmp_path}/B", source=values, target=values)[0]
    np.testing.assert_allclose(source.numpy(), (stored / 127.5 - 1).clip(-1, 1), atol=1e-6)
    assert torch.equal(source, target)
    unit = save(tmp_path / "C/0.npy", np.full((1, 4, 4), 0.5, np.float32))
    found = Pairs([{"name": "0", "source": unit, "target": unit}], Spec(source=values)).read(0)
    assert found.source.unique().tolist() == pytest.approx([0.5 / 127.5 - 1])
    assert found.target.unique().tolist() == [0.5]


class TestResized:
    """What has no value has no weight in the pixels that a resized picture has."""

    @pytest.fixture
    def pairs(self, tmp_path: Path) -> Pairs:
        """16 x 16 floats of 3000, half of them without a value."""
        array = np.full((16, 16), 3000, np.float32)
        array[:, :8] = -9999
        for side in "AB":
            save(tmp_path / side / "0.tif", array, nodata=-9999)
        values = Values(0, 4000, dtype="float32")
        return load(f"{tmp_path}/A,{tmp_path}/B", size=8, source=values, target=values)

    def test_values_are_those_of_valid_pixels(self, pairs: Pairs) -> None:
        example = pairs.read(0)
        valid = example.mask == 1
        # of 4 columns, that at the edge has parts without
        assert valid.sum(dim=2).unique().tolist() == [3]
        assert set(example.mask.unique().tolist()) == {0, 1}
        for side in (example.source, example.target):
            assert side[valid].unique().tolist() == [0.5]
            assert side.unique().tolist() == [-1, 0.5]

    def test_pixels_without_one_are_in_no_warning(self, pairs: Pairs) -> None:
        assert first_look(pairs) == [
            "{} is nearly constant within 0:4000: give the range that sources use".format(
                pairs.rows[0]["source"]
            )
        ]
        whole = pairs.reader.whole(pairs.rows[0])["source"]
        assert whole.array[0][~whole.absent].tolist() == [3000] * 24


@pytest.mark.parametrize("part", ["whole", "crop", "slice"])
def test_stored_values_of_a_target_are_those_of_its_file(part: str, tmp_path: Path) -> None:
    """Those at -3024 and 1500, beyond a range of 0 to 1000, are not clipped, in each part of a picture."""
    volume = np.full((1, *VOLUME), 500, np.int16)
    volume[0, 1, 2, 3] = -3024
    volume[0, 1, 2, 4] = 1500
    array = volume if part == "slice" else volume[:, 1]
    for side in "AB":
        save(tmp_path / side / "0.npy", array)
    how: Any = {"whole": {}, "crop": {"crop": (5, 6)}, "slice": {"slices": "axial"}}[part]
    pairs = load(
        f"{tmp_path}/A,{tmp_path}/B", source=SOURCE, target=Values(0, 1000, dtype="int16"), **how
    )
    example = pairs.read(1 if part == "slice" else 0, stored=True)
    assert example.stored.dtype == np.int16
    np.testing.assert_array_equal(example.stored, volume[:, 1])
    assert example.target.min() == -1
    assert pairs.read(0).stored is None


def test_percentiles_are_of_the_whole_picture_of_a_crop(tmp_path: Path) -> None:
    example = valued(folders(tmp_path), source=Percentiles(10, 90), crop=CROP).read(2, 3)
    low, high = np.percentile(located(2, (HEIGHT * WIDTH,)), [10, 90])
    wanted = (2 * (numbers(example.target) - low) / (high - low) - 1).clip(-1, 1)
    np.testing.assert_allclose(example.source[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_percentiles_of_a_large_picture_are_those_of_some_rows(
    suffix: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(opening, "SAMPLED", 4 * WIDTH)
    path = save(tmp_path / f"0{suffix}", array := located(0, (HEIGHT, WIDTH), "uint16"))
    found: Any = reading.Reader(Spec()).values(Percentiles(10, 90), [FileCell(path)])
    assert found.low + found.high == pytest.approx(np.percentile(array[::5], [10, 90]))


class TestCrops:
    def test_windows_are_everywhere(self) -> None:
        """16 places, 1600 draws: each count within 5 sigma of 100, a false alarm of 1e-5."""
        keys = ("a 0", "a 1")
        windows = [
            Spec(crop=5).window((8, 8), None, (key, seed)) for key in keys for seed in range(800)
        ]
        counts = np.zeros((4, 4))
        np.add.at(
            counts, tuple(np.array([[part.start for part in window] for window in windows]).T), 1
        )
        assert abs(counts - 100).max() < 5 * np.sqrt(1600 / 16 * 15 / 16)
        assert windows[:800] != windows[800:]  # of another key

    @pytest.mark.parametrize(
        ("sides", "crop"), [((HEIGHT, WIDTH), (8, 10)), ((9, 10, 11), (3, 4, 5))]
    )
    def test_are_parts_of_both_pictures(self, sides: Any, crop: Any, tmp_path: Path) -> None:
        folders(tmp_path, size=sides)
        place = tuple(side // 2 for side in sides)
        data_dir = masked(tmp_path, sides, *[[place]] * 3)
        how: dict[str, Any] = {"crop": crop, "axes": len(sides)}
        pairs, volume, corners = valued(data_dir, crops=2, **how), located(1, sides), set[Any]()
        assert (len(pairs), pairs.image_size) == (6, crop)
        for seed in range(20):
            example = pairs.read(3, seed)
            array = numbers(example.source)
            first = np.unravel_index(int(array.flat[0]) - 1000, sides)  # of picture 1
            window = tuple(slice(at, at + side) for at, side in zip(first, crop, strict=True))
            assert (array == volume[window]).all()
            assert torch.equal(example.source, example.target)
            assert torch.equal(example.source, pairs.read(3, seed).source)
            assert int(example.mask.sum()) == int((array == volume[place]).sum())
            corners.add(first)
        assert len(corners) > 10  # another epoch has others
        # the next of the picture
        assert not torch.equal(pairs.read(2).source, pairs.read(3).source)
        with pytest.raises(ValueError, match=r"A/1\.npy: it has .* pixels, and crops have 30 x 30"):
            valued(data_dir, crop=30, axes=len(sides)).read(1)

    @pytest.mark.parametrize(
        "how",
        [{"slices": "sagittal", "neighbours": 1, "crop": 3}, {"axes": 3, "crop": 3}, {"axes": 3}],
        ids=str,
    )
    def test_by_the_cache_of_decoded_files_are_the_same(
        self, how: dict[str, Any], tmp_path: Path
    ) -> None:
        """Also without crops; a file's content is decoded once."""
        data_dir, cache = folders(tmp_path / "pairs", ".nii.gz", 2, (4, 9, 9)), tmp_path / "cache"
        wanted = valued(data_dir, **how)
        wanted = [wanted.read(index, 1).source for index in range(len(wanted))]
        for damaged in (False, True):
            pairs = valued(data_dir, cache=cache, **how)
            assert all(
                torch.equal(pairs.read(i, 1).source, source) for i, source in enumerate(wanted)
            )
            for path in () if damaged else (tmp_path / "pairs").rglob("*.gz"):
                stat, content = path.stat(), path.read_bytes()
                path.write_bytes(content[:-8] + bytes(8))
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert len(list(cache.glob("*.safetensors"))) == 4


class TestVolumes:
    @pytest.mark.parametrize(
        ("plane", "suffix"),
        [("axial", ".nii"), ("coronal", ".nii.gz"), ("sagittal", ".mha"), ("sagittal", ".npy")],
    )
    def test_slices_have_neighbours_of_which_the_ends_repeat(
        self, plane: Any, suffix: str, tmp_path: Path
    ) -> None:
        """A source's channels are from low to high; the target stays one slice."""
        pairs = valued(folders(tmp_path, suffix, 2, VOLUME), slices=plane, neighbours=2)
        axis, volume = AXES[plane], located(1, VOLUME)
        count = VOLUME[axis]
        assert (len(pairs), list(pairs.ends)) == (2 * count, [count, 2 * count])
        assert (pairs.source_channels, pairs.channels) == (5, 1)
        for number in range(count):
            example = pairs.read(count + number)
            assert example.name == f"1/{number:04d}"
            assert (numbers(example.target) == volume.take(number, axis)).all()
            seen = np.clip(np.arange(number - 2, number + 3), 0, count - 1)
            for channel, index in zip(example.source, seen, strict=True):
                assert (numbers(channel[None]) == volume.take(index, axis)).all()

    def test_slices_of_which_nothing_is_in_the_mask_are_left_out(self, tmp_path: Path) -> None:
        folders(tmp_path, count=2, size=VOLUME)
        data_dir = masked(tmp_path, VOLUME, [(1, 2, 3), (3, 2, 3)], [(2, 2, 3)])
        pairs = valued(data_dir, slices="axial", neighbours=1)
        examples = [pairs.read(index) for index in range(len(pairs))]
        assert [example.name for example in examples] == ["0/0001", "0/0003", "1/0002"]
        # what is outside is seen
        assert (numbers(examples[0].source[:1]) == located(0, VOLUME)[0]).all()
        assert examples[2].mask.nonzero().tolist() == [[0, 2, 3]]
        with pytest.raises(ValueError, match="no slice has anything in its mask"):
            valued(masked(tmp_path, VOLUME, [], []), slices="axial")

    def test_slices_of_a_damaged_volume_are_left_out(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".nii", 3, VOLUME)
        (tmp_path / "B/1.nii").write_bytes(b"")
        with pytest.raises(ValueError, match=r"B/1\.nii"):
            valued(data_dir, slices="axial")
        pairs = valued(data_dir, slices="axial", skip_bad=True)
        assert [pairs.read(index).name[0] for index in range(len(pairs))] == ["0"] * 4 + ["2"] * 4
        assert len(pairs.left_out) == 1

    def test_are_whole_of_three_axes(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".mha", 1, VOLUME)
        assert (numbers(valued(data_dir, axes=3).read(0).source) == located(0, VOLUME)).all()
        with pytest.raises(
            ValueError, match=r"A/0\.mha has 3 axes, and examples 2: say which slices"
        ):
            valued(data_dir)
        flat = pictures(tmp_path / "flat", 1)
        with pytest.raises(
            ValueError, match=r"A/0\.png has 2 axes, and examples 3: this network is of volumes"
        ):
            load(flat, axes=3)
        with pytest.raises(ValueError, match=r"A/0\.png has 2 axes, and slices are of volumes"):
            load(flat, slices="axial")

    def test_their_spacing_is_the_median(self, tmp_path: Path) -> None:
        """Along (D, H, W), where NIfTI's are (x, y, z)."""
        for number, length in enumerate((1.0, 2.0, 9.0)):
            for side in "AB":
                save(
                    tmp_path / side / f"{number}.nii",
                    located(0, VOLUME),
                    affine=np.diag([length, 1, 2, 1]),
                )
        data_dir = f"{tmp_path}/A,{tmp_path}/B"
        assert (
            valued(data_dir, slices="coronal").spacing
            == valued(data_dir, axes=3).spacing
            == (2, 1, 2)
        )
        assert valued(folders(tmp_path / "none", size=VOLUME), axes=3).spacing is None


class TestGrids:
    @pytest.mark.parametrize("how", [{"slices": "axial"}, {"axes": 3}], ids=str)
    def test_of_volumes_are_named_with_the_way_to_resample(
        self, how: dict[str, Any], tmp_path: Path
    ) -> None:
        for side, step in (("A", 2.0), ("B", 1.0)):
            save(tmp_path / side / "0.mha", located(0, VOLUME), spacing=(1.0, 1.0, step))
        message = r"A/0\.mha and .*B/0\.mha lie on different grids, 4 x 5 x 6 at .*2\.0.* and 4 x 5 x 6 at .*SimpleITK"
        with pytest.raises(ValueError, match=message):
            valued(f"{tmp_path}/A,{tmp_path}/B", **how).read(0)

    @pytest.mark.parametrize("crop", [None, CROP])
    def test_of_sizes_alone(self, crop: int | None, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, count=1)
        with pytest.raises(
            ValueError, match=r"M/0\.npy and .*B/0\.npy lie on different grids, 20 x 23 and 20 x 24"
        ):
            valued(masked(tmp_path, (HEIGHT, WIDTH - 1), [(1, 1)]), crop=crop).read(0)
        save(tmp_path / "B/0.npy", located(0, (1, HEIGHT + 1, WIDTH)))
        with pytest.raises(
            ValueError, match=r"A/0\.npy and .*B/0\.npy .* 20 x 24 and 21 x 24: resample"
        ):
            valued(data_dir, crop=crop).read(0)
        # resized, they may differ
        assert valued(data_dir, size=6).read(0).source.shape == (1, 6, 6)


def test_pixels_of_a_geotiff_that_are_nan_are_told_what_makes_them_absent(tmp_path: Path) -> None:
    array = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    message = "nodata=nan in the file makes such pixels absent"
    geotiffs = folders(tmp_path / "geo", ".tif", count=1)
    save(tmp_path / "geo/B/0.tif", array, nodata=-9)
    with pytest.raises(ValueError, match=rf"B/0\.tif: nan stands in .*; {message}"):
        valued(geotiffs).read(0)
    arrays = folders(tmp_path, count=1)
    save(tmp_path / "B/0.npy", array[None])
    with pytest.raises(ValueError, match=r"B/0\.npy: nan stands in") as error:
        valued(arrays).read(0)
    assert message not in str(error.value)
