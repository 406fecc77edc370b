"""What an example is: specs, their texts and flags, and what of them is kept in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbdm.data.config import Crops, DataConfig, RowsConfig, Slices, read_crops, read_slices
from bbdm.data.rows import read_rows
from bbdm.data.spec import AXES, Condition, Spec, check_eight_bit, read_conditions
from bbdm.pictures import Geometry, Picture
from bbdm.pictures.values import EIGHT_BIT, Percentiles, Values, read_values
from tests.data.making import folders, located, save

HU = Values(-1024, 3071, "HU", "int16")
LENGTH = st.floats(1e-3, 100)
VALUES = st.builds(
    lambda low, span, unit: Values(low, low + span, unit, "float32"),
    st.integers(-1000, 1000),
    st.integers(1, 5000),
    st.sampled_from(["", "HU"]),
)
BANDS = st.lists(st.integers(1, 99), min_size=2, max_size=3).map(
    lambda highs: Values((0.0,) * len(highs), tuple(map(float, highs)), dtype="int16")
)
PERCENTILES = st.integers(0, 49).map(lambda low: Percentiles(low, 100 - low))


@st.composite
def specs(draw: Any) -> Spec:
    """All that a network has learned of its examples."""
    axes = draw(st.sampled_from([2, 3]))
    slices = draw(st.sampled_from([None, *AXES])) if axes == 2 else None
    crop = draw(st.none() | st.lists(st.integers(1, 99), min_size=axes, max_size=axes).map(tuple))
    images = st.builds(lambda values: Condition("image", values), VALUES | BANDS | PERCENTILES)
    return Spec(
        source=draw(VALUES | BANDS | PERCENTILES | st.just(EIGHT_BIT)),
        target=draw(VALUES | BANDS),
        crop=crop,
        axes=axes if crop else 2,
        slices=slices,
        neighbours=draw(st.integers(0, 3)) if slices else 0,
        spacing=draw(st.none() | st.tuples(LENGTH, LENGTH, LENGTH)),
        nodata=draw(st.none() | st.integers(-9999, 0).map(float)),
        conditions=draw(st.dictionaries(st.sampled_from("abc"), images)),
    )


@given(specs())
def test_a_spec_comes_back_from_its_config(spec: Spec) -> None:
    again = Spec.from_config({"others": 1, **json.loads(json.dumps(spec.config()))})
    assert again == spec
    assert again.spacing == spec.spacing


def test_whole_pictures_of_8_bits_are_nothing_to_keep() -> None:
    assert Spec(size=8, resize="fit", channels=1, direction="BtoA").config() == {}
    check_eight_bit(Spec(), "x")
    for other in ({"source": HU}, {"target": HU}, {"slices": "axial"}):
        with pytest.raises(ValueError, match=r"^this is for pictures of 8 bits, .* bbdm translate"):
            check_eight_bit(Spec(**other), "this")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": Percentiles()}, "target values must be LOW:HIGH, .*; got p0.5:99.5"),
        ({"slices": "oblique"}, "slices must be one of axial, coronal, sagittal, got 'oblique'"),
        ({"direction": "AB"}, "direction must be one of AtoB, BtoA, got 'AB'"),
        ({"channels": 2}, "channels must be one of 1, 3, got 2"),
        ({"neighbours": 1}, "neighbours must be .* need slices; got 1"),
        ({"neighbours": -1, "slices": "axial"}, "at least 0, .* got -1"),
        ({"axes": 3, "slices": "axial"}, "slices are of networks of 2 axes"),
        ({"crops": 0, "crop": 8}, "crops of a picture must be at least 1, .* got 0"),
        ({"in_mask": 2.0, "crop": 8}, "share in the mask from 0 to 1; got 1, 2.0"),
        ({"crops": 2}, "need the size of a crop"),
        ({"in_mask": 0.5}, "need the size of a crop"),
        ({"size": (4, 0)}, r"at least 1, got \(4, 0\)"),
        ({"size": 0}, "at least 1, got 0"),
        ({"axes": 3, "crop": (8, 8)}, r"\(depth, height, width\), got \(8, 8\)"),
        ({"spacing": (1.0, 1.0)}, "spacing must be 3 lengths"),
        ({"spacing": (1.0, 1.0, 0.0)}, "spacing must be 3 lengths"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec(**settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nodata": "x"}, "nodata must be a number, got 'x'"),
        ({"spacing": 3}, "spacing must be 3 lengths, got 3"),
        ({"condition_values": [1]}, "condition_values must be a mapping"),
        ({"source_values": {"low": 0}}, "values must have low, high"),
        ({"target_values": {"percentiles": [1, 99]}}, "target values must be LOW:HIGH"),
        ({"neighbours": 1.5, "slices": "axial"}, "neighbours must be a number"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.from_config(config)


def test_slices_beyond_the_ends_are_the_last_ones() -> None:
    spec = Spec(slices="axial", neighbours=2)
    assert [spec.around(index, 4) for index in range(4)] == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3],
                                                             [1, 2, 3, 3, 3]]  # fmt: skip
    assert Spec(slices="axial", neighbours=1).around(0, 1) == [0, 0, 0]
    assert spec.planes == 5
    assert spec.endpoint(10, 2) == (4, 5)
    assert (spec.endpoint(9, 2), Spec().endpoint(3, 3)) == (None, None)


def test_sources_unlike_those_of_training_are_warned_of() -> None:
    spec = Spec(source=HU, spacing=(1.0, 1.0, 3.0))
    far = Geometry(((1.0, 0.0, 0.0, 0.0), (0.0, 1.2, 0.0, 0.0), (0.0, 0.0, 3.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    with pytest.warns(UserWarning, match=r"a has voxels of 1 x 1.2 x 3, and the network was trained on 1 x 1 x 3"):
        spec.warn_of_source(Picture(np.zeros((1, 2, 2, 2), np.int16), far, name="a"))
    with pytest.warns(UserWarning, match="the source has 8 bits, .* trained on -1024:3071:HU"):
        spec.warn_of_source(Picture(np.zeros((1, 2, 2), np.uint8)))


def test_results_say_where_they_have_no_value() -> None:
    """A pixel with a value does not get that of nodata by rounding; bands' colours stay with the same values."""
    spec = Spec(source=HU, target=Values(0, 100, "m", "int16"))
    absent = np.array([[False, True], [False, False]])
    result = spec.result(np.array([[[-1, -1], [0, 1]]], np.float32), Geometry(nodata=0), absent, "a")
    assert np.asarray(result).tolist() == [[[1, 0], [50, 100]]]
    assert (result.nodata, result.unit, result.name, result.dtype) == (0, "m", "a", np.int16)
    assert spec.result_nodata(-9999.5) is None
    assert Spec(target=HU, nodata=-5).result_nodata(-9999) == -5
    spec.check_nodata(-9999, absent, "a")
    with pytest.raises(ValueError, match=r"a has pixels without a value, -9999\.5, and results of int16 cannot hold"):
        spec.check_nodata(-9999.5, absent, "a")


class TestTexts:
    """Settings from the text of a flag."""

    def test_conditions(self) -> None:
        text = "sar=image@-25:0;-100:100,depth=image@p1:99,rgb=image,season=class,text=tokens"
        found = read_conditions(text)
        bands = Values((-25, -100), (0, 100), dtype="int16")
        assert found == {
            "sar": Condition("image", bands),
            "depth": Condition("image", Percentiles(1, 99)),
            "rgb": Condition("image"),
            "season": Condition("class"),
            "text": Condition("tokens"),
        }
        assert [str(each) for each in found.values()] == [
            "image@-25:0,-100:100", "image@p1:99", "image", "class", "tokens"]  # fmt: skip

    @pytest.mark.parametrize("text", ["", "sar", "=image", "s r=image", "a=map", "a=class@0:1", "a=class,a=image"])
    def test_conditions_of_another_form(self, text: str) -> None:
        with pytest.raises(ValueError, match="NAME=KIND, with commas, each name once"):
            read_conditions(text)

    def test_crops_and_slices(self) -> None:
        assert read_crops("96") == Crops(96)
        assert read_crops("96x64:8") == Crops((96, 64), 8)
        assert read_crops("8x9x10:8:0.5") == Crops((8, 9, 10), 8, 0.5)
        assert (read_slices("axial"), read_slices("coronal:2")) == (Slices("axial"), Slices("coronal", 2))
        for text in ("", "a", "96:", "96:8:0.5:1", "96:1.5"):
            with pytest.raises(ValueError, match=r"SIZE, SIZE:COUNT or SIZE:COUNT:SHARE, got"):
                read_crops(text)
        for text in ("", "oblique", "axial:", "axial:-1", "axial:x"):
            with pytest.raises(ValueError, match=r"PLANE or PLANE:NEIGHBOURS"):
                read_slices(text)


class TestOfRows:
    """The spec that the settings of a data set make of its files."""

    @staticmethod
    def spec(data_dir: str, dataset: str = "paired", config: dict[str, Any] | None = None, **given: Any) -> Spec:
        return RowsConfig(**(config or {})).spec(dataset, read_rows(dataset, data_dir), **given)

    def test_of_settings(self, tmp_path: Path) -> None:
        config = {"source_values": read_values("p1:99"), "target_values": read_values("1:4001:u"),
                  "slices": Slices("coronal", 1)}  # fmt: skip
        found = self.spec(folders(tmp_path, ".nii", 1, (3, 4, 5)), config=config, crops=Crops((2, 3), 4), size=9)
        assert found == Spec(source=Percentiles(1, 99), target=Values(1, 4001, "u", "int16"), slices="coronal",
                             neighbours=1, crop=(2, 3), crops=4)  # fmt: skip

    def test_of_8_bits_there_is_nothing_to_say(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
        assert self.spec(str(tmp_path), "folder", size=4, channels=3) == Spec(size=4, channels=3)

    def test_results_have_type_and_nodata_of_the_targets_files(self, tmp_path: Path) -> None:
        for name, kind, nodata in (("A", "float32", -1.0), ("B", "int16", -9999.0)):
            save(tmp_path / name / "0.tif", np.ones((4, 5), kind), nodata=nodata)
        values = {f"{side}_values": read_values("0:9") for side in ("source", "target")}
        one = self.spec(f"{tmp_path}/A,{tmp_path}/B", config=values)
        assert (one.target.dtype, one.nodata) == ("int16", -9999)
        other = self.spec(f"{tmp_path}/A,{tmp_path}/B", config={**values, "direction": "BtoA"})
        assert (other.target.dtype, other.nodata, other.direction) == ("float32", -1, "BtoA")

    def test_what_a_network_has_learned_stays(self, tmp_path: Path) -> None:
        data_dir = folders(tmp_path, ".nii", 1, (3, 4, 5))
        learned = Spec(source=Percentiles(), target=HU, slices="axial", neighbours=2, spacing=(1.0, 2.0, 3.0), nodata=-5)
        found = self.spec(data_dir, learned=learned)
        assert (found, found.spacing) == (learned, learned.spacing)
        assert self.spec(data_dir, config={"slices": Slices("coronal")}, learned=learned).neighbours == 2
        for config, message in (
            ({"target_values": read_values("0:9")}, "target_values must be those of the network, -1024:3071:HU, got 0:9"),
            ({"slices": Slices("axial", 1)}, "neighbours must be those of the network, 2, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                self.spec(data_dir, config=config, learned=learned)

    @pytest.mark.parametrize("suffix", [".npy", ".png", ".nii"])
    def test_more_than_8_bits_need_a_range_which_is_proposed(self, suffix: str, tmp_path: Path) -> None:
        kind = "uint16" if suffix == ".png" else "int16"
        array = located(1, (2, 4, 5) if suffix == ".nii" else (1, 4, 5) if suffix == ".npy" else (4, 5), kind)
        for side in "AB":
            save(tmp_path / side / f"a{suffix}", array)
        message = rf"A/a{suffix}: pictures of {kind} .* source has 1000 to {999 + array.size}.*--source_values 0:"
        with pytest.raises(ValueError, match=message):
            self.spec(f"{tmp_path}/A,{tmp_path}/B")

    def test_the_ranges_of_both_sides_are_proposed(self, tmp_path: Path) -> None:
        for side, kind, ends in (("A", "uint16", (403, 3499)), ("B", "float32", (-20.5, 36903))):
            save(tmp_path / side / "0.npy", np.array([[ends]], kind))
        found = "the first source has 403 to 3499, the first target has -20.5 to 36903"
        with pytest.raises(ValueError, match=f"{found}: .* --source_values 0:4095 --target_values -21:36903"):
            self.spec(f"{tmp_path}/A,{tmp_path}/B")

    def test_of_synthrad(self, tmp_path: Path) -> None:
        for patient in "ab":
            for name in ("mr", "ct", "mask"):
                save(tmp_path / patient / f"{name}.mha", np.zeros((2, 3, 4), np.int16))
        found = self.spec(str(tmp_path), "synthrad")
        assert (found.source, found.target, found.slices) == (Percentiles(0.5, 99.5), HU, "axial")
        assert self.spec(str(tmp_path), "synthrad", axes=3).slices is None
        own = {"slices": Slices("sagittal"), "target_values": read_values("-9:9:HU")}
        assert str(self.spec(str(tmp_path), "synthrad", own).target) == "-9:9:HU"
        with pytest.raises(ValueError, match=r"target values must be LOW:HIGH"):  # of an MR
            self.spec(str(tmp_path), "synthrad", {"direction": "BtoA"})
        assert DataConfig(direction="BtoA").crop is None
