"""Scores over a data set: metrics of pictures of any channels and values, within masks, of several processes.

Pictures have their stored values, as in their files, and the size at which they were made. Reports of scores
become a table and a plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bbdm.base.atomic import write_atomically
from bbdm.evaluation.metrics import METRICS, Metric, Setup, as_unit
from bbdm.execution.processes import Processes
from bbdm.pictures.values import EIGHT_BIT

Report = dict[str, Any]  # settings, scores, solver, nfe, pictures, seconds_per_picture: of Translator.run and a metric
ACRONYMS = ("fid", "lpips", "psnr", "ssim", "mae", "rmse", "crps")  # which titles have in capitals
Compared = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (B, S, C, *S), (B, C, *S), and masks (B, 1, *S), bool


class Scores:
    """Several metrics over one data set.

    A metric compares each result with its source's target. The score of a source is the mean of its results,
    and that of the data set the mean over sources, whatever the batches and the number of processes. What has
    none does not count, such as the Dice coefficient of volumes without bone. FID compares all results with
    all targets.

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
        setup = self._setup = Setup(samples=samples, **settings)
        if (unknown := [name for name in metrics if name not in METRICS]) or not metrics:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
        self.device = torch.device(device)
        self._rows: dict[str, tuple[Metric, list[Any]]] = {}
        for name in metrics:
            _check(name, metric := METRICS[name], setup)
            needed = [] if metric.needs is None else [metric.needs(setup)]
            needed = [each.to(self.device) if isinstance(each, torch.nn.Module) else each for each in needed]
            self._rows[name] = metric, needed
        self._sources: list[str] = []
        self._scores = {name: list[float]() for name, (metric, _) in self._rows.items() if not metric.total}
        self._sums: dict[str, torch.Tensor] = {}

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
            names: of the sources, for :meth:`by_source`; None for their numbers.

        Raises:
            ValueError: other shapes or types, or masks that a metric does not take.
        """
        setup, eight = self._setup, self._setup.values == EIGHT_BIT
        expected = max(channels := (1, 3) if setup.colour else (setup.channels,))
        fits = results.ndim in (5, 6) and len(results) == len(targets) and results.shape[2:] == targets.shape[1:]
        if not fits or results.shape[1] != setup.samples or results.shape[2] not in channels:
            raise ValueError(
                f"results must be (B, {setup.samples}, {expected}, H, W) and targets (B, {expected}, H, W), "
                f"got {tuple(results.shape)} and {tuple(targets.shape)}"
            )
        if any((v.dtype == torch.uint8) != eight or not (eight or v.is_floating_point()) for v in (results, targets)):
            kind = "uint8" if eight else "floats in stored values"
            raise ValueError(f"pictures must be {kind}, got {results.dtype} and {targets.dtype}")
        shape = len(targets), 1, *targets.shape[2:]
        if masks is not None and masks.shape != shape:
            raise ValueError(f"masks must be {shape}, got {tuple(masks.shape)}")
        for name, (metric, _) in self._rows.items() if masks is not None else ():
            _check(name, metric, replace(setup, masked=True))
        inside = torch.ones_like(targets[:, :1], dtype=torch.bool) if masks is None else masks != 0
        count = len(self._sources)
        names = [f"{number}" for number in range(count, count + len(targets))] if names is None else names
        if masks is not None and not (kept := inside.flatten(1).any(1)).all():
            results, targets, inside = results[kept], targets[kept], inside[kept]
            names = [name for name, each in zip(names, kept, strict=True) if each]
        if not names:
            return
        if setup.colour:
            results, targets = (v.expand(*v.shape[:-3], 3, *v.shape[-2:]) for v in (results, targets))
        results, targets, inside = (v.to(self.device) for v in (results, targets, inside))
        for name, (metric, needed) in self._rows.items():
            parts = _arguments(metric, setup, (results, targets, inside), masks is not None)
            found = [metric.score(*part, *needed) for part in parts]
            if metric.total:
                self._sums[name] = torch.stack(found).sum(0) + self._sums.get(name, 0)
            else:  # several of a source, such as its results or slices
                self._scores[name] += torch.cat(found).double().reshape(len(names), -1).nanmean(1).tolist()
        self._sources += names

    @torch.inference_mode()
    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        sums = {name: each.cpu() for name, each in self._sums.items()}
        _, *others = processes.gather((self._sources, self._scores, sums))
        for sources, scores, sums in others if processes.first else []:
            self._sources += sources
            for name, values in scores.items():
                self._scores[name] += values
            for name, value in sums.items():
                self._sums[name] = value.to(self.device) + self._sums.get(name, 0)

    def compute(self) -> dict[str, float]:
        """The scores of all pictures so far; NaN where no picture has one.

        Raises:
            ValueError: there are no pictures, or too few for FID.
        """
        if len(self._sources) < (2 if "fid" in self._rows else 1):
            inside = " with pixels in their masks" if self._setup.masked else ""
            raise ValueError(f"scores need pictures{inside}, FID at least 2; got {len(self._sources)}")
        found = {name: metric.total(self._sums[name]) for name, (metric, _) in self._rows.items() if metric.total}
        for name, values in self._scores.items():
            known = [value for value in values if not math.isnan(value)]
            found[name] = math.fsum(known) / len(known) if known else math.nan  # the same in any order
        return {name: found[name] for name in self._rows}

    def by_source(self) -> dict[str, dict[str, float]]:
        """The scores of each source, by the score's name and the source's; NaN where it has none. Not FID."""
        return {name: dict(zip(self._sources, values, strict=True)) for name, values in self._scores.items()}


def _check(name: str, metric: Metric, setup: Setup) -> None:
    """Raise ValueError where pictures of a setup do not have a metric."""
    if metric.colour and not setup.colour:
        raise ValueError(
            f"{name} is of 8-bit grey or RGB pictures, and these have {setup.channels} channels of "
            f"{setup.values}: take others, such as mae, psnr, ssim"
        )
    if setup.masked and metric.masks is None:
        able = ", ".join(name for name, metric in METRICS.items() if metric.masks)
        raise ValueError(f"{name} is of whole pictures, and these have masks: take others, such as {able}")
    if metric.takes == "samples" and not metric.total and setup.samples < 2:
        raise ValueError(f"{name} needs at least 2 results of each source, got {setup.samples}")


def _arguments(metric: Metric, setup: Setup, pictures: Compared, masked: bool) -> Iterator[tuple[torch.Tensor, ...]]:
    """The first arguments of a metric's function: of masked pixels as rows, of a volume, or of its slices."""
    results, targets, masks = pictures
    parts = [pictures]
    if metric.masks == "pixels" and masked:
        each = zip(results, targets, masks[:, 0], strict=True)
        parts = [(x[..., mask][None, :, :, None], y[..., mask][None, :, None], mask) for x, y, mask in each]
    elif targets.ndim == 5 and metric.masks == "pixels":
        parts = [(results.flatten(3, 4), targets.flatten(2, 3), masks)]
    elif targets.ndim == 5 and metric.masks is None:
        parts = [(results.movedim(3, 1).flatten(0, 1), targets.movedim(2, 1).flatten(0, 1), masks)]
    for results, targets, masks in parts:
        if metric.takes == "samples":
            yield results, targets
            continue
        samples = results.shape[1]
        flat = results.flatten(0, 1), targets.repeat_interleave(samples, dim=0)
        if metric.takes == "unit":
            flat = tuple(as_unit(each, setup.values) for each in flat)
        else:
            flat = tuple(each if each.is_floating_point() else each.float() for each in flat)
        yield (*flat, masks.repeat_interleave(samples, dim=0)) if metric.masks == "map" else flat


def table(reports: Sequence[Report]) -> str:
    """Markdown of the scores, a row for each report of the same metrics."""
    names = [*reports[0]["scores"]]
    rows = [["solver", "NFE", "pictures", *(title(name, reports[0]) for name in names), "s / picture"]]
    rows.append(["---"] * len(rows[0]))
    for report in reports:
        found, seconds = report["scores"], report["seconds_per_picture"]
        scores = ["-" if found[name] is None else f"{found[name]:{METRICS[name].form}}" for name in names]
        counts = [f"{report[key]}" for key in ("solver", "nfe", "pictures")]
        rows.append([*counts, *scores, "unknown" if seconds is None else f"{seconds:.4f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(reports: Sequence[Report], path: Path) -> None:
    """Write a plot over network calls: a panel for each metric, and a line for each solver."""
    from matplotlib.figure import Figure

    names = [*reports[0]["scores"]]
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    calls = sorted({report["nfe"] for report in reports})
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in reports):
            known = [r for r in reports if r["solver"] == solver and r["scores"][name] is not None]
            points = sorted((report["nfe"], report["scores"][name]) for report in known)
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
        panel.set(xscale="log", xlabel="network calls", ylabel=title(name, reports[0]))
        panel.set_xticks(calls, list(map(str, calls)), rotation=45)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(f"{reports[0]['pictures']} pictures", fontsize="medium")
    write_atomically(path, partial(figure.savefig, format="png", dpi=120))


def title(name: str, report: Report) -> str:
    """A metric's name, its unit, and which way is better."""
    metric = METRICS[name]
    unit = report["settings"].get("target_values", {}).get("unit", "") if metric.unit else ""
    shown = name.upper() if name in ACRONYMS else name
    return " ".join(filter(None, (shown, unit, "↑" if metric.higher_is_better else "↓")))
