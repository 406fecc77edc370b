"""Intervals around the values of results that hold the true ones, with a guarantee of how many they miss.

The lower and upper quantiles of some samples are moved apart by a number lambda, or the mean of the samples
gets lambda standard deviations on each side. Lambda is the least for which a bound of the risk is at most
alpha, on pairs that training has not seen. The risk is the expectation, over pictures, of the share of values
outside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.sizes import shown
from bbdm.evaluation import risk
from bbdm.evaluation.excess import Measure, ends, units_of
from bbdm.evaluation.risk import Bound, Groups, Losses
from bbdm.evaluation.unseen import check_unseen
from bbdm.sampling.distribution import Distribution

if TYPE_CHECKING:
    from bbdm.data.mapped import MapStyle
    from bbdm.data.pairs import Pairs
    from bbdm.sampling.base import Sampler

Array = npt.NDArray[Any]
By = Literal["quantiles", "std"]
FORMAT, VERSION = "bbdm intervals", 1
FITTED = 4  # of so many pairs, one chooses the groups' lambdas, and the others calibrate
# The arguments of a call that decide its results
CALL = {"window", "overlap", "margin", "guidance", "guidance_rescale", "guidance_interval"}


class OtherSamplerError(ValueError):
    """Intervals were calibrated for another sampler."""


@dataclass(frozen=True)
class Intervals:
    """Calibrated intervals of a sampler's results; :meth:`calibrate` and :meth:`load` make them.

    Attributes:
        sampler: what makes the samples.
        alpha: the risk that is guaranteed.
        delta: the share of calibrations that may fail.
        samples: results of each source.
        by: what the intervals are made of.
        bound: the bound of the risk.
        edges: the uncertainties between the groups of values; none for one group.
        lambdas: that of each group.
        pairs: the number of pairs that calibrated.
        loss: the mean loss of these pairs.
        length: their mean length of the intervals, as a share of the range of values.
        size: the sides of their pictures; None where they had several sizes.
        data: SHA-256 of all pairs.
        sampled: what sampler they are of; another one is refused.
        windows: arguments of the sampler's calls.
    """

    sampler: Sampler[Any]
    alpha: float
    delta: float
    samples: int
    by: By
    bound: Bound
    edges: tuple[float, ...]
    lambdas: tuple[float, ...]
    pairs: int
    loss: float
    length: float
    size: tuple[int, ...] | None
    data: str
    sampled: dict[str, Any]
    windows: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(
        cls,
        sampler: Sampler[Any],
        pairs: Pairs | MapStyle,
        alpha: float = 0.1,
        delta: float = 0.1,
        samples: int = 16,
        by: By = "quantiles",
        bound: Bound = "hoeffding-bentkus",
        groups: int = 1,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool | Callable[[int, int], Any] = False,
        folder: str | os.PathLike[str] | None = None,
        **windows: Any,
    ) -> Intervals:
        """Intervals whose risk is at most ``alpha``, with a probability of 1 - ``delta`` over the pairs.

        With several groups, one of four pairs chooses the lambda of each group so that intervals are short,
        and the others calibrate one number that is added to all. The guarantee is of all values of a picture
        together, as with one group; none is given of a group alone.

        Args:
            sampler: with the solver and steps of later calls.
            pairs: of the kind that the sampler will be used on, and that training has not seen: a data set of
                this library, or any of items that :class:`~bbdm.data.mapped.MappedDataset` takes. The slices
                of a volume are one picture. Values outside a mask do not count.
            alpha: the largest risk, in (0, 1).
            delta: the probability that the guarantee fails, in (0, 1).
            samples: results of each source, at least 2.
            by: ``quantiles`` takes alpha/2 and 1 - alpha/2 of the samples, and moves both by lambda; ``std``
                takes lambda standard deviations around the mean.
            bound: ``hoeffding-bentkus``, or ``conformal`` for few pairs, where the risk is at most alpha in
                expectation over the pairs too, and delta counts for nothing.
            groups: of values by their uncertainty, at least 1.
            seed: sample j of pair i has the seed ``seed + i + j * len(pairs)``.
            batch_size: the largest number of results at once.
            progress: show the pairs that are done and the time left; or a function that gets the number of
                pairs that are done and that of all.
            folder: what is measured of each pair is kept there, so that a calibration that was interrupted
                resumes; None for none.
            windows: ``window``, ``overlap`` and ``margin`` of the sampler's calls, or what guides them.

        Raises:
            ResultsError: the folder is of another calibration.
            SeenPairsError: the pairs were in training, by the file that the sampler was loaded from or the
                folder of its run; see :func:`~bbdm.evaluation.unseen.check_unseen`.
            ValueError: too few pairs, whose needed number is named; a target that is not finite; or an
                argument is out of range.
        """
        from bbdm.data.mapped import as_pairs

        _check(alpha, delta, by, bound, groups)
        if unknown := windows.keys() - CALL:
            raise ValueError(f"calibrate takes {', '.join(sorted(CALL))}, got {', '.join(sorted(unknown))}")
        examples = as_pairs(pairs)
        check_unseen(examples, sampler.origin)
        units = units_of(examples)
        fitted = len(range(0, len(units), FITTED)) if groups > 1 else 0
        if len(units) - fitted < (least := risk.needed(alpha, delta, bound)):
            total = next(n for n in range(len(units), 2 * least + 4) if n - (n + 3) // FITTED * (groups > 1) >= least)
            raise ValueError(
                f"alpha {alpha:g} and delta {delta:g} need at least {total} pairs by the bound {bound!r} with "
                f"groups={groups}, got {len(units)}"
            )
        about = describe(sampler)
        levels = (alpha / 2, 1 - alpha / 2) if by == "quantiles" else None
        measure = Measure(sampler, examples, units, samples, levels, seed, {"batch_size": batch_size, **windows})
        images = list(_shown(measure.all({**about, **windows}, folder), len(units), progress))
        chosen = Groups((), (0.0,))
        calibrating = images
        if groups > 1:
            calibrating = [image for i, image in enumerate(images) if i % FITTED]
            target = risk.allowed(alpha, delta, bound, len(calibrating))
            chosen = risk.shortest(Losses.of(images[::FITTED]), groups, target, by == "std")
        losses = Losses.of(calibrating)
        chosen = chosen.calibrated(losses, risk.allowed(alpha, delta, bound, len(calibrating)))
        lambdas = chosen.at(losses.uncertainty)
        half = losses.uncertainty * lambdas if by == "std" else losses.uncertainty / 2 + lambdas
        return cls(
            sampler,
            alpha,
            delta,
            samples,
            by,
            bound,
            *chosen,
            pairs=len(calibrating),
            loss=chosen.loss(losses),
            length=float((losses.weights * half.clip(0, 1)).sum()),
            size=measure.size,
            data=measure.digest.hexdigest(),
            sampled=about,
            windows=windows,
        )

    def __call__(self, source: Any, seed: Any = None, **settings: Any) -> tuple[Any, Any]:
        """The lower and upper ends of the intervals of sources.

        Args:
            source: what the sampler takes.
            seed: of the samples, for :meth:`bbdm.BridgeSampler.distribution`.
            settings: further arguments of it, such as ``batch_size`` and ``conditions``, which do not change
                how the sampler samples.

        Returns:
            Two results, low and high, as the sampler's calls return results. Values are within their range.

        Raises:
            ValueError: the pictures have another size than those that calibrated, or a setting is another.
        """
        fixed = {"solver", "steps", "timesteps", "keep", *CALL}
        if given := sorted(fixed & settings.keys()):
            raise ValueError(f"intervals are of the sampler as it was calibrated: {', '.join(given)} cannot be given")
        made = self.sampler.distribution(
            source, self.samples, seed, keep=self.by == "quantiles", **self.windows, **settings
        )
        return self.of(made)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError for results of another size than that of the calibration; None of it is any."""
        if self.size is not None and tuple(size) != self.size:
            sizes = [shown(each) for each in (self.size, size)]
            raise ValueError(
                f"the intervals were calibrated on pictures of {sizes[0]}, got {sizes[1]}: calibrate on pictures of "
                "this size"
            )

    def of(self, distribution: Distribution) -> tuple[Any, Any]:
        """The ends of the intervals of a distribution that the sampler made with as many samples."""
        if distribution.count != self.samples:
            raise ValueError(f"the intervals are of {self.samples} samples, got {distribution.count}")
        groups = Groups(self.edges, self.lambdas)
        levels = (self.alpha / 2, 1 - self.alpha / 2) if self.by == "quantiles" else None
        lows: list[Array] = []
        highs: list[Array] = []
        for low, high, uncertainty in zip(*ends(distribution, levels), strict=True):
            self.check_size(low.shape[1:])
            wider = groups.at(uncertainty) * (1 if levels else uncertainty)
            lows.append((low - wider).clip(-1, 1))
            highs.append((high + wider).clip(-1, 1))
        return distribution.restored(lows), distribution.restored(highs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        content = {name: value for name, value in vars(self).items() if name != "sampler"}
        manifest.write(Path(path), {"format": FORMAT, "version": VERSION, **content})

    @classmethod
    def load(cls, path: str | os.PathLike[str], sampler: Sampler[Any]) -> Intervals:
        """The intervals in a file of :meth:`save`, for the sampler that they are of.

        Raises:
            FileNotFoundError: there is no such file.
            OtherSamplerError: they are of another solver, other steps, values or weights.
            ValueError: the file is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there are no intervals {path}: bbdm calibrate makes them")
        with manifest.reading(path, "calibrate again") as content:
            if content.pop("format") != FORMAT or content.pop("version") > VERSION:
                raise ValueError("another format")
            content |= {name: tuple(content[name]) for name in ("edges", "lambdas")}
            content["size"] = None if content["size"] is None else tuple(content["size"])
            found = cls(sampler, **content)
            _check(found.alpha, found.delta, found.by, found.bound, len(found.lambdas))
            if len(found.edges) != len(found.lambdas) - 1 or not np.isfinite([*found.edges, *found.lambdas]).all():
                raise ValueError("lambdas of other groups")
        if differing := manifest.differences(found.sampled, describe(sampler)):
            raise OtherSamplerError(f"{path} was calibrated for another sampler ({differing}): calibrate again")
        return found


def describe(sampler: Sampler[Any]) -> dict[str, Any]:
    """What decides the results of a sampler, as plain values: its weights by SHA-256."""
    export: dict[str, Any] | None = getattr(sampler, "settings", None)
    if export is not None:
        weights = hashlib.sha256(json.dumps(export["files"], sort_keys=True).encode()).hexdigest()
        network = {"weights": weights, "bridge": export["bridge"], "dtype": export["dtype"]}
    else:
        from bbdm.networks.restore import state_hash

        torch_sampler: Any = sampler
        codec = torch_sampler.codec
        network = {
            "weights": state_hash(torch_sampler.unet.state_dict()),
            "codec": None if codec is None else codec.digest(),
            "bridge": torch_sampler.bridge.config(),
            "dtype": str(torch_sampler.dtype).removeprefix("torch."),
            "clamp": torch_sampler.clamp,
        }
    kind = sampler.pictures
    values = {"source_values": str(kind.source), "target_values": str(kind.target), "slices": kind.slices}
    times = sampler.table.timesteps.tolist()
    return manifest.as_json({**network, **values, "crop": kind.crop, "solver": sampler.solver, "timesteps": times})


def _check(alpha: float, delta: float, by: str, bound: str, groups: int) -> None:
    """Raise ValueError where an argument is out of range."""
    for name, value in (("alpha", alpha), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
    for name, value, known in (("by", by, get_args(By)), ("bound", bound, get_args(Bound))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be an integer of at least 1, got {groups!r}")


def _shown(images: Iterator[Array], total: int, progress: bool | Callable[[int, int], Any]) -> Iterator[Array]:
    """The images, whose progress is shown."""
    report = progress if callable(progress) else None
    with tqdm(images, "calibrating", total, unit="pair", disable=progress is not True) as bar:
        for done, image in enumerate(bar, 1):
            yield image
            if report is not None:
                report(done, total)
