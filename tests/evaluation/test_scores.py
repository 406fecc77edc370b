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
from scipy.stats import norm

from bbdm.cli import eval as eval_script
from bbdm.evaluation import reports
from bbdm.evaluation.metrics import METRICS, Metric
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import Values

HU = Values(-1024, 3071, "HU", "int16")
GREY = {"values": HU, "channels": 1}
RANDOM = np.random.default_rng(0)
Array = npt.NDArray[np.float64]
Formula = Callable[[Array, Array], Any]
SHAPES = pytest.mark.parametrize(
    "shape", [(3, 2, 1, 12, 14), (2, 2, 2, 4, 12, 14)], ids=["pictures", "volumes"]
)
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["whole", "in masks"])


def pair(*shape: int, spread: float = 200) -> tuple[Array, Array]:
    """Results and targets (B, S, C, *S) and (B, C, *S) of whole numbers, some outside of the range."""
    targets = RANDOM.integers(-1124, 3171, (shape[0], *shape[2:])).astype(float)
    return np.rint(targets[:, None] + RANDOM.normal(0, spread, shape)), targets


def masks_of(targets: Array, masked: bool = True) -> npt.NDArray[np.bool_]:
    masks = RANDOM.random((len(targets), 1, *targets.shape[2:])) < (0.4 if masked else 2)
    masks[..., 2:6, 2:6] = True
    return masks


def add(
    scores: Scores, *arrays: npt.NDArray[Any] | None, i: int, names: list[str] | None = None
) -> None:
    """Add picture i of results, targets and masks."""
    parts = [
        None if each is None else torch.from_numpy(each[i : i + 1].astype(np.float32))
        for each in arrays
    ]
    scores.update(*parts, names=names)  # pyright: ignore[reportArgumentType]


def score(
    names: list[str], results: Array, targets: Array, masks: Any = None, **settings: Any
) -> dict[str, float]:
    """The scores of pictures, each added by itself."""
    about = {"values": HU, "channels": targets.shape[1], "masked": masks is not None, **settings}
    scores = Scores(names, results.shape[1], **about)
    for i in range(len(targets)):
        add(scores, results, targets, masks, i=i)
    return scores.compute()


def mean_of(
    formula: Formula, results: Array, targets: Array, masks: npt.NDArray[np.bool_]
) -> float:
    """The mean over results of a formula of (C, N) pixels in the mask."""
    triples = zip(results, targets, masks[:, 0], strict=True)
    return float(
        np.mean(
            [
                formula(one[:, mask], target[:, mask])
                for each, target, mask in triples
                for one in each
            ]
        )
    )


def psnr(result: Array, target: Array) -> float:
    return 10 * np.log10(
        4095**2 / np.square(result.clip(-1024, 3071) - target.clip(-1024, 3071)).mean()
    )


@MASKED
@SHAPES
def test_errors_are_in_the_unit(shape: tuple[int, ...], masked: bool):
    """A volume is one picture; outside of the range, the errors count in full, but not in PSNR."""
    results, targets = pair(*shape)
    masks = masks_of(targets, masked)
    found = score(["mae", "rmse", "psnr"], results, targets, masks if masked else None)
    formulas: dict[str, Formula] = {
        "mae": lambda r, t: abs(r - t).mean(),
        "rmse": lambda r, t: np.sqrt(((r - t) ** 2).mean()),
        "psnr": psnr,
    }
    assert found == pytest.approx(
        {k: mean_of(f, results, targets, masks) for k, f in formulas.items()}, rel=1e-5
    )


def similarity(result: Array, target: Array) -> Array:
    """The map of SSIM (Wang et al. 2004, eq. 13) of (H, W), with a Gaussian of 1.5 in 11 x 11 pixels."""
    products = result, target, result**2, target**2, result * target
    x, y, xx, yy, xy = (
        gaussian_filter(each, 1.5, mode="mirror", truncate=3.5) for each in products
    )
    c1, c2 = (0.01 * 4095) ** 2, (0.03 * 4095) ** 2
    above = (2 * x * y + c1) * (2 * (xy - x * y) + c2)
    return above / ((x**2 + y**2 + c1) * (xx - x**2 + yy - y**2 + c2))


@MASKED
@SHAPES
def test_ssim_is_its_formula(shape: tuple[int, ...], masked: bool):
    """Of values above the lowest. Of a volume, that of its planes, and the mean over the mask is over all."""
    results, targets = (v.clip(-1024, 3071) for v in pair(*shape, spread=900))
    masks = masks_of(targets, masked)
    expected: list[float] = []
    for samples, target, mask in zip(results, targets, masks, strict=True):
        for result in samples:
            planes = zip(
                *(v.reshape(-1, *v.shape[-2:]) + 1024 for v in (result, target)), strict=True
            )
            found = np.stack([similarity(*plane) for plane in planes]).reshape(result.shape)
            expected.append(float(found.mean(0)[mask[0]].mean()))
    found = score(["ssim"], results, targets, masks if masked else None)
    assert found["ssim"] == pytest.approx(np.mean(expected), abs=2e-5)


def test_8_bits_as_values_have_the_same_scores():
    """And grey is compared as RGB."""
    results, targets = (
        RANDOM.integers(0, 256, shape).astype(float)
        for shape in ((3, 2, 1, 12, 12), (3, 1, 12, 12))
    )
    eight, colour = (
        Scores(["psnr", "ssim", "mae", "diversity"], 2, channels=channels) for channels in (1, 3)
    )
    pair = [torch.from_numpy(each.astype(np.uint8)) for each in (results, targets)]
    eight.update(pair[0], pair[1])
    coloured = [each.expand(*each.shape[:-3], 3, -1, -1) for each in pair]
    colour.update(coloured[0], coloured[1])
    found = eight.compute()
    assert found == colour.compute()
    one_by_one = score([*found], results, targets, values=Values(0, 255, dtype="float32"))
    # SSIM is up to 1, and of these pictures 0.004
    assert found == pytest.approx(one_by_one, rel=1e-5, abs=1e-6)
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


@pytest.mark.parametrize("empty", [0, 1], ids=["first has none", "second has none"])
def test_pictures_outside_of_their_masks_do_not_count(empty: int):
    """Of two processes, of which one has no others; the scores are those of one."""
    results, targets = pair(5, 2, 1, 9, 12)
    masks = masks_of(targets)
    masks[empty::2] = False
    names: list[str] = ["mae", "rmse", "psnr", "ssim", "diversity"]
    one, other = (Scores(names, 2, masked=True, **GREY) for _ in range(2))
    for i in range(5):
        add((one, other)[i % 2], results, targets, masks, i=i, names=[f"{i}"])
    collect(one, other)
    some = [i for i in range(5) if masks[i].any()]
    assert one.compute() == score(names, results[some], targets[some], masks[some])
    assert sorted(one.by_source()["mae"], key=int) == [f"{i}" for i in some]
    with pytest.raises(
        ValueError, match=r"scores need pictures with pixels in their masks.* got 0"
    ):
        score(names, results, targets, np.zeros_like(masks))


@pytest.mark.parametrize("named", [False, True])
def test_each_source_keeps_its_score_where_others_are_masked_out(named: bool):
    """Sources without names are numbered among all that were added, by each process in turn."""
    results, targets = pair(6, 1, 1, 9, 12)
    masks = masks_of(targets)
    masks[[1, 4]] = False
    one, other = (Scores(["mae"], masked=True, **GREY) for _ in range(2))
    for i in range(6):
        add(
            (one, other)[i // 3],
            results,
            targets,
            masks,
            i=i,
            names=[f"name {i}"] if named else None,
        )
    collect(one, other)
    wanted: dict[str, float] = {}
    for i in (0, 2, 3, 5):
        error = abs(results[i, 0] - targets[i])[masks[i]].mean()
        wanted[f"name {i}" if named else f"{i}"] = float(error)
    assert one.by_source()["mae"] == pytest.approx(wanted, rel=1e-5)


def test_sources_of_one_name_are_refused():
    results, targets = pair(1, 1, 1, 9, 12)
    scores = Scores(["mae"], **GREY)
    for _ in range(2):
        add(scores, results, targets, None, i=0, names=["twice"])
    with pytest.raises(ValueError, match="need a name for each, and 'twice' is that of two"):
        scores.by_source()


def test_an_exact_picture_has_an_infinite_psnr():
    """As torchmetrics and scikit-image say, and so has the mean."""
    results, targets = pair(2, 1, 1, 9, 12)
    results[0, 0] = targets[0]
    scores = Scores(["psnr"], **GREY)
    for i in range(2):
        add(scores, results, targets, None, i=i)
    found = scores.by_source()["psnr"]
    assert found["0"] == scores.compute()["psnr"] == np.inf
    assert found["1"] == pytest.approx(psnr(results[1, 0], targets[1]), rel=1e-5)


def test_what_has_no_score_does_not_count():
    """Volumes with voxels at the edge of a mask alone have no MS-SSIM, and those without bone no Dice."""
    results, targets = pair(3, 1, 1, 12, 14, 16)
    masks = np.ones((3, 1, 12, 14, 16), dtype=bool)
    masks[1], masks[1, 0, 0, 0, 0] = False, True
    results[2], targets[2] = results[2].clip(None, 0), targets[2].clip(None, 0)
    scores = Scores(["ms_ssim", "dice"], masked=True, **GREY)
    for i in range(3):
        add(scores, results, targets, masks, i=i)
    found = {name: [*values.values()] for name, values in scores.by_source().items()}
    assert np.isnan(found["ms_ssim"]).tolist() == [False, True, False]
    assert np.isnan(found["dice"]).tolist()[::2] == [False, True]
    assert scores.compute() == pytest.approx(
        {name: np.nanmean(values) for name, values in found.items()}, rel=1e-12
    )
    bone = torch.tensor([0.0, 300.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    one = Scores(["dice"], 2, **GREY)
    one.update(bone, torch.zeros(1, 1, 8, 8))  # of two results one has bone, the other no score
    assert one.compute() == {"dice": 0}


def test_crps_and_energy_score_are_those_of_distributions():
    """Of normal samples, the mean CRPS is the closed form, to 5 standard errors (Gneiting and Raftery 2007).

    Of one value, the energy score is the same.
    """
    targets = np.linspace(-2, 2, 20_000).reshape(20_000, 1, 1, 1)
    results = RANDOM.standard_normal((20_000, 4, 1, 1, 1))
    found = METRICS["crps"].score(*map(torch.from_numpy, (results, targets))).numpy()
    closed = (
        targets * (2 * norm.cdf(targets) - 1) + 2 * norm.pdf(targets) - 1 / np.sqrt(np.pi)
    ).ravel()
    assert abs((found - closed).mean()) < 5 * (found - closed).std() / np.sqrt(20_000)
    np.testing.assert_allclose(
        METRICS["energy"].score(*map(torch.from_numpy, (results, targets))), found
    )


@SHAPES
def test_scores_of_samples_are_of_the_mask(shape: tuple[int, ...]):
    """And of whole pictures in the unit: the energy score is by its definition."""
    results, targets = pair(*shape)
    masks = np.zeros((len(targets), 1, *shape[3:]), dtype=bool)
    masks[..., :4] = True
    names = ["energy", "crps", "diversity"]
    cut = score(names, results[..., :4], targets[..., :4])
    results[..., 4:] = 3
    assert score(names, results, targets, masks) == pytest.approx(cut)
    (one, other) = results[..., :4].reshape(len(targets), 2, -1).swapaxes(0, 1)
    goal = targets[..., :4]
    errors = [np.linalg.norm(each - goal.reshape(len(goal), -1), axis=1) for each in (one, other)]
    assert cut["energy"] == pytest.approx(
        (np.mean(errors) - np.linalg.norm(one - other, axis=1) / 2).mean(), rel=1e-6
    )


def test_a_metric_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    """Of a function, by one statement: in masks, of slices, on the command line and in the table."""
    bias = Metric(
        lambda results, targets: (results - targets).mean((1, 2, 3)), True, masks="pixels"
    )
    monkeypatch.setitem(METRICS, "bias", bias)
    monkeypatch.setitem(
        METRICS, "shift", Metric(lambda r, t: (r - t).amax((1, 2, 3)), higher_is_better=False)
    )
    results, targets = pair(2, 1, 1, 2, 8, 8)
    # without masks, slices of a volume are pictures
    wanted = (results[:, 0] - targets).max((1, 3, 4)).mean()
    assert score(["shift"], results, targets)["shift"] == pytest.approx(wanted)
    results, targets = pair(3, 1, 1, 9, 12)
    masks = masks_of(targets)
    found = score(["bias"], results, targets, masks)
    assert found["bias"] == pytest.approx(
        mean_of(lambda r, t: (r - t).mean(), results, targets, masks), rel=1e-5
    )
    assert eval_script.Eval.parse(
        ["paired", "a,b", "c.pt", "--metrics", "bias", "mae"]
    ).metrics == ("bias", "mae")
    report = {
        "scores": {"bias": 0.81234, "mae": 63.274, "dice": None},
        **{"solver": "dpm2m", "nfe": 5, "pictures": 3, "seconds_per_picture": 0.5},
        "settings": {"target_values": HU.config()},
    }
    assert reports.best([report]) == ["best bias: dpm2m:5, 0.8123", "best mae: dpm2m:5, 63.274"]
    lines = reports.table([report]).splitlines()
    assert lines[0] == "| solver | NFE | pictures | bias ↑ | MAE HU ↓ | dice ↑ | s / picture |"
    assert lines[2] == "| dpm2m | 5 | 3 | 0.8123 | 63.274 | - | 0.5000 |"


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["psnr", "kid"], {}, "metrics must be among fid, .*, got kid"),
        ([], {}, "got none"),
        *(
            ([name], {}, f"{name} needs at least 2 results of each source, got 1")
            for name in ("diversity", "crps")
        ),
        (["lpips"], {"lpips_net": "resnet"}, "net must be one of .*squeeze.*, got 'resnet'"),
        (["mae", "fid"], GREY, "fid is of 8-bit .* 1 channels of -1024:3071:HU"),
        (["lpips"], {"masked": True}, "lpips is of whole pictures, and these have masks"),
    ],
)
def test_metrics_that_pictures_do_not_have(
    names: list[str], settings: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        Scores(names, **settings)


@pytest.mark.parametrize(
    ("results", "kind", "masks", "settings", "message"),
    [
        (
            (4, 1, 3, 8, 8),
            torch.uint8,
            None,
            {"samples": 2},
            r"\(B, 2, 3, H, W\) .* got \(4, 1, 3, 8, 8\)",
        ),
        ((4, 1, 3, 8, 8), torch.float32, None, {}, "uint8, got torch.float32"),
        ((2, 1, 1, 8, 8), torch.float32, None, {"values": HU, "channels": 2}, r"\(B, 1, 2, H, W\)"),
        ((2, 1, 1, 8, 8), torch.int16, None, GREY, "must be floats"),
        ((2, 1, 1, 8, 8), torch.float32, (2, 8, 8), GREY, r"masks must be \(2, 1, 8, 8\)"),
        ((2, 1, 1, 4, 8), torch.float32, None, GREY, "ssim needs at least 6 pixels"),
    ],
)
def test_pictures_that_scores_refuse(
    results: Any, kind: Any, masks: Any, settings: Any, message: str
):
    found = torch.zeros(results, dtype=kind)
    with pytest.raises(ValueError, match=message):
        Scores(["psnr", "ssim"], **settings).update(
            found, found[:, 0], None if masks is None else torch.ones(masks)
        )
