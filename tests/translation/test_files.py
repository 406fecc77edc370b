"""translate and eval of pictures of any values: results of the sources' kind, scores in units, manifests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, TrainConfig, pictures, save_checkpoint
from bbdm.base.seeds import seed_of
from bbdm.cli import eval as eval_script
from bbdm.cli import translate
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.pictures import Geometry, Picture
from bbdm.pictures.values import Percentiles, Values
from bbdm.training.bridge import BridgeTask
from bbdm.translation.config import TranslateConfig
from bbdm.translation.record import Lines
from bbdm.translation.results import translated
from bbdm.translation.translator import Translator
from tests.conftest import tiny_unet

SIZE = 16
HU = Values(-1024, 3071, "HU", "int16")
BANDS = Values(0, 10000, dtype="uint16")
MR_TO_CT = Spec(source=Percentiles(0.5, 99.5), target=HU, slices="coronal")
PLACE = ((-0.5, 0.0, 2.0, -10.0), (0.0, 1.5, 0.0, 5.0), (3.0, 0.0, 0.25, 7.0), (0.0, 0.0, 0.0, 1.0))
ON_EARTH = ((0.0, 10.0, 499980.0), (-10.0, 0.0, 4600020.0), (0.0, 0.0, 1.0))
Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def network(channels: int, spec: Spec | None = None, **settings: Any) -> None:
    """The checkpoint c.pt, of a network with random weights."""
    unet = tiny_unet(in_channels=channels, out_channels=channels, **settings)
    save_checkpoint("c.pt", unet, ABridge(num_steps=50), image_size=SIZE, pictures=spec or Spec())


def write(path: str, array: Array, geometry: Geometry | None = None) -> None:
    pictures.write(path, Picture(array, geometry))


def volumes() -> None:
    """MR of two patients, CT on the same grid, and masks of the body."""
    random = np.random.default_rng(0)
    for name in ("a", "ward/b"):
        size = (7, 3, 20) if name == "a" else (6, 4, 17)
        mask = random.random((1, *size)) < 0.5
        write(
            f"mr/{name}.nii.gz",
            random.normal(300, 80, (1, *size)).astype(np.float32),
            Geometry(PLACE),
        )
        write(
            f"ct/{name}.nii.gz",
            random.integers(-1100, 3200, (1, *size)).astype(np.int16),
            Geometry(PLACE),
        )
        write(f"body/{name}.nii.gz", mask.astype(np.uint8), Geometry(PLACE))


def run(*words: str) -> None:
    translate.main([*words, "--steps", "2", "--quiet"])


def read(path: str) -> Array:
    return np.asarray(pictures.read(path))


def test_a_folder_of_nifti_becomes_one():
    """Names, grid and type; values are those of the sampler, in HU."""
    volumes()
    network(1, MR_TO_CT)
    run("folder", "mr", "c.pt", "out", "--seed", "4")
    found = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.*"))
    assert found == ["a.nii.gz", "grid.png", "results.jsonl", "settings.json", "ward/b.nii.gz"]
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    for name in ("a", "ward/b"):
        source, result = (pictures.read(f"{folder}/{name}.nii.gz") for folder in ("mr", "out"))
        assert (result.shape, result.dtype) == (source.shape, np.int16)
        assert np.allclose(result.geometry.affine, source.geometry.affine)  # pyright: ignore[reportArgumentType]
        (expected,) = sampler(f"mr/{name}.nii.gz", seed=seed_of(name, 4))
        assert expected.unit == "HU"
        difference = np.abs(np.asarray(expected, dtype=int) - np.asarray(result))
        assert difference.max() <= 1, "sources of percentiles are scaled twice, in float32"
        assert np.ptp(np.asarray(result)) > 500
    slices = read("out/a.nii.gz")[0].transpose(1, 0, 2)
    assert len({part.tobytes() for part in slices}) == 3, "slices differ, as their sources do"


def test_geotiff_keeps_place_bands_and_nodata():
    random = np.random.default_rng(0)
    kept = {"crs": "EPSG:32633"}
    for name in ("x", "y"):
        pixels = random.integers(1, 10000, (13, 24, 20)).astype(np.uint16)
        pixels[:, 3:6, 4:9] = 0 if name == "x" else 6000
        write(f"s2/{name}.tif", pixels, Geometry(ON_EARTH, "geotiff", kept, 0))
    network(13, Spec(source=BANDS, target=BANDS))
    run("folder", "s2", "c.pt", "out")
    for name in ("x", "y"):
        source, result = (pictures.read(f"{folder}/{name}.tif") for folder in ("s2", "out"))
        assert (result.shape, result.dtype, result.nodata) == ((13, 24, 20), np.uint16, 0)
        assert result.geometry.affine == source.geometry.affine == ON_EARTH
        assert result.geometry.kept["crs"] == source.geometry.kept["crs"]
        values = np.asarray(result)
        assert (values[:, 3:6, 4:9] == 0).all() == (name == "x")
        assert np.median(values) > 0
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    alone = np.asarray(sampler("s2/y.tif", seed=seed_of("y"))[0], dtype=int)
    assert np.abs(alone - read("out/y.tif")).max() <= 1, (
        "float32 is rounded differently in a batch of two"
    )


def test_nodata_of_a_file_is_a_value_in_the_other_files_of_a_source():
    """As if it were NaN, which no other file has."""
    first, second = np.random.default_rng(0).integers(1, 10000, (2, 1, 24, 20)).astype(np.uint16)
    first[:, 3:6] = 0
    second[:, :, 4:9] = 0
    for folder, kind, nodata in (("own", np.uint16, 0), ("nan", np.float32, np.nan)):
        marked = np.where(first == 0, nodata, first).astype(kind)
        for name, array, its_nodata in (("a", marked, nodata), ("b", second.astype(kind), None)):
            write(
                f"{folder}/{name}/x.tif",
                array,
                Geometry(ON_EARTH, "geotiff", {"crs": "EPSG:32633"}, its_nodata),
            )
        write(f"{folder}/c/x.tif", second, Geometry(ON_EARTH, "geotiff", {"crs": "EPSG:32633"}))
    network(1, Spec(source=BANDS, target=BANDS, nodata=65535), condition_channels=2)
    for folder in ("own", "nan"):
        run("paired", f"{folder}/a,{folder}/b;{folder}/c", "c.pt", f"{folder}_out")
        result = pictures.read(f"{folder}_out/x.tif")
        assert result.nodata == 65535
        np.testing.assert_array_equal(result.absent(), first[0] == 0)
    np.testing.assert_array_equal(read("own_out/x.tif"), read("nan_out/x.tif"))
    network(1, Spec(source=BANDS, target=BANDS), condition_channels=2)
    run("paired", "own/a,own/b;own/c", "c.pt", "first")
    result = pictures.read("first/x.tif")
    assert result.nodata == 0
    np.testing.assert_array_equal(result.absent(), first[0] == 0)


def test_a_process_makes_its_share_but_for_bad_ones_of_a_batch():
    """Of 5 pictures in batches of 2, the second of two processes makes the second batch."""
    network(3)
    for i in range(5):
        write(f"in/{i}.png", np.zeros((3, 16, 16), np.uint8))
    Path("in/2.png").write_bytes(b"broken")
    about: dict[str, Any] = {
        "dataset": "folder",
        "data_dir": "in",
        "output_dir": Path("out"),
        "device": "cpu",
    }
    translator = Translator(
        TranslateConfig(model=Path("c.pt"), batch_size=2, **about), independent=True
    )
    translator.processes = replace(translator.processes, rank=1, count=2)
    sampler = translator.sampler("mean", None)
    translator.write_results(
        sampler, translator.plan(Path("out")), Lines(Path("out"), translator.settings(sampler))
    )
    assert {path.name for path in Path("out").glob("*.png")} == {"3.png"}
    assert [*translator.bad] == [2]


SIXTEEN = Values(0, 65535, dtype="uint16")


@pytest.mark.parametrize(
    ("name", "channels", "target", "result"),
    [
        ("x.tif", (2, 2), Values(-1, 1, "mV", "float32"), "x.tif"),
        ("x.png", (1, 1), SIXTEEN, "x.png"),
        ("x.png", (1, 1), HU, "x.tif"),  # which a PNG cannot hold
        ("x.npy", (13, 1), HU, "x.npy"),
    ],
)
def test_results_have_the_type_of_targets(
    name: str, channels: tuple[int, int], target: Values, result: str
):
    """In the source's format, where that holds them; two sizes."""
    for i, size in enumerate(((18, 30), (20, 17))):
        array = np.random.default_rng(i).integers(0, 65536, (channels[0], *size)).astype(np.uint16)
        write(f"in/{i}{name}", array)
    network(channels[1], Spec(source=SIXTEEN, target=target), condition_channels=channels[0])
    run("folder", "in", "c.pt", "out")
    for i in range(2):
        found = read(f"out/{i}{result}")
        expected = BridgeSampler.from_checkpoint("c.pt", steps=2)(
            f"in/{i}{name}", seed=seed_of(f"{i}x")
        )[0]
        assert (found.shape, found.dtype) == (expected.shape, target.dtype)
        assert np.allclose(found, expected, atol=1e-6)


def test_both_directions_change_the_values_of_sources_and_targets():
    unit = Values(0, 1, dtype="float32")
    network(1, Spec(source=unit, target=HU), classes={"direction": ("AtoB", "BtoA")})
    write("a/x.npy", np.random.default_rng(0).random((1, 16, 16)).astype(np.float32))
    write("b/x.npy", np.random.default_rng(1).integers(-1024, 3072, (1, 16, 16)).astype(np.int16))
    for way, source, kind in (("AtoB", "a", np.int16), ("BtoA", "b", np.float32)):
        run("folder", source, "c.pt", way, "--direction", way)
        (wanted,) = BridgeSampler.from_checkpoint("c.pt", steps=2)(
            [f"{source}/x.npy"], seed_of("x"), direction=way
        )
        assert read(f"{way}/x.npy").dtype == kind
        np.testing.assert_allclose(read(f"{way}/x.npy"), wanted, atol=1)


def scores(*words: str, masks: str = "") -> dict[str, float]:
    eval_script.main(
        [
            "paired",
            f"mr,ct{masks and f',mask={masks}'}",
            "c.pt",
            "ev",
            "--steps",
            "2",
            "--quiet",
            *words,
        ]
    )
    return json.loads(Path("ev/scores.json").read_text())["scores"]


def test_scores_are_in_hu_within_masks(capsys: pytest.CaptureFixture[str]):
    """Of the files; those with masks are no others' scores, and need no results of their own."""
    volumes()
    network(1, MR_TO_CT)
    scores("--metrics", "rmse")
    found, errors = scores(masks="body"), list[float]()
    assert "| MAE HU ↓ | PSNR ↑ | SSIM ↑ |" in capsys.readouterr().out
    for name in ("a", "ward/b"):
        error = np.abs(read(f"ev/{name}.nii.gz").astype(float) - read(f"ct/{name}.nii.gz"))
        errors.append(error[read(f"body/{name}.nii.gz") != 0].mean())
    assert found["mae"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_pixels_without_a_value_do_not_count():
    random = np.random.default_rng(0)
    kept = {"crs": "EPSG:32633"}
    for folder in ("mr", "ct"):
        pixels = random.integers(1, 10000, (3, 18, 18)).astype(np.uint16)
        pixels[:, slice(0, 4) if folder == "mr" else slice(10, 13)] = 0
        write(f"{folder}/x.tif", pixels, Geometry(ON_EARTH, "geotiff", kept, 0))
    network(3, Spec(source=BANDS, target=BANDS))
    found = scores("--metrics", "mae")
    error = np.abs(read("ev/x.tif").astype(float) - read("ct/x.tif"))[
        :, [*range(4, 10), *range(13, 18)]
    ]
    assert found["mae"] == pytest.approx(error.mean(), rel=1e-6)


def test_photographs_have_the_size_of_training_and_arrays_of_8_bits_their_own():
    """A network of crops has no size of pictures: there photographs keep theirs too."""
    array = np.random.default_rng(0).integers(0, 256, (3, 20, 28), np.uint8)
    for suffix in ("png", "npy"):
        Path(suffix).mkdir()
        write(f"{suffix}/a.{suffix}", array)
    network(3)
    run("folder", "png", "c.pt", "photographs")
    run("folder", "npy", "c.pt", "arrays")
    assert max(read("photographs/a.png").shape) == SIZE
    assert read("arrays/a.npy").shape == array.shape
    network(3, Spec(crop=(SIZE, SIZE)))
    run("folder", "png", "c.pt", "crops")
    assert read("crops/a.png").shape == array.shape


def test_masks_of_8_bit_pictures():
    """The mask is resized with them."""
    random = np.random.default_rng(0)
    for folder in ("mr", "ct"):
        Path(folder).mkdir()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            f"{folder}/x.png"
        )
    Path("masks").mkdir()
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:20, 4:30] = 255
    Image.fromarray(mask).save("masks/x.png")
    network(3)
    found = scores("--metrics", "mae", masks="masks")
    target = np.asarray(
        Image.open("ct/x.png").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    ).astype(float)
    error = np.abs(np.asarray(Image.open("ev/x.png")).astype(float) - target)
    assert found["mae"] == pytest.approx(error[4:10, 2:15].mean(), rel=1e-6)


def test_what_is_refused():
    volumes()
    network(1, MR_TO_CT)
    for flags, message in (
        (
            ["--target_values", "0:3071:HU"],
            "target_values must be those of the network, -1024:3071:HU, got 0:3071:HU",
        ),
        (["--size", "32"], "image_size is of photographs of 8 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            run("folder", "mr", "c.pt", "out", *flags)
    shutil.rmtree("body/ward")
    with pytest.raises(ValueError, match=r"b.nii.gz has no mask in body"):
        scores(masks="body")


def test_values_that_are_not_finite(capsys: pytest.CaptureFixture[str]):
    """A source is left out if asked; a target, which a mean of scores would lack, is refused."""
    pixels = np.random.default_rng(0).random((1, 18, 18)).astype(np.float32)
    unit = Values(0, 1, dtype="float32")
    for name in ("in/b", "mr/x"):
        write(f"{name}.npy", pixels)
    pixels[0, 2, 3] = np.nan
    for name in ("in/a", "ct/x"):
        write(f"{name}.npy", pixels)
    network(1, Spec(source=unit, target=unit))
    with pytest.raises(ValueError, match="nan stands in channel 0"):
        run("folder", "in", "c.pt", "out")
    run("folder", "in", "c.pt", "out", "--skip_bad", "--overwrite")
    assert "left out: in/a.npy: nan stands in channel 0" in capsys.readouterr().out
    assert [path.name for path in Path("out").glob("*.npy")] == ["b.npy"]
    with pytest.raises(ValueError, match=r"the target of mr/x.npy: nan stands in channel 0"):
        scores("--metrics", "mae")


def test_maps_are_those_of_distributions():
    sampler = BridgeSampler(tiny_unet(), ABridge(num_steps=50), "sde-dpm2m", 2)
    seeds = [[3, 9, 5], [4, 1, 2]]
    sources = [*torch.rand(2, 3, 16, 16) * 2 - 1]
    samples = sampler.distribution(sources, 3, seeds)
    results = translated(sampler, sources, seeds, ["std", "mean"])
    for found, mean, std in zip(results, samples.mean, samples.std, strict=True):
        torch.testing.assert_close(found, {"std": std, "mean": mean}, rtol=0, atol=1e-5)


def masks() -> None:
    """Pairs of 16 bits in s and t, and masks in m."""
    random = np.random.default_rng(0)
    for name in "ab":
        for folder in "st":
            write(f"{folder}/{name}.tif", random.integers(0, 10000, (1, 16, 16)).astype(np.uint16))
        write(f"m/{name}.png", (random.random((1, 16, 16)) < 0.5).astype(np.uint8))


def test_results_outside_of_masks_have_the_value_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
):
    """The others are those of a run without masks; a map of deviations is 0 there."""
    masks()
    network(1, Spec(source=BANDS, target=BANDS, masked=True))
    data = "s,t,mask=m"
    run("paired", data, "c.pt", "all")
    assert (
        "results elsewhere are made up: give the masks, DATA,mask=FOLDER, and --outside"
        in capsys.readouterr().out
    )
    run("paired", data, "c.pt", "out", "--outside", "7")
    assert "made up" not in capsys.readouterr().out
    run("paired", data, "c.pt", "maps", "--outside", "7", "--maps", "mean,std", "--samples", "2")
    for name in "ab":
        inside = read(f"m/{name}.png") != 0
        np.testing.assert_array_equal(
            read(f"out/{name}.tif"), np.where(inside, read(f"all/{name}.tif"), 7)
        )
        assert (read(f"maps/{name}_mean.tif")[~inside] == 7).all()
        assert not read(f"maps/{name}_std.tif")[~inside].any()
        assert read(f"maps/{name}_std.tif")[inside].any()
    settings = json.loads(Path("out/settings.json").read_text())["settings"]
    assert (settings["outside"], settings["masked"]) == (7, True)
    with pytest.raises(
        ValueError, match=r"s/a\.tif has no mask, and --outside needs one, as in DATA,mask=FOLDER"
    ):
        run("folder", "s", "c.pt", "none", "--outside", "7")
    with pytest.raises(
        ValueError, match="--outside must be a value of uint16, which results have; got -1"
    ):
        run("paired", data, "c.pt", "none", "--outside", "-1")


def test_pixels_without_a_value_have_none_outside_of_masks_too():
    pixels = np.random.default_rng(0).integers(1, 10000, (1, 16, 16)).astype(np.uint16)
    absent = np.zeros((16, 16), bool)
    absent[:4] = True
    pixels[:, absent] = 0
    mask = np.ones((1, 16, 16), np.uint8)
    mask[:, :, 8:] = 0
    write("s/a.tif", pixels, Geometry(ON_EARTH, "geotiff", {"crs": "EPSG:32633"}, 0))
    write("m/a.png", mask)
    network(1, Spec(source=BANDS, target=BANDS))
    run("folder", "s,mask=m", "c.pt", "out", "--outside", "7")
    run("folder", "s,mask=m", "c.pt", "maps", "--outside", "7", "--maps", "std", "--samples", "2")
    result, spread = pictures.read("out/a.tif"), pictures.read("maps/a_std.tif")
    for picture, value in ((result, 7), (spread, 0)):
        np.testing.assert_array_equal(picture.absent(), absent)
        assert (np.asarray(picture)[0, 4:, 8:] == value).all()


def test_training_within_masks_is_in_the_file():
    masks()
    unet = tiny_unet(in_channels=1, out_channels=1)
    for data, masked in (("s,t", False), ("s,t,mask=m", True)):
        pairs = Pairs(read_rows("paired", data), Spec(source=BANDS, target=BANDS))
        pictures_of_training = BridgeTask(
            unet, ABridge(num_steps=50), TrainConfig(batch_size=1), pairs
        ).pictures
        assert pictures_of_training is not None
        assert Spec.from_config(pictures_of_training.config()).masked == masked


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.full((1, 16, 16), 200, np.uint8),
            "in/a.png has 8 bits, and the network was trained on values 0:3500",
        ),
        (
            np.arange(256).reshape(1, 16, 16).astype(np.float32) - 26,
            "10 % of the values of the first 1 sources are",
        ),
        (np.arange(256).reshape(1, 16, 16).astype(np.uint16) * 13, ""),
    ],
    ids=["8 bits", "clipped", "as trained"],
)
def test_sources_unlike_those_of_training_are_named(
    array: Array, message: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
):
    """Of another type, or with values outside of the range, as targets that are given as sources."""
    write(f"in/a.{'tif' if array.dtype == np.float32 else 'png'}", array)
    network(1, Spec(source=Values(0, 3500, dtype="uint16"), target=HU))
    run("folder", "in", "c.pt", "out")
    printed = capsys.readouterr().out
    assert message in printed
    assert ("trained" in printed or "training" in printed) == bool(message)


def test_a_map_of_deviations_has_another_value_for_none_than_results():
    """In the PNG's place a TIFF, since it is of floats."""
    pixels = np.random.default_rng(0).integers(1, 10000, (1, 24, 20)).astype(np.uint16)
    write("geo/x.tif", pixels, Geometry(ON_EARTH, "geotiff", {"crs": "EPSG:32633"}, 0))
    write("png/x.png", pixels)
    network(1, Spec(source=BANDS, target=BANDS, nodata=0))
    for folder in ("geo", "png"):
        run(
            "folder",
            folder,
            "c.pt",
            f"{folder}_maps",
            "--samples",
            "2",
            "--maps",
            "std,mean",
            "--solver",
            "ddim",
        )
        std = pictures.read(f"{folder}_maps/x_std.tif")
        assert std.dtype == np.float32
        assert not std.absent().any()
    assert pictures.read("geo_maps/x_mean.tif").nodata == 0
    assert np.isnan(pictures.read("geo_maps/x_std.tif").nodata or 0)
