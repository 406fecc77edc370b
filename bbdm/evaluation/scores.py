"""Scores over a data set: metrics of pictures of any channels and values, within masks, of several processes.

Pictures have their stored values, as in their files, and the size at which they were made.
:mod:`bbdm.evaluation.reports` shows reports of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from bbdm.evaluation.coverage import coverage, expected
from bbdm.evaluation.metrics import METRICS, Metric, Setup, as_unit
from bbdm.execution.processes import Processes
from bbdm.pictures.values import EIGHT_BIT


class Compared(NamedTuple):
    """Pictures that are compared."""

    results: torch.Tensor  # (B, S, C, *S)
    targets: torch.Tensor  # (B, C, *S)
    inside: torch.Tensor  # (B, 1, *S), bool: where pixels count


class Scores:
    """Several metrics over one data set.

    A metric compares each result with its source's target. The score of a source is the mean of its results,
    and that of the data set the mean over sources, whatever the batches and the number of processes. What has
    none does not count, such as the Dice coefficient of volumes without bone. The PSNR of equal pictures is
    infinite, and so is a mean over them. FID compares all results with all targets.

    MAE, RMSE, CRPS and diversity have the unit of the values, PSNR and SSIM their range. With masks, only
    pixels inside count; a picture with none does not. A volume (C, D, H, W) is one picture, and its SSIM is
    that of the planes (H, W).

    Args:
        metrics: names in :data:`bbdm.evaluation.metrics.METRICS`, at least one.
        samples: results of each source. Diversity, energy score and CRPS need at least 2.
        device: where the metrics are computed.
        settings: the other fields of :class:`bbdm.evaluation.metrics.Setup`, such as ``values``.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: an unknown name, too few samples, a metric that these pictures do not have, damaged
            weights, or a failed download.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        samples: int = 1,
        *,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> None:
        self._setup = Setup(samples=samples, **settings)
        unknown = [name for name in metrics if name not in METRICS]
        if unknown or not metrics:
            raise ValueError(
                f"metrics must be among {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}"
            )
        self.device = torch.device(device)
        # with the last arguments of each metric's function
        self._rows: dict[str, tuple[Metric, list[Any]]] = {}
        self._scores: dict[str, list[float]] = {}
        self._sums: dict[str, torch.Tensor] = {}
        # of the sources that have scores; of those without a name the number
        self._names: list[str | int] = []
        self._coverage: list[list[float]] = []  # of each source, by the intervals of its results
        self._seen = 0  # sources, also those that are wholly masked
        for name in metrics:
            metric = METRICS[name]
            _check(name, metric, self._setup)
            needed: list[Any] = []
            if metric.needs is not None:
                needed.append(metric.needs(self._setup))
            for argument in needed:
                if isinstance(argument, torch.nn.Module):
                    argument.to(self.device)
            self._rows[name] = metric, needed
            if metric.total is None:
                self._scores[name] = []

    @torch.inference_mode()
    def update(
        self,
        results: torch.Tensor,
        targets: torch.Tensor,
        masks: torch.Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Add pictures (H, W) or volumes (D, H, W).

        Args:
            results: (B, S, C, *S), uint8 of 8-bit pictures, else floats in stored values.
            targets: (B, C, *S) of the same type.
            masks: (B, 1, *S), not 0 where pixels count; None where all do.
            names: of the sources, for :meth:`by_source`; None for their numbers among all that were added.

        Raises:
            ValueError: other shapes or types, or masks or pictures that a metric does not take.
        """
        self._check_pictures(results, targets, masks)
        count = len(targets)
        all_names: Sequence[str | int] = range(self._seen, self._seen + count)
        if names is not None:
            all_names = names
        self._seen += count
        inside = torch.ones_like(targets[:, :1], dtype=torch.bool)
        if masks is not None:
            inside = masks != 0
        pictures = Compared(results, targets, inside)
        kept = inside.flatten(1).any(1)  # that are not wholly masked
        if not kept.all():
            pictures = Compared(*(tensor[kept] for tensor in pictures))
        kept_names = [
            name for name, has_pixels in zip(all_names, kept.tolist(), strict=True) if has_pixels
        ]
        if not kept_names:
            return
        if self._setup.colour:
            pictures = pictures._replace(
                results=_as_rgb(pictures.results, 2), targets=_as_rgb(pictures.targets, 1)
            )
        pictures = Compared(*(tensor.to(self.device) for tensor in pictures))
        for name, (metric, needed) in self._rows.items():
            parts = _arguments(metric, self._setup, pictures, masks is not None)
            scores = [metric.score(*part, *needed) for part in parts]
            if metric.total is not None:
                self._sums[name] = torch.stack(scores).sum(0) + self._sums.get(name, 0)
                continue
            # several: of results, or slices
            of_sources = torch.cat(scores).double().reshape(len(kept_names), -1)
            self._scores[name] += of_sources.nanmean(1).tolist()
        self._coverage += coverage(*pictures).tolist()
        self._names += kept_names

    def _check_pictures(
        self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None
    ) -> None:
        """Raise ValueError for pictures of other shapes or types, or that a metric does not take."""
        setup = self._setup
        channels = (1, 3) if setup.colour else (setup.channels,)
        fits = (
            results.ndim in (5, 6)
            and len(results) == len(targets)
            and results.shape[2:] == targets.shape[1:]
        )
        if not fits or results.shape[1] != setup.samples or results.shape[2] not in channels:
            expected = max(channels)
            raise ValueError(
                f"results must be (B, {setup.samples}, {expected}, H, W) and targets (B, {expected}, H, W), "
                f"got {tuple(results.shape)} and {tuple(targets.shape)}"
            )
        types = {results.dtype, targets.dtype}
        if setup.values == EIGHT_BIT:
            expected_type = "uint8"
            right = types == {torch.uint8}
        else:
            expected_type = "floats in stored values"
            right = all(dtype.is_floating_point for dtype in types)
        if not right:
            raise ValueError(
                f"pictures must be {expected_type}, got {results.dtype} and {targets.dtype}"
            )
        shape = (len(targets), 1, *targets.shape[2:])
        if masks is not None and masks.shape != shape:
            raise ValueError(f"masks must be {shape}, got {tuple(masks.shape)}")
        given = replace(setup, masked=masks is not None, volumes=results.ndim == 6)
        for name, (metric, _) in self._rows.items():
            _check(name, metric, given)

    @torch.inference_mode()
    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        _, *others = processes.gather((self._names, self._seen, self._scores, sums, self._coverage))
        if not processes.first:
            return
        for names, seen, scores, sums, shares in others:
            self._coverage += shares
            for name in names:
                self._names.append(self._seen + name if isinstance(name, int) else name)
            self._seen += seen
            for metric, values in scores.items():
                self._scores[metric] += values
            for metric, value in sums.items():
                self._sums[metric] = value.to(self.device) + self._sums.get(metric, 0)

    def compute(self) -> dict[str, float]:
        """The scores of all pictures so far; NaN where no picture has one, infinite where one's is.

        Raises:
            ValueError: there are no pictures, or too few for FID.
        """
        count = len(self._names)
        least = 2 if "fid" in self._rows else 1
        if count < least:
            inside = " with pixels in their masks" if self._setup.masked else ""
            raise ValueError(f"scores need pictures{inside}, FID at least 2; got {count}")
        means: dict[str, float] = {}
        for name, (metric, _) in self._rows.items():
            if metric.total is None:
                means[name] = _mean(self._scores[name])
            else:
                means[name] = metric.total(self._sums[name])
        return means

    def coverage(self) -> list[tuple[float, float]]:
        """Of each interval of results, the share of targets within that is expected, and the mean of sources.

        Sources are counted alike; see :mod:`bbdm.evaluation.coverage`. Of one result there is no interval.
        """
        shares: list[tuple[float, float]] = []
        for place, wanted in enumerate(expected(self._setup.samples)):
            of_sources = [of_source[place] for of_source in self._coverage]
            shares.append((wanted, _mean(of_sources)))
        return shares

    def of_sources(self) -> dict[str, list[float]]:
        """The scores of all sources by the score's name, in no order; NaN where one has none. Not FID."""
        return {name: list(scores) for name, scores in self._scores.items()}

    def by_source(self) -> dict[str, dict[str, float]]:
        """The scores of each source, by the score's name and the source's; NaN where it has none. Not FID.

        Raises:
            ValueError: two sources have one name.
        """
        names = [str(name) for name in self._names]
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"scores by source need a name for each, and {twice!r} is that of two")
        return {
            metric: dict(zip(names, values, strict=True)) for metric, values in self._scores.items()
        }


def _mean(scores: Sequence[float]) -> float:
    """The mean of the scores that are not NaN, the same in any order; NaN where there are none."""
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return math.nan
    return math.fsum(known) / len(known)


def _as_rgb(pictures: torch.Tensor, axis: int) -> torch.Tensor:
    """Grey or RGB pictures or volumes with three channels, which lie along an axis."""
    shape = [*pictures.shape]
    shape[axis] = 3
    return pictures.expand(shape)


def _check(name: str, metric: Metric, setup: Setup) -> None:
    """Raise ValueError where pictures of a setup do not have a metric."""
    if metric.colour and not setup.colour:
        raise ValueError(
            f"{name} is of 8-bit grey or RGB pictures, and these have {setup.channels} channels of "
            f"{setup.values}: take others, such as mae, psnr, ssim"
        )
    if metric.volumes and setup.volumes is False:
        raise ValueError(f"{name} is of volumes, and these are pictures: take others, such as ssim")
    if setup.masked and metric.masks is None:
        able = ", ".join(name for name, metric in METRICS.items() if metric.masks)
        raise ValueError(
            f"{name} is of whole pictures, and these have masks: take others, such as {able}"
        )
    if metric.takes == "samples" and not metric.total and setup.samples < 2:
        raise ValueError(f"{name} needs at least 2 results of each source, got {setup.samples}")


def _arguments(
    metric: Metric, setup: Setup, pictures: Compared, masked: bool
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The first arguments of a metric's function, once for each part of the pictures."""
    for results, targets, inside in _parts(metric, pictures, masked):
        if metric.takes == "samples":
            yield results, targets
            continue
        samples = results.shape[1]
        arguments = [results.flatten(0, 1), targets.repeat_interleave(samples, dim=0)]
        if metric.takes == "unit":
            arguments = [as_unit(argument, setup.values) for argument in arguments]
        else:
            arguments = [
                argument if argument.is_floating_point() else argument.float()
                for argument in arguments
            ]
        if metric.masks == "map":
            arguments.append(inside.repeat_interleave(samples, dim=0))
        yield tuple(arguments)


def _parts(metric: Metric, pictures: Compared, masked: bool) -> Iterator[Compared]:
    """Pictures as a metric takes them: masked pixels as rows, and of volumes their planes or slices."""
    results, targets, inside = pictures
    volumes = targets.ndim == 5
    if metric.masks == "pixels" and masked:
        for result, target, mask in zip(results, targets, inside[:, 0], strict=True):
            yield Compared(
                result[..., mask][None, :, :, None], target[..., mask][None, :, None], mask
            )
    elif metric.masks == "pixels" and volumes:
        yield Compared(results.flatten(3, 4), targets.flatten(2, 3), inside)
    elif metric.masks is None and volumes:
        yield Compared(
            results.movedim(3, 1).flatten(0, 1), targets.movedim(2, 1).flatten(0, 1), inside
        )
    else:
        yield pictures
