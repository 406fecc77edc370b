"""Scores in units and within masks against closed forms in NumPy and SciPy, and metrics that a user adds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import energy_distance, norm
from torchmetrics.functional.image import visual_information_fidelity
from torchmetrics.image import VisualInformationFidelity

from bbdm.cli import eval as eval_script
from bbdm.evaluation import reports
from bbdm.evaluation.metrics import METRICS, Metric
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import Values

HU = Values(-1024, 3071, "HU", "int16")
RANDOM = np.random.default_rng(0)
Array = npt.NDArray[np.float64]


def pair(*shape: int, low: float = -1024, high: float = 3071, spread: float = 200) -> tuple[Array, Array]:
    """Results and targets (B, S, C, *S) and (B, C, *S) of whole numbers, some outside of the range."""
    targets = RANDOM.integers(int(low) - 100, int(high) + 100, (shape[0], *shape[2:])).astype(float)
    return np.rint(targets[:, None] + RANDOM.normal(0, spread, shape)), targets


def masks_of(targets: Array) -> npt.NDArray[np.bool_]:
    masks = RANDOM.random((len(targets), 1, *targets.shape[2:])) < 0.4
    masks[..., 2:6, 2:6] = True
    return masks


def tensor(array: Array, i: int) -> torch.Tensor:
    """Of one picture."""
    return torch.from_numpy(array[i : i + 1].astype(np.float32))


def score(
    names: list[str], results: Array, targets: Array, masks: npt.NDArray[np.bool_] | None = None, **settings: object
) -> dict[str, float]:
    """The scores of pictures, each added by itself."""
    scores = Scores(names, results.shape[1], channels=targets.shape[1], masked=masks is not None, **settings)  # pyright: ignore[reportArgumentType]
    for i in range(len(targets)):
        scores.update(
            tensor(results, i), tensor(targets, i), None if masks is None else torch.from_numpy(masks[i : i + 1])
        )
    return scores.compute()


def inside(array: Array, mask: npt.NDArray[np.bool_] | None) -> Array:
    """(C, N) pixels of (C, *S) in a mask (1, *S)."""
    return array.reshape(len(array), -1) if mask is None else array[:, mask[0]]


def each(
    formula: Callable[[Array, Array], float], results: Array, targets: Array, masks: npt.NDArray[np.bool_] | None
) -> float:
    """The mean over results of a formula of (C, N) pixels."""
    found = [
        formula(inside(result, mask), inside(target, mask))
        for samples, target, mask in zip(
            results, targets, [None] * len(targets) if masks is None else masks, strict=True
        )
        for result in samples
    ]
    return float(np.mean(found))


def psnr(result: Array, target: Array) -> float:
    low, high = HU.low, HU.high
    mse = ((result.clip(low, high) - target.clip(low, high)) ** 2).mean()
    return float(10 * np.log10(4095**2 / mse))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "in masks"])
@pytest.mark.parametrize("shape", [(3, 2, 1, 9, 12), (2, 1, 2, 4, 9, 12)], ids=["pictures", "volumes"])
def test_errors_are_in_the_unit(shape: tuple[int, ...], masked: bool):
    """A volume is one picture; outside of the range, the errors count in full, but not in PSNR."""
    results, targets = pair(*shape)
    masks = masks_of(targets) if masked else None
    found = score(["mae", "rmse", "psnr"], results, targets, masks, values=HU)
    assert found["mae"] == pytest.approx(each(lambda r, t: float(abs(r - t).mean()), results, targets, masks), rel=1e-6)
    rmse = each(lambda r, t: float(np.sqrt(((r - t) ** 2).mean())), results, targets, masks)
    assert found["rmse"] == pytest.approx(rmse, rel=1e-6)
    assert found["psnr"] == pytest.approx(each(psnr, results, targets, masks), rel=1e-5)


def similarity(result: Array, target: Array, size: float) -> Array:
    """The map of SSIM (Wang et al. 2004, eq. 13) of (H, W), with a Gaussian of 1.5 in 11 x 11 pixels."""
    blurred = [
        gaussian_filter(v, 1.5, mode="mirror", truncate=3.5)
        for v in (result, target, result**2, target**2, result * target)
    ]
    mean, wanted, *squares = blurred
    variances = [squares[0] - mean**2, squares[1] - wanted**2, squares[2] - mean * wanted]
    c1, c2 = (0.01 * size) ** 2, (0.03 * size) ** 2
    above = (2 * mean * wanted + c1) * (2 * variances[2] + c2)
    return above / ((mean**2 + wanted**2 + c1) * (variances[0] + variances[1] + c2))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "in masks"])
@pytest.mark.parametrize("shape", [(2, 2, 1, 14, 17), (2, 1, 2, 3, 14, 17)], ids=["pictures", "volumes"])
def test_ssim_is_its_formula(shape: tuple[int, ...], masked: bool):
    """Of values above the lowest. Of a volume, that of its planes, and the mean over the mask is over all."""
    results, targets = (v.clip(-1024, 3071) for v in pair(*shape, spread=900))
    masks = masks_of(targets) if masked else np.ones((len(targets), 1, *targets.shape[2:]), dtype=bool)
    expected: list[float] = []
    for samples, target, mask in zip(results, targets, masks, strict=True):
        for result in samples:
            planes = zip(*(v.reshape(-1, *v.shape[-2:]) + 1024 for v in (result, target)), strict=True)
            found = np.stack([similarity(one, other, 4095) for one, other in planes]).reshape(result.shape)
            expected.append(float(found.mean(0)[mask[0]].mean()))
    score_of = score(["ssim"], results, targets, masks if masked else None, values=HU)
    assert score_of["ssim"] == pytest.approx(np.mean(expected), abs=2e-5)


def test_8_bits_as_values_have_the_same_scores():
    """And grey is compared as RGB."""
    results, targets = (RANDOM.integers(0, 256, shape).astype(float) for shape in ((3, 2, 1, 12, 12), (3, 1, 12, 12)))
    eight, colour = (Scores(["psnr", "ssim", "mae", "diversity"], 2, channels=channels) for channels in (1, 3))
    pair = [torch.from_numpy(each.astype(np.uint8)) for each in (results, targets)]
    eight.update(pair[0], pair[1])
    coloured = [each.expand(*each.shape[:-3], 3, -1, -1) for each in pair]
    colour.update(coloured[0], coloured[1])
    found = eight.compute()
    assert found == colour.compute()
    assert found == pytest.approx(score([*found], results, targets, values=Values(0, 255, dtype="float32")), rel=1e-5)
    assert found["mae"] == pytest.approx(abs(results - targets[:, None]).mean(), rel=1e-6)
    errors = ((results - targets[:, None]) ** 2).mean((2, 3, 4))
    assert found["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), rel=1e-5)
    assert found["diversity"] == pytest.approx(results.std(axis=1).mean(), rel=1e-9)


class Process:
    """One of several processes; what they gather is sent as bytes."""

    def __init__(self, sent: list[bytes], first: bool) -> None:
        self.sent, self.first = sent, first

    def gather(self, value: object) -> list[Any]:
        self.sent.append(pickle.dumps(value))
        return [*map(pickle.loads, self.sent[::-1])]


def collect(first: Scores, *others: Scores) -> None:
    """Add the pictures of other processes."""
    sent: list[bytes] = []
    for scores in (*others, first):
        scores.collect(Process(sent, scores is first))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("empty", [0, 1, None], ids=["first has none", "second has none", "both have some"])
def test_pictures_outside_of_their_masks_do_not_count(empty: int | None):
    """Of two processes, of which one may have no others; the scores are those of one."""
    results, targets = pair(5, 2, 1, 9, 12)
    masks = masks_of(targets)
    if empty is not None:
        masks[empty::2] = False
    names, settings = ["mae", "rmse", "psnr", "ssim", "diversity"], {"values": HU, "channels": 1, "masked": True}
    parts = [Scores(names, 2, **settings) for _ in range(2)]  # pyright: ignore[reportArgumentType]
    batch = Scores(names, 2, **settings)  # pyright: ignore[reportArgumentType]
    tensors = [torch.from_numpy(each.astype(np.float32)) for each in (results, targets, masks)]
    batch.update(tensors[0], tensors[1], tensors[2])
    for i in range(5):
        parts[i % 2].update(tensor(results, i), tensor(targets, i), torch.from_numpy(masks[i : i + 1]), [f"{i}"])
    collect(*parts)
    some = [i for i in range(5) if masks[i].any()]
    expected = score(names, results[some], targets[some], masks[some], values=HU)
    assert parts[0].compute() == batch.compute() == expected
    assert sorted(parts[0].by_source()["mae"], key=int) == [f"{i}" for i in some]
    with pytest.raises(ValueError, match=r"scores need pictures with pixels in their masks.* got 0"):
        score(names, results, targets, np.zeros_like(masks), values=HU)


def test_what_has_no_score_does_not_count():
    """Volumes with voxels at the edge of a mask alone have no MS-SSIM, and those without bone no Dice."""
    results, targets = pair(3, 1, 1, 12, 14, 16)
    masks = np.ones((3, 1, 12, 14, 16), dtype=bool)
    masks[1], masks[1, 0, 0, 0, 0] = False, True
    results[2], targets[2] = results[2].clip(None, 0), targets[2].clip(None, 0)
    scores = Scores(["ms_ssim", "dice"], values=HU, channels=1, masked=True)
    for i in range(3):
        scores.update(tensor(results, i), tensor(targets, i), torch.from_numpy(masks[i : i + 1]))
    found = {name: [*values.values()] for name, values in scores.by_source().items()}
    assert np.isnan(found["ms_ssim"]).tolist() == [False, True, False]
    assert np.isnan(found["dice"]).tolist()[::2] == [False, True]
    for name, value in scores.compute().items():
        assert value == pytest.approx(np.nanmean(found[name]), rel=1e-12)
    bone = torch.tensor([0.0, 300.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    one = Scores(["dice"], 2, values=HU, channels=1)
    one.update(bone, torch.zeros(1, 1, 8, 8))  # of two results one has bone, the other no score
    assert one.compute() == {"dice": 0}


def test_crps_and_energy_score_are_those_of_distributions():
    """Of normal samples, the mean CRPS is the closed form, to 5 standard errors (Gneiting and Raftery 2007).

    Of one value, both are SciPy's energy distance, but for the pairs of a sample with itself.
    """
    targets = np.linspace(-2, 2, 20_000).reshape(20_000, 1, 1, 1)
    results = RANDOM.standard_normal((20_000, 4, 1, 1, 1))
    found = METRICS["crps"].score(*map(torch.from_numpy, (results, targets))).numpy()
    closed = (targets * (2 * norm.cdf(targets) - 1) + 2 * norm.pdf(targets) - 1 / np.sqrt(np.pi)).ravel()
    assert abs((found - closed).mean()) < 5 * (found - closed).std() / np.sqrt(20_000)
    samples = results[:7, 0].reshape(1, 7, 1, 1, 1)
    inner = abs(samples.ravel() - samples.ravel()[:, None]).mean()
    expected = energy_distance(samples.ravel(), [0.3]) ** 2 / 2 + inner / 2 - inner / 2 * 7 / 6
    for name in ("crps", "energy"):
        score_of = METRICS[name].score(torch.from_numpy(samples), torch.full((1, 1, 1, 1), 0.3))
        assert score_of.item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2, 4, 1, 8, 8), (2, 4, 1, 3, 8, 8)], ids=["pictures", "volumes"])
def test_scores_of_samples_are_of_the_mask(shape: tuple[int, ...]):
    """And of whole pictures in the unit: the energy score is by its definition."""
    results, targets = pair(*shape)
    masks = np.zeros((2, 1, *shape[3:]), dtype=bool)
    masks[..., :4] = True
    names = ["energy", "crps", "diversity"]
    cut = score(names, results[..., :4], targets[..., :4], values=HU)
    results[..., 4:] = 3
    assert score(names, results, targets, masks, values=HU) == pytest.approx(cut)
    flat, goals = results[..., :4].reshape(2, 4, -1), targets[..., :4].reshape(2, 1, -1)
    near = np.linalg.norm(flat - goals, axis=-1).mean()
    apart = np.linalg.norm(flat[:, :, None] - flat[:, None], axis=-1).sum() / (2 * 4 * 3)
    assert cut["energy"] == pytest.approx(near - apart / 2, rel=1e-6)


# What a user adds


def bone(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    both, total = (results > 300) & (targets > 300), (results > 300).sum((1, 2, 3)) + (targets > 300).sum((1, 2, 3))
    return 2 * both.sum((1, 2, 3)) / total


def test_a_metric_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    """Of a function, by one statement: in masks, on the command line and in the table."""
    monkeypatch.setitem(METRICS, "bone", Metric(bone, higher_is_better=True, masks="pixels"))
    results, targets = pair(3, 1, 1, 9, 12)
    masks = masks_of(targets)

    def formula(result: Array, target: Array) -> float:
        return float(2 * ((result > 300) & (target > 300)).sum() / ((result > 300).sum() + (target > 300).sum()))

    found = score(["bone"], results, targets, masks, values=HU)
    assert found["bone"] == pytest.approx(each(formula, results, targets, masks), rel=1e-6)
    assert eval_script.Eval.parse(["paired", "a,b", "c.pt", "--metrics", "bone", "mae"]).metrics == ("bone", "mae")
    report = {
        "scores": {"bone": 0.81234, "mae": 63.274, "dice": None},
        **{"solver": "dpm2m", "nfe": 5, "pictures": 3, "seconds_per_picture": 0.5},
        "settings": {"target_values": HU.config()},
    }
    lines = reports.table([report]).splitlines()
    assert lines[0] == "| solver | NFE | pictures | bone ↑ | MAE HU ↓ | dice ↑ | s / picture |"
    assert lines[2] == "| dpm2m | 5 | 3 | 0.8123 | 63.274 | - | 0.5000 |"


def test_a_metric_of_torchmetrics(monkeypatch: pytest.MonkeyPatch):
    """One of whole pictures: masks are refused, and the slices of a volume are pictures."""

    def vif(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        pairs = zip(results[:, None], targets[:, None], strict=True)
        return torch.stack([visual_information_fidelity(*each) for each in pairs])

    monkeypatch.setitem(METRICS, "vif", Metric(vif, higher_is_better=True))
    results, targets = pair(2, 1, 1, 2, 48, 48, spread=400)
    peer = VisualInformationFidelity()
    peer.update(*(torch.from_numpy(v.reshape(4, 1, 48, 48).astype(np.float32)) for v in (results, targets)))
    assert score(["vif"], results, targets, values=HU)["vif"] == pytest.approx(peer.compute().item(), rel=1e-5)
    with pytest.raises(ValueError, match="vif is of whole pictures, and these have masks: take others, such as psnr"):
        score(["vif"], results, targets, masks_of(targets), values=HU)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["psnr", "kid"], {}, "metrics must be among fid, .*, got kid"),
        ([], {}, "got none"),
        (["diversity"], {}, "diversity needs at least 2 results of each source, got 1"),
        (["lpips"], {"lpips_net": "resnet"}, "net must be one of .*squeeze.*, got 'resnet'"),
        (["mae", "fid"], {"values": HU, "channels": 1}, "fid is of 8-bit .* 1 channels of -1024:3071:HU"),
        (["lpips"], {"masked": True}, "lpips is of whole pictures, and these have masks"),
    ],
)
def test_metrics_that_pictures_do_not_have(names: list[str], settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Scores(names, **settings)


BYTES, FLOATS = {"dtype": torch.uint8}, {"dtype": torch.float32}


@pytest.mark.parametrize(
    ("results", "targets", "masks", "settings", "message"),
    [
        ((4, 1, 3, 8, 8), BYTES, None, {"samples": 2}, r"\(B, 2, 3, H, W\) .* got \(4, 1, 3, 8, 8\)"),
        ((4, 1, 3, 8, 8), FLOATS, None, {}, "uint8, got torch.float32"),
        ((2, 1, 1, 8, 8), FLOATS, None, {"values": HU, "channels": 2}, r"\(B, 1, 2, H, W\)"),
        ((2, 1, 1, 8, 8), {"dtype": torch.int16}, None, {"values": HU, "channels": 1}, "must be floats"),
        ((2, 1, 1, 8, 8), FLOATS, (2, 8, 8), {"values": HU, "channels": 1}, r"masks must be \(2, 1, 8, 8\)"),
        ((2, 1, 1, 4, 8), FLOATS, None, {"values": HU, "channels": 1}, "ssim needs at least 6 pixels"),
    ],
)
def test_pictures_that_scores_refuse(results: tuple[int, ...], targets: Any, masks: Any, settings: Any, message: str):
    found = torch.zeros(results, **targets)
    inside = None if masks is None else torch.ones(masks)
    with pytest.raises(ValueError, match=message):
        Scores(["psnr", "ssim"], **settings).update(found, found[:, 0], inside)
