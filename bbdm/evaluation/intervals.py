"""Intervals around the values of results that hold the true ones, with a guarantee of how many they miss.

The lower and upper quantiles of some samples are moved apart by a number lambda, or the mean of the samples
gets lambda standard deviations on each side. Lambda is the least for which a bound of the risk is at most
alpha, on pairs that training has not seen. The risk is the expectation, over pictures that have values, of
the share of values outside.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.sizes import shown
from bbdm.data.provenance import Trained
from bbdm.evaluation.calibration import Bound, Losses, allowed, check_unseen
from bbdm.networks.conditions import DIRECTION, read_direction
from bbdm.pictures.picture import scale
from bbdm.sampling.distribution import Distribution
from bbdm.sampling.options import GuidanceOptions

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.data.tables import MapStyle
    from bbdm.sampling.sampler import BridgeSampler

Array = npt.NDArray[Any]
By = Literal["quantiles", "std"]
FORMAT, VERSION = "bbdm intervals", 1
OPTIONS = tuple(each.name for each in fields(GuidanceOptions))  # of a call, which decide its results


@dataclass(frozen=True)
class Intervals:
    """Calibrated intervals of a sampler's results; :meth:`calibrate` and :meth:`load` make them.

    Attributes:
        sampler, alpha, delta, samples, by, bound: the arguments of :meth:`calibrate`.
        lambda_: how far both quantiles are moved, in values of [-1, 1]; or the number of standard deviations.
        pairs: the number of pairs that calibrated: those that have values.
        loss: the mean loss of these pairs.
        length: their mean length of the intervals, as a share of the range of values.
        size: the sides of their pictures; None where they had several sizes.
        sampled: what sampler they are of; another one is refused.
        options: windows and guidance of the sampler's calls.

    Raises:
        ValueError: a value is out of range.
    """

    sampler: BridgeSampler
    alpha: float
    delta: float
    samples: int
    by: By
    bound: Bound
    lambda_: float
    pairs: int
    loss: float
    length: float
    size: tuple[int, ...] | None
    sampled: dict[str, Any]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        check_risk(self.alpha, self.delta, self.by, self.bound)
        if not 0 <= self.lambda_ < math.inf:
            raise ValueError(f"lambda_ must be at least 0 and finite, got {self.lambda_!r}")

    @classmethod
    def calibrate(
        cls,
        sampler: BridgeSampler,
        pairs: Pairs | MapStyle,
        alpha: float = 0.1,
        delta: float = 0.1,
        samples: int = 16,
        by: By = "quantiles",
        bound: Bound = "hoeffding-bentkus",
        *,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Intervals:
        """Intervals whose risk is at most ``alpha``, with a probability of 1 - ``delta`` over the pairs.

        Args:
            sampler: with the solver and steps of later calls.
            pairs: of the kind that the sampler will be used on, and that training has not seen: a data set of
                this library, or any of items that :class:`~bbdm.data.pairs.MappedDataset` takes. The slices
                of a volume are one picture. Values outside a mask do not count, nor does a picture that is
                wholly masked.
            alpha: the largest risk, in (0, 1).
            delta: the probability that the guarantee fails, in (0, 1).
            samples: results of each source, at least 2.
            by: ``quantiles`` takes alpha/2 and 1 - alpha/2 of the samples, and moves both by lambda; ``std``
                takes lambda standard deviations around the mean.
            bound: ``hoeffding-bentkus``, or ``conformal`` for few pairs, where the risk is at most alpha in
                expectation over the pairs too, and delta counts for nothing.
            seed: sample j of pair i has the seed ``seed + i + j * len(pairs)``.
            batch_size: the largest number of results at once.
            progress: show the pairs that are done and the time left.
            options: ``window``, ``overlap`` and ``margin`` of the sampler's calls, or what guides them.

        Raises:
            ValueError: a pair or a group was in training, by the folder of the run of the file that the
                sampler was loaded from, see :func:`~bbdm.evaluation.calibration.check_unseen`; too few have
                values; all samples of too many values are equal; there are two sets without pairs, or a
                target is not finite; or an argument is out of range.
        """
        from bbdm.data.pairs import as_pairs
        from bbdm.translation.record import describe

        check_risk(alpha, delta, by, bound)
        if unknown := sorted(options.keys() - {*OPTIONS}):
            raise ValueError(f"calibrate takes {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}")
        options = asdict(GuidanceOptions(**options))
        examples = as_pairs(pairs)
        if not examples.paired:
            raise ValueError("pairs must be pairs, since results are compared with targets; got two sets without any")
        check_unseen(examples, None if sampler.origin is None else Trained.of_file(sampler.origin.path))
        counts = np.diff(examples.ends, prepend=0).tolist()  # examples of each picture
        allowed(alpha, delta, bound, len(counts))  # refuses too few before anything is sampled
        found = measured(sampler, examples, samples, by, alpha, seed, batch_size=batch_size, **options)
        pictures, sizes = list[Array](), set[tuple[int, ...]]()
        for count in tqdm(counts, "calibrating", unit="pair", disable=not progress):
            parts = [*islice(found, count)]
            pictures.append(np.concatenate([values for _, values in parts], axis=1))
            sizes |= {size for size, _ in parts}
        losses = Losses.of(pictures)
        lambda_ = losses.least_lambda(allowed(alpha, delta, bound, losses.valued, losses.masked))
        half = losses.uncertainty * lambda_ if by == "std" else losses.uncertainty / 2 + lambda_
        length = float((losses.weights * half.clip(0, 1)).sum())
        size = sizes.pop() if len(sizes) == 1 else None
        found = lambda_, losses.valued, losses.mean(lambda_), length, size, describe(sampler), options
        return cls(sampler, alpha, delta, samples, by, bound, *found)

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
        fixed = {"solver", "steps", "timesteps", "samples", "keep", "mask", *OPTIONS}
        fixed |= {DIRECTION} if self.sampler.direction else set()
        if refused := sorted(fixed & settings.keys()):
            raise ValueError(f"intervals are of the sampler as it was calibrated: {', '.join(refused)} cannot be given")
        return self.of(self.sample(source, seed, **settings))

    def sample(self, source: Any, seed: Any = None, **settings: Any) -> Distribution:
        """The samples that :meth:`of` takes, of sources whose size is checked before one is drawn."""
        settings |= self.options
        if self.size is not None:
            for group in self.sampler.read(source, 0, settings).groups:
                if group.size != self.size:
                    raise ValueError(
                        f"the intervals were calibrated on pictures of {shown(self.size)}, got {shown(group.size)}: "
                        "calibrate on pictures of this size"
                    )
        return self.sampler.distribution(source, self.samples, seed, keep=self.by == "quantiles", **settings)

    def of(self, distribution: Distribution) -> tuple[Any, Any]:
        """The ends of the intervals of a distribution, of :meth:`sample`."""
        if distribution.count != self.samples:
            raise ValueError(f"the intervals are of {self.samples} samples, got {distribution.count}")
        lows, highs = list[Array](), list[Array]()
        for low, high, uncertainty in ends(distribution, self.by, self.alpha):
            wider = self.lambda_ * (uncertainty if self.by == "std" else np.ones(low.shape))
            lows.append((low - wider).clip(-1, 1))
            highs.append((high + wider).clip(-1, 1))
        return distribution.restored(lows), distribution.restored(highs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        content = {name: value for name, value in vars(self).items() if name != "sampler"}
        manifest.write(Path(path), {"format": FORMAT, "version": VERSION, **content})

    @classmethod
    def load(cls, path: str | os.PathLike[str], sampler: BridgeSampler | None) -> Intervals:
        """The intervals in a file of :meth:`save`, for the sampler that they are of.

        Args:
            path: the file of the intervals.
            sampler: with the solver and steps of the calibration; None to read what the file says alone.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: they are of another solver, other steps, values or weights, or the file is damaged.
        """
        from bbdm.translation.record import describe

        path, of = Path(path), cast("BridgeSampler", sampler)
        if not path.is_file():
            raise FileNotFoundError(f"there are no intervals {path}: bbdm calibrate makes them")
        with manifest.reading(path, "calibrate again") as content:
            if content.pop("format") != FORMAT or content.pop("version") != VERSION:
                raise ValueError("another format")
            size, options, times = content["size"], content["options"], content["sampled"]["timesteps"]
            if isinstance(options["window"], list):
                options["window"] = tuple(options["window"])
            content |= {"size": size and tuple(size), "options": asdict(GuidanceOptions(**options))}
            if not isinstance(times, list) or not isinstance(content["sampled"]["solver"], str):
                raise ValueError("no solver with its timesteps")
            if not times or options.keys() != {*OPTIONS}:
                raise ValueError("not all that decides a call")
            found = cls(of, **content)
        if sampler is not None and (differing := manifest.differences(found.sampled, describe(sampler))):
            raise ValueError(f"{path} was calibrated for another sampler ({differing}): calibrate again")
        return found

    @property
    def fixed(self) -> dict[str, Any]:
        """What they fix of every use, by the names of a call's options: solver, steps, windows and guidance.

        A sampler that was given other times than those of its number of steps is known by :meth:`load` alone.
        """
        return {"solver": self.sampled["solver"], "steps": len(self.sampled["timesteps"]), **self.options}


def file_of(model: Path) -> Path:
    """The file of the intervals of a network's file: ``OUT.intervals.json`` of ``OUT.pt``."""
    return model.with_name(f"{model.stem}.intervals.json")


def check_risk(alpha: Any, delta: Any, by: Any, bound: Any) -> None:
    """Raise ValueError unless both numbers are in (0, 1), and the others are known."""
    for name, value in (("alpha", alpha), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
    for name, value, known in (("by", by, get_args(By)), ("bound", bound, get_args(Bound))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")


def ends(distribution: Distribution, by: By, alpha: float) -> Iterator[tuple[Array, Array, Array]]:
    """Of each image (C, *S), in [-1, 1]: the ends of the interval at lambda 0, and the uncertainty.

    By quantiles of alpha/2 and 1 - alpha/2 it is their distance, by standard deviation it is that one.
    """
    if by == "std":
        yield from zip(distribution.scaled_mean, distribution.scaled_mean, distribution.scaled_std, strict=True)
    else:
        levels = (alpha / 2, 1 - alpha / 2)
        for low, high in zip(*map(distribution.scaled_quantile, levels), strict=True):
            yield low, high, high - low


def measured(
    sampler: BridgeSampler,
    pairs: Pairs,
    samples: int,
    by: By,
    alpha: float,
    seed: int,
    **options: Any,
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Of each pair, its sides, and (2, values) of those that count.

    They are the lambda from which on a value of its target is inside its interval, and the uncertainty. Where
    no value counts, nothing is sampled.

    Raises:
        ValueError: a target is not finite, has another shape than results, or is of another direction.
    """
    for index in range(len(pairs)):
        example, conditions = pairs.read(index), dict[str, Any].fromkeys(sampler.shapes.conditions.each)
        target, name = scale(example.target).numpy(), f"the target of pair {index}"
        counts = np.broadcast_to(True if example.mask is None else example.mask.numpy() != 0, target.shape)
        if not np.isfinite(target[counts]).all():
            raise ValueError(f"{name} {example.name!r} has NaN or infinity".replace(" ''", ""))
        if not counts.any():
            yield target.shape[1:], np.zeros((2, 0), np.float32)
            continue
        for key, value in example.conditions.items():
            conditions[key] = (scale(value) if value.ndim > 2 else value).numpy()[None]
        if (way := sampler.direction) is not None:
            own = way if conditions[DIRECTION] is None else read_direction(conditions[DIRECTION])
            if own != way:
                raise ValueError(f"pair {index} is of direction {own}, and must be of the sampler's, {way}")
            conditions[DIRECTION] = way
        seeds = [[seed + index + j * len(pairs) for j in range(samples)]]
        options |= {"keep": by == "quantiles", "conditions": conditions or None}
        drawn = sampler.distribution(scale(example.source).numpy()[None], samples, seeds, **options)
        ((low, high, uncertainty),) = ends(drawn, by, alpha)
        if low.shape != target.shape:
            raise ValueError(f"{name} must have shape {low.shape}, got {target.shape}")
        excess = np.maximum(np.maximum(low - target, target - high), 0)
        if by == "std":
            with np.errstate(divide="ignore", invalid="ignore"):
                excess = np.where(excess > 0, excess / uncertainty, 0)
        yield target.shape[1:], np.stack([excess, uncertainty])[:, counts].astype(np.float32)
