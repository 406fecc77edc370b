"""The commands of the guide to one's own data, on small volumes and scenes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm import load_checkpoint, pictures
from bbdm.cli import eval as eval_command
from bbdm.cli import train, translate
from bbdm.cli.files import Info
from bbdm.evaluation.metrics import dice, volume_scores
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.pictures import Geometry, Picture
from tests.conftest import TINY

VOLUME = ((3.0, 0.0, 0.0, 5.0), (0.0, 1.0, 0.0, 6.0), (0.0, 0.0, 1.0, 7.0), (0.0, 0.0, 0.0, 1.0))
SCENE = ((0.0, 10.0, 5e5), (-10.0, 0.0, 5e6), (0.0, 0.0, 1.0))
RANDOM = np.random.default_rng(0)


PATIENTS = ["paired", "data/{split}/*/mr,data/{split}/*/ct,mask=data/{split}/*/mask"]
VALUES = ["--source_values", "p0.5:99.5", "--target_values", "-1024:3071:HU"]
NEW = ("AB/1ABA003", "HN/1HNA001")  # of validation
KINDS = {  # flags of training and metrics
    ".nii.gz": (["--crop", "16", "--slices", "axial", *VALUES], ["mae", "psnr", "ssim"]),
    ".tif": (["--crop", "16:2", "--source_values", "-25:0:dB,-32:-5:dB", "--target_values", "0:10000"], ["mae"]),
}


def picture(suffix: str, side: str) -> Picture:
    """A volume of MR or CT, or a scene of radar or of 13 bands."""
    place = Geometry(VOLUME) if suffix != ".tif" else Geometry(SCENE, "geotiff", {"crs": "EPSG:32632"})
    if suffix != ".tif":
        low, high = (0, 900) if side == "A" else (-1000, 1500)
        return Picture(RANDOM.integers(low, high, (1, 3, 24, 20)).astype(np.int16), place)
    if side == "A":
        return Picture(RANDOM.uniform(-30, 0, (2, 24, 20)).astype(np.float32), place)
    return Picture(RANDOM.integers(0, 10000, (13, 24, 20)).astype(np.uint16), place)


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets demo and volume with a network of a few thousand parameters, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for preset, axes, channels in (("demo", 2, 3), ("volume", 3, 1)):
        network = UNetConfig(channels, channels, condition_channels=channels, axes=axes, **TINY)
        monkeypatch.setitem(UNETS, preset, network)


@pytest.fixture
def patients() -> None:
    """SynthRAD's folders: MR, CT and a mask that leaves out the first and the last slice."""
    mask = np.zeros((1, 6, 20, 24), np.uint8)
    mask[:, 1:-1, 4:16, 4:20] = 1
    for name in ("train/AB/1ABA001", "train/AB/1ABA002", *(f"val/{name}" for name in NEW)):
        folder, place = Path("data", name), Geometry(VOLUME)
        folder.mkdir(parents=True)
        Picture(RANDOM.normal(300, 80, mask.shape).astype(np.float32), place).save(folder / "mr.mha")
        Picture(RANDOM.integers(-1024, 1500, mask.shape).astype(np.int16), place).save(folder / "ct.mha")
        Picture(mask, place).save(folder / "mask.mha")


def scored(*metrics: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The report of `bbdm eval`, and the scores of its results by definition."""
    eval_command.main([*PATIENTS, "OUT.pt", "SCORES", "--metrics", *metrics, "--steps", "2"])
    wanted: dict[str, dict[str, float]] = {}
    for name in NEW:
        result = pictures.read(Path("SCORES", f"{name}.mha"))
        truth, mask = (pictures.read(Path("data/val", name, f"{each}.mha")) for each in ("ct", "mask"))
        assert (result.grid, result.dtype) == (truth.grid, np.int16)
        arrays = [np.asarray(each)[0] for each in (truth, result, mask)]
        wanted[name] = volume_scores(*arrays) | {"dice": dice(arrays[0], arrays[1], 200, arrays[2])}
    return json.loads(Path("SCORES/scores.json").read_text()), wanted


def test_synthrad_in_2_5_d(patients: None, capsys: Any) -> None:
    """From the challenge's folders to scores by patient, which are those of the definitions."""
    flags = ["--preset", "demo", "--crop", "16", "--slices", "axial:1", "-b", "2", "-e", "1"]
    train.main([*PATIENTS, "OUT.pt", *flags, *VALUES])
    assert load_checkpoint("OUT.pt").unet.config.endpoint == (1,)
    Info.main(["OUT.pt"])
    out = capsys.readouterr().out
    for part in ("neighbours    1", "-1024:3071:HU, stored as int16", "spacing       (3.0, 1.0, 1.0)"):
        assert part in out
    report, wanted = scored("mae", "psnr", "ms_ssim", "dice")
    for metric, found in report["by_patient"].items():
        assert found == pytest.approx({name: wanted[name][metric] for name in found}, rel=1e-5)
        assert report["scores"][metric] == pytest.approx(np.mean([*found.values()]))
    assert f"| {report['scores']['mae']:.5g} |" in capsys.readouterr().out
    assert [*scored("rmse")[0]["by_patient"]] == ["rmse"]  # of the same results


@pytest.mark.parametrize("suffix", KINDS)
def test_the_three_commands(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Results have the values of targets and the geometry of their sources."""
    flags, metrics = KINDS[suffix]
    for name in (f"{side}/{split}/{number}" for side in "AB" for split in ("train", "val") for number in range(2)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(suffix, name[0]).save(Path(name + suffix))
    pairs = ["paired", "A/{split},B/{split}"]
    train.main([*pairs, "OUT.pt", "--preset", "demo", *flags, "-b", "2", "-e", "1"])
    translate.main(["folder", "A/val", "OUT.pt", "RESULTS", "--steps", "2"])
    for number in range(2):
        made, source, target = (
            pictures.read(Path(each, f"{number}{suffix}")) for each in ("RESULTS", "A/val", "B/val")
        )
        assert (made.shape, made.dtype) == (target.shape, target.dtype)
        assert np.allclose(made.geometry.affine, source.geometry.affine, atol=1e-5)  # pyright: ignore[reportArgumentType]
        assert made.geometry.kept.get("crs") == source.geometry.kept.get("crs")
    eval_command.main([*pairs, "OUT.pt", "SCORES", "--metrics", *metrics, "--steps", "2"])
    assert ("MAE HU" in capsys.readouterr().out) == (suffix != ".tif")


def test_synthrad_in_3_d(patients: None) -> None:
    """The same folders and words with a network of three axes, whose crops are volumes."""
    flags = ["--preset", "volume", "--crop", "4x8x8", "-b", "2", "-e", "1", "--device", "cpu"]
    train.main([*PATIENTS, "OUT.pt", *flags, *VALUES, "--precision", "fp32"])
    trained = load_checkpoint("OUT.pt")
    assert (trained.pictures.crop, trained.pictures.slices, trained.pictures.spacing) == ((4, 8, 8), None, (3, 1, 1))
    report, wanted = scored("mae", "ms_ssim")
    found = report["by_patient"]["mae"]
    assert found == pytest.approx({name: wanted[name]["mae"] for name in NEW}, rel=1e-6)
    translate.main([*PATIENTS, "OUT.pt", "RESULTS", "--steps", "2"])
    assert Path("RESULTS/grid.png").exists()
