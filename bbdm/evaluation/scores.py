"""Scores over a data set: metrics of pictures of any channels and values, within masks, of several processes.

Pictures have their stored values, as in their files, and the size at which they were made. The metrics are
rows of :data:`bbdm.evaluation.table.METRICS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchmetrics import Metric

from bbdm.evaluation.table import BONE, METRICS, Kind, LPIPSNet, Setup
from bbdm.execution.processes import Processes
from bbdm.pictures.values import EIGHT_BIT, Values

Counted = torch.Tensor | list[torch.Tensor]  # a list has a tensor for each batch
State = tuple[int, dict[str, dict[str, Counted]]]  # the number of sources, and the states of the metrics
_CONSTANT = ("data_range",)  # a state of PSNR


class _Compared(NamedTuple):
    results: torch.Tensor  # (B, S, C, *S)
    targets: torch.Tensor  # (B, C, *S)
    masks: torch.Tensor | None = None  # (B, 1, *S), bool


class Scores:
    """Several metrics over one data set.

    FID compares all results with all targets; its statistics are float64. LPIPS, PSNR, SSIM, Dice, MAE, RMSE,
    SAM and ERGAS compare each result with its source's target, and are means over results. Diversity (Li et
    al., BBDM, CVPR 2023) is the standard deviation over a source's results, without Bessel's correction,
    averaged over pixels, channels and sources.

    MAE, RMSE and diversity have the unit of the values, and PSNR and SSIM their range. SAM is in radians.
    With masks, only pixels inside count; a picture with none does not. A volume (C, D, H, W) is one picture,
    and its SSIM is that of the planes (H, W).

    :meth:`collect` adds the pictures of other processes. (The synchronisation of torchmetrics hangs or fails
    when processes have different numbers of batches.)

    Args:
        names: of metrics in :data:`METRICS`.
        samples: results of each source. Diversity needs at least 2.
        features: the network of FID, (B, 3, H, W) uint8 to (B, D); None for Inception.
        fid_weights: file of the weights that torch-fidelity publishes; None downloads them.
        lpips_net: the network of LPIPS.
        lpips_weights: file of torchvision's ImageNet weights for that network; None downloads them.
        device: where the metrics are computed.
        values: of targets and results.
        channels: of targets and results; 8-bit grey is compared as RGB.
        masked: whether pictures have masks.
        dice_above: values above it are compared by the Dice coefficient; bone is above 200 HU.
        per_channel: add a score ``NAME[i]`` of each channel i, from 0, of the metrics that channels have.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: an unknown name, too few samples, a metric that these pictures do not have, damaged
            weights, or a failed download.
    """

    def __init__(
        self,
        names: Sequence[str],
        samples: int = 1,
        *,
        features: nn.Module | None = None,
        fid_weights: Path | None = None,
        lpips_net: LPIPSNet = "alex",
        lpips_weights: Path | None = None,
        device: str | torch.device = "cpu",
        values: Values = EIGHT_BIT,
        channels: int = 3,
        masked: bool = False,
        dice_above: float = BONE,
        per_channel: bool = False,
    ) -> None:
        self._setup = Setup(values, channels, samples, features, fid_weights, lpips_net, lpips_weights, dice_above)
        self._masked = masked
        for name in names:
            self._check(name)
        if not names:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got none")
        self.device = torch.device(device)
        self._rows: dict[str, tuple[Kind, Setup, slice]] = {}  # of each score, with the channels that it is of
        for name in names:
            kind = METRICS[name]
            self._rows[name] = kind, self._setup, slice(None)
            for channel in range(channels if per_channel and channels > 1 and not kind.joint else 0):
                one = slice(channel, channel + 1)
                self._rows[f"{name}[{channel}]"] = kind, self._setup.of_channel(channel), one
        self.metrics: dict[str, Metric] = {
            name: kind.build(setup).to(self.device) for name, (kind, setup, _) in self._rows.items()
        }
        self._pictures = 0

    def _check(self, name: str) -> None:
        """Raise ValueError where there is no such metric, or these pictures do not have it."""
        setup = self._setup
        if name not in METRICS:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {name}")
        if METRICS[name].colour and not setup.colour:
            raise ValueError(
                f"{name} is of 8-bit grey or RGB pictures, and these have {setup.channels} channels of "
                f"{setup.values}: take others, such as mae, psnr, ssim"
            )
        if self._masked and METRICS[name].masks is None:
            able = ", ".join(name for name, kind in METRICS.items() if kind.masks)
            raise ValueError(f"{name} is of whole pictures, and these have masks: take others, such as {able}")
        if name == "diversity" and setup.samples < 2:
            raise ValueError(f"diversity needs at least 2 results of each source, got {setup.samples}")

    @torch.inference_mode()
    def update(self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None = None) -> None:
        """Add pictures (H, W) or volumes (D, H, W).

        Args:
            results: (B, S, C, *S), uint8 of 8-bit pictures, else floats in stored values.
            targets: (B, C, *S) of the same type.
            masks: (B, 1, *S), not 0 where pixels count; None where all do.

        Raises:
            ValueError: other shapes or types, or masks that a metric does not take.
        """
        self._check_given(results, targets, masks)
        results, targets = results.to(self.device), targets.to(self.device)
        masks = None if masks is None else masks.to(self.device) != 0
        if masks is not None and not (inside := masks.flatten(1).any(1)).all():
            results, targets, masks = results[inside], targets[inside], masks[inside]
        if self._setup.colour:
            results = results.expand(*results.shape[:2], 3, *results.shape[3:])
            targets = targets.expand(len(targets), 3, *targets.shape[2:])
        self._pictures += len(targets)
        for name, (kind, setup, channels) in self._rows.items() if len(targets) else ():
            if masks is not None and kind.masks is None:
                raise ValueError(f"{name} is of whole pictures, and these have masks")
            for part in _parts(kind, _Compared(results[:, :, channels], targets[:, channels], masks)):
                self.metrics[name].update(*_taken(kind, setup.values, part))

    def _check_given(self, results: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor | None) -> None:
        samples, channels = self._setup.samples, self._setup.channels
        channels = (1, 3) if self._setup.colour else (channels,)
        fits = results.ndim in (5, 6) and len(results) == len(targets) and results.shape[2:] == targets.shape[1:]
        if not fits or results.shape[1] != samples or results.shape[2] not in channels:
            wanted = max(channels)
            raise ValueError(
                f"results must be (B, {samples}, {wanted}, H, W) and targets (B, {wanted}, H, W), "
                f"got {tuple(results.shape)} and {tuple(targets.shape)}"
            )
        eight = self._setup.values == EIGHT_BIT
        if any((v.dtype == torch.uint8) != eight or not (eight or v.is_floating_point()) for v in (results, targets)):
            kind = "uint8" if eight else "floats in stored values"
            raise ValueError(f"pictures must be {kind}, got {results.dtype} and {targets.dtype}")
        if masks is not None and masks.shape != (len(targets), 1, *targets.shape[2:]):
            raise ValueError(f"masks must be {(len(targets), 1, *targets.shape[2:])}, got {tuple(masks.shape)}")

    def reset(self) -> None:
        """Forget all pictures."""
        self._pictures = 0
        for metric in self.metrics.values():
            metric.reset()

    def state(self) -> State:
        """The argument of :meth:`add` in another process, on the CPU."""
        counted = {
            name: {key: _moved(value, "cpu") for key, value in metric.metric_state.items() if key not in _CONSTANT}
            for name, metric in self.metrics.items()
        }
        return self._pictures, counted

    @torch.inference_mode()
    def add(self, state: State) -> None:
        """Add the pictures of other scores with the same metrics.

        Raises:
            ValueError: these scores have no pictures yet, which FID cannot start from.
        """
        pictures, counted = state
        if not pictures:
            return
        if not self._pictures:
            raise ValueError("scores need pictures of their own before those of others are added, got none")
        self._pictures += pictures
        for name, metric in self.metrics.items():
            for key, value in counted[name].items():  # Metric.merge_state reverses lists: other last bits of means
                setattr(metric, key, getattr(metric, key) + _moved(value, self.device))

    def collect(self, processes: Processes) -> None:
        """Add the pictures of all other processes to the first's; every process calls it."""
        _, *others = processes.gather(self.state())
        for state in others if processes.first else []:
            self.add(state)

    def compute(self) -> dict[str, float]:
        """The scores of all pictures so far.

        Raises:
            ValueError: there are none, or too few for FID.
        """
        if self._pictures < (2 if "fid" in self.metrics else 1):
            inside = " with pixels in their masks" if self._masked else ""
            raise ValueError(f"scores need pictures{inside}, FID at least 2; got {self._pictures}")
        return {name: metric.compute().item() for name, metric in self.metrics.items()}


def _moved(value: Counted, device: str | torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else [item.to(device) for item in value]


def _parts(kind: Kind, given: _Compared) -> Iterator[_Compared]:
    """Pictures as a metric takes them: masked pixels as a row, a volume as one picture or as its slices."""
    results, targets, masks = given
    if kind.masks == "pixels" and masks is not None:
        for result, target, mask in zip(results, targets, masks[:, 0], strict=True):
            yield _Compared(result[..., mask][None, :, :, None], target[..., mask][None, :, None])
    elif targets.ndim == 4 or kind.masks == "map":
        yield given
    elif kind.masks == "pixels":
        yield _Compared(results.flatten(3, 4), targets.flatten(2, 3))
    else:
        yield _Compared(results.movedim(3, 1).flatten(0, 1), targets.movedim(2, 1).flatten(0, 1))


def _taken(kind: Kind, values: Values, given: _Compared) -> tuple[Any, ...]:
    """The arguments of a metric's update."""
    results, targets, masks = given
    if kind.takes == "given":
        return results, targets
    samples = results.shape[1]
    flat = results.flatten(0, 1), targets.repeat_interleave(samples, dim=0)
    flat = tuple(v.float() if kind.takes == "stored" else _as_unit(v, values) for v in flat)
    if kind.masks != "map":
        return flat
    return *flat, None if masks is None else masks.repeat_interleave(samples, dim=0)


def _as_unit(stored: torch.Tensor, values: Values) -> torch.Tensor:
    """(N, C, *S) of stored values with their range as 0 to 1, clipped."""
    if values == EIGHT_BIT:
        return stored / 255
    low, high = (torch.tensor(v, dtype=torch.float32, device=stored.device) for v in (values.low, values.high))
    if low.ndim or high.ndim:  # of each channel
        low, high = (v.reshape(-1, *[1] * (stored.ndim - 2)) for v in (low, high))
    return ((stored - low) / (high - low)).clip(0, 1)
