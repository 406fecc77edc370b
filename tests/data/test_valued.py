"""Pictures of any channels and values: whole, in crops, as slices of volumes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, TrainConfig, Trainer, load_checkpoint
from bbdm.base.scripts import StoppedError
from bbdm.data.cache import ImageCache
from bbdm.data.config import PicturesConfig
from bbdm.data.crops import Crops
from bbdm.data.examples import PairExamples
from bbdm.data.loading import Batches
from bbdm.data.pairs import PairedDataset, load_dataset
from bbdm.data.survey import BadPicturesError, readable
from bbdm.data.valued import ValuedDataset
from bbdm.pictures.formats import medical
from bbdm.data.spec import Spec
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import Values, read_values
from tests.conftest import SavePicture, newest, tiny_unet

HEIGHT, WIDTH, CROP = 20, 24, 8
CPU = torch.device("cpu")
PLACE = ((1.0, 0.0, 0.0, 5.0), (0.0, 1.0, 0.0, 6.0), (0.0, 0.0, 2.0, 7.0), (0.0, 0.0, 0.0, 1.0))


def place_of(number: int, shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray[Any, Any]:
    """A picture in which each pixel says where it is: 1000 times the number, and its index."""
    return (1000 * number + np.arange(np.prod(shape))).reshape(shape).astype(dtype)


def folders(root: Path, suffix: str = ".npy", count: int = 3, size: tuple[int, ...] = (HEIGHT, WIDTH)) -> str:
    """SOURCES,TARGETS, where the target of a pixel is 1 more than the source."""
    for side in "AB":
        (root / side).mkdir(parents=True)
        for number in range(count):
            array = place_of(number, (1, *size)) + (side == "B")
            Picture(array, Geometry(PLACE) if len(size) == 3 else None).save(root / side / f"{number}{suffix}")
    return f"{root}/A,{root}/B"


def load(data_dir: str, **settings: Any) -> PairExamples:
    values = {"source_values": read_values("0:4000"), "target_values": read_values("1:4001:u")}
    return load_dataset("paired", data_dir, resize="keep", pictures=PicturesConfig(**{**values, **settings}))


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The stored values of a source."""
    return Values(0, 4000, dtype="int16").stored(tensor)[0]


def test_values_of_both_sides_become_the_unit_range(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path))
    assert isinstance(pairs, ValuedDataset)
    source, target = pairs[1]
    wanted = 2 * place_of(1, (1, HEIGHT, WIDTH)).astype(float) / 4000 - 1
    np.testing.assert_allclose(source.numpy(), wanted, atol=1e-6)
    assert torch.equal(source, target)  # each in its own range
    assert pairs.image_size == (HEIGHT, WIDTH)
    made = pairs.images(1)
    assert made[1] is not None
    assert (made[1].unit, made[1].dtype, made[1].name) == ("u", np.int16, "1")
    assert (made[1] == made[0] + 1).all()


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png", ".nii"])
def test_without_values_more_than_8_bits_are_an_error_with_their_range(suffix: str, tmp_path: Path) -> None:
    size = (2, HEIGHT, WIDTH) if suffix == ".nii" else (HEIGHT, WIDTH)
    kind = "uint16" if suffix == ".png" else "int16"
    for side in "AB":
        (tmp_path / side).mkdir()
        Picture(place_of(1, (1, *size), kind)).save(tmp_path / side / f"a{suffix}")
    highest = 999 + np.prod(size)
    with pytest.raises(
        ValueError, match=rf"A/a{suffix}: pictures of {kind} .*has 1000 to {highest}, .*--source_values"
    ):
        load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B")


def test_the_ranges_of_both_sides_are_told_where_there_are_none(tmp_path: Path) -> None:
    for side, low, high in (("A", 403, 3499), ("B", -20.5, 36903.0)):
        array = np.array([[[low, high]]], np.uint16 if side == "A" else np.float32)
        Picture(array).save(tmp_path / side / "0.npy")
    found = "the first source has 403 to 3499, the first target has -20.5 to 36903"
    flags = r"--source_values 0:4095 --target_values -21:36903 \(source_values=, target_values= in Python\)"
    with pytest.raises(ValueError, match=rf"A/0.npy: pictures of float32 and uint16 .* and {found}: .* {flags}"):
        load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B")
    Picture(np.zeros((1, 1, 2), np.uint8)).save(tmp_path / "B" / "0.npy")
    with pytest.raises(ValueError, match=r"uint16 have .*, such as --source_values 0:4095 \(source_values= in Python"):
        load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B")


def test_a_crop_is_a_part_of_the_picture_where_the_seed_says(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path), crop=(CROP, CROP + 2), crops_per_picture=2)
    assert (len(pairs), pairs.image_size) == (6, (CROP, CROP + 2))
    corners: set[Any] = set()
    for seed in range(40):
        example = pairs.read(3, seed)
        array = numbers(example.source)
        top, left = divmod(int(array[0, 0]) - 1000, WIDTH)  # of picture 1
        assert (array == place_of(1, (HEIGHT, WIDTH))[top : top + CROP, left : left + CROP + 2]).all()
        assert torch.equal(example.source, example.target)
        assert torch.equal(example.source, pairs.read(3, seed).source)
        corners.add((top, left))
    assert min(top for top, _ in corners) == 0
    assert max(top for top, _ in corners) == HEIGHT - CROP
    assert {left for _, left in corners} >= {0, WIDTH - CROP - 2}
    assert numbers(pairs.read(2, 0).source)[0, 0] != numbers(pairs.read(3, 0).source)[0, 0]


def test_crops_of_a_picture_follow_each_other_in_an_epoch(tmp_path: Path) -> None:
    order = load(folders(tmp_path), crop=CROP, crops_per_picture=3).order(5)
    whole = order(0, 9)
    assert sorted(whole) == list(range(9))
    assert [index // 3 for index in whole[::3]] == [index // 3 for index in whole[2::3]]
    assert [order(start, start + 2) for start in range(7)] == [whole[start : start + 2] for start in range(7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_of_a_batch_are_those_of_its_seed(workers: int, tmp_path: Path) -> None:
    pairs = load(folders(tmp_path), crop=CROP)
    (batch,) = Batches(pairs, 3, CPU, workers)([2, 0, 1], seed=9)
    for place, index in enumerate([2, 0, 1]):
        assert torch.equal(batch.source[place], pairs.read(index, 9).source)
    assert batch.name == ["2", "0", "1"]


def test_crops_in_the_mask_are_centred_there(tmp_path: Path) -> None:
    data_dir = folders(tmp_path, count=1)
    (tmp_path / "M").mkdir()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[9, 11] = 255
    Image.fromarray(mask).save(tmp_path / "M" / "0.png")
    pairs = load(data_dir, crop=CROP, masks=tmp_path / "M", crops_in_mask=1.0)
    for seed in range(5):
        example = pairs.read(0, seed)
        assert numbers(example.source)[CROP // 2, CROP // 2] == 9 * WIDTH + 11
        assert example.mask is not None
        assert example.mask.nonzero().tolist() == [[0, CROP // 2, CROP // 2]]
    half = load(data_dir, crop=CROP, masks=tmp_path / "M", crops_in_mask=0.5)
    share = np.mean([numbers(half.read(0, seed).source)[CROP // 2, CROP // 2] == 9 * WIDTH + 11 for seed in range(200)])
    assert 0.4 < share < 0.6  # binomial, 3 sigma


@pytest.mark.parametrize("slices", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_slices_of_volumes_are_examples(slices: str, suffix: str, tmp_path: Path) -> None:
    size = (4, 5, 6)
    pairs = load(folders(tmp_path, suffix, 2, size), slices=slices)
    axis = ["axial", "coronal", "sagittal"].index(slices)
    assert len(pairs) == 2 * size[axis]
    volume = place_of(1, size)
    for number in range(size[axis]):
        example = pairs.read(size[axis] + number)
        assert (numbers(example.source) == volume.take(number, axis)).all()
        assert example.name == f"1/{number:04d}"


def test_neighbours_are_channels_from_low_to_high_places(tmp_path: Path) -> None:
    """Those beyond an end are the last slice again; the target stays one slice."""
    pairs = load(folders(tmp_path, count=2, size=(3, 5, 6)), slices="coronal", neighbours=2)
    volume = place_of(1, (3, 5, 6))
    assert (len(pairs), pairs.source_channels, pairs.channels) == (10, 5, 1)
    for place, wanted in enumerate(
        [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4]]
    ):
        example = pairs.read(5 + place)
        stored = Values(0, 4000, dtype="int16").stored(example.source)
        assert (stored == volume[:, wanted].transpose(1, 0, 2)).all()
        assert (numbers(example.target) == volume[:, place]).all()
    crops = load(f"{tmp_path}/A,{tmp_path}/B", slices="coronal", neighbours=1, crop=(2, 3)).read(7, 3)
    middle = Values(0, 4000, dtype="int16").stored(crops.source)
    assert (np.diff(middle.astype(int), axis=0) == 6).all()  # the next slice's values are a row further


def test_slices_of_which_nothing_is_in_the_mask_are_left_out(tmp_path: Path) -> None:
    data_dir = folders(tmp_path, count=2, size=(4, 5, 6))
    (tmp_path / "M").mkdir()
    for number, inside in enumerate([(1, 3), (2,)]):
        mask = np.zeros((1, 4, 5, 6), np.uint8)
        mask[0, list(inside), 2, 3] = 1
        Picture(mask).save(tmp_path / "M" / f"{number}.npy")
    pairs = load(data_dir, slices="axial", neighbours=1, masks=tmp_path / "M")
    examples = [pairs.read(index) for index in range(len(pairs))]
    assert [example.name for example in examples] == ["0/0001", "0/0003", "1/0002"]
    source = Values(0, 4000, dtype="int16").stored(examples[0].source)
    assert (source == place_of(0, (4, 5, 6))[:3]).all()  # neighbours outside the mask are seen
    assert examples[2].mask is not None
    assert examples[2].mask.nonzero().tolist() == [[0, 2, 3]]
    for number in range(2):
        Picture(np.zeros((1, 4, 5, 6), np.uint8)).save(tmp_path / "M" / f"{number}.npy")
    with pytest.raises(ValueError, match="no slice has anything in its mask"):
        load(data_dir, slices="axial", masks=tmp_path / "M")


def test_crops_of_volumes_are_examples_of_three_axes(tmp_path: Path) -> None:
    """Anywhere in the volume; those in the mask are centred there; a side alone is of a cube."""
    size = (9, 10, 11)
    data_dir = folders(tmp_path, count=1, size=size)
    (tmp_path / "M").mkdir()
    mask = np.zeros((1, *size), np.uint8)
    mask[0, 4, 5, 6] = 1
    Picture(mask).save(tmp_path / "M" / "0.npy")
    settings: dict[str, Any] = {"crop": (3, 4, 5), "axes": 3, "masks": tmp_path / "M"}
    pairs = load(data_dir, **settings)
    assert (pairs.image_size, pairs.axes, pairs.kind.crop) == ((3, 4, 5), 3, (3, 4, 5))
    assert Spec.from_config(json.loads(json.dumps(pairs.kind.config()))) == pairs.kind
    volume, places = place_of(0, size), set[tuple[int, ...]]()
    for seed in range(20):
        example = pairs.read(0, seed)
        crop = numbers(example.source)
        first = tuple(map(int, np.unravel_index(crop[0, 0, 0], size)))
        assert (crop == volume[tuple(slice(at, at + side) for at, side in zip(first, (3, 4, 5), strict=True))]).all()
        assert (numbers(example.target) == crop).all()
        assert example.mask is not None
        assert int(example.mask.sum()) == int((crop == volume[4, 5, 6]).sum())
        places.add(first)
    assert len(places) > 10
    inside = load(data_dir, **settings, crops_in_mask=1.0)
    assert {int(numbers(inside.read(0, seed).source)[1, 2, 2]) for seed in range(5)} == {int(volume[4, 5, 6])}
    assert load(data_dir, crop=4, axes=3).read(0).source.shape == (1, 4, 4, 4)
    whole = load(data_dir, axes=3).read(0)
    assert (numbers(whole.source) == volume).all()


def test_volumes_of_several_sizes_need_crops(tmp_path: Path) -> None:
    data_dir = folders(tmp_path, count=2, size=(4, 5, 6))
    for side in "AB":
        Picture(place_of(0, (1, 4, 5, 7))).save(tmp_path / side / "1.npy")
    with pytest.raises(
        BadPicturesError, match=r"1.npy has 4 x 5 x 7 voxels, and .*0.npy has 4 x 5 x 6: train on crops"
    ):
        readable(load(data_dir, axes=3), False, pytest.fail)
    readable(load(data_dir, axes=3, crop=4), False, pytest.fail)


def test_channels_of_several_files_follow_each_other(tmp_path: Path) -> None:
    folders(tmp_path, count=1)
    (tmp_path / "C").mkdir()
    Picture(place_of(2, (2, HEIGHT, WIDTH), "uint16")).save(tmp_path / "C" / "0.tif")
    pairs = load(f"{tmp_path}/C,{tmp_path}/A;{tmp_path}/B")
    assert (pairs.source_channels, pairs.channels) == (3, 1)
    source, _ = pairs[0]
    scaled = Values(0, 4000, dtype="int16").stored(source)
    assert [int(channel[0, 0]) for channel in scaled] == [2000, 2000 + HEIGHT * WIDTH, 0]
    (tmp_path / "C" / "0.tif").rename(tmp_path / "C" / "1.tif")
    with pytest.raises(ValueError, match=r"A/0.npy has no counterpart in .*C"):
        load(f"{tmp_path}/C,{tmp_path}/A;{tmp_path}/B")


def test_percentiles_are_of_the_whole_source_of_each_crop(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path), source_values=read_values("p10:90"), crop=CROP)
    example = pairs.read(2, 3)
    low, high = np.percentile(place_of(2, (HEIGHT * WIDTH,)), [10, 90])
    first = round((float(example.target[0, 0, 0]) + 1) * 2000)
    assert float(example.source[0, 0, 0]) == pytest.approx(
        np.clip(2 * (first - low) / (high - low) - 1, -1, 1), abs=1e-5
    )


def test_pixels_without_a_value_are_least_and_not_in_the_mask(tmp_path: Path) -> None:
    for side in "AB":
        (tmp_path / side).mkdir()
        array = place_of(1, (1, HEIGHT, WIDTH))
        array[0, 3, 4] = -9999
        place = Geometry(((0.0, 1.0, 5.0), (-1.0, 0.0, 9.0), (0.0, 0.0, 1.0)), "geotiff", {"nodata": -9999})
        Picture(array, place).save(tmp_path / side / "0.tif")
    example = load(f"{tmp_path}/A,{tmp_path}/B").read(0)
    assert example.mask is not None
    assert (example.mask == 0).nonzero().tolist() == [[0, 3, 4]]
    assert float(example.source[0, 3, 4]) == -1


def test_decoded_files_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = folders(tmp_path / "pairs", ".nii.gz", 2, (4, 9, 9))
    settings = {"source_values": read_values("0:4000"), "target_values": read_values("1:4001"), "slices": "axial"}
    config = PicturesConfig(**settings, crop=CROP)  # pyright: ignore[reportArgumentType]
    plain = load_dataset("paired", data_dir, pictures=config)
    cached = load_dataset("paired", data_dir, pictures=config, cache=tmp_path / "cache")
    for index in range(8):
        assert torch.equal(cached.read(index, 1).source, plain.read(index, 1).source)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4
    wanted = plain.read(3, 1).source
    monkeypatch.setattr(medical._Picture, "_read", lambda *_: pytest.fail("decoded again"))
    again = load_dataset("paired", data_dir, pictures=config, cache=tmp_path / "cache")
    assert torch.equal(again.read(3, 1).source, wanted)


def test_8_bits_in_crops_are_those_of_the_pictures(tmp_path: Path, save_picture: SavePicture) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for side in "AB":
        save_picture(tmp_path / side / "0.png", Image.fromarray(pixels))
    pairs = load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B", pictures=PicturesConfig(crop=CROP))
    example = pairs.read(0, 4)
    assert example.source.dtype == torch.uint8
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (CROP, CROP), axis=(0, 1))  # H', W', C, h, w
    assert (windows == example.source.numpy()).all(axis=(2, 3, 4)).sum() == 1
    grey = load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B", channels=1, pictures=PicturesConfig(crop=CROP))
    assert grey.read(0).source.shape == (1, CROP, CROP)


def test_degradations_are_of_the_crop_and_random_ones_anew_each_epoch(
    tmp_path: Path, save_picture: SavePicture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    save_picture(tmp_path / "0.png", Image.fromarray(pixels))
    crop = PicturesConfig(crop=16)
    pairs = load_dataset("folder", str(tmp_path), degrade="inpaint", pictures=crop)
    examples = [pairs.read(0, seed) for seed in range(3)]
    masks = [(example.source != example.target).any(dim=0) for example in examples]
    assert all(0.2 <= float(mask.float().mean()) < 0.5 for mask in masks)  # of the crop's own pixels
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(pairs.read(0, 2).source, examples[2].source)
    with pytest.raises(ValueError, match="degrade is for pictures, and this network is of volumes"):
        load_dataset("folder", str(tmp_path), degrade="inpaint", pictures=PicturesConfig(crop=16, axes=3))


def test_pairs_travel_to_other_processes(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path), crop=CROP)
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).read(1, 2).source, pairs.read(1, 2).source)


def test_bad_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    data_dir = folders(tmp_path)
    (tmp_path / "A" / "1.npy").write_bytes(b"no array")
    with pytest.raises(BadPicturesError, match=r"A/1.npy"):
        readable(load(data_dir), False, pytest.fail)
    lines: list[str] = []
    assert [pair.name for pair in readable(load(data_dir), True, lines.append).pairs] == ["0", "2"]
    assert len(lines) == 1
    assert "1.npy" in lines[0]
    assert (numbers(load(data_dir).skipping().read(1).source) == numbers(load(data_dir).read(2).source)).all()


def _grow(root: Path) -> None:
    Picture(place_of(0, (1, HEIGHT + 1, WIDTH))).save(root / "B" / "0.npy")


def _spoil(root: Path) -> None:
    array = np.zeros((1, HEIGHT, WIDTH), np.float32)
    array[0, 2, 3] = np.nan
    Picture(array).save(root / "B" / "0.npy")


def _more_channels(root: Path) -> None:
    Picture(place_of(0, (2, HEIGHT, WIDTH))).save(root / "B" / "1.npy")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (_grow, {}, r"A/0.npy and .*B/0.npy lie on different grids, 20 x 24 and 21 x 24: .*--resample"),
        (_spoil, {}, r"A/0.npy: nan stands in channel 0 at \(2, 3\)"),
        (None, {"crop": 30}, r"A/0.npy: it has 20 x 24 pixels, and crops have 30 x 30"),
        (None, {"source_values": read_values("0:1,0:1")}, "has 1 channels, and there are values of 2"),
        (None, {"neighbours": 1}, "neighbours must be a number of slices, at least 0, and need slices; got 1"),
        (None, {"crops_in_mask": 0.5, "crop": 8}, "crops_in_mask needs masks"),
        (None, {"slices": "axial"}, "has 2 axes, and slices are of volumes"),
        (None, {"axes": 3}, r"A/0.npy has 2 axes, and this network is of volumes, which have 3"),
        (None, {"axes": 3, "crop": (8, 8)}, r"must be an integer or \(depth, height, width\), got \(8, 8\)"),
        (_grow, {"resample": True}, "cannot be resampled .*: two medical files or GeoTIFFs can"),
    ],
)
def test_refusals_name_the_file(change: Any, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    data_dir = folders(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(data_dir, **settings).read(0)


def test_a_pair_of_other_channels_is_named_by_the_survey(tmp_path: Path) -> None:
    data_dir = folders(tmp_path)
    _more_channels(tmp_path)
    with pytest.raises(BadPicturesError, match=r"A/1.npy has \[1, 2\] channels"):
        readable(load(data_dir), False, pytest.fail)


def test_a_source_on_another_grid_is_resampled(tmp_path: Path) -> None:
    """A linear ramp at half the distance of pixels, by SimpleITK."""
    for side, step in (("A", 2.0), ("B", 1.0)):
        (tmp_path / side).mkdir()
        ramp = np.broadcast_to(100 * step * np.arange(10 / step), (1, 4, 4, int(10 / step))).astype(np.int16)
        place = ((0.0, 0.0, step, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        Picture(ramp, Geometry(place)).save(tmp_path / side / "0.nii")
    data_dir = f"{tmp_path}/A,{tmp_path}/B"
    with pytest.raises(ValueError, match=r"A/0.nii and .*B/0.nii lie on different grids, 4 x 4 x 5 at .* --resample"):
        load(data_dir, slices="axial").read(0)
    example = load(data_dir, slices="axial", resample=True).read(0)
    assert numbers(example.source)[0, :9].tolist() == [100 * i for i in range(9)]


def test_a_source_of_another_orientation_is_turned_where_asked(tmp_path: Path) -> None:
    """The same voxels, in files whose axes point to other sides of the patient."""
    volume = place_of(1, (1, 3, 4, 5))
    toward_head = ((0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    toward_feet = ((0.0, 0.0, -1.0, 4.0), (0.0, 1.0, 0.0, 0.0), (-2.0, 0.0, 0.0, 4.0), (0.0, 0.0, 0.0, 1.0))
    for side, array, place in (("A", volume[:, ::-1, :, ::-1], toward_feet), ("B", volume + 1, toward_head)):
        (tmp_path / side).mkdir()
        Picture(array, Geometry(place)).save(tmp_path / side / "0.mha")
    data_dir = f"{tmp_path}/A,{tmp_path}/B"
    message = r"A/0.mha and .*B/0.mha lie on different grids, .* toward IPR and .* toward SPL: .* --resample"
    with pytest.raises(ValueError, match=message):
        load(data_dir, slices="axial")
    pairs = load(data_dir, slices="axial", resample=True)
    for place in range(3):
        assert (numbers(pairs.read(place).source) == volume[0, place]).all()
        assert torch.equal(*pairs[place])


def test_a_volume_of_one_slice_is_its_own_neighbour(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path, ".npy", 1, (1, 5, 6)), slices="axial", neighbours=2)
    assert len(pairs) == 1
    stored = Values(0, 4000, dtype="int16").stored(pairs.read(0).source)
    assert (stored == np.repeat(place_of(0, (1, 5, 6)), 5, axis=0)).all()


def test_the_spacing_of_volumes_is_the_median(tmp_path: Path) -> None:
    data_dir = folders(tmp_path, ".nii", 3, (3, 4, 5))
    for side in "AB":
        place = ((0.0, 0.0, 2.0, 0.0), (0.0, 1.5, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        Picture(place_of(0, (1, 3, 4, 5)), Geometry(place)).save(tmp_path / side / "0.nii")
    pairs = load(data_dir, slices="coronal")
    assert (pairs.spacing, load(data_dir, axes=3).spacing) == ((1, 1, 2), (1, 1, 2))  # of 1, 1.5, 2 and PLACE twice
    assert load(data_dir, slices="coronal").kind.spacing is None  # of files alone, which runs made before lack
    assert load(folders(tmp_path / "flat")).spacing is None


def test_a_mask_on_another_grid_takes_the_nearest(tmp_path: Path) -> None:
    """Voxels of 3 mm, seen by targets of 1 mm: the two inside reach from 2 to 7 mm."""
    outside, inside = np.zeros((1, 4, 4, 12), np.int16), np.zeros((1, 4, 4, 4), np.uint8)
    inside[..., 1:3] = 100
    for side, array, step in (("A", outside, 1.0), ("B", outside, 1.0), ("M", inside, 3.0)):
        (tmp_path / side).mkdir()
        place = ((0.0, 0.0, step, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        Picture(array, Geometry(place)).save(tmp_path / side / "0.nii")
    example = load(f"{tmp_path}/A,{tmp_path}/B", slices="axial", resample=True, masks=tmp_path / "M").read(0)
    assert example.mask is not None
    assert np.flatnonzero(example.mask[0, 0].numpy()).tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops_per_picture": 0, "crop": 8}, "crops_per_picture must be at least 1, got 0"),
        ({"crops_per_picture": 2}, "crops_per_picture and crops_in_mask need crop"),
        ({"axes": 3, "slices": "axial"}, "slices are of networks of 2 axes, and this one has 3"),
        ({"neighbours": -1, "slices": "axial"}, "neighbours must be at least 0, got -1"),
        ({"crops_in_mask": 2.0, "crop": 8, "masks": Path("M")}, "crops_in_mask must be from 0 to 1, got 2"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assert PicturesConfig(**settings).crops


def test_whole_pictures_are_resized_as_pillow_does(tmp_path: Path) -> None:
    """Each channel by itself, in the unit range."""
    values = {"source_values": read_values("0:4000"), "target_values": read_values("1:4001")}
    pairs = load_dataset("paired", folders(tmp_path), image_size=(10, 12), pictures=PicturesConfig(**values))  # pyright: ignore[reportArgumentType]
    stored = Image.fromarray(place_of(1, (HEIGHT, WIDTH)).astype(np.float32)).resize(
        (12, 10), Image.Resampling.BILINEAR
    )
    np.testing.assert_allclose(pairs[1][0][0].numpy(), np.asarray(stored) / 2000 - 1, atol=1e-5)


def test_8_bit_pictures_stay_with_pillow(tmp_path: Path, save_picture: SavePicture) -> None:
    for side in "AB":
        save_picture(tmp_path / side / "0.tif", Image.new("RGB", (8, 8)))
    assert isinstance(load_dataset("paired", f"{tmp_path}/A,{tmp_path}/B"), PairedDataset)


def test_the_place_of_a_crop_depends_on_all_of_its_key() -> None:
    crops = Crops(4)
    places = {
        crops.window((400, 400), key, seed) == crops.window((400, 400), "a 0", 0)
        for key, seed in [("a 1", 0), ("b 0", 0), ("a 0", 1)]
    }
    assert places == {False}


def test_results_have_the_type_of_the_targets_files(tmp_path: Path) -> None:
    assert load(folders(tmp_path)).kind.target.dtype == "int16"
    for number in range(3):
        Picture(np.zeros((1, HEIGHT, WIDTH), np.float32)).save(tmp_path / "B" / f"{number}.npy")
    assert load(f"{tmp_path}/A,{tmp_path}/B", target_values=read_values("0:1")).kind.target.dtype == "float32"


def test_each_source_has_pixels_without_a_value_of_its_own(tmp_path: Path) -> None:
    place = ((0.0, 1.0, 5.0), (-1.0, 0.0, 9.0), (0.0, 0.0, 1.0))
    for side, nodata, at in (("A", -1, 3), ("C", -2, 4), ("B", None, 0)):
        (tmp_path / side).mkdir()
        array = np.ones((1, HEIGHT, WIDTH), np.int16)
        array[0, at, at] = nodata or 1
        Picture(array, Geometry(place, "geotiff", {"nodata": nodata})).save(tmp_path / side / "0.tif")
    mask = load(f"{tmp_path}/A,{tmp_path}/C;{tmp_path}/B").read(0).mask
    assert (mask == 0).nonzero().tolist() == [[0, 3, 3], [0, 4, 4]]


def test_crops_are_not_frozen_in_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crops are others in each epoch"):
        ImageCache(load(folders(tmp_path), crop=CROP), tmp_path / "cache")


def test_a_run_on_crops_resumes_exactly_within_an_epoch(tmp_path: Path) -> None:
    pairs = load(folders(tmp_path, count=4), crop=CROP, crops_per_picture=2)

    def run(folder: str, stop: int | None = None) -> Trainer:
        unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
        config = TrainConfig(epochs=2, batch_size=2, save_every=1)
        trainer = Trainer(unet, ABridge(), config, pairs, None, tmp_path / folder)
        if trainer.resume_newest() or stop is None:
            trainer.fit()
        else:
            with pytest.raises(StoppedError):
                trainer.fit(stop=lambda: trainer.step == stop)
        return trainer

    whole = run("whole")
    assert run("parts", stop=6).step == 6  # of 4 in an epoch
    resumed = run("parts")
    assert resumed.step == whole.step == 8
    for name, weight in whole.unet.state_dict().items():
        assert torch.equal(weight, resumed.unet.state_dict()[name]), name
    assert load_checkpoint(newest(resumed)).pictures == pairs.kind
