"""Scores in units and within masks against closed forms in NumPy and SciPy, and metrics that a user adds."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.image import VisualInformationFidelity

from bbdm.cli import eval as eval_script
from bbdm.evaluation import reports
from bbdm.evaluation.metrics import METRICS, Kind, Scores, mean_of
from bbdm.pictures.values import Values

HU = Values(-1024, 3071, "HU", "int16")
BANDS = Values((0, 0, 0), (10000, 8000, 1), dtype="float32")
RANDOM = np.random.default_rng(0)
Array = npt.NDArray[np.float64]


def made(*shape: int, low: float = -1024, high: float = 3071, spread: float = 200) -> tuple[Array, Array]:
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


def sam(result: Array, target: Array) -> float:
    cosine = (result * target).sum(0) / np.sqrt((result**2).sum(0) * (target**2).sum(0))
    return float(np.arccos(cosine.clip(-1, 1)).mean())


def ergas(result: Array, target: Array) -> float:
    rmse = np.sqrt(((result - target) ** 2).mean(1))
    return float(100 / 4 * np.sqrt(((rmse / target.mean(1)) ** 2).mean()))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "in masks"])
@pytest.mark.parametrize("shape", [(3, 2, 1, 9, 12), (2, 1, 2, 4, 9, 12)], ids=["pictures", "volumes"])
def test_errors_are_in_the_unit(shape: tuple[int, ...], masked: bool):
    """A volume is one picture; outside of the range, the errors count in full, but not in PSNR."""
    results, targets = made(*shape)
    masks = masks_of(targets) if masked else None
    found = score(["mae", "rmse", "psnr"], results, targets, masks, values=HU)
    assert found["mae"] == pytest.approx(each(lambda r, t: float(abs(r - t).mean()), results, targets, masks), rel=1e-6)
    rmse = each(lambda r, t: float(np.sqrt(((r - t) ** 2).mean())), results, targets, masks)
    assert found["rmse"] == pytest.approx(rmse, rel=1e-6)
    assert found["psnr"] == pytest.approx(each(psnr, results, targets, masks), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "in masks"])
def test_bands_are_compared(masked: bool):
    results, targets = made(2, 2, 5, 8, 9, low=200, high=10000)
    masks = masks_of(targets) if masked else None
    found = score(["sam", "ergas"], results, targets, masks, values=Values(0, 10000, dtype="uint16"))
    assert found["sam"] == pytest.approx(each(sam, results, targets, masks), rel=1e-6)
    assert found["ergas"] == pytest.approx(each(ergas, results, targets, masks), rel=1e-6)


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
    results, targets = (v.clip(-1024, 3071) for v in made(*shape, spread=900))
    masks = masks_of(targets) if masked else np.ones((len(targets), 1, *targets.shape[2:]), dtype=bool)
    expected: list[float] = []
    for samples, target, mask in zip(results, targets, masks, strict=True):
        for result in samples:
            planes = zip(*(v.reshape(-1, *v.shape[-2:]) + 1024 for v in (result, target)), strict=True)
            found = np.stack([similarity(one, other, 4095) for one, other in planes]).reshape(result.shape)
            expected.append(float(found.mean(0)[mask[0]].mean()))
    score_of = score(["ssim"], results, targets, masks if masked else None, values=HU)
    assert score_of["ssim"] == pytest.approx(np.mean(expected), abs=2e-5)


def test_each_channel_alone():
    """With the range of each, and no score of one channel where a metric compares channels."""
    results, targets = made(2, 1, 3, 8, 9, low=100, high=9000)
    results[:, :, 2], targets[:, 2] = RANDOM.random((2, 1, 8, 9)), RANDOM.random((2, 8, 9))
    found = score(["mae", "psnr", "sam"], results, targets, values=BANDS, per_channel=True)
    assert list(found) == ["mae", "mae[0]", "mae[1]", "mae[2]", "psnr", "psnr[0]", "psnr[1]", "psnr[2]", "sam"]
    for channel, high in enumerate((10000, 8000, 1)):
        alone = results[:, :, channel : channel + 1], targets[:, channel : channel + 1]
        expected = score(["mae", "psnr"], *alone, values=Values(0, high, dtype="float32"))
        for name, value in expected.items():
            assert found[f"{name}[{channel}]"] == pytest.approx(value, rel=1e-6)
    mean = np.mean([found[f"mae[{channel}]"] for channel in range(3)])
    assert found["mae"] == pytest.approx(mean, rel=1e-6)


def test_8_bits_as_values_have_the_same_scores():
    results, targets = (RANDOM.integers(0, 256, shape).astype(float) for shape in ((3, 2, 3, 12, 12), (3, 3, 12, 12)))
    eight = Scores(["psnr", "ssim", "mae", "diversity"], 2)
    eight.update(*(torch.from_numpy(v.astype(np.uint8)) for v in (results, targets)))
    found = eight.compute()
    assert found == pytest.approx(
        score(list(found), results, targets, values=Values(0, 255, dtype="float32")), rel=1e-5
    )
    assert found["mae"] == pytest.approx(abs(results - targets[:, None]).mean(), rel=1e-6)


def test_grey_is_compared_as_rgb():
    results, targets = (
        torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((2, 1, 1, 12, 12), (2, 1, 12, 12))
    )
    grey, colour = Scores(["psnr", "ssim"], channels=1), Scores(["psnr", "ssim"])
    grey.update(results, targets)
    colour.update(results.expand(-1, -1, 3, -1, -1), targets.expand(-1, 3, -1, -1))
    assert grey.compute() == colour.compute()


def test_pictures_outside_of_their_masks_do_not_count():
    results, targets = made(3, 1, 1, 9, 12)
    masks = masks_of(targets)
    masks[1] = False
    names = ["mae", "psnr", "ssim"]
    found = score(names, results, targets, masks, values=HU)
    assert found == pytest.approx(score(names, results[::2], targets[::2], masks[::2], values=HU))
    batch = Scores(names, values=HU, channels=1, masked=True)
    batch.update(*(torch.from_numpy(v.astype(np.float32)) for v in (results, targets, masks)))
    assert batch.compute() == pytest.approx(found, rel=1e-6)
    with pytest.raises(ValueError, match=r"scores need pictures with pixels in their masks.* got 0"):
        score(names, results[1:2], targets[1:2], masks[1:2], values=HU)


def test_a_pixel_of_zeros_has_no_angle():
    results, targets = made(1, 1, 3, 6, 6, low=200, high=900)
    targets[:, :, 2, 3] = 0
    keep = np.ones((1, 1, 6, 6), dtype=bool)
    keep[..., 2, 3] = False
    values = Values(0, 1000, dtype="uint16")
    expected = score(["sam"], results, targets, keep, values=values)
    assert score(["sam"], results, targets, values=values) == pytest.approx(expected, rel=1e-9)


def test_parts_in_masks_add_up():
    """The states that processes send to the first."""
    results, targets = made(5, 2, 1, 9, 12)
    masks = masks_of(targets)
    names = ["mae", "rmse", "psnr", "ssim", "diversity"]
    parts = [Scores(names, 2, values=HU, channels=1, masked=True) for _ in range(2)]
    for i in range(5):
        parts[i % 2].update(tensor(results, i), tensor(targets, i), torch.from_numpy(masks[i : i + 1]))
    parts[0].add(pickle.loads(pickle.dumps(parts[1].state())))
    assert parts[0].compute() == pytest.approx(score(names, results, targets, masks, values=HU), rel=1e-6)


# What a user adds


def dice(results: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of bone."""
    bone, wanted = results > 300, targets > 300
    return 2 * (bone & wanted).sum((1, 2, 3)) / (bone.sum((1, 2, 3)) + wanted.sum((1, 2, 3)))


def test_a_metric_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    """Of a function, by one statement: in masks, on the command line and in the table."""
    monkeypatch.setitem(METRICS, "dice", Kind(mean_of(dice), higher_is_better=True, masks="pixels"))
    results, targets = made(3, 1, 1, 9, 12)
    masks = masks_of(targets)

    def formula(result: Array, target: Array) -> float:
        return float(2 * ((result > 300) & (target > 300)).sum() / ((result > 300).sum() + (target > 300).sum()))

    found = score(["dice"], results, targets, masks, values=HU)
    assert found["dice"] == pytest.approx(each(formula, results, targets, masks), rel=1e-6)
    args, _ = eval_script.parse(["paired", "a,b", "c.pt", "--metrics", "dice", "mae"])
    assert args.metrics == ["dice", "mae"]
    report = {
        "scores": {"dice": 0.81234, "mae": 63.274, "mae[0]": 63.274},
        **{"solver": "dpm2m", "nfe": 5, "pictures": 3, "seconds_per_picture": 0.5},
        "settings": {"target_values": HU.config()},
    }
    lines = reports.table([report], ["dice", "mae"]).splitlines()
    assert lines[0] == "| solver | NFE | pictures | dice ↑ | MAE HU ↓ | MAE[0] HU ↓ | s / picture |"
    assert lines[2] == "| dpm2m | 5 | 3 | 0.8123 | 63.274 | 63.274 | 0.5000 |"


def test_a_metric_of_torchmetrics(monkeypatch: pytest.MonkeyPatch):
    """One of whole pictures: masks are refused, and the slices of a volume are pictures."""
    monkeypatch.setitem(METRICS, "vif", Kind(lambda setup: VisualInformationFidelity(), higher_is_better=True))
    results, targets = made(2, 1, 1, 2, 48, 48, spread=400)
    peer = VisualInformationFidelity()
    peer.update(*(torch.from_numpy(v.reshape(4, 1, 48, 48).astype(np.float32)) for v in (results, targets)))
    assert score(["vif"], results, targets, values=HU)["vif"] == pytest.approx(peer.compute().item(), rel=1e-5)
    with pytest.raises(ValueError, match="vif is of whole pictures, and these have masks: take others, such as psnr"):
        score(["vif"], results, targets, masks_of(targets), values=HU)


def test_what_scores_of_values_refuse():
    with pytest.raises(ValueError, match=r"fid is of 8-bit grey or RGB .* have 1 channels of -1024:3071:HU"):
        Scores(["mae", "fid"], values=HU, channels=1)
    with pytest.raises(ValueError, match="lpips is of whole pictures, and these have masks"):
        Scores(["lpips"], masked=True)
    with pytest.raises(ValueError, match="sam compares channels with each other, and there is one"):
        Scores(["sam"], values=HU, channels=1)
    floats = torch.zeros(2, 1, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"results must be \(B, 1, 2, H, W\) and targets \(B, 2, H, W\), got"):
        Scores(["mae"], values=HU, channels=2).update(*floats)
    scores = Scores(["mae"], values=HU, channels=1)
    with pytest.raises(ValueError, match="pictures must be floats in stored values"):
        scores.update(floats[0].short(), floats[1].short())
    with pytest.raises(ValueError, match=r"masks must be \(2, 1, 8, 8\), got \(2, 8, 8\)"):
        scores.update(*floats, torch.ones(2, 8, 8))
