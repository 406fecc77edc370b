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
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SynthRAD's folders: MR, CT and a mask that leaves out the first and the last slice; tiny presets."""
    monkeypatch.chdir(tmp_path)
    for preset, axes, channels in (("demo", 2, 3), ("volume", 3, 1)):
        network = UNetConfig(channels, channels, condition_channels=channels, axes=axes, **TINY)
        monkeypatch.setitem(UNETS, preset, network)
    mask = np.zeros((1, 6, 20, 24), np.uint8)
    mask[:, 1:-1, 4:16, 4:20] = 1
    for name in ("train/AB/1ABA001", "train/AB/1ABA002", *(f"val/{name}" for name in NEW)):
        folder, place = Path("data", name), Geometry(VOLUME)
        folder.mkdir(parents=True)
        Picture(RANDOM.normal(300, 80, mask.shape).astype(np.float32), place).save(
            folder / "mr.mha"
        )
        Picture(RANDOM.integers(-1024, 1500, mask.shape).astype(np.int16), place).save(
            folder / "ct.mha"
        )
        Picture(mask, place).save(folder / "mask.mha")


def expected() -> dict[str, dict[str, float]]:
    """The scores of results by definition."""
    wanted: dict[str, dict[str, float]] = {}
    for name in NEW:
        result = pictures.read(Path("SCORES", f"{name}.mha"))
        truth, mask = (
            pictures.read(Path("data/val", name, f"{each}.mha")) for each in ("ct", "mask")
        )
        assert (result.grid, result.dtype) == (truth.grid, np.int16)
        arrays = [np.asarray(each)[0] for each in (truth, result, mask)]
        wanted[name] = volume_scores(*arrays, high=3071) | {
            "dice": dice(arrays[0], arrays[1], 200, arrays[2])
        }
    return wanted


@pytest.mark.parametrize(
    ("flags", "learned", "metrics"),
    [
        (
            "--preset demo --crop 16 --slices axial:1",
            (16, "axial", 1, (1,)),
            ["mae", "psnr", "ms_ssim", "dice"],
        ),
        ("--preset volume --crop 4x8x8", ((4, 8, 8), None, 0, None), ["mae"]),
    ],
    ids=["2.5-d", "3-d"],
)
def test_from_synthrads_folders_to_scores_by_patient(
    flags: str, learned: Any, metrics: list[str], capsys: Any
) -> None:
    """Scores are those of the definitions; volumes without bone have no Dice, nor has their mean."""
    small = ["-b", "2", "-e", "1", "--device", "cpu", "--precision", "fp32"]
    train.main([*PATIENTS, "OUT.pt", *flags.split(), *small, *VALUES])
    trained = load_checkpoint("OUT.pt")
    spec = trained.pictures
    assert (spec.crop, spec.slices, spec.neighbours, trained.unet.config.endpoint) == learned
    Info.main(["OUT.pt"])
    out = capsys.readouterr().out
    assert "-1024:3071:HU, stored as int16" in out
    assert "spacing       (3.0, 1.0, 1.0)" in out
    score = [*PATIENTS, "OUT.pt", "SCORES", "--steps", "2", "--metrics"]
    eval_command.main([*score, *metrics])
    report, wanted = json.loads(Path("SCORES/scores.json").read_text()), expected()
    for metric, found in report["by_patient"].items():
        assert found == pytest.approx({name: wanted[name][metric] for name in found}, rel=1e-5)
        assert report["scores"][metric] == pytest.approx(np.mean([*found.values()]))
    assert [*report["by_patient"]] == metrics
    eval_command.main([*score, "mae", "dice", "--dice_above", "9000"])
    report = json.loads(Path("SCORES/scores.json").read_text())
    assert (report["scores"]["dice"], report["by_patient"]["dice"]) == (None, dict.fromkeys(NEW))
    assert f"| {report['scores']['mae']:.5g} | - |" in capsys.readouterr().out
