"""OME-Zarr: what is written is valid, other readers read the same, and what others write is read."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bbdm import ABridge, pictures, save_checkpoint
from bbdm.base import atomic
from bbdm.cli import translate
from bbdm.data import read_rows
from bbdm.pictures import Derivation, Geometry, Picture, formats, header, read, write
from bbdm.pictures.picture import as_affine
from tests.conftest import tiny_unet
from tests.pictures.formats import numbers

if sys.version_info < (3, 11):
    pytest.skip("zarr 3 is of Python 3.11", allow_module_level=True)

import itertools

import ome_zarr.io
import ome_zarr.reader
import zarr
from ome_zarr_models import open_ome_zarr

MICROMETRES = (
    ("t", "minute"),
    ("c", None),
    ("z", "micrometer"),
    ("y", "micrometer"),
    ("x", "micrometer"),
)
NAMES = ("DAPI", "GFP", "actin")
FLAT = as_affine(np.diag([0.5, 0.25]), (3, 4))
DEEP = as_affine(np.diag([0.5, 0.25, 2.0]), (3, 4, 5))
CASES: dict[str, tuple[tuple[int, ...], Any, dict[str, Any]]] = {
    "plain": ((1, 300, 517), None, {}),
    "channels": (
        (3, 300, 517),
        FLAT,
        {"axes": MICROMETRES, "descriptions": NAMES, "colors": ("FF0000",) * 3},
    ),
    "volume": ((1, 3, 300, 517), DEEP, {"axes": MICROMETRES[2:]}),
    "sequence": ((2, 3, 300, 517), DEEP, {"axes": MICROMETRES, "depth": "t"}),
    "several chunks in each level": ((1, 300, 517), None, {"chunk": (64, 48)}),
}


def foreign(
    path: Path, array: npt.NDArray[Any], names: str, version: str = "0.5", **image: Any
) -> Any:
    """A picture of level 0 alone as other programs write it, and its array."""
    entries = [
        {"name": axis, "type": {"t": "time", "c": "channel"}.get(axis, "space")} for axis in names
    ]
    scale = {"type": "scale", "scale": [1.0] * len(names)}
    about: dict[str, Any] = {
        "axes": entries,
        "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
    }
    about |= image
    if version == "0.5":
        attributes: dict[str, Any] = {"ome": {"version": version, "multiscales": [about]}}
    else:
        attributes = {"multiscales": [{**about, "version": version}]}
    group = zarr.create_group(
        str(path), zarr_format=3 if version == "0.5" else 2, attributes=attributes
    )
    stored: Any = group.create_array(
        "s0", shape=array.shape, chunks=(1,) * (array.ndim - 2) + (8, 8), dtype=array.dtype
    )
    stored[...] = array
    return stored


def opened(path: Path) -> tuple[list[npt.NDArray[Any]], Mapping[str, Any]]:
    """The levels and the metadata that ome-zarr's reader finds, which is napari's."""
    location: Any = ome_zarr.io.parse_url(str(path))
    (node, *_) = ome_zarr.reader.Reader(location)()
    return [np.asarray(level) for level in node.data], node.metadata


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_it_is_valid_and_other_readers_read_the_same(
    version: str, case: str, tmp_path: Path
) -> None:
    """Values of all levels, scales, units, names and colours, and what made the picture."""
    shape, affine, kept = CASES[case]
    array = numbers(shape, "uint16")
    geometry = Geometry(affine, "ome-zarr", {"version": version, **kept})
    geometry = Geometry(
        affine, "ome-zarr", geometry.kept, derivation=Derivation("0123456789ab", "dpm2m", 5, (7,))
    )
    path = tmp_path / "a.ome.zarr"
    write(path, Picture(array, geometry, "photons"))
    assert type(open_ome_zarr(zarr.open_group(str(path), mode="r"))).__name__ == "Image"
    levels, metadata = opened(path)
    assert [level.shape[-2:] for level in levels] == [(300, 517), (150, 259), (75, 130)]
    order = [axis["name"] for axis in metadata["axes"]]
    first = levels[0]
    if case == "sequence":
        first = first[:, :, 0].swapaxes(0, 1)
    assert (first.reshape(shape) == array).all()
    for finer, coarser in itertools.pairwise(levels):
        padded = np.pad(
            finer,
            [(0, 0)] * (finer.ndim - 2) + [(0, side % 2) for side in finer.shape[-2:]],
            mode="edge",
        )
        quarters = [
            padded[..., row::2, column::2].astype(float) for row in (0, 1) for column in (0, 1)
        ]
        assert (np.rint(sum(quarters) / 4) == coarser).all()
    transformations = [
        {each["type"]: each[each["type"]] for each in level} for level in _transformations(path)
    ]
    if affine is not None:
        assert transformations[1]["scale"][-2:] == [0.5, 1.0]
        assert transformations[1]["translation"][-2:] == [4.125, 3.25]  # half a pixel further
        assert [axis.get("unit") for axis in metadata["axes"]] == [
            dict(MICROMETRES)[name] for name in order
        ]
    if case == "channels":
        assert tuple(metadata["channel_names"]) == NAMES
    found = read(path)
    assert (found == array).all()
    assert (found.unit, found.geometry.affine) == ("photons", affine)
    assert found.geometry.kept.get("seconds") == (120 if case == "sequence" else None)
    assert "made by bbdm: model 0123456789, seed 7, 5 steps, dpm2m" in _attributes(path).read_text()
    window = tuple(slice(1, side - 1) for side in shape[1:])
    assert (read(path, window) == array[(slice(None), *window)]).all()
    write(tmp_path / "b.ome.zarr", found)
    for one, other in zip(levels, opened(tmp_path / "b.ome.zarr")[0], strict=True):
        assert (one == other).all()
    assert header(tmp_path / "b.ome.zarr").geometry == header(path).geometry


def _attributes(path: Path) -> Path:
    return next(file for file in (path / "zarr.json", path / ".zattrs") if file.exists())


def _transformations(path: Path) -> list[list[dict[str, Any]]]:
    content = json.loads(_attributes(path).read_text())
    content = content.get("attributes", content)
    (image,) = content.get("ome", content)["multiscales"]
    return [level["coordinateTransformations"] for level in image["datasets"]]


def test_means_leave_out_pixels_without_a_value(tmp_path: Path) -> None:
    array = np.full((1, 512, 512), 10, np.int16)
    array[0, :4, :3] = -1
    write(tmp_path / "a.zarr", Picture(array, Geometry(nodata=-1)))
    _, half = opened(tmp_path / "a.zarr")[0]
    assert half[0, :3, :3].tolist() == [[-1, 10, 10], [-1, 10, 10], [10, 10, 10]]
    assert read(tmp_path / "a.zarr").nodata == -1


def test_what_others_write_is_read(tmp_path: Path) -> None:
    """Axes in their order, times of one plane, scales of all levels together; and labels are no pictures."""
    array = numbers((3, 2, 1, 9, 10), "uint8")
    whole = [{"type": "scale", "scale": [0.1, 1, 1, 4, 4]}]
    axes = [
        {"name": "t", "type": "time", "unit": "millisecond"},
        *({"name": each} for each in "czyx"),
    ]
    foreign(tmp_path / "a.zarr", array, "tczyx", coordinateTransformations=whole, axes=axes)
    foreign(tmp_path / "a.zarr" / "labels" / "cells", array, "tczyx")
    found = read(tmp_path / "a.zarr")
    assert (found == array[:, :, 0].swapaxes(0, 1)).all()
    assert found.geometry.spacing == pytest.approx((0.1, 4, 4))
    assert found.geometry.kept["seconds"] == pytest.approx(1e-4)
    assert (
        read(tmp_path / "a.zarr", (slice(1, 3), slice(2, 9), slice(0, 7))) == found[:, 1:, 2:, :7]
    ).all()
    assert formats.pictures_in(tmp_path) == [tmp_path / "a.zarr"]


def test_a_picture_without_an_axis_of_channels_has_the_name_of_its_one(tmp_path: Path) -> None:
    named = {"channels": [{"label": "DAPI", "color": "0000FF"}]}
    foreign(tmp_path / "a.zarr", numbers((1, 9, 10), "uint8")[0], "yx", version="0.4")
    attributes = _attributes(tmp_path / "a.zarr")
    content = json.loads(attributes.read_text())
    attributes.write_text(json.dumps({**content, "omero": named}))
    kept = header(tmp_path / "a.zarr").geometry.kept
    assert kept["descriptions"] == ("DAPI",)
    assert kept["colors"] == ("0000FF",)


def test_chunks_that_are_not_stored(tmp_path: Path) -> None:
    stored = foreign(tmp_path / "a.zarr", np.zeros((2, 20, 30), np.uint16), "cyx", version="0.4")
    stored[1, 9:10, 17:18] = 5
    found = formats.module("omezarr").chunks(header(tmp_path / "a.zarr"))
    assert found.stored.tolist() == [[False] * 4, [False, False, True, False], [False] * 4]
    assert found.holds((slice(0, 9), slice(15, 17)))
    assert not found.holds((slice(0, 8), slice(0, 30)))
    expected = np.zeros((20, 30), bool)
    expected[8:16, 16:24] = True
    parts = np.zeros((20, 30), bool)
    for part in found.stored_in((slice(3, 13), slice(5, 29))):
        parts[part] = True
    expected[13:] = False
    assert (parts == expected).all()


def test_refusals(tmp_path: Path) -> None:
    both = numbers((2, 3, 9, 9), "uint8")
    foreign(tmp_path / "both.zarr", both, "tzyx")
    foreign(tmp_path / "old.zarr", both[0], "zyx", version="0.3")
    foreign(tmp_path / "angle.zarr", both[0], "ayx")
    outside = {"path": "../both.zarr/s0"}
    foreign(tmp_path / "outside.zarr", both[0], "zyx", datasets=[outside])
    foreign(tmp_path / "damaged.zarr", both[0], "zyx")
    (tmp_path / "damaged.zarr" / "zarr.json").write_text("{")
    (tmp_path / "file.zarr").write_text("")
    zarr.create_array(str(tmp_path / "array.zarr"), shape=(9, 9), dtype="uint8")
    foreign(tmp_path / "cut.zarr", numbers((1, 9, 9), "uint16"), "cyx")
    chunk = tmp_path / "cut.zarr" / "s0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    for name, message in {
        "both": r"both\.zarr: it has 2 times of 3 planes: choose a time, such as both\.zarr#time=0",
        "old": r"it is OME-Zarr 0\.3, and 0\.4 and 0\.5 are read",
        "angle": "its axes are a, y, x, and t, c, z, y, x are read",
        "outside": r"its level '\.\./both\.zarr/s0' is not in its folder",
        "damaged": r"zarr\.json is damaged",
        "file": "it is a file, and an OME-Zarr is a folder",
        "array": "it is a folder, and no picture of OME-Zarr: it has no multiscales",
        "cut": r"cannot read the picture .*cut\.zarr: ",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / f"{name}.zarr")


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the place of another one, but not that of a folder of something else."""
    path = tmp_path / "a.ome.zarr"
    first = numbers((1, 9, 9), "uint8")
    write(path, first)
    with monkeypatch.context() as broken:
        broken.setattr(atomic.os, "fsync", lambda _: 1 / 0)
        with pytest.raises(ValueError, match=r"a\.ome\.zarr: division by zero"):
            write(path, first[:, :5])
    assert (read(path) == first).all()
    write(path, first[:, :5])
    assert (read(path) == first[:, :5]).all()
    assert [each.name for each in tmp_path.iterdir()] == ["a.ome.zarr"]
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.txt").touch()
    with pytest.raises(
        ValueError, match="it is a folder of something else: delete it, or give another name"
    ):
        write(tmp_path / "b.zarr", first)
    assert (tmp_path / "b.zarr" / "thesis.txt").exists()


class TestTranslate:
    """`bbdm translate` of OME-Zarr."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_checkpoint(
            tmp_path / "c.pt", tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=16
        )
        monkeypatch.chdir(tmp_path)

    def run(self, *flags: str) -> None:
        translate.main(["folder", "own", "c.pt", "out", "--steps", "1", "--size", "keep", *flags])

    def test_results_are_of_the_sources_version_and_are_kept(self) -> None:
        """Until a chunk changes, also where it only moves; a source is never replaced."""
        for name, version in (("a.zarr", "0.4"), ("sub/b.ome.zarr", "0.5")):
            geometry = Geometry(
                FLAT, "ome-zarr", {"version": version, "axes": MICROMETRES, "chunk": (16, 16)}
            )
            Path("own", name).parent.mkdir(parents=True, exist_ok=True)
            write(Path("own", name), Picture(numbers((3, 32, 32), "uint8"), geometry))
        self.run()
        for name, version in (("a.zarr", "0.4"), ("sub/b.ome.zarr", "0.5")):
            found = header(Path("out", name))
            assert (found.geometry.kept["version"], found.geometry.affine) == (version, FLAT)
            assert "made by bbdm" in _attributes(Path("out", name)).read_text()
        before = _attributes(Path("out/a.zarr")).stat().st_mtime_ns
        self.run()
        assert _attributes(Path("out/a.zarr")).stat().st_mtime_ns == before
        one, other = Path("own/a.zarr/0/0/0/0/0/0"), Path("own/a.zarr/0/0/0/0/1/1")
        one.rename("spare")
        other.rename(one)
        Path("spare").rename(other)
        self.run()
        assert _attributes(Path("out/a.zarr")).stat().st_mtime_ns != before
        with pytest.raises(ValueError, match=r"own/a\.zarr would replace another picture"):
            translate.main(["folder", "own", "c.pt", "own", "--steps", "1", "--size", "keep"])

    def test_a_plate_keeps_names(self) -> None:
        """Its images lie in folders of rows, columns and fields."""
        array = numbers((3, 16, 16), "uint8")
        for well in ("A/1/0", "B/2/1"):
            foreign(Path("own/plate.zarr", well), array, "cyx")
        (Path("own/plate.zarr") / "zarr.json").write_text(
            '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
        )
        self.run()
        made = sorted(
            path.relative_to("out").as_posix()
            for path in formats.pictures_in(Path("out"))
            if path.is_dir()
        )
        assert made == ["plate.zarr/A/1/0.ome.zarr", "plate.zarr/B/2/1.ome.zarr"]
        shutil.rmtree("out")
        translate.main(
            ["folder", "own/plate.zarr/A/1/0", "c.pt", "out", "--steps", "1", "--size", "keep"]
        )
        assert pictures.read("out/0.ome.zarr").shape == array.shape


def test_each_time_of_several_planes_is_a_row(tmp_path: Path) -> None:
    array = numbers((2, 2, 3, 10, 12), "uint16")  # times, channels, planes
    foreign(tmp_path / "a.zarr", array, "tczyx")
    rows = read_rows("folder", str(tmp_path))
    assert [row["name"] for row in rows] == ["a/time0", "a/time1"]
    assert (np.asarray(rows[1]["source"].read()) == array[1]).all()
    window = rows[1]["source"].read((slice(1, 3), slice(2, 9), slice(4, 5)))
    assert (np.asarray(window) == array[1][:, 1:3, 2:9, 4:5]).all()
    for channel in (0, 1):
        one = read(tmp_path / f"a.zarr#time=1,channel={channel}")
        assert (np.asarray(one) == array[1, channel : channel + 1]).all()
    with pytest.raises(ValueError, match=r"it has 2 times, counted from 0: there is no time=2"):
        read(tmp_path / "a.zarr#time=2")
    with pytest.raises(ValueError, match=r"it has 1 scene, number 0: there is no scene=3"):
        read(tmp_path / "a.zarr#scene=3")
