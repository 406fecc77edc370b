"""The metrics: rows of :data:`METRICS`, each a function of results and targets.

Nothing here imports torch before a metric is computed.

Pictures (N, C, H, W) become (N,) scores. A statement adds a row of a user's own:

    METRICS["bias"] = Metric(bias, higher_is_better=False, masks="pixels")

:class:`bbdm.evaluation.scores.Scores` has them of a data set; :func:`volume_scores` and :func:`dice` are the
same functions, of one volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from bbdm.pictures.values import EIGHT_BIT, Values

if TYPE_CHECKING:
    from torch import Tensor

BONE = 200.0  # HU
SSIM_SIDE = 6  # at least, of pictures that its window is reflected in
SLICES = 32  # of a volume, whose similarity is computed at once
# of levels, the finest first (Wang et al. 2003)
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = 97  # at least, of a volume whose levels are compared
MS_SSIM_WINDOW = 7  # side of the cube that means and variances are of
K1 = 0.01
K2 = 0.03
LPIPSNet = Literal["alex", "vgg", "squeeze"]


@dataclass(frozen=True)
class Setup:
    """What metrics are computed of, and with which networks."""

    values: Values = EIGHT_BIT  # of targets and results
    channels: int = 3  # of targets and results
    samples: int = 1  # results of each source
    masked: bool = False  # whether pictures have masks
    volumes: bool | None = None  # whether pictures are volumes; None where that is not known yet
    features: Any = None  # the network of FID, (B, 3, H, W) uint8 to (B, D); None for Inception
    lpips_net: LPIPSNet = "alex"  # the network of LPIPS
    # values above it are compared by the Dice coefficient; bone is above 200 HU
    dice_above: float = BONE

    @property
    def colour(self) -> bool:
        """Whether pictures are 8-bit grey or RGB; grey is compared as RGB."""
        return self.values == EIGHT_BIT and self.channels in (1, 3)


@dataclass(frozen=True)
class Metric:
    """A metric, a row of :data:`METRICS`.

    ``takes`` says in which values results and targets come; 8-bit grey comes as RGB:

    - ``stored``: floats in stored values.
    - ``unit``: floats with the range of the values as 0 to 1, clipped.
    - ``samples``: (B, S, C, H, W) results of B sources and (B, C, H, W) targets as they are, uint8 of 8-bit
      pictures, to scores (B,).

    ``masks`` says what becomes of masks and volumes:

    - ``pixels``: the order of pixels does not matter. The P pixels in a mask come as (C, P, 1), and a volume
      is one picture.
    - ``map``: ``score`` gets masks (N, 1, *S), bool, as a third argument, and volumes (N, C, D, H, W).
    - None: pictures with masks are refused, and the slices of a volume are pictures.
    """

    # (N, C, H, W) results and targets to (N,); NaN of one that does not count
    score: Callable[..., Tensor]
    # whether a greater score is of better results; None where neither is
    higher_is_better: bool | None
    _: KW_ONLY
    takes: Literal["stored", "unit", "samples"] = "stored"
    masks: Literal["pixels", "map"] | None = None
    colour: bool = False  # whether it is of 8-bit grey or RGB pictures alone
    volumes: bool = False  # whether it is of volumes alone
    unit: bool = False  # whether the score has the unit of the targets' values
    form: str = ".4f"  # how the score is shown
    label: str = ""  # what titles call it; the name of its row if empty
    # makes the last argument of score, once: a network, or a number
    needs: Callable[[Setup], Any] | None = None
    # the score of a sum, where score returns what adds up over batches
    total: Callable[[Tensor], Any] | None = None


def mae(results: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error, in the unit."""
    return (results - targets).abs().double().mean((1, 2, 3))


def rmse(results: Tensor, targets: Tensor) -> Tensor:
    """Root mean square error, in the unit."""
    return (results - targets).square().double().mean((1, 2, 3)).sqrt()


def psnr(results: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of values in [0, 1]; infinite of equal pictures."""
    return -10 * (results - targets).square().double().mean((1, 2, 3)).log10()


def overlap(results: Tensor, targets: Tensor, above: float) -> Tensor:
    """Dice coefficient of the values above a threshold; NaN where neither has any."""
    present = results > above
    present_in_targets = targets > above
    return (
        2
        * (present & present_in_targets).sum((1, 2, 3)).double()
        / (present.sum((1, 2, 3)) + present_in_targets.sum((1, 2, 3)))
    )


def diversity(results: Tensor, targets: Tensor) -> Tensor:
    """Standard deviation over a source's results (Li et al., BBDM, 2023), without Bessel's correction."""
    return results.double().std(dim=1, correction=0).mean((1, 2, 3))


def energy(results: Tensor, targets: Tensor) -> Tensor:
    """Energy score of results (N, S, ...), a proper score of their distribution: lower is better.

    E|X - x| - E|X - X'| / 2 with the Euclidean norm over all values of a picture (Gneiting and Raftery 2007,
    section 4.3), of different samples X and X'. Error and collapse both raise it.
    """
    import torch

    scores: list[Tensor] = []
    for samples, target in zip(
        results.double().flatten(2), targets.double().flatten(1), strict=True
    ):
        pairs = [(one - other).norm() for one, other in combinations(samples, 2)]
        scores.append((samples - target).norm(dim=1).mean() - torch.stack(pairs).mean() / 2)
    return torch.stack(scores)


def crps(results: Tensor, targets: Tensor) -> Tensor:
    """Continuous ranked probability score of results (N, S, ...), the mean over values, in the unit.

    E|X - x| - E|X - X'| / 2 of different samples (Gneiting and Raftery 2007, equation 21), so its expectation
    is that of the distribution which the samples are of.
    """
    import torch

    ordered = results.double().flatten(2).sort(1).values
    target = targets.double().flatten(1)[:, None]
    count = ordered.shape[1]
    weights = torch.arange(1 - count, count, 2, device=results.device, dtype=torch.float64)
    between = (ordered * weights[:, None]).sum(1) / (count * (count - 1))
    return ((ordered - target).abs().mean(1) - between).mean(1)


def ssim(results: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) in planes (H, W), of values in [0, 1], mean over the mask.

    The window is a Gaussian of 1.5 in 11 x 11 pixels; beyond an edge, pictures are reflected.
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    if min(results.shape[-2:]) < SSIM_SIDE:
        raise ValueError(
            f"ssim needs at least {SSIM_SIDE} pixels a side, got {tuple(results.shape[-2:])}"
        )
    scores: list[Tensor] = []
    for result, target, mask in zip(results, targets, masks, strict=True):
        maps: list[Tensor] = []  # (D, H, W), means over channels
        for one, other in zip(
            _planes(result).split(SLICES), _planes(target).split(SLICES), strict=True
        ):
            _, similarities = similarity(one, other, data_range=1.0, return_full_image=True)
            maps.append(similarities.mean(1))
        scores.append(torch.cat(maps).reshape(mask.shape)[mask].double().mean())
    return torch.stack(scores)


def _planes(picture: Tensor) -> Tensor:
    """(D, C, H, W) of a volume (C, D, H, W); (1, C, H, W) of a picture."""
    return picture.reshape(len(picture), -1, *picture.shape[-2:]).transpose(0, 1)


def ms_ssim(results: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    """Similarity of volumes (N, C, D, H, W) in [0, 1] at five scales, as SynthRAD 2025 defines it.

    It is the product over levels of the mean over the mask less 3 voxels at each edge. Outside the mask both
    are 0. Volumes of fewer than 97 voxels a side are padded with those at their edges.
    """
    import torch
    from torch.nn.functional import pad

    if results.ndim != 5:
        raise ValueError(
            f"ms_ssim is of volumes, got pictures of {tuple(results.shape[2:])}: take ssim"
        )
    edges: list[int] = []  # voxels that are added before and after each axis, the last axis first
    for side in reversed(results.shape[2:]):
        missing = max(0, MS_SSIM_SIDE - side)
        edges += [missing // 2, missing - missing // 2]

    def padded(volume: Tensor) -> Tensor:
        return pad(volume[None], edges, mode="replicate")[0]

    scores: list[Tensor] = []
    for result, target, inside in zip(results, targets, masks, strict=True):
        x = padded(result.double().where(inside, 0.0))
        y = padded(target.double().where(inside, 0.0))
        mask = padded(inside.double())[0] > 0
        product = torch.ones(len(x), dtype=x.dtype, device=x.device)
        for level, weight in enumerate(MS_SSIM_WEIGHTS):
            if level > 0:
                x = _halved(x)
                y = _halved(y)
                mask = mask[::2, ::2, ::2]
            product *= _level(x, y, mask, weight).clip(0, 1)
        scores.append(product.mean())
    return torch.stack(scores)


def _halved(volume: Tensor) -> Tensor:
    """Every second of the means of 2 x 2 x 2, each of a voxel and those before it; outside it is 0."""
    from torch.nn.functional import avg_pool3d, pad

    return avg_pool3d(pad(volume, (1, 0, 1, 0, 1, 0)), 2)


def _level(x: Tensor, y: Tensor, mask: Tensor, weight: float) -> Tensor:
    """The mean over a mask (D, H, W), less its edges, of the similarity of each channel, (C,)."""
    import torch

    edge = MS_SSIM_WINDOW // 2
    inside = mask[edge:-edge, edge:-edge, edge:-edge]
    channels = [_similarity(*pair, weight)[inside].mean() for pair in zip(x, y, strict=True)]
    return torch.stack(channels)


def _similarity(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Luminance, contrast and structure of (D, H, W) to the power of the level's weight, without edges."""
    means = [x, y, x * x, y * y, x * y]
    for axis in range(3):
        means = [mean.unfold(axis, MS_SSIM_WINDOW, 1).mean(-1) for mean in means]
    x, y, xx, yy, xy = means
    sample = MS_SSIM_WINDOW**3 / (MS_SSIM_WINDOW**3 - 1)
    var_x = sample * (xx - x * x)
    var_y = sample * (yy - y * y)
    cov = sample * (xy - x * y)
    product = var_x.clip(0).sqrt() * var_y.clip(0).sqrt()
    c1 = K1**2
    c2 = K2**2
    luminance = (2 * x * y + c1) / (x * x + y * y + c1)
    contrast = (2 * product + c2) / (var_x + var_y + c2)
    structure = (cov + c2 / 2) / (product + c2 / 2)
    return (luminance.clip(0) * contrast.clip(0) * structure.clip(0)) ** weight


def lpips(results: Tensor, targets: Tensor, network: Any) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018) of pictures (N, 3, H, W) in [0, 1]."""
    return network(results, targets, normalize=True).flatten()


def feature_sums(results: Tensor, targets: Tensor, network: Any) -> Tensor:
    """(2, D + 1, D + 1) sums over results and over targets of products of their features and a 1."""
    import torch
    from torch.nn.functional import pad

    features = [
        pad(network(pictures).double(), (0, 1), value=1.0)
        for pictures in (results.flatten(0, 1), targets)
    ]
    return torch.stack([rows.T @ rows for rows in features])


def frechet(sums: Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017, equation 6) of :func:`feature_sums`."""
    import torch

    counts = sums[:, -1, -1, None, None]
    means = sums[:, -1:, :-1] / counts
    first, second = (sums[:, :-1, :-1] - counts * means.mT @ means) / (counts - 1)
    root = torch.linalg.eigvals(first @ second).sqrt().real.sum()
    return float((means[0] - means[1]).square().sum() + first.trace() + second.trace() - 2 * root)


def _features(setup: Setup) -> Any:
    from bbdm.evaluation import perceptual

    return setup.features or perceptual.inception()


def _distances(setup: Setup) -> Any:
    from bbdm.evaluation import perceptual

    return perceptual.lpips_network(setup.lpips_net)


METRICS: dict[str, Metric] = {
    "fid": Metric(
        feature_sums,
        higher_is_better=False,
        takes="samples",
        colour=True,
        form=".2f",
        label="FID",
        needs=_features,
        total=frechet,
    ),
    "lpips": Metric(
        lpips, higher_is_better=False, takes="unit", colour=True, label="LPIPS", needs=_distances
    ),
    "psnr": Metric(
        psnr, higher_is_better=True, takes="unit", masks="pixels", form=".2f", label="PSNR"
    ),
    "ssim": Metric(ssim, higher_is_better=True, takes="unit", masks="map", label="SSIM"),
    "ms_ssim": Metric(
        ms_ssim, higher_is_better=True, takes="unit", masks="map", volumes=True, label="MS-SSIM"
    ),
    "dice": Metric(
        overlap, higher_is_better=True, masks="pixels", needs=lambda setup: setup.dice_above
    ),
    "mae": Metric(mae, higher_is_better=False, masks="pixels", unit=True, form=".5g", label="MAE"),
    "rmse": Metric(
        rmse, higher_is_better=False, masks="pixels", unit=True, form=".5g", label="RMSE"
    ),
    "diversity": Metric(
        diversity, higher_is_better=None, takes="samples", masks="pixels", unit=True, form=".2f"
    ),
    "energy": Metric(energy, higher_is_better=False, takes="samples", masks="pixels", form=".5g"),
    "crps": Metric(
        crps,
        higher_is_better=False,
        takes="samples",
        masks="pixels",
        unit=True,
        form=".5g",
        label="CRPS",
    ),
}


def defaults(setup: Setup) -> list[str]:
    """The metrics where none are named."""
    names = ["fid", "lpips"] if setup.colour else ["mae", "psnr", "ssim"]
    if setup.samples > 1:
        names += ["diversity", "energy", "crps"]
    return names


def as_unit(stored: Tensor, values: Values) -> Tensor:
    """(N, C, *S) of stored values with their range as 0 to 1, clipped."""
    import torch

    if values == EIGHT_BIT:
        return stored / 255
    of_channels = (-1, *[1] * (stored.ndim - 2))
    low = torch.tensor(values.low, dtype=stored.dtype, device=stored.device).reshape(of_channels)
    high = torch.tensor(values.high, dtype=stored.dtype, device=stored.device).reshape(of_channels)
    return ((stored - low) / (high - low)).clip(0, 1)


def volume_scores(
    truth: npt.ArrayLike,
    result: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    low: float = -1024,
    high: float = 3000,
) -> dict[str, float]:
    """Scores of a volume against the true one: ``mae`` in the unit, ``psnr`` in dB, ``ms_ssim``.

    MAE is the mean over the mask, of values that are not clipped. PSNR is over the mask, of values in
    [low, high]; so is MS-SSIM, see :func:`ms_ssim`. The range is that of the code of SynthRAD 2025, -1024 to
    3000 HU, whatever a network was trained with.

    Args:
        truth: (D, H, W) in the unit.
        result: (D, H, W) in the unit.
        mask: (D, H, W), not 0 where voxels count; None where all do.
        low: the least value of the unit.
        high: the largest value of the unit.

    Raises:
        ValueError: the arrays have other axes or different shapes, or no voxel counts.
    """
    shapes = [np.shape(truth), np.shape(result)]
    shapes.append(shapes[0] if mask is None else np.shape(mask))
    if len(shapes[0]) != 3 or len({*shapes}) > 1:
        raise ValueError(
            f"truth, result and mask must be (D, H, W), got {', '.join(map(str, shapes))}"
        )
    (x, y, inside), pixels = _tensors(truth, result, mask)
    if not inside.any():
        raise ValueError("no voxel is in the mask")
    values = Values(low, high, dtype="float64")
    scores = {
        "mae": mae(*pixels),
        "psnr": psnr(*(as_unit(side, values) for side in pixels)),
        "ms_ssim": ms_ssim(as_unit(x, values), as_unit(y, values), inside),
    }
    return {name: score.item() for name, score in scores.items()}


def dice(
    truth: npt.ArrayLike, result: npt.ArrayLike, above: float, mask: npt.ArrayLike | None = None
) -> float:
    """Dice coefficient of voxels above a threshold, such as 200 HU for bone; NaN where neither has any."""
    _, pixels = _tensors(truth, result, mask)
    return overlap(pixels[0], pixels[1], above).item()


def _tensors(
    truth: npt.ArrayLike, result: npt.ArrayLike, mask: npt.ArrayLike | None
) -> tuple[list[Tensor], ...]:
    """Result, truth and mask as (1, 1, *S), and result and truth in the mask as (1, 1, P, 1)."""
    import torch

    pair = [torch.from_numpy(np.array(volume, dtype=np.float64)) for volume in (result, truth)]
    inside = torch.ones(pair[0].shape, dtype=torch.bool)
    if mask is not None:
        inside = torch.from_numpy(np.array(mask) != 0)
    return [volume[None, None] for volume in (*pair, inside)], [
        volume[inside][None, None, :, None] for volume in pair
    ]
