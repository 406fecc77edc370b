"""DeepLab against torchvision where they agree, and against the layout of the published checkpoints."""

import contextlib
import os
from pathlib import Path
from typing import Any

import convert_deeplabv3
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplab import DeepLab, DeepLabConfig, load_deeplab, recognise
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.segmentation import deeplabv3_resnet50

from bbdm.networks.base import restore
from tests.conftest import same_weights
from tests.files.test_inert import Runs


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
        key.replace("classifier.", "classifier.classifier.", 1): value for key, value in theirs.state_dict().items()
    }
    ours = restore(DeepLab, DeepLabConfig("deeplabv3", "resnet50", 19, output_stride=8), state)
    expected = theirs.eval()(picture(65))["out"]
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours(picture(65)), expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@torch.no_grad()
def test_plus_decoder_and_mobilenet_are_their_formulas():
    """The paper's figure 2, by the parts' own weights. Blocks pad before they expand, so that the input of a
    depthwise convolution is the expansion's bias at the edge; inside a picture they are torchvision's, whose
    stem pads, where ours shifts by half of a feature's pixels."""
    model: Any = network("deeplabv3plus", "mobilenet")
    low, high = model.backbone(picture(129)).values()
    assert (low.shape, high.shape) == ((2, 24, 32, 32), (2, 320, 8, 8))  # strides 4 and 16
    aspp = F.interpolate(model.classifier.aspp(high), size=(32, 32), mode="bilinear", align_corners=False)
    logits = model.classifier.classifier(torch.cat([model.classifier.project(low), aspp], dim=1))
    expected = F.interpolate(logits, size=(129, 129), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(picture(129)), expected)
    theirs = mobilenet_v2(weights=None).eval().features[:4]
    theirs.load_state_dict(model.backbone.low_level_features.state_dict())
    inside = (..., slice(6, 24), slice(6, 24))
    torch.testing.assert_close(low[inside], theirs(picture(129)[..., 1:, 1:])[inside], rtol=1e-4, atol=1e-5)
    x = torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    block = model.backbone.low_level_features[2]
    expand, depthwise, project, norm = block.conv
    torch.testing.assert_close(block(x), norm(project(depthwise(expand(F.pad(x, (1, 1, 1, 1)))))))


@pytest.mark.parametrize(("stride", "late"), [(16, "21" + "11" * 7 + "12" * 3), (8, "11" + "12" * 7 + "14" * 3)])
def test_mobilenet_strides_and_dilations(stride: int, late: str):
    """Of the early and of the late stages, as in the published network, by the stride of the output."""
    backbone: Any = network("deeplabv3plus", "mobilenet", output_stride=stride).backbone
    blocks = [*backbone.low_level_features[1:], *backbone.high_level_features]
    found = [f"{each.depthwise.stride[0]}{each.depthwise.dilation[0]}" for each in blocks]
    assert "".join(found) == "112111211111" + late


@pytest.mark.parametrize(
    ("head", "backbone", "shapes"),
    [
        ("deeplabv3plus", "mobilenet", {"backbone.low_level_features.3.conv.1.1.running_var": (144,)}),
        ("deeplabv3plus", "mobilenet", {"backbone.high_level_features.17.conv.3.bias": (320,)}),
        ("deeplabv3plus", "mobilenet", {"classifier.project.0.weight": (48, 24, 1, 1)}),
        ("deeplabv3", "resnet101", {"classifier.classifier.0.project.1.num_batches_tracked": ()}),
        ("deeplabv3plus", "resnet50", {"backbone.layer3.5.conv2.weight": (256, 256, 3, 3)}),
    ],
    ids=str,
)
def test_names_are_those_of_vainf_and_say_which_network_it_is(head: Any, backbone: Any, shapes: dict[str, Any]):
    state = network(head, backbone).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert not any(key.startswith(("backbone.features", "backbone.classifier", "backbone.fc")) for key in state)
    assert recognise(state) == DeepLabConfig(head, backbone)


def published(path: Path, **more: Any) -> DeepLab:
    """A file as VainF's training program writes it, with a NumPy scalar."""
    model = network("deeplabv3plus", "mobilenet")
    torch.save({"model_state": model.state_dict(), "best_score": np.mean([0.7, 0.73]), **more}, path)
    return model


def test_converting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = str(tmp_path / "best.pth.tar"), tmp_path / "d.pt"
    model = published(tmp_path / "best.pth.tar")
    for output, classes, message in ((out, 21, "has 19 classes, got -n 21"), (tmp_path / "d.pth", 19, r"got .*d\.pth")):
        with pytest.raises(ValueError, match=message):
            convert_deeplabv3.main([source, str(output), "-n", str(classes)])
        assert not output.exists()
    convert_deeplabv3.main([source, str(out), "-n", "19"])
    assert "deeplabv3plus on mobilenet, 19 classes" in capsys.readouterr().out
    loaded = load_deeplab(out)
    assert loaded.config == model.config == DeepLabConfig("deeplabv3plus", "mobilenet")
    assert not loaded.training
    assert same_weights(loaded, model)


def test_files_that_are_not_converted(tmp_path: Path):
    """A bare state dict, with the criterion's weights; and a whole network, which the public A-Bridge code's
    converter pickles, of a class that cannot be imported here. Nothing in a file runs."""
    model = published(tmp_path / "best.pth")
    torch.save({**model.state_dict(), "loss.weight": torch.ones(19)}, tmp_path / "bare.pth")
    torch.save(model, tmp_path / "whole.pt")
    for name in ("best.pth", "bare.pth", "whole.pt"):
        assert same_weights(load_deeplab(tmp_path / name), model)
    assert load_deeplab(tmp_path / "best.pth", output_stride=8).config.output_stride == 8
    published(tmp_path / "trap.pth", more=Runs(os.system, f"touch {tmp_path / 'ran'}"))
    with contextlib.suppress(ValueError):  # an error or the network, as long as nothing ran
        load_deeplab(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused(tmp_path: Path):
    """What no file of weights may be, such as newer, cut or of integers, is tested with checkpoints."""
    good = network("deeplabv3plus", "mobilenet").state_dict()
    missing = {key: value for key, value in good.items() if "aspp.project" not in key}
    separable = {key.replace("aspp.convs.1.0.weight", "aspp.convs.1.0.body.0.weight"): v for key, v in good.items()}
    small = {k: v for k, v in network("deeplabv3", "resnet50").state_dict().items() if "layer3.5" not in k}
    for content, message in (
        ({"a": torch.zeros(1)}, "not a DeepLab's: they begin with a"),
        (3, "it is a int; wanted: a state dict"),
        (missing, r"missing: classifier.aspp.project.0.weight, .*, classifier.aspp.project.1.weight$"),
        (separable, "separable convolutions"),
        (small, "its backbone is none of resnet50, resnet101, mobilenet"),
        ({"format": "bbdm", "version": 1}, "it is a 'bbdm', not a segmentation network"),
    ):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=rf"cannot read .*file.pth as a segmentation network: .*{message}"):
            load_deeplab(tmp_path / "file.pth")
    with pytest.raises(FileNotFoundError, match="there is no segmentation network"):
        load_deeplab(tmp_path / "none.pth")
