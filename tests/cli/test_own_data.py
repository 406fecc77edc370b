"""The commands of the guide to one's own data, on small volumes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbdm import load_checkpoint, pictures
from bbdm.cli import eval as eval_command
from bbdm.cli import train
from bbdm.cli.files import Info
from bbdm.evaluation.metrics import dice, volume_scores
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.pictures import Geometry, Picture
from tests.conftest import TINY

VOLUME = ((3.0, 0.0, 0.0, 5.0), (0.0, 1.0, 0.0, 6.0), (0.0, 0.0, 1.0, 7.0), (0.0, 0.0, 0.0, 1.0))
RANDOM = np.random.default_rng(0)


PATIENTS = ["paired", "data/{split}/*/mr,data/{split}/*/ct,mask=data/{split}/*/mask"]
VALUES = ["--source_values", "p0.5:99.5", "--target_values", "-1024:3071:HU"]
NEW = ("AB/1ABA003", "HN/1HNA001")  # of validation


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


def test_synthrad_in_3_d(patients: None) -> None:
    """The same folders and words with a network of three axes, whose crops are volumes."""
    flags = ["--preset", "volume", "--crop", "4x8x8", "-b", "2", "-e", "1", "--device", "cpu"]
    train.main([*PATIENTS, "OUT.pt", *flags, *VALUES, "--precision", "fp32"])
    trained = load_checkpoint("OUT.pt")
    assert (trained.pictures.crop, trained.pictures.slices, trained.pictures.spacing) == ((4, 8, 8), None, (3, 1, 1))
    report, wanted = scored("mae")
    found = report["by_patient"]["mae"]
    assert found == pytest.approx({name: wanted[name]["mae"] for name in NEW}, rel=1e-6)
