"""`bbdm eval-miou` as a user runs it, with networks too small to be good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm import ABridge, save_checkpoint
from bbdm.cli import eval_miou
from bbdm.evaluation.deeplab import DeepLab, DeepLabConfig, save_deeplab
from bbdm.evaluation.segmentation import read_labels
from tests.conftest import tiny_unet


def make_city(place: Path) -> None:
    """Cityscapes' layout with two streets in two towns, and a DeepLab with random weights."""
    generator = np.random.default_rng(0)
    for town, name in (("aachen", "aachen_000000_000019"), ("bonn", "bonn_000001_000019")):
        for kind in ("gtFine", "leftImg8bit"):
            (place / "city" / kind / "val" / town).mkdir(parents=True)
        labels = place / "city" / "gtFine" / "val" / town / f"{name}_gtFine"
        Image.fromarray(generator.integers(0, 256, (32, 64, 4), dtype=np.uint8)).save(f"{labels}_color.png")
        Image.fromarray(generator.integers(0, 34, (32, 64), dtype=np.uint8)).save(f"{labels}_labelIds.png")
        photo = Image.fromarray(generator.integers(0, 256, (32, 64, 3), dtype=np.uint8))
        photo.save(place / "city" / "leftImg8bit" / "val" / town / f"{name}_leftImg8bit.png")
    torch.manual_seed(0)
    save_deeplab(place / "deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet")))


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two streets, DeepLab and a checkpoint; the working directory."""
    make_city(tmp_path)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_miou(*flags: str) -> dict[str, Any]:
    eval_miou.main(["deeplab.pt", "city", "c.pt", "streets", "--steps", "2", *flags])
    return json.loads(Path("streets/scores.json").read_text())


def test_miou_end_to_end(city: Path, count: list[int], capsys: pytest.CaptureFixture[str]):
    report = run_miou()
    assert len(report["scores"]["iou"]) == 19
    assert report["deeplab"]["backbone"] == "mobilenet"
    assert report["pictures"] == 2
    out = capsys.readouterr().out
    assert f"| **mIoU** | **{report['scores']['miou']:.4f}** |" in out
    assert Path("streets/bonn/bonn_000001_000019.png").is_file()
    assert run_miou()["scores"] == report["scores"]
    assert count == [2, 2]  # to warm up, and the one that is timed


def test_miou_of_pictures_that_keep_their_size_with_windows(city: Path):
    report = run_miou("--window", "16")
    assert report["settings"]["window"] == 16
    with Image.open("streets/bonn/bonn_000001_000019.png") as made:
        assert made.size == (64, 32)


def test_an_interrupted_scoring_resumes(city: Path, monkeypatch: pytest.MonkeyPatch):
    """A picture is segmented once, and again by another network, at another stride, or with other labels."""
    seen: list[int] = []
    original = DeepLab.forward

    def forward(self: DeepLab, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(DeepLab, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        run_miou()
    report = run_miou()
    assert len(seen) == 3
    assert run_miou()["scores"] == report["scores"]
    assert len(seen) == 3
    assert run_miou("--overwrite")["scores"] == report["scores"]  # the same pictures again
    assert len(seen) == 3
    run_miou("--output_stride", "8")
    assert len(seen) == 5
    labels = next(Path("city/gtFine/val/bonn").glob("*_labelIds.png"))
    Image.fromarray(np.full((32, 64), 7, dtype=np.uint8)).save(labels)
    assert run_miou("--output_stride", "8")["scores"] != report["scores"]
    assert len(seen) == 6
    save_deeplab("deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet")))
    run_miou()
    assert len(seen) == 8


def test_a_perfect_network_scores_one(city: Path, monkeypatch: pytest.MonkeyPatch):
    """A network that returns each picture's labels: the wiring of pictures, labels and classes."""
    folders = sorted(Path("city/gtFine/val").rglob("*_labelIds.png"))
    labels = iter([read_labels(path) for path in folders])

    class Perfect(nn.Module):
        config = DeepLabConfig("deeplabv3plus", "mobilenet")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            right = next(labels).clamp(max=18)
            return nn.functional.one_hot(right, 19).permute(2, 0, 1)[None].float()

    monkeypatch.setattr("bbdm.evaluation.deeplab.load_deeplab", lambda *_: Perfect())
    assert run_miou()["scores"]["miou"] == 1


def test_missing_files_for_miou_are_an_error_before_anything_is_made(city: Path, count: list[int]):
    next(Path("city/gtFine/val/aachen").glob("*_labelIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no label map .*aachen_000000_000019_gtFine_labelIds.png"):
        run_miou()
    save_deeplab("deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet", num_classes=21)))
    with pytest.raises(ValueError, match=r"deeplab.pt must have 19 classes, got 21"):
        run_miou()
    assert count == []
