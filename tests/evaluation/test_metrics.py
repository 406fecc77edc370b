"""FID, LPIPS and their files against other libraries; stand-ins for weights that need a download."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from torch import nn

from bbdm.evaluation import perceptual
from bbdm.evaluation.metrics import LPIPSNet
from bbdm.evaluation.scores import Scores
from tests.evaluation.test_scores import collect
from tests.files.test_inert import Runs


class Features(nn.Module):
    """A stand-in for Inception."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, size, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 100 * self.layers(images.float() / 255)


class Far(Features):
    """Means far from 0 with a small spread, which single precision would lose."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double() + 1e4


def pictures(*shape: int, seed: int = 0, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The definition (Heusel et al. 2017, eq. 6) in float64."""
    means, covariances = zip(*((v.mean(0), np.cov(v, rowvar=False)) for v in (one, other)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    distance = np.sum((means[0] - means[1]) ** 2)
    return float(distance + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


@pytest.mark.parametrize(
    ("count", "samples", "build"),
    [(60, 3, Features), (12, 1, Features), (50, 1, partial(Far, 8))],
    ids=["three results", "fewer pictures than features", "a large offset"],
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


def put_backbone(net: LPIPSNet, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of random weights in place of ImageNet's, where torch.hub finds it below ``home``."""
    torch.manual_seed(0)
    name = perceptual.BACKBONES[net]
    path = home / "hub" / "checkpoints" / torchvision.models.get_model_weights(name).DEFAULT.url.split("/")[-1]  # pyright: ignore
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(home))
    return path


@pytest.mark.parametrize("net", [*(pytest.param(net, marks=pytest.mark.nightly) for net in ("alex", "vgg")), "squeeze"])
def test_lpips_is_the_original(net: LPIPSNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same random weights in Zhang et al.'s own package."""
    import lpips as original_lpips

    path = put_backbone(net, tmp_path, monkeypatch)
    scores = Scores(["lpips"], 2, lpips_net=net)
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


def test_scores_of_parts_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The states that processes send to the first, with any number of pictures, none included.

    Means are the same to the bit; LPIPS' network and FID's sums round by batches."""
    put_backbone("squeeze", tmp_path, monkeypatch)

    def build() -> Scores:
        return Scores(["fid", "lpips", "psnr", "ssim", "diversity"], 2, features=Features(3), lpips_net="squeeze")

    results, targets = pictures(7, 2, 3, 24, 24, seed=1, low=20), pictures(7, 3, 24, 24, seed=2, high=230)
    parts: list[list[int]] = [[], [3, 1], [2], [1]]
    whole, *others = build(), *(build() for _ in parts)
    whole.update(results, targets)
    done = 0
    for scores, sizes in zip(others, parts, strict=True):
        for size in sizes:
            scores.update(results[done : done + size], targets[done : done + size])
            done += size
    collect(*others)
    found, expected = others[0].compute(), whole.compute()
    assert found == pytest.approx(expected, rel=1e-6)
    for name in ("psnr", "ssim", "diversity"):
        assert found[name] == expected[name]
    with pytest.raises(ValueError, match="scores need pictures, FID at least 2; got 0"):
        build().compute()


def test_inception_is_built_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The layout of the published file, with random values."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / perceptual.URL_INCEPTION_V3.split("/")[-1]
    path.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        weights = perceptual.Inception().state_dict()
    torch.save(weights, path)
    network = perceptual.inception()
    torch.testing.assert_close(network.state_dict(), weights, rtol=0, atol=0)
    assert network(pictures(2, 3, 40, 40)).shape == (2, 2048)


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where to put a file is said; other and damaged ones are refused, and run nothing."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    path = put_backbone("squeeze", tmp_path, monkeypatch)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    for end in (".* CRC-32", "", ".*Weights only"):
        with pytest.raises(ValueError, match=rf"cannot read {path} as a file of weights, as of https{end}"):
            Scores(["lpips"], lpips_net="squeeze")
        torch.save({"a": torch.zeros(1)} if end else {"a": Runs(os.system, f"touch {tmp_path / 'ran'}")}, path)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    for name, file in (("fid", "inception"), ("lpips", "alexnet")):
        with pytest.raises(ValueError, match=rf"no route .*: put the file of https.* at {tmp_path}.*{file}"):
            Scores([name])
