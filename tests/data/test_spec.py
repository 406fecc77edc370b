"""What an example is: specs, their texts and flags, and what of them is kept in files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm.data.config import Crops, RowsConfig, Slices, read_labels
from bbdm.data.kinds import Condition
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec, check_eight_bit, read_kinds
from bbdm.pictures import Geometry
from bbdm.pictures.values import Percentiles, Values, read_values
from tests.data.making import folders, located, save

HU = Values(-1024, 3071, "HU", "int16")
ALL = Spec(
    source=Percentiles(1, 99),
    target=Values((-1, -2), (3, 4), "m", "int16"),
    crop=(8, 9),
    slices="coronal",
    neighbours=2,
    spacing=(0.5, 1.0, 2.0),
    nodata=-9999.0,
    conditions={"sar": Condition("image", Values(-25, 0, dtype="int16"))},
)


@pytest.mark.parametrize(
    "spec", [ALL, Spec(), Spec(crop=(3, 4, 5), axes=3, source=HU, target=HU)], ids=str
)
def test_a_spec_comes_back_from_its_config(spec: Spec) -> None:
    again = Spec.from_config({"others": 1, **json.loads(json.dumps(spec.config()))})
    assert again == spec
    assert again.spacing == spec.spacing


def test_whole_pictures_of_8_bits_are_nothing_to_keep() -> None:
    assert Spec(size=8, resize="fit", channels=1, direction="BtoA").config() == {}
    check_eight_bit(Spec(), "x")
    for other in (Spec(source=HU), Spec(target=HU), Spec(slices="axial")):
        with pytest.raises(ValueError, match=r"^this is for pictures of 8 bits, .* bbdm translate"):
            check_eight_bit(other, "this")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": Percentiles()}, "target values must be LOW:HIGH, .*; got p0.5:99.5"),
        ({"slices": "oblique"}, "slices must be one of axial, coronal, sagittal, got 'oblique'"),
        ({"direction": "AB"}, "direction must be one of AtoB, BtoA, both, got 'AB'"),
        ({"channels": 2}, "channels must be one of 1, 3, got 2"),
        (
            {"neighbours": 1, "axes": 3},
            "neighbours are of networks of 2 axes, and this one has 3; got 1",
        ),
        ({"neighbours": -1, "slices": "axial"}, "at least 0, got -1"),
        ({"axes": 3, "slices": "axial"}, "slices are of networks of 2 axes"),
        ({"crops": 0, "crop": 8}, "crops of a picture must be at least 1, .* got 0"),
        ({"crops": 2}, "several need their size; got 2"),
        ({"size": (4, 0)}, r"at least 1, got \(4, 0\)"),
        ({"axes": 3, "crop": (8, 8)}, r"\(depth, height, width\), at least 1, got \(8, 8\)"),
        ({"spacing": (1.0, 1.0, 0.0)}, "spacing must be 3 lengths"),
        (b'{"nodata": "x"}', "nodata must be a number, got 'x'"),
        (b'{"spacing": 3}', "spacing must be 3 lengths, got 3"),
        (b'{"condition_values": [1]}', "condition_values must be a mapping"),
        (b'{"source_values": {"low": 0}}', "values must have low, high"),
        (b'{"target_values": {"percentiles": [1, 99]}}', "target values must be LOW:HIGH"),
        (b'{"neighbours": 1.5, "slices": "axial"}', "neighbours must be a number"),
    ],
)
def test_settings_and_files_that_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.from_config(json.loads(settings)) if isinstance(settings, bytes) else Spec(**settings)


def test_results_say_where_they_have_no_value() -> None:
    """A pixel with a value does not get that of nodata by rounding."""
    spec = Spec(source=HU, target=Values(0, 100, "m", "int16"))
    absent = np.array([[False, True], [False, False]])
    result = spec.result(
        np.array([[[-1, -1], [0, 1]]], np.float32), Geometry(nodata=0), absent, "a"
    )
    assert np.asarray(result).tolist() == [[[1, 0], [50, 100]]]
    assert (result.nodata, result.unit, result.name, result.dtype) == (0, "m", "a", np.int16)
    highest = spec.result(np.array([[[1.0, 0]]], np.float32), Geometry(nodata=100), name="a")
    assert np.asarray(highest).tolist() == [[[99, 50]]]
    assert Spec(target=HU, nodata=-5).result_nodata(-9999) == -5
    spec.check_nodata(-9999, absent, "a")
    with pytest.raises(
        ValueError,
        match=r"a has pixels without a value, -9999\.5, and results of int16 cannot hold",
    ):
        spec.check_nodata(-9999.5, absent, "a")


@pytest.mark.parametrize("nodata", [0.0, -25.0, -12.5])
def test_floats_with_a_value_have_one_for_gdal_too(nodata: float, tmp_path: Path) -> None:
    """At the ends of the range and within it; GDAL takes floats next to nodata for nodata."""
    import rasterio

    level = np.float32((nodata + 25) / 12.5 - 1)
    spec = Spec(target=Values(-25, 0, dtype="float32"), nodata=nodata)
    place = Geometry(
        ((0.0, 10.0, 5.0), (-10.0, 0.0, 9.0), (0.0, 0.0, 1.0)), "geotiff", {"crs": "EPSG:32632"}
    )
    result = spec.result(np.full((1, 2, 2), level), place, np.eye(2, dtype=bool), "a")
    assert result.absent().tolist() == [[True, False], [False, True]]
    np.testing.assert_allclose(result, nodata, rtol=1e-5, atol=1e-5)
    assert -25 <= result.min() <= result.max() <= 0
    result.save(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.dataset_mask().tolist() == [[0, 255], [255, 0]]


def test_results_of_the_way_back_have_the_nodata_and_names_of_sources() -> None:
    decibels = Values(-25, 0, "dB", "float32")
    both = Spec(
        source=decibels,
        target=Values(0, 100, dtype="int16"),
        direction="both",
        nodata=-1,
        source_nodata=0,
        target_bands=("height",),
        source_bands=("VV", None),
    )
    learned = Spec.from_config(json.loads(json.dumps(both.config())))
    back = learned.turned
    assert (back.target, back.nodata, back.target_bands) == (decibels, 0, ("VV", None))
    assert back.turned.nodata == -1
    absent = np.array([[True, False]])
    place = Geometry(nodata=-1, kept={"descriptions": ("height",)})
    result = back.result(np.zeros((2, 1, 2), np.float32), place, absent)
    assert np.asarray(result).tolist() == [[[0, -12.5]], [[0, -12.5]]]
    assert (result.nodata, result.geometry.kept["descriptions"]) == (0, ("VV", None))
    unnamed = Spec(target=decibels).result(np.zeros((1, 1, 2), np.float32), place)
    assert "descriptions" not in unnamed.geometry.kept  # which are of the source


def test_nan_of_a_network_is_nodata_or_an_error() -> None:
    array = np.array([[[np.nan, 0.0]]], np.float32)
    target = Values(0, 100, dtype="int16")
    assert np.asarray(
        Spec(target=target, nodata=-1).result(array, Geometry(), name="a")
    ).tolist() == [[[-1, 50]]]
    with pytest.raises(ValueError, match="the result of a has NaN, which int16 cannot hold"):
        Spec(target=target).result(array, Geometry(), name="a")
    floats = Spec(target=Values(0, 1, dtype="float32"))
    assert np.asarray(floats.result(array, Geometry(nodata=-9999.0))).tolist() == [[[-9999, 0.5]]]
    assert np.isnan(np.asarray(floats.result(array, Geometry()))).tolist() == [[[True, False]]]


def test_texts() -> None:
    """Of flags: conditions, crops and slices."""
    assert read_kinds(
        "sar=image@-25:0;-100:100,depth=image@p1:99,rgb=image,season=class,text=tokens"
    ) == {
        "sar": Condition("image", Values((-25, -100), (0, 100), dtype="int16")),
        "depth": Condition("image", Percentiles(1, 99)),
        "rgb": Condition("image"),
        "season": Condition("class"),
        "text": Condition("tokens"),
    }
    crops = {"96": Crops(96), "96x64:8": Crops((96, 64), 8), "8x9x10:8": Crops((8, 9, 10), 8)}
    assert {text: Crops.read(text) for text in crops} == crops
    assert (Slices.read("axial"), Slices.read("coronal:2")) == (
        Slices("axial"),
        Slices("coronal", 2),
    )
    wrong: list[tuple[Any, str, tuple[str, ...]]] = [
        (
            read_kinds,
            r"NAME=KIND, .* with commas",
            ("", "sar", "a=map", "a=class@0:1", "a=class,a=image"),
        ),
        (
            read_labels,
            "NAME=CLASS, with commas",
            ("season", "season=", "=winter", "a b=c", "a=b,a=c", ""),
        ),
        (Crops.read, "SIZE or SIZE:COUNT, got", ("96:", "96:8:0.5", "96:1.5")),
        (Crops.read, "a size is written as 256", ("", "a:8")),
        (
            Slices.read,
            "PLANE or PLANE:NEIGHBOURS",
            ("", "oblique", "axial:", "axial:1:1", "axial:x"),
        ),
    ]
    for read, message, texts in wrong:
        for text in texts:
            with pytest.raises(ValueError, match=message):
                read(text)
    assert read_labels("season=winter,style=a=b") == {"season": "winter", "style": "a=b"}


class TestOfRows:
    """The spec that the settings of a data set make of its files."""

    @staticmethod
    def spec(
        data_dir: Any, dataset: str = "paired", config: dict[str, Any] | None = None, **given: Any
    ) -> Spec:
        return RowsConfig(**(config or {})).spec(
            dataset, read_rows(dataset, str(data_dir)), **given
        )

    def test_of_settings(self, tmp_path: Path) -> None:
        values = {"source_values": Percentiles(1, 99), "target_values": read_values("1:4001:u")}
        config = {**values, "slices": Slices("coronal", 1)}
        found = self.spec(
            folders(tmp_path, ".nii", 1, (3, 4, 5)), config=config, crops=Crops((2, 3), 4), size=9
        )
        learned: dict[str, Any] = {
            "source": Percentiles(1, 99),
            "target": Values(1, 4001, "u", "int16"),
        }
        assert found == Spec(**learned, slices="coronal", neighbours=1, crop=(2, 3), crops=4)
        save(tmp_path / "8 bits/a.png", np.zeros((4, 4), np.uint8))
        assert self.spec(tmp_path / "8 bits", "folder", size=4, channels=3) == Spec(
            size=4, channels=3
        )

    def test_results_have_type_and_nodata_of_the_targets_files(self, tmp_path: Path) -> None:
        """With both directions, those of either set have its type."""
        for name, kind, nodata in (("A", "float32", -1.0), ("B", "int16", -9999.0)):
            save(tmp_path / name / "0.tif", np.ones((4, 5), kind), nodata=nodata)
        values = {f"{side}_values": read_values("0:9") for side in ("source", "target")}
        both = {
            "AtoB": ("int16", -9999, "float32"),
            "BtoA": ("float32", -1, "int16"),
            "both": ("int16", -9999, "float32"),
        }
        for direction, wanted in both.items():
            found: Any = self.spec(
                f"{tmp_path}/A,{tmp_path}/B", config={**values, "direction": direction}
            )
            assert (found.target.dtype, found.nodata, found.source.dtype) == wanted
            turned = found.turned
            assert (turned.target, turned.source, turned.nodata) == (
                found.source,
                found.target,
                found.source_nodata,
            )
            assert found.source_nodata == (-1 if direction == "both" else None)

    def test_nodata_of_8_bit_targets_is_kept_without_ranges_too(self, tmp_path: Path) -> None:
        for name, nodata in (("A", 3), ("B", 7)):
            save(tmp_path / name / "0.tif", np.ones((4, 5), np.uint8), nodata=nodata)
        where = f"{tmp_path}/A,{tmp_path}/B"
        found = self.spec(where)
        assert (found.nodata, found.source_nodata, found.target) == (7, None, None)
        both = self.spec(where, config={"direction": "both"})
        assert (both.nodata, both.source_nodata) == (7, 3)
        for learned in (Spec(), Spec(nodata=9)):
            assert self.spec(where, learned=learned).nodata == learned.nodata

    def test_names_of_channels_are_those_of_the_targets_files(self, tmp_path: Path) -> None:
        import rasterio

        for name, bands in (("A", ("VV",)), ("B", ("red", "blue"))):
            path = save(tmp_path / name / "0.tif", np.ones((4, 5), np.int16), nodata=-1)
            about: Any = {
                "driver": "GTiff",
                "height": 4,
                "width": 5,
                "count": len(bands),
                "dtype": "int16",
            }
            place = rasterio.transform.from_origin(5, 9, 1, 1)  # pyright: ignore[reportAttributeAccessIssue]
            with rasterio.open(path, "w", **about, crs="EPSG:32632", transform=place) as file:
                file.descriptions = bands
        values = {f"{side}_values": read_values("0:9") for side in ("source", "target")}
        where = f"{tmp_path}/A,{tmp_path}/B"
        assert self.spec(where, config=values).target_bands == ("red", "blue")
        back = self.spec(where, config={**values, "direction": "BtoA"})
        assert (back.target_bands, back.source_bands) == (("VV",), None)
        learned = replace(back, target_bands=("own",))
        assert self.spec(where, config=values, learned=learned).target_bands == ("own",)

    def test_names_and_tags_of_the_sources_bands_are_of_no_result(self) -> None:
        kept = {
            "descriptions": ("VV",),
            "band_tags": ({"POLARISATION": "VV"},),
            "scales": (0.5,),
            "offsets": (0,),
        }
        kept |= {"tags": {"ACQUIRED": "2020"}}
        source = Geometry(None, "geotiff", kept)
        result = Spec(target=HU).result(np.zeros((1, 4, 5), np.float32), source)
        assert result.geometry.kept == {"tags": {"ACQUIRED": "2020"}}
        named = Spec(target=HU, target_bands=("red",)).result(
            np.zeros((1, 4, 5), np.float32), source
        )
        assert named.geometry.kept == {"tags": {"ACQUIRED": "2020"}, "descriptions": ("red",)}

    def test_what_a_network_has_learned_stays(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".nii", 1, (3, 4, 5))
        learned = Spec(
            source=Percentiles(),
            target=HU,
            slices="axial",
            neighbours=2,
            spacing=(1.0, 2.0, 3.0),
            nodata=-5,
        )
        found = self.spec(data_dir, learned=learned)
        assert (found, found.spacing) == (learned, learned.spacing)
        assert (
            self.spec(data_dir, config={"slices": Slices("axial")}, learned=learned).neighbours == 2
        )
        for config, message in (
            (
                {"target_values": read_values("0:9")},
                "target_values must be those of the network, .*, got 0:9",
            ),
            (
                {"slices": Slices("coronal")},
                "slices must be those of the network, axial, got coronal",
            ),
            (
                {"slices": Slices("axial", 1)},
                "--slices must have the network's neighbours, axial:2, got axial:1",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                self.spec(data_dir, config=config, learned=learned)

    def test_more_than_8_bits_need_ranges_which_are_proposed(self, tmp_path: Path) -> None:
        for suffix, shape in ((".npy", (1, 4, 5)), (".png", (4, 5)), (".nii", (2, 4, 5))):
            kind = "uint16" if suffix == ".png" else "int16"
            save(tmp_path / f"A/a{suffix}", located(1, shape, kind))
            save(tmp_path / "B/a.npy", np.array([[[-20.5, 36903]]], np.float32))
            ends = (
                rf"source has 1000 to {999 + np.prod(shape)}, the first target has -20\.5 to 36903"
            )
            message = rf"A/a{suffix}: .*{kind}.* {ends}: .* --source_values 0:\d+ --target_values -21:36903"
            with pytest.raises(ValueError, match=message):
                self.spec(f"{tmp_path}/A,{tmp_path}/B")
            (tmp_path / f"A/a{suffix}").unlink()
