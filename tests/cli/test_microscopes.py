"""Files of microscopes as a user of commands meets them: what they hold, results, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bbdm import ABridge, BridgeSampler, cli, pictures, save_checkpoint
from bbdm.data.spec import Spec
from bbdm.pictures.values import Values
from tests.conftest import tiny_unet

if sys.version_info < (3, 11):
    pytest.skip("bioio and its plugins are for later Pythons", allow_module_level=True)

from tests.pictures.microscopes import random, stand_in, write_czi

SIDES = [(20, 24), (16, 32)]


@pytest.fixture(autouse=True)
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """two.czi of two scenes of different sizes with two channels of 16 bits, and c.pt of a network."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    scenes = [random((1, 2, 1, *side), seed=seed) for seed, side in enumerate(SIDES)]
    write_czi(Path("pictures/two.czi"), scenes, ["DAPI", "GFP"])
    network = tiny_unet(in_channels=2, out_channels=2, condition_channels=2)
    values = Values(0, 65535, dtype="uint16")
    spec = Spec(source=values, target=values)
    save_checkpoint("c.pt", network, ABridge(num_steps=50), image_size=16, pictures=spec)


def translated(source: str, output: str) -> list[str]:
    """The names of the results, but of the sheet."""
    cli.run("translate", ["folder", source, "c.pt", output, "--steps", "2", "--quiet"])
    results = Path(output).rglob("*.tif")
    return sorted(path.relative_to(output).as_posix() for path in results)


def test_each_scene_has_a_result_of_its_size() -> None:
    """By names of its file and its number, as OME-TIFF with the scale of its source."""
    assert translated("pictures", "all") == ["two/scene0.tif", "two/scene1.tif"]
    for number, side in enumerate(SIDES):
        result = pictures.read(f"all/two/scene{number}.tif")
        assert (result.shape, result.dtype) == ((2, *side), np.uint16)
        assert result.geometry.spacing == pytest.approx((0.065, 0.065))
    lines = [json.loads(line) for line in Path("all/results.jsonl").read_text().splitlines()]
    assert "two/scene0.tif" in json.dumps(lines)


def test_a_scene_alone_has_the_result_that_it_has_in_its_file() -> None:
    assert translated("pictures/two.czi", "file") == ["two/scene0.tif", "two/scene1.tif"]
    assert translated("pictures/two.czi#scene=1", "one") == ["two/scene1.tif"]
    one, same = (
        np.asarray(pictures.read(f"{folder}/two/scene1.tif"), float) for folder in ("one", "file")
    )
    assert one.std() > 1
    assert np.abs(one - same).max() <= 1
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    (of_address,) = sampler(["pictures/two.czi#scene=1"], seed=3)
    (of_values,) = sampler([pictures.read("pictures/two.czi#scene=1")], seed=3)
    assert np.array_equal(of_address, of_values)


def info(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    cli.run("info", [name])
    return capsys.readouterr().out


def test_info_says_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    text = info("pictures/two.czi", capsys)
    assert text.startswith("pictures/two.czi: 2 pictures\n  #scene=0 ")
    for line in ("2 x 16 x 32 of uint16", "size          20 x 24", "channels      2: DAPI, GFP"):
        assert line in text
    text = info("pictures/two.czi#scene=1", capsys)
    assert text.startswith("pictures/two.czi#scene=1: a picture\n  size          16 x 32\n")
    assert "pixel         0.065 x 0.065 µm" in text
    assert "reader        czi, whole" in text


def test_info_of_a_sequence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "bioio_nd2", [random((5, 1, 1, 9, 11))])
    Path("a.nd2").write_bytes(bytes(9999))
    text = info("a.nd2", capsys)
    for line in (
        "times         5",
        "size          9 x 11",
        "pixel         0.5 x 0.25 µm",
        "time          30 seconds",
    ):
        assert line in text


def test_info_of_other_formats(capsys: pytest.CaptureFixture[str]) -> None:
    """And a checkpoint is described as before."""
    geometry = pictures.Geometry(
        ((0, 0, 2.5, 0), (0, 0.7, 0, 0), (0.7, 0, 0, 0), (0, 0, 0, 1)), nodata=-1
    )
    pictures.write("a.nii.gz", pictures.Picture(np.ones((1, 3, 4, 5), np.int16), geometry))
    text = info("a.nii.gz", capsys)
    for line in (
        "size          3 x 4 x 5",
        "values        int16",
        "channels      1",
        "reader        nibabel, whole",
    ):
        assert line in text
    assert "pixel         0.7 x 0.7 x 2.5 mm" in text
    assert info("c.pt", capsys).startswith("c.pt: a checkpoint\n")
    with pytest.raises(SystemExit, match=r"there is no picture none\.png"):
        info("none.png", capsys)


def test_numbers_that_a_file_does_not_have() -> None:
    with pytest.raises(SystemExit, match="it has 2 scenes, counted from 0: there is no scene=7"):
        cli.run("translate", ["folder", "pictures/two.czi#scene=7", "c.pt", "out", "--steps", "2"])
    with pytest.raises(SystemExit, match="must be of scene=N, time=N and channel=N"):
        cli.run("translate", ["folder", "pictures/two.czi#well=1", "c.pt", "out", "--steps", "2"])
