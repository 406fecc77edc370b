"""The metrics by name: how each is built, what it takes, and how it is shown. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from bbdm.pictures.values import EIGHT_BIT, Values

BONE = 200.0  # HU
LPIPSNet = Literal["alex", "vgg", "squeeze"]


@dataclass(frozen=True)
class Setup:
    """What metrics are built for.

    Args:
        values: of targets and results.
        channels: of targets and results.
        samples: results of each source.
        features: the network of FID, (B, 3, H, W) uint8 to (B, D); None for Inception.
        fid_weights: file of the weights that torch-fidelity publishes; None downloads them.
        lpips_net: the network of LPIPS.
        lpips_weights: file of torchvision's ImageNet weights for that network; None downloads them.
        dice_above: values above it are compared by the Dice coefficient; bone is above 200 HU.
    """

    values: Values = EIGHT_BIT
    channels: int = 3
    samples: int = 1
    features: Any = None
    fid_weights: Path | None = None
    lpips_net: LPIPSNet = "alex"
    lpips_weights: Path | None = None
    dice_above: float = BONE

    @property
    def colour(self) -> bool:
        """Whether pictures are 8-bit grey or RGB; grey is compared as RGB."""
        return self.values == EIGHT_BIT and self.channels in (1, 3)

    def of_channel(self, channel: int) -> Setup:
        """The setup of one channel alone."""
        low, high = (v[channel] if isinstance(v, tuple) else v for v in (self.values.low, self.values.high))
        return replace(self, values=replace(self.values, low=low, high=high), channels=1)


@dataclass(frozen=True)
class Kind:
    """A metric, a row of :data:`METRICS`.

    Args:
        build: makes the metric of torchmetrics, or one with its methods ``update(results, targets)``,
            ``compute`` and ``reset``, whose states are sums or lists. :func:`bbdm.evaluation.metrics.mean_of`
            makes it of a function.
        higher_is_better: whether a greater score is of better results.
        takes: ``stored``: (N, C, H, W) floats in stored values. ``unit``: the same with the range of the
            values as 0 to 1, clipped. ``given``: (B, S, C, H, W) results of B sources and (B, C, H, W)
            targets, uint8 of 8-bit pictures.
        masks: ``pixels``: the order of pixels does not matter. Those in the mask are given as one row, and a
            volume as one picture. ``map``: ``update`` gets masks (N, 1, *S) or None as its third argument,
            and volumes (N, C, D, H, W). None: pictures with masks are refused, and the slices of a volume are
            pictures.
        joint: whether it is of all channels together, and never of one alone.
        colour: whether it is of 8-bit grey or RGB pictures alone.
        unit: whether the score has the unit of the targets' values.
        form: how the score is shown.
    """

    build: Callable[[Setup], Any]
    higher_is_better: bool
    takes: Literal["stored", "unit", "given"] = "stored"
    masks: Literal["pixels", "map"] | None = None
    joint: bool = False
    colour: bool = False
    unit: bool = False
    form: str = ".4f"


def _built_in(name: str) -> Callable[[Setup], Any]:
    """What builds a metric of :mod:`bbdm.evaluation.metrics`, which needs torch."""
    return lambda setup: import_module("bbdm.evaluation.metrics").BUILT_IN[name](setup)


METRICS: dict[str, Kind] = {
    "fid": Kind(_built_in("fid"), False, takes="given", joint=True, colour=True, form=".2f"),
    "lpips": Kind(_built_in("lpips"), False, takes="unit", joint=True, colour=True),
    "psnr": Kind(_built_in("psnr"), True, takes="unit", masks="pixels", form=".2f"),
    "ssim": Kind(_built_in("ssim"), True, takes="unit", masks="map"),
    "ms_ssim": Kind(_built_in("ms_ssim"), True, takes="unit", masks="map"),
    "dice": Kind(_built_in("dice"), True, masks="pixels"),
    "mae": Kind(_built_in("mae"), False, masks="pixels", unit=True, form=".5g"),
    "rmse": Kind(_built_in("rmse"), False, masks="pixels", unit=True, form=".5g"),
    "sam": Kind(_built_in("sam"), False, masks="pixels", joint=True),
    "ergas": Kind(_built_in("ergas"), False, masks="pixels", joint=True),
    "diversity": Kind(_built_in("diversity"), True, takes="given", masks="pixels", unit=True, form=".2f"),
}


def metric_of(score: str) -> str:
    """The metric of a score's name: ``mae`` of ``mae`` and of ``mae[3]``, channel 3 alone."""
    return score.partition("[")[0]


def defaults(setup: Setup) -> list[str]:
    """The metrics where none are named."""
    names = ["fid", "lpips"] if setup.colour else ["mae", "psnr", "ssim"]
    return [*names, *(["diversity"] if setup.samples > 1 else [])]
