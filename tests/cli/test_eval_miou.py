"""examples/eval_miou.py as a user runs it, with networks too small to be good, and its numbers by hand."""

import json
from pathlib import Path
from typing import Any

import eval_miou
import numpy as np
import pytest
import torch
from deeplab import DeepLab, DeepLabConfig, save_deeplab
from eval_miou import CITYSCAPES, IGNORED, confusion, read_labels, scores, sliding_logits
from PIL import Image
from torch import nn

from bbdm import ABridge, save_checkpoint
from tests.conftest import tiny_unet


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cityscapes' layout with two streets in two towns, a DeepLab and a checkpoint; the working directory."""
    generator = np.random.default_rng(0)
    for town, name in (("aachen", "aachen_000000_000019"), ("bonn", "bonn_000001_000019")):
        for kind, ending, shape, top in (
            ("gtFine", "gtFine_color", (32, 64, 4), 256),
            ("gtFine", "gtFine_labelIds", (32, 64), 34),
            ("leftImg8bit", "leftImg8bit", (32, 64, 3), 256),
        ):
            folder = tmp_path / "city" / kind / "val" / town
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, top, shape, dtype=np.uint8)).save(folder / f"{name}_{ending}.png")
    torch.manual_seed(0)
    save_deeplab(tmp_path / "deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet")))
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_miou(*flags: str) -> dict[str, Any]:
    eval_miou.Miou.main(["deeplab.pt", "city", "c.pt", "streets", "--steps", "2", *flags])
    return json.loads(Path("streets/scores.json").read_text())


def test_an_interrupted_scoring_resumes(
    city: Path, count: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A picture is made and segmented once, and again by another stride or labels; what is wrong is said."""
    seen: list[int] = []
    original = DeepLab.forward

    def forward(self: DeepLab, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(DeepLab, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        run_miou("--window", "16")
    made, report = [*count], run_miou("--window", "16")
    assert (report["settings"]["window"], report["deeplab"]["backbone"], report["pictures"]) == (16, "mobilenet", 2)
    assert len(report["scores"]["iou"]) == 19
    assert f"| **mIoU** | **{report['scores']['miou']:.4f}** |" in capsys.readouterr().out
    assert Image.open("streets/bonn/bonn_000001_000019.png").size == (64, 32)  # with windows, they keep their size
    assert count == made
    assert run_miou("--window", "16", "--overwrite")["scores"] == report["scores"]  # the same pictures again
    assert len(seen) == 3
    labels = next(Path("city/gtFine/val/bonn").glob("*_labelIds.png"))
    Image.fromarray(np.full((32, 64), 7, dtype=np.uint8)).save(labels)
    run_miou("--window", "16")
    assert len(seen) == 4
    run_miou("--window", "16", "--output_stride", "8")
    assert len(seen) == 6
    next(Path("city/gtFine/val/aachen").glob("*_labelIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no label map .*aachen_000000_000019_gtFine_labelIds.png"):
        run_miou("--window", "16")
    save_deeplab("deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet", num_classes=21)))
    with pytest.raises(ValueError, match=r"deeplab.pt must have 19 classes, got 21"):
        run_miou("--window", "16")


def test_a_perfect_network_scores_one(city: Path, monkeypatch: pytest.MonkeyPatch):
    """A network that returns each picture's labels: the wiring of pictures, labels and classes."""
    folders = sorted(Path("city/gtFine/val").rglob("*_labelIds.png"))
    labels = iter([read_labels(path) for path in folders])

    class Perfect(nn.Module):
        config = DeepLabConfig("deeplabv3plus", "mobilenet")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            right = next(labels).clamp(max=18)
            return nn.functional.one_hot(right, 19).permute(2, 0, 1)[None].float()

    monkeypatch.setattr("eval_miou.load_deeplab", lambda *_: Perfect())
    assert run_miou()["scores"]["miou"] == pytest.approx(1)


def test_labels_from_a_file(tmp_path: Path):
    """The ids of cityscapesScripts, in the order of the training ids."""
    assert [*CITYSCAPES][:3] + [*CITYSCAPES][-2:] == ["road", "sidewalk", "building", "motorcycle", "bicycle"]
    assert list(CITYSCAPES.values()) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ids = np.array([[7, 8, 0], [33, 29, 255]], dtype=np.uint8)  # road, sidewalk, unlabeled; bicycle, caravan, nothing
    Image.fromarray(ids).save(tmp_path / "x_gtFine_labelIds.png")
    labels = read_labels(tmp_path / "x_gtFine_labelIds.png")
    assert labels.tolist() == [[0, 1, IGNORED], [18, IGNORED, IGNORED]]
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="one 8-bit channel of label ids, got \\(2, 2, 3\\)"):
        read_labels(tmp_path / "colour.png")


def by_brightness(images: torch.Tensor) -> torch.Tensor:
    """A network that knows dark, grey and bright, normalised for ImageNet, and a class it never finds."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (eval_miou.IMAGENET_MEAN, eval_miou.IMAGENET_STD))
    grey = (images * std + mean).mean(1, keepdim=True)
    return -torch.cat([(grey - level).abs() for level in (0.0, 0.5, 1.0, 9.0)], dim=1)


def test_miou_by_hand():
    """Six pixels that count and two that don't.

    Labels 0 0 0 1 1 1, found 0 0 1 1 1 2: class 0 has 2 hits of a union of 3, class 1 has 2 of 4, class 2
    none of 1, and class 3 never occurs."""
    found = torch.tensor([[0, 0, 128, 128, 128, 255, 255, 0]], dtype=torch.uint8)
    labels = torch.tensor([[0, 0, 0, 1, 1, 1, IGNORED, IGNORED]])
    counts = confusion(by_brightness, found.expand(1, 3, 1, 8), labels[None], 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4]
    iou = {"dark": 2 / 3, "grey": 2 / 4, "bright": 0, "none": None}
    assert scores(counts, [*iou]) == {"miou": pytest.approx((2 / 3 + 2 / 4) / 3), "iou": pytest.approx(iou)}


def test_what_segmentation_refuses():
    with pytest.raises(ValueError, match="the network must have 19 classes, got 4"):
        confusion(by_brightness, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4).long(), 19)
    with pytest.raises(ValueError, match="at least one pixel with a class"):
        scores(torch.zeros(19, 19).long())
    with pytest.raises(ValueError, match="stride must be from 1 to the window's 8, got 9"):
        sliding_logits(by_brightness, torch.zeros(1, 3, 16, 16), window=8, stride=9)
    with pytest.raises(ValueError, match="mIoU is of photographs: leave out direction"):
        eval_miou.Miou.parse(["d.pt", "data", "c.pt", "--fast_sampling", "-t", "1000", "--direction", "BtoA"])


@pytest.mark.parametrize(("height", "width", "window", "stride"), [(17, 9, 8, 3), (5, 6, 16, 1)])
def test_windows_cover_everything(height: int, width: int, window: int, stride: int):
    """A network that returns its input: its average over windows is the input. No window is larger."""
    image = torch.arange(2 * height * width, dtype=torch.float64).reshape(1, 2, height, width)

    def network(part: torch.Tensor) -> torch.Tensor:
        assert part.shape[-2:] == (min(window, height), min(window, width))
        return part

    torch.testing.assert_close(sliding_logits(network, image, window, stride), image)
    calls = iter([1.0, 2.0])  # the n-th window, of 4 from 0 and 2 over 6 pixels, is n everywhere
    logits = sliding_logits(lambda part: torch.full_like(part, next(calls)), torch.zeros(1, 1, 1, 6), 4, 2)
    assert logits.flatten().tolist() == [1, 1, 1.5, 1.5, 2, 2]
