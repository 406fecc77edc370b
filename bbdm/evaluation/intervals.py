"""Intervals around the values of results that hold the true ones, with a guarantee of how many they miss.

The lower and upper quantiles of some samples are moved apart by a number lambda, or the mean of the samples
gets lambda standard deviations on each side. Lambda is the least for which a bound of the risk is at most
alpha, on pairs that training has not seen. The risk is the expectation, over pictures that have values, of
the share of values outside.

What is compared are values as files store them. No result is beyond the range of values, so an end there is
open: a low end of -1024 HU means that or less. :func:`inside_intervals` compares so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from bbdm.base import manifest
from bbdm.base.progress import Shown, counted
from bbdm.base.sizes import shown
from bbdm.data.scaling import off_nodata
from bbdm.data.trained import Trained
from bbdm.evaluation.calibration import Bound, Ends, Losses, allowed, check_unseen
from bbdm.networks.conditions import DIRECTION, read_direction
from bbdm.pictures.picture import scale
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values
from bbdm.sampling.distribution import Distribution
from bbdm.sampling.options import GuidanceOptions

if TYPE_CHECKING:
    from bbdm.data.examples import Example
    from bbdm.data.pairs import Pairs
    from bbdm.data.tables import MapStyle
    from bbdm.sampling.sampler import BridgeSampler

Array = npt.NDArray[Any]
By = Literal["quantiles", "std"]
FORMAT = "bbdm intervals"
VERSION = 1
# of a call, which decide its results
OPTIONS = tuple(field.name for field in fields(GuidanceOptions))


@dataclass(frozen=True)
class Intervals:
    """Calibrated intervals of a sampler's results; :meth:`calibrate` and :meth:`load` make them.

    Attributes:
        sampler, alpha, delta, samples, by, bound: the arguments of :meth:`calibrate`.
        lambda_: how far both quantiles are moved, in values of [-1, 1]; or the number of standard deviations.
        pairs: the number of pairs that calibrated: those that have values.
        loss: the mean loss of these pairs.
        length: the mean length of the intervals that are returned of these pairs, as a share of the range of
            values; before they are rounded, where results are integers.
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
        progress: Shown = False,
        **options: Any,
    ) -> Intervals:
        """Intervals whose risk is at most ``alpha``, with a probability of 1 - ``delta`` over the pairs.

        Args:
            sampler: with the solver and steps of later calls.
            pairs: of the kind that the sampler will be used on, and that training has not seen: a data set of
                this library, or any of items that :class:`~bbdm.data.mapped.MappedDataset` takes. The slices
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
            ValueError: a pair or a group was in training, by the run of the file that the sampler was loaded
                from, see :func:`~bbdm.evaluation.calibration.check_unseen`; too few have
                values; all samples of too many values are equal; there are two sets without pairs, or a
                target is not finite; or an argument is out of range.
        """
        from bbdm.data.mapped import as_pairs
        from bbdm.translation.record import describe

        check_risk(alpha, delta, by, bound)
        unknown = sorted(options.keys() - {*OPTIONS})
        if unknown:
            raise ValueError(
                f"calibrate takes {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}"
            )
        options = asdict(GuidanceOptions(**options))
        examples = as_pairs(pairs)
        if not examples.paired:
            raise ValueError(
                "pairs must be pairs, since results are compared with targets; got two sets without any"
            )
        check_unseen(examples, Trained.of_origin(sampler.origin))
        counts = np.diff(examples.ends, prepend=0).tolist()  # examples of each picture
        allowed(alpha, delta, bound, len(counts))  # refuses too few before anything is sampled
        parts = measured(
            sampler, examples, samples, by, alpha, seed, batch_size=batch_size, **options
        )
        pictures: list[list[Measured]] = []
        for count in counted(counts, "calibrating", len(counts), "pairs", progress):
            pictures.append([*islice(parts, count)])
        losses = Losses.of(
            [np.concatenate([part.excess for part in picture]) for picture in pictures]
        )
        lambda_ = losses.least_lambda(allowed(alpha, delta, bound, losses.valued, losses.masked))
        sizes = {part.size for picture in pictures for part in picture}
        return cls(
            sampler=sampler,
            alpha=alpha,
            delta=delta,
            samples=samples,
            by=by,
            bound=bound,
            lambda_=lambda_,
            pairs=losses.valued,
            loss=losses.mean(lambda_),
            length=_mean_length(pictures, lambda_),
            size=sizes.pop() if len(sizes) == 1 else None,
            sampled=describe(sampler),
            options=options,
        )

    def __call__(self, source: Any, seed: Any = None, **settings: Any) -> tuple[Any, Any]:
        """The lower and upper ends of the intervals of sources.

        Args:
            source: what the sampler takes.
            seed: of the samples, for :meth:`bbdm.BridgeSampler.distribution`.
            settings: further arguments of it, such as ``batch_size`` and ``conditions``, which do not change
                how the sampler samples.

        Returns:
            Two results, low and high, as the sampler's calls return results. Values are within their range;
            a low end at the lowest value of the range means that or less, a high end at the highest that or
            more; see :func:`inside_intervals`.

        Raises:
            ValueError: the pictures have another size than those that calibrated, or a setting is another.
        """
        fixed = {"solver", "steps", "timesteps", "samples", "keep", "mask", *OPTIONS}
        if self.sampler.direction:
            fixed.add(DIRECTION)
        refused = sorted(fixed & settings.keys())
        if refused:
            raise ValueError(
                f"intervals are of the sampler as it was calibrated: {', '.join(refused)} cannot be given"
            )
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
        return self.sampler.distribution(
            source, self.samples, seed, keep=self.by == "quantiles", **settings
        )

    def of(self, distribution: Distribution) -> tuple[Any, Any]:
        """The ends of the intervals of a distribution, of :meth:`sample`."""
        if distribution.count != self.samples:
            raise ValueError(
                f"the intervals are of {self.samples} samples, got {distribution.count}"
            )
        lows: list[Array] = []
        highs: list[Array] = []
        for pair in ends(distribution, self.by, self.alpha):
            low, high = pair.at(self.lambda_)
            lows.append(low)
            highs.append(high)
        # away from a nodata
        return distribution.restored(lows, down=True), distribution.restored(highs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, atomically."""
        names = [field.name for field in fields(self) if field.name != "sampler"]
        content = {name: getattr(self, name) for name in names}
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

        path = Path(path)
        of = cast("BridgeSampler", sampler)
        if not path.is_file():
            raise FileNotFoundError(f"there are no intervals {path}: bbdm calibrate makes them")
        with manifest.reading(path, "calibrate again") as content:
            if content.pop("format") != FORMAT or content.pop("version") != VERSION:
                raise ValueError("another format")
            size = content["size"]
            options = content["options"]
            times = content["sampled"]["timesteps"]
            if isinstance(options["window"], list):
                options["window"] = tuple(options["window"])
            content |= {"size": size and tuple(size), "options": asdict(GuidanceOptions(**options))}
            if not isinstance(times, list) or not isinstance(content["sampled"]["solver"], str):
                raise ValueError("no solver with its timesteps")
            if not times or options.keys() != {*OPTIONS}:
                raise ValueError("not all that decides a call")
            intervals = cls(of, **content)
        if sampler is not None and (
            differing := manifest.differences(intervals.sampled, describe(sampler))
        ):
            raise ValueError(
                f"{path} was calibrated for another sampler ({differing}): calibrate again"
            )
        return intervals

    @property
    def fixed(self) -> dict[str, Any]:
        """What they fix of every use, by the names of a call's options: solver, steps, windows and guidance.

        A sampler that was given other times than those of its number of steps is known by :meth:`load` alone.
        """
        return {
            "solver": self.sampled["solver"],
            "steps": len(self.sampled["timesteps"]),
            **self.options,
        }


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


def inside_intervals(
    target: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, values: Values
) -> npt.NDArray[np.bool_]:
    """Whether stored values lie in returned intervals, of which ends at the end of the range are open.

    Args:
        target: (C, *S) of stored values.
        low: (C, *S) of stored values, as :class:`Intervals` returns it of arrays and pictures.
        high: the same of the other end.
        values: the range of results, such as ``sampler.pictures.target_values``.

    Returns:
        (C, *S). Where a picture has no value, it says nothing.
    """
    target = np.asarray(target)
    axes = target.ndim - 1
    nodata = getattr(low, "nodata", None)
    ones = np.ones(target.shape, np.float32)
    # that a low end can have
    lowest = off_nodata(values.stored(-ones, axes), nodata, values, down=True)
    highest = off_nodata(values.stored(ones, axes), nodata, values)
    above_low = (target >= low) | (np.asarray(low) <= lowest)
    below_high = (target <= high) | (np.asarray(high) >= highest)
    return above_low & below_high


def ends(distribution: Distribution, by: By, alpha: float) -> Iterator[Ends]:
    """The ends of the intervals of each image (C, *S): its mean, or its quantiles alpha/2 and 1 - alpha/2."""
    if by == "std":
        for mean, deviation in zip(distribution.scaled_mean, distribution.scaled_std, strict=True):
            yield Ends(mean, mean, deviation)
    else:
        lows = distribution.scaled_quantile(alpha / 2)
        highs = distribution.scaled_quantile(1 - alpha / 2)
        for low, high in zip(lows, highs, strict=True):
            yield Ends(low, high, np.ones(low.shape))


class Measured(NamedTuple):
    """An example's values that count, (V,) in float32."""

    size: tuple[int, ...]  # the sides of the example
    excess: Array  # the lambda from which on a value of the target is inside its interval
    ends: Ends


def measured(
    sampler: BridgeSampler,
    pairs: Pairs,
    samples: int,
    by: By,
    alpha: float,
    seed: int,
    **options: Any,
) -> Iterator[Measured]:
    """What is known of each example of pairs. Where no value counts, nothing is sampled.

    Raises:
        ValueError: a target is not finite, has another shape than results, or is of another direction.
    """
    results = sampler.pictures.target
    integers = results is not None and np.dtype(results.dtype).kind != "f"
    nothing = np.zeros(0, np.float32)
    for index in range(len(pairs)):
        example = pairs.read(index, stored=True)
        lower, upper = _reached(example, pairs.spec.target, integers)
        size = lower.shape[1:]
        counts = np.ones(lower.shape, bool)
        if example.mask is not None:
            counts &= example.mask.numpy() != 0
        if not np.isfinite(lower[counts]).all():
            raise ValueError(
                f"the target of pair {index} {example.name!r} has NaN or infinity".replace(
                    " ''", ""
                )
            )
        if not counts.any():
            yield Measured(size, nothing, Ends(nothing, nothing, nothing))
            continue
        conditions = _conditions(sampler, example, index)
        seeds = [[seed + index + j * len(pairs) for j in range(samples)]]
        options |= {"keep": by == "quantiles", "conditions": conditions or None}
        distribution = sampler.distribution(
            scale(example.source).numpy()[None], samples, seeds, **options
        )
        (interval_ends,) = ends(distribution, by, alpha)
        if interval_ends.low.shape != lower.shape:
            raise ValueError(
                f"the target of pair {index} must have shape {interval_ends.low.shape}, got {lower.shape}"
            )
        excess = interval_ends.lambda_of(lower, upper)[counts].astype(np.float32)
        yield Measured(
            size, excess, Ends(*(values[counts].astype(np.float32) for values in interval_ends))
        )


def _mean_length(pictures: Sequence[Sequence[Measured]], lambda_: float) -> float:
    """The mean over pictures that have values of the mean length of their intervals, a share of the range."""
    lengths: list[float] = []
    for picture in pictures:
        total = 0.0
        count = 0
        for part in picture:
            low, high = part.ends.at(lambda_)
            total += float((high - low).sum(dtype=np.float64))
            count += low.size
        if count:
            lengths.append(total / count / 2)
    return math.fsum(lengths) / len(lengths)


def _reached(example: Example, values: AnyValues | None, integers: bool) -> tuple[Array, Array]:
    """What the low and the high end of an interval reach where it holds the target, (C, *S) in [-1, 1].

    A stored value beyond the range is reached by the end of the range, which is open. Where results are
    ``integers``, a value between two of them lies between ends that are rounded if they reach both.
    """
    stored = example.stored
    if values is None and stored is not None and stored.dtype == np.uint8:
        values = EIGHT_BIT
    if stored is None or not isinstance(values, Values):
        target = scale(example.target).numpy().clip(-1, 1)
        return target, target
    axes = stored.ndim - 1
    if integers and stored.dtype.kind == "f":
        return values.scaled(np.floor(stored), axes), values.scaled(np.ceil(stored), axes)
    target = values.scaled(stored, axes)
    return target, target


def _conditions(sampler: BridgeSampler, example: Example, index: int) -> dict[str, Any]:
    """The conditions of a call by name, of the example of pair ``index``; None for what it has not.

    Raises:
        ValueError: it is of another direction than the sampler.
    """
    conditions = dict[str, Any].fromkeys(sampler.shapes.conditions.each)
    for name, value in example.conditions.items():
        if value.ndim > 2:
            value = scale(value)
        conditions[name] = value.numpy()[None]
    direction = sampler.direction
    if direction is None:
        return conditions
    of_pair = conditions[DIRECTION]
    if of_pair is not None and read_direction(of_pair) != direction:
        other = read_direction(of_pair)
        raise ValueError(
            f"pair {index} is of direction {other}, and must be of the sampler's, {direction}"
        )
    conditions[DIRECTION] = direction
    return conditions
