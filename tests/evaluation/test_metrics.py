"""FID, LPIPS, their files, and scores of volumes against other libraries; stand-ins for downloads."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from torch import nn

from bbdm.evaluation import perceptual
from bbdm.evaluation.metrics import MS_SSIM_WEIGHTS, LPIPSNet, dice, volume_scores
from bbdm.evaluation.scores import Scores
from tests.evaluation.test_scores import HU, RANDOM, collect
from tests.files.test_inert import Runs


class Features(nn.Module):
    """A stand-in for Inception."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Conv2d(3, size, 5, stride=3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

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
    means, covariances = zip(
        *((v.mean(0), np.cov(v, rowvar=False)) for v in (one, other)), strict=True
    )
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
        expected = frechet(
            *(features(v).double().numpy() for v in (results.flatten(0, 1), targets))
        )
    assert scores.compute()["fid"] == pytest.approx(expected, rel=1e-3)


def put_backbone(net: LPIPSNet, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of random weights in place of ImageNet's, where torch.hub finds it below ``home``."""
    torch.manual_seed(0)
    name = perceptual.BACKBONES[net]
    weights: Any = torchvision.models.get_model_weights(name)
    file = weights.DEFAULT.url.split("/")[-1]
    path = home / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(home))
    return path


@pytest.mark.parametrize(
    "net", [*(pytest.param(net, marks=pytest.mark.nightly) for net in ("alex", "vgg")), "squeeze"]
)
def test_lpips_is_the_original(net: LPIPSNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the same random weights in Zhang et al.'s own package."""
    import lpips as original_lpips

    path = put_backbone(net, tmp_path, monkeypatch)
    scores = Scores(["lpips"], 2, lpips_net=net)
    results, targets = pictures(3, 2, 3, 64, 64, seed=1), pictures(3, 3, 64, 64, seed=2)
    scores.update(results[:1], targets[:1])
    scores.update(results[1:], targets[1:])

    peer = original_lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    features = {
        key.removeprefix("features."): v
        for key, v in torch.load(path).items()
        if key.startswith("features.")
    }
    names = list(peer.net.state_dict())
    peer.net.load_state_dict({key: features[key.partition(".")[2]] for key in names})
    with torch.no_grad():
        one, other = (
            v / 127.5 - 1
            for v in (results.flatten(0, 1).float(), targets.repeat_interleave(2, 0).float())
        )
        expected = peer(one, other).mean().item()
    assert scores.compute()["lpips"] == pytest.approx(expected, rel=1e-4)


def test_scores_of_parts_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The states that processes send to the first, with any number of pictures, none included.

    Means are the same to the bit; LPIPS' network and FID's sums round by batches."""
    put_backbone("squeeze", tmp_path, monkeypatch)

    def build() -> Scores:
        return Scores(
            ["fid", "lpips", "psnr", "ssim", "diversity"],
            2,
            features=Features(3),
            lpips_net="squeeze",
        )

    results = pictures(7, 2, 3, 24, 24, seed=1, low=20)
    targets = pictures(7, 3, 24, 24, seed=2, high=230)
    whole, *others = (build() for _ in range(4))
    whole.update(results, targets)
    for process, rows in ((1, slice(0, 3)), (1, slice(3, 4)), (2, slice(4, 7))):
        others[process].update(results[rows], targets[rows])
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
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda *_, **__: {},
        )
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
        with pytest.raises(
            ValueError, match=rf"cannot read {path} as a file of weights, as of https{end}"
        ):
            Scores(["lpips"], lpips_net="squeeze")
        torch.save(
            {"a": torch.zeros(1)} if end else {"a": Runs(os.system, f"touch {tmp_path / 'ran'}")},
            path,
        )
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline
    )
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    for name, file in (("fid", "inception"), ("lpips", "alexnet")):
        with pytest.raises(
            ValueError, match=rf"no route .*: put the file of https.* at {tmp_path}.*{file}"
        ):
            Scores([name])


# Volumes


def volume(shape: tuple[int, ...], contrast: float = 600) -> np.ndarray:
    smooth = gaussian_filter(RANDOM.standard_normal(shape), 2)
    return smooth / smooth.std() * contrast


def ball(shape: tuple[int, ...], radius: float = 0.95) -> np.ndarray:
    points = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    return np.square(points).sum(axis=0) < radius**2


def test_all_levels() -> None:
    """The definition once more: SSIM's three factors by scikit-image's filter, levels by a convolution.

    The range is that of SynthRAD 2025's code, -1024 to 3000 HU, also of PSNR.
    """
    shape = (30, 98, 101)  # of which one side is padded
    x, mask = volume(shape), ball(shape, 0.2)
    y = x + 100 * RANDOM.standard_normal(shape)
    wanted = 1.0
    a, b = (np.where(mask, each.clip(-1024, 3000), -1024) + 1024 for each in (x, y))
    missing = [max(0, 97 - side) for side in shape]
    pads = [(n // 2, n - n // 2) for n in missing]
    a, b, inside = (np.pad(each, pads, mode="edge") for each in (a, b, mask))
    for weight in MS_SSIM_WEIGHTS:
        windows = [
            np.lib.stride_tricks.sliding_window_view(each, (7, 7, 7))[inside[3:-3, 3:-3, 3:-3]]
            for each in (a, b)
        ]
        of_a, of_b = (each.reshape(len(each), -1) for each in windows)
        mean_a, mean_b = of_a.mean(1), of_b.mean(1)
        std_a, std_b = of_a.std(1, ddof=1), of_b.std(1, ddof=1)
        cov = ((of_a - mean_a[:, None]) * (of_b - mean_b[:, None])).sum(1) / 342
        c1, c2 = (0.01 * 4024) ** 2, (0.03 * 4024) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        contrast = (2 * std_a * std_b + c2) / (std_a**2 + std_b**2 + c2)
        structure = ((cov + c2 / 2) / (std_a * std_b + c2 / 2)).clip(0)
        wanted *= ((luminance * contrast * structure) ** weight).mean()
        a, b = (
            fftconvolve(each, np.full((2, 2, 2), 1 / 8), mode="same")[::2, ::2, ::2]
            for each in (a, b)
        )
        inside = inside[::2, ::2, ::2]
    found = volume_scores(x, y, mask)
    assert found["ms_ssim"] == pytest.approx(wanted, abs=1e-6)
    error = np.square(x.clip(-1024, 3000) - y.clip(-1024, 3000))[mask].mean()
    assert found["psnr"] == pytest.approx(10 * np.log10(4024**2 / error))


def test_the_metrics_are_the_functions() -> None:
    """Of volumes, of which MAE clips nothing; the last has no bone, and no Dice coefficient."""
    truth, mask = volume((12, 40, 36)), ball((12, 40, 36))
    truth[6, 20, 18] = 5000
    pairs = [
        (truth + 80 * RANDOM.standard_normal(truth.shape), truth),
        (np.zeros_like(truth), np.zeros_like(truth)),
    ]
    about = {"values": HU, "channels": 1, "masked": True, "dice_above": 450.5}
    scores = Scores(["mae", "psnr", "ms_ssim", "dice"], **about)
    for pair in pairs:
        result, target = (torch.from_numpy(each).float()[None, None] for each in pair)
        scores.update(result[None], target, torch.from_numpy(mask)[None, None])
    wanted = [
        volume_scores(y, x, mask, high=3071) | {"dice": dice(y, x, 450.5, mask)} for x, y in pairs
    ]
    assert np.isnan(wanted[1]["dice"])
    for name, found in scores.compute().items():
        assert found == pytest.approx(np.nanmean([each[name] for each in wanted]), rel=1e-4)


def test_dice_of_a_threshold() -> None:
    truth, result = np.array([300.0, 300, 0, 0]), np.array([300.0, 0, 300, 0])
    assert dice(truth, result, 200) == 0.5
    assert dice(truth, result, 200, mask=[1, 1, 0, 1]) == pytest.approx(2 / 3)
    assert np.isnan(dice(truth, result, 1000))


def test_bad_volumes() -> None:
    with pytest.raises(ValueError, match="must be"):
        volume_scores(np.zeros((4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no voxel is in the mask"):
        volume_scores(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    scores = Scores(["ms_ssim"], values=HU, channels=1)
    with pytest.raises(ValueError, match="ms_ssim is of volumes"):
        scores.update(torch.zeros(1, 1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
