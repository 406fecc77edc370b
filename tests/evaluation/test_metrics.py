"""Scores against other libraries and against values by hand; stand-ins for weights that need a download."""

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from bbdm.evaluation import metrics, segmentation
from bbdm.evaluation.metrics import DownloadError, Scores
from bbdm.evaluation.segmentation import CITYSCAPES, IGNORED, SegmentationScore, sliding_logits
from tests.files.test_inert import Runs


class Features(nn.Module):
    """A stand-in for Inception."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.num_features = size
        self.layers = nn.Sequential(nn.Conv2d(3, size, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 100 * self.layers(images.float() / 255)


def pictures(*shape: int, seed: int = 0, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The definition (Heusel et al. 2017, eq. 6) in float64."""
    means, covariances = zip(*((v.mean(0), np.cov(v, rowvar=False)) for v in (one, other)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    distance = np.sum((means[0] - means[1]) ** 2)
    return float(distance + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


class Far(Features):
    """Means far from 0 with a small spread, which single precision would lose."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double() + 1e4


@pytest.mark.parametrize(
    ("count", "samples", "build"),
    [(60, 1, Features), (60, 3, Features), (12, 1, Features), (50, 1, partial(Far, 8))],
    ids=["one result", "three results", "fewer pictures than features", "a large offset"],
)
def test_fid_is_scipys(count: int, samples: int, build: Callable[[], Features]):
    """Covariances of 12 pictures in 24 dimensions are singular, which matrix square roots suffer from."""
    features = build()
    results = pictures(count, samples, 3, 20, 20, seed=1, low=20)
    targets = pictures(count, 3, 20, 20, seed=2, high=230)
    scores = Scores(["fid"], samples, features=features)
    for part in range(0, count, 25):
        scores.update(results[part : part + 25], targets[part : part + 25])
    with torch.no_grad():
        expected = frechet(*(features(v).double().numpy() for v in (results.flatten(0, 1), targets)))
    assert scores.compute()["fid"] == pytest.approx(expected, rel=1e-3)


def test_psnr_and_ssim_are_means_over_pictures():
    """SSIM of the same is one, and falls with noise."""
    targets = pictures(2, 3, 16, 16, low=20, high=200)
    results = torch.stack([targets[0] + 10, targets[1] + 5])[:, None]
    scores = Scores(["psnr", "ssim"])
    scores.update(results[:1], targets[:1])
    scores.update(results[1:], targets[1:])
    found = scores.compute()
    assert found["psnr"] == pytest.approx(np.mean([20 * np.log10(255 / 10), 20 * np.log10(255 / 5)]), abs=1e-4)
    assert 0.9 < found["ssim"] < 1
    targets = pictures(3, 3, 32, 32, low=60, high=190)
    values: list[float] = []
    for noise in (1, 20, 60):
        scores = Scores(["ssim"])
        scores.update((targets + pictures(3, 3, 32, 32, seed=9, high=noise))[:, None], targets)
        values.append(scores.compute()["ssim"])
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.9


def test_diversity_is_its_formula():
    """Among others, of results 0 and 10 everywhere (spread 5), and of the same ones (spread 0)."""
    results = pictures(4, 5, 3, 8, 8)
    results[0] = torch.tensor([0, 10, 0, 10, 5])[:, None, None, None]
    results[1] = 77
    scores = Scores(["diversity"], samples=5)
    for part in (results[:1], results[1:]):
        scores.update(part, part[:, 0])
    spreads = results.numpy().astype(float).std(axis=1).mean((1, 2, 3))
    assert spreads[:2] == pytest.approx([20**0.5, 0])
    assert scores.compute()["diversity"] == pytest.approx(spreads.mean(), rel=1e-9)


def backbone_file(net: metrics.LPIPSNet, path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(metrics.BACKBONES[net], weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("net", [*(pytest.param(net, marks=pytest.mark.nightly) for net in ("alex", "vgg")), "squeeze"])
def test_lpips_with_a_local_file_is_the_original(net: metrics.LPIPSNet, tmp_path: Path):
    """Random weights in place of ImageNet's, the same in Zhang et al.'s own package."""
    import lpips as original_lpips

    path = backbone_file(net, tmp_path / "weights.pth")
    before = torch.hub.get_dir()
    scores = Scores(["lpips"], 2, lpips_net=net, lpips_weights=path)
    assert torch.hub.get_dir() == before
    results, targets = pictures(3, 2, 3, 64, 64, seed=1), pictures(3, 3, 64, 64, seed=2)
    scores.update(results[:1], targets[:1])
    scores.update(results[1:], targets[1:])

    peer = original_lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    features = {key.removeprefix("features."): v for key, v in torch.load(path).items() if key.startswith("features.")}
    names = list(peer.net.state_dict())
    peer.net.load_state_dict({key: features[key.partition(".")[2]] for key in names})
    with torch.no_grad():
        one, other = (v / 127.5 - 1 for v in (results.flatten(0, 1).float(), targets.repeat_interleave(2, 0).float()))
        expected = peer(one, other).mean().item()
    assert scores.compute()["lpips"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "parts", [[[3, 1], [2], [], [1]], [[7], []], pytest.param([[1], [4, 2]], marks=pytest.mark.nightly)], ids=str
)
def test_scores_of_parts_add_up(parts: list[list[int]], tmp_path: Path):
    """The states that processes send to the first, with any number of pictures, none included."""
    weights = backbone_file("squeeze", tmp_path / "squeeze.pth")

    def build() -> Scores:
        names = ["fid", "lpips", "psnr", "ssim", "diversity"]
        return Scores(names, 2, features=Features(3), lpips_net="squeeze", lpips_weights=weights)

    results, targets = pictures(7, 2, 3, 24, 24, seed=1, low=20), pictures(7, 3, 24, 24, seed=2, high=230)
    whole, *others = build(), *(build() for _ in parts)
    whole.update(results, targets)
    done = 0
    for scores, sizes in zip(others, parts, strict=True):
        for size in sizes:
            scores.update(results[done : done + size], targets[done : done + size])
            done += size
    first, *others = others
    if sum(parts[0]) > 1:
        first.compute()  # which is not kept
    for scores in others:
        first.add(pickle.loads(pickle.dumps(scores.state())))
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-6)
    nothing = build()
    nothing.add(build().state())
    with pytest.raises(ValueError, match="scores need pictures, FID at least 2; got 0"):
        nothing.compute()
    with pytest.raises(
        ValueError, match="scores need pictures of their own before those of others are added, got none"
    ):
        nothing.add(whole.state())


def test_a_missing_download_names_the_argument(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(DownloadError, match=r"Inception weights could not be downloaded .* give it as fid_weights"):
        Scores(["fid"])
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"alexnet weights could not be downloaded .* give it as lpips_weights"):
        Scores(["lpips"])


def test_inception_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The layout of the published file, with random values."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        weights = metrics.Inception().extractor.state_dict()
    torch.save(weights, tmp_path / "inception.pth")
    network = metrics.Inception(tmp_path / "inception.pth")
    torch.testing.assert_close(network.extractor.state_dict(), weights, rtol=0, atol=0)
    assert network(pictures(2, 3, 40, 40)).shape == (2, 2048)


def test_bad_weights_files(tmp_path: Path):
    """They are refused, and run nothing."""
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.pth of Inception weights"):
        Scores(["fid"], fid_weights=tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"a": Runs(os.system, f"touch {tmp_path / 'ran'}")}, tmp_path / "trap.pth")
    content = bytearray(backbone_file("squeeze", tmp_path / "damaged.pth").read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / "damaged.pth").write_bytes(content)
    for name, end in {"other": "", "trap": "", "damaged": ".* CRC-32"}.items():
        path = tmp_path / f"{name}.pth"
        with pytest.raises(
            ValueError, match=rf"cannot read .*{name}.pth as a file of Inception weights, as of https{end}"
        ):
            Scores(["fid"], fid_weights=path)
        with pytest.raises(ValueError, match=rf"cannot read .*{name}.pth as a file of squeezenet1_1 weights{end}"):
            metrics.lpips("squeeze", path)
    assert not (tmp_path / "ran").exists()


def test_what_scores_refuse():
    with pytest.raises(ValueError, match=r"metrics must be among fid, lpips, psnr, .*, got kid"):
        Scores(["psnr", "kid"])
    with pytest.raises(ValueError, match="got none"):
        Scores([])
    with pytest.raises(ValueError, match="diversity needs at least 2 results of each source, got 1"):
        Scores(["diversity"])
    with pytest.raises(ValueError, match=r"net must be one of \('alex', 'vgg', 'squeeze'\), got 'resnet'"):
        metrics.lpips("resnet")  # pyright: ignore[reportArgumentType]
    scores = Scores(["psnr"], samples=2)
    with pytest.raises(
        ValueError, match=r"results must be \(B, 2, 3, H, W\) .* got \(4, 1, 3, 8, 8\) and \(4, 3, 8, 8\)"
    ):
        scores.update(pictures(4, 1, 3, 8, 8), pictures(4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"pictures must be uint8, got torch.float32 and torch.uint8"):
        scores.update(torch.zeros(4, 2, 3, 8, 8), pictures(4, 3, 8, 8))
    with pytest.raises(ValueError, match="scores need pictures, FID at least 2; got 0"):
        scores.compute()


def test_the_classes_are_the_official_ones():
    """The ids of cityscapesScripts, in the order of the training ids."""
    assert [*CITYSCAPES][:3] + [*CITYSCAPES][-2:] == ["road", "sidewalk", "building", "motorcycle", "bicycle"]
    assert list(CITYSCAPES.values()) == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_labels_from_a_file(tmp_path: Path):
    ids = np.array([[7, 8, 0], [33, 29, 255]], dtype=np.uint8)  # road, sidewalk, unlabeled; bicycle, caravan, nothing
    Image.fromarray(ids).save(tmp_path / "x_gtFine_labelIds.png")
    labels = segmentation.read_labels(tmp_path / "x_gtFine_labelIds.png")
    assert labels.tolist() == [[0, 1, IGNORED], [18, IGNORED, IGNORED]]
    with pytest.raises(FileNotFoundError, match="mIoU needs the official"):
        segmentation.read_labels(tmp_path / "none.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="one 8-bit channel of label ids, got \\(2, 2, 3\\)"):
        segmentation.read_labels(tmp_path / "colour.png")


def by_brightness(images: torch.Tensor) -> torch.Tensor:
    """A network that knows dark, grey and bright, normalised for ImageNet, and a class it never finds."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (segmentation.IMAGENET_MEAN, segmentation.IMAGENET_STD))
    grey = (images * std + mean).mean(1, keepdim=True)
    return -torch.cat([(grey - level).abs() for level in (0.0, 0.5, 1.0, 9.0)], dim=1)


def test_miou_by_hand():
    """Six pixels that count and two that don't.

    Labels 0 0 0 1 1 1, found 0 0 1 1 1 2: class 0 has 2 hits of a union of 3, class 1 has 2 of 4, class 2
    none of 1, and class 3 never occurs."""
    found = torch.tensor([[0, 0, 128, 128, 128, 255, 255, 0]], dtype=torch.uint8)
    labels = torch.tensor([[0, 0, 0, 1, 1, 1, IGNORED, IGNORED]])
    score = SegmentationScore(by_brightness, ["dark", "grey", "bright", "none"])
    score.update(found.expand(1, 3, 1, 8), labels[None])
    iou = {"dark": 2 / 3, "grey": 2 / 4, "bright": 0, "none": None}
    assert score.compute() == {"miou": pytest.approx((2 / 3 + 2 / 4) / 3), "iou": pytest.approx(iou)}


def test_miou_is_over_the_data_set_and_torchmetrics():
    """Random labels of 19 classes, a tenth ignored; not the mean of the pictures' own."""
    generator = torch.Generator().manual_seed(0)
    peer = MulticlassJaccardIndex(19, average="macro", ignore_index=IGNORED)
    levels = torch.linspace(0, 1, 19)[:, None, None]

    def network(images: torch.Tensor) -> torch.Tensor:
        mean, std = segmentation.IMAGENET_MEAN[0], segmentation.IMAGENET_STD[0]
        return -(images[:, :1] * std + mean - levels).abs()

    score = SegmentationScore(network)
    for _ in range(3):
        labels = torch.randint(0, 17, (1, 24, 30), generator=generator)  # two classes never occur in labels,
        guess = torch.where(torch.rand(1, 24, 30, generator=generator) < 0.4, 18 - labels, labels)  # one in neither
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
        score.update((guess[:, None] * 255 / 18).round().to(torch.uint8).expand(1, 3, 24, 30), labels)
        peer.update(guess, labels)
    assert score.compute()["miou"] == pytest.approx(peer.compute().item(), rel=1e-6)


def test_pictures_are_upsampled_to_their_labels():
    seen: list[torch.Size] = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape)
        return images

    score = SegmentationScore(network, ["a", "b", "c"])
    score.update(pictures(1, 3, 64, 64), torch.zeros(1, 1024, 2048, dtype=torch.int64))
    assert seen == [(1, 3, 768, 768)] * 8


def test_what_segmentation_refuses():
    score = SegmentationScore(by_brightness)
    with pytest.raises(ValueError, match="the network must have 19 classes, got 4"):
        score.update(pictures(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    score = SegmentationScore(by_brightness, ["dark", "grey", "bright", "none"])
    score.update(pictures(1, 3, 4, 4), torch.full((1, 4, 4), IGNORED))
    with pytest.raises(ValueError, match="at least one pixel with a class"):
        score.compute()
    with pytest.raises(ValueError, match="stride must be from 1 to the window's 8, got 9"):
        sliding_logits(by_brightness, torch.zeros(1, 3, 16, 16), window=8, stride=9)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.data())
def test_windows_cover_everything(height: int, width: int, window: int, data: st.DataObject):
    """A network that returns its input: its average over windows is the input. No window is larger."""
    stride = data.draw(st.integers(1, window))
    image = torch.arange(2 * height * width, dtype=torch.float64).reshape(1, 2, height, width)

    def network(part: torch.Tensor) -> torch.Tensor:
        assert part.shape[-2:] == (min(window, height), min(window, width))
        return part

    torch.testing.assert_close(sliding_logits(network, image, window, stride), image)


def test_windows_are_averaged_where_they_overlap():
    """Windows of 4 from 0 and 2 over 6 pixels; the n-th window is n everywhere."""
    calls = iter([1.0, 2.0])
    logits = sliding_logits(lambda part: torch.full_like(part, next(calls)), torch.zeros(1, 1, 1, 6), 4, 2)
    assert logits.flatten().tolist() == [1, 1, 1.5, 1.5, 2, 2]
