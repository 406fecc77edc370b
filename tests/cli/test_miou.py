"""examples/eval_miou.py as a user runs it, its numbers by hand; DeepLab against torchvision and VainF's."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import convert_deeplabv3
import eval_miou
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplab import DeepLab, DeepLabConfig, load_deeplab, recognise, save_deeplab
from eval_miou import CITYSCAPES, IGNORED, read_labels, scores, sliding_logits
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.datasets import Cityscapes
from torchvision.models import mobilenet_v2
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.transforms.functional import normalize, to_tensor

from bbdm import ABridge, save_checkpoint
from bbdm.networks.base import restore
from tests.conftest import same_weights, tiny_unet
from tests.files.test_inert import Runs


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cityscapes' layout with two streets in two towns, whose labels are larger; two networks."""
    generator = np.random.default_rng(0)
    for town, name in (("aachen", "aachen_000000_000019"), ("bonn", "bonn_000001_000019")):
        for kind, ending, shape, top in (
            ("gtFine", "gtFine_color", (32, 64, 4), 256),
            ("gtFine", "gtFine_labelIds", (64, 128), 34),
            ("leftImg8bit", "leftImg8bit", (32, 64, 3), 256),
        ):
            folder = tmp_path / "city" / kind / "val" / town
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, top, shape, dtype=np.uint8)).save(
                folder / f"{name}_{ending}.png"
            )
    save_deeplab(tmp_path / "deeplab.pt", network("deeplabv3plus", "mobilenet"))
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_miou(*flags: str) -> dict[str, Any]:
    eval_miou.Miou.main(["deeplab.pt", "city", "c.pt", "streets", "--steps", "2", *flags])
    return json.loads(Path("streets/scores.json").read_text())


COLOURS = torch.randn(19, 3, 1, 1, generator=torch.Generator().manual_seed(0))  # of classes


def by_torchmetrics() -> float:
    """The mIoU of the results in streets, of which a window holds each."""
    metric = MulticlassJaccardIndex(19, ignore_index=255)
    for path in Path("streets").rglob("*_000019.png"):
        (labels,) = map(
            read_labels, Path("city/gtFine/val").rglob(f"{path.stem}_gtFine_labelIds.png")
        )
        pixels = F.interpolate(
            to_tensor(Image.open(path))[None], size=labels.shape, mode="bilinear"
        )
        logits = F.conv2d(normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), COLOURS)
        metric.update(logits.argmax(1), labels[None])
    return metric.compute().item()


def test_an_interrupted_scoring_resumes(
    city: Path,
    count: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A picture is made and segmented once, and again by another stride or labels; what is wrong is said."""
    seen: list[int] = []

    def forward(self: DeepLab, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return F.conv2d(images, COLOURS)

    monkeypatch.setattr(DeepLab, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        run_miou("--window", "16")
    made, report = [*count], run_miou("--window", "16")
    assert (report["settings"]["window"], report["deeplab"]["backbone"], report["pictures"]) == (
        16,
        "mobilenet",
        2,
    )
    assert len(report["scores"]["iou"]) == 19
    assert f"| **mIoU** | **{report['scores']['miou']:.4f}** |" in capsys.readouterr().out
    # with windows, they keep their size
    assert Image.open("streets/bonn/bonn_000001_000019.png").size == (64, 32)
    assert count == made
    assert report["scores"]["miou"] == pytest.approx(by_torchmetrics(), rel=1e-6)
    # the same pictures again
    assert run_miou("--window", "16", "--overwrite")["scores"] == report["scores"]
    assert len(seen) == 3
    labels = next(Path("city/gtFine/val/bonn").glob("*_labelIds.png"))
    Image.fromarray(np.full((32, 64), 7, dtype=np.uint8)).save(labels)
    run_miou("--window", "16")
    assert len(seen) == 4
    run_miou("--window", "16", "--output_stride", "8")
    assert len(seen) == 6
    next(Path("city/gtFine/val/aachen").glob("*_labelIds.png")).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"there is no label map .*aachen_000000_000019_gtFine_labelIds.png"
    ):
        run_miou("--window", "16")
    save_deeplab("deeplab.pt", DeepLab(DeepLabConfig("deeplabv3plus", "mobilenet", num_classes=21)))
    with pytest.raises(ValueError, match=r"deeplab.pt must have 19 classes, got 21"):
        run_miou("--window", "16")


def test_labels_from_a_file(tmp_path: Path):
    """The ids of cityscapesScripts, in the order of the training ids."""
    assert [*CITYSCAPES.items()] == [
        (each.name, each.id) for each in Cityscapes.classes if not each.ignore_in_eval
    ]
    # road, sidewalk, unlabeled; bicycle, caravan, nothing
    ids = np.array([[7, 8, 0], [33, 29, 255]], dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / "x_gtFine_labelIds.png")
    labels = read_labels(tmp_path / "x_gtFine_labelIds.png")
    assert labels.tolist() == [[0, 1, IGNORED], [18, IGNORED, IGNORED]]
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="one 8-bit channel of label ids, got \\(2, 2, 3\\)"):
        read_labels(tmp_path / "colour.png")


def test_miou_by_hand():
    """Class 0 has 2 hits of a union of 3, class 1 has 2 of 4, class 2 none of 1, and class 3 never occurs."""
    counts = torch.tensor([[2, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4])
    iou = {"road": 2 / 3, "car": 2 / 4, "bus": 0, "train": None}
    assert scores(counts, [*iou]) == {
        "miou": pytest.approx((2 / 3 + 2 / 4) / 3),
        "iou": pytest.approx(iou),
    }


def test_what_segmentation_refuses():
    with pytest.raises(ValueError, match="at least one pixel with a class"):
        scores(torch.zeros(19, 19).long())
    with pytest.raises(ValueError, match="mIoU is of photographs: leave out direction"):
        eval_miou.Miou.parse(
            ["d.pt", "data", "c.pt", "--fast_sampling", "-t", "1000", "--direction", "BtoA"]
        )


@pytest.mark.parametrize(("height", "width", "window", "stride"), [(17, 9, 8, 3), (5, 6, 16, 1)])
def test_windows_cover_everything(height: int, width: int, window: int, stride: int):
    """A network that returns its input: its average over windows is the input. No window is larger."""
    image = torch.arange(2 * height * width, dtype=torch.float64).reshape(1, 2, height, width)

    def network(part: torch.Tensor) -> torch.Tensor:
        assert part.shape[-2:] == (min(window, height), min(window, width))
        return part

    torch.testing.assert_close(sliding_logits(network, image, window, stride), image)
    calls = iter([1.0, 2.0])  # the n-th window, of 4 from 0 and 2 over 6 pixels, is n everywhere
    logits = sliding_logits(
        lambda part: torch.full_like(part, next(calls)), torch.zeros(1, 1, 1, 6), 4, 2
    )
    assert logits.flatten().tolist() == [1, 1, 1.5, 1.5, 2, 2]


def network(head: Any, backbone: Any, num_classes: int = 19, output_stride: Any = 16) -> DeepLab:
    """Random weights, normalisation included, in evaluation mode."""
    torch.manual_seed(0)
    model = DeepLab(DeepLabConfig(head, backbone, num_classes, output_stride))
    randomise(model)
    return model.eval()


def randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]


def picture(size: int = 97) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_parity_with_torchvision():
    """DeepLabV3 on ResNet-50 with output stride 8 is torchvision's; keys differ by one word."""
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=19, aux_loss=False)
    randomise(theirs)
    state = {
        key.replace("classifier.", "classifier.classifier.", 1): value
        for key, value in theirs.state_dict().items()
    }
    ours = restore(DeepLab, DeepLabConfig("deeplabv3", "resnet50", 19, output_stride=8), state)
    expected = theirs.eval()(picture(65))["out"]
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        ours(picture(65)), expected, rtol=1e-4, atol=1e-4 * expected.std().item()
    )


@torch.no_grad()
def test_plus_decoder_and_mobilenet_are_their_formulas():
    """The paper's figure 2, by the parts' own weights. Blocks pad before they expand, so that the input of a
    depthwise convolution is the expansion's bias at the edge; inside a picture they are torchvision's, whose
    stem pads, where ours shifts by half of a feature's pixels."""
    model: Any = network("deeplabv3plus", "mobilenet")
    low, high = model.backbone(picture(129)).values()
    assert (low.shape, high.shape) == ((2, 24, 32, 32), (2, 320, 8, 8))  # strides 4 and 16
    aspp = F.interpolate(
        model.classifier.aspp(high), size=(32, 32), mode="bilinear", align_corners=False
    )
    logits = model.classifier.classifier(torch.cat([model.classifier.project(low), aspp], dim=1))
    expected = F.interpolate(logits, size=(129, 129), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(picture(129)), expected)
    theirs = mobilenet_v2(weights=None).eval().features[:4]
    theirs.load_state_dict(model.backbone.low_level_features.state_dict())
    inside = (..., slice(6, 24), slice(6, 24))
    torch.testing.assert_close(
        low[inside], theirs(picture(129)[..., 1:, 1:])[inside], rtol=1e-4, atol=1e-5
    )
    x = torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    block = model.backbone.low_level_features[2]
    expand, depthwise, project, norm = block.conv
    torch.testing.assert_close(block(x), norm(project(depthwise(expand(F.pad(x, (1, 1, 1, 1)))))))


@pytest.mark.parametrize(
    ("stride", "late"), [(16, "21" + "11" * 7 + "12" * 3), (8, "11" + "12" * 7 + "14" * 3)]
)
def test_mobilenet_strides_and_dilations(stride: int, late: str):
    """Of the early and of the late stages, as in the published network, by the stride of the output."""
    backbone: Any = network("deeplabv3plus", "mobilenet", output_stride=stride).backbone
    blocks = [*backbone.low_level_features[1:], *backbone.high_level_features]
    found = [f"{each.depthwise.stride[0]}{each.depthwise.dilation[0]}" for each in blocks]
    assert "".join(found) == "112111211111" + late


NAMES: dict[tuple[Any, Any], dict[str, Any]] = {
    ("deeplabv3plus", "mobilenet"): {
        "backbone.low_level_features.3.conv.1.1.running_var": (144,),
        "backbone.high_level_features.17.conv.3.bias": (320,),
        "classifier.project.0.weight": (48, 24, 1, 1),
    },
    ("deeplabv3", "resnet101"): {"classifier.classifier.0.project.1.num_batches_tracked": ()},
    ("deeplabv3plus", "resnet50"): {"backbone.layer3.5.conv2.weight": (256, 256, 3, 3)},
}


@pytest.mark.parametrize("shape", NAMES, ids="-".join)
def test_names_are_those_of_vainf_and_say_which_network_it_is(shape: tuple[Any, Any]):
    state = network(*shape).state_dict()
    assert {key: tuple(state[key].shape) for key in NAMES[shape]} == NAMES[shape]
    assert not any(
        key.startswith(("backbone.features", "backbone.classifier", "backbone.fc")) for key in state
    )
    assert recognise(state) == DeepLabConfig(*shape)


def test_files_of_vainf_are_read_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of its training program, with a NumPy scalar; a bare state dict, with the criterion's weights; and a
    whole network, which the public A-Bridge code's converter pickles, of a class that cannot be imported."""
    model, out, ran = network("deeplabv3plus", "mobilenet"), tmp_path / "d.pt", tmp_path / "ran"
    best = {"model_state": model.state_dict(), "best_score": np.mean([0.7, 0.73])}
    bare = {**model.state_dict(), "loss.weight": torch.ones(19)}
    for name, content in {"best.pth.tar": best, "bare.pth": bare, "whole.pt": model}.items():
        torch.save(content, tmp_path / name)
        assert same_weights(load_deeplab(tmp_path / name), model)
    torch.save({**best, "more": Runs(os.system, f"touch {ran}")}, tmp_path / "trap.pth")
    with contextlib.suppress(ValueError):  # an error or the network, as long as nothing ran
        load_deeplab(tmp_path / "trap.pth")
    assert not ran.exists()
    source = str(tmp_path / "best.pth.tar")
    for output, classes, message in (
        (out, 21, "has 19 classes, got -n 21"),
        (tmp_path / "d.pth", 19, r"got .*d\.pth"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_deeplabv3.main([source, str(output), "-n", str(classes)])
        assert not output.exists()
    convert_deeplabv3.main([source, str(out), "-n", "19"])
    assert "deeplabv3plus on mobilenet, 19 classes" in capsys.readouterr().out
    assert load_deeplab(out).config == model.config
    loaded = load_deeplab(out, output_stride=8)
    assert (loaded.config.output_stride, loaded.training, same_weights(loaded, model)) == (
        8,
        False,
        True,
    )


def test_other_files_are_refused(tmp_path: Path):
    """What no file of weights may be, such as newer, cut or of integers, is tested with checkpoints."""
    good = network("deeplabv3plus", "mobilenet").state_dict()
    missing = {key: value for key, value in good.items() if "aspp.project" not in key}
    separable = {
        key.replace("aspp.convs.1.0.weight", "aspp.convs.1.0.body.0.weight"): v
        for key, v in good.items()
    }
    small = {
        k: v
        for k, v in network("deeplabv3", "resnet50").state_dict().items()
        if "layer3.5" not in k
    }
    for content, message in (
        ({"a": torch.zeros(1)}, "not a DeepLab's: they begin with a"),
        (
            missing,
            r"missing: classifier.aspp.project.0.weight, .*, classifier.aspp.project.1.weight$",
        ),
        (separable, "separable convolutions"),
        (small, "its backbone is none of resnet50, resnet101, mobilenet"),
        ({"format": "bbdm", "version": 1}, "it is a 'bbdm', not a segmentation network"),
    ):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(
            ValueError, match=rf"cannot read .*file.pth as a segmentation network: .*{message}"
        ):
            load_deeplab(tmp_path / "file.pth")
    with pytest.raises(FileNotFoundError, match="there is no segmentation network"):
        load_deeplab(tmp_path / "none.pth")
