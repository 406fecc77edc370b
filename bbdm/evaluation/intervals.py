"""Intervals around the values of results that hold the true ones, with a guarantee of how many they miss.

The lower and upper quantiles of some samples are moved apart by a number lambda, or the mean of the samples
gets lambda standard deviations on each side. Lambda is the least for which a bound of the risk is at most
alpha, on pairs that training has not seen. The risk is the expectation, over pictures that have values, of
the share of values outside.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.sizes import shown
from bbdm.evaluation import risk
from bbdm.evaluation.pairs import By, check_unseen, ends, measured
from bbdm.evaluation.risk import Bound, Losses
from bbdm.networks.conditions import DIRECTION
from bbdm.sampling.distribution import Distribution
from bbdm.sampling.options import GuidanceOptions

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.data.tables import MapStyle
    from bbdm.sampling.sampler import BridgeSampler

Array = npt.NDArray[Any]
FORMAT, VERSION = "bbdm intervals", 1
OPTIONS = tuple(each.name for each in fields(GuidanceOptions))  # of a call, which decide its results


class OtherSamplerError(ValueError):
    """Intervals were calibrated for another sampler."""


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
            NoLambdaError: all samples of too many values are equal.
            SeenPairsError: the pairs were in training, by the file that the sampler was loaded from or the
                folder of its run; see :func:`~bbdm.evaluation.pairs.check_unseen`.
            TooFewPairsError: too few pairs have values; the number that is needed is named.
            ValueError: two sets without pairs, a target that is not finite, or an argument is out of range.
        """
        from bbdm.data.pairs import as_pairs

        check_risk(alpha, delta, by, bound)
        if unknown := sorted(options.keys() - {*OPTIONS}):
            raise ValueError(f"calibrate takes {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}")
        options = asdict(GuidanceOptions(**options))
        examples = as_pairs(pairs)
        if not examples.paired:
            raise ValueError("pairs must be pairs, since results are compared with targets; got two sets without any")
        check_unseen(examples, sampler.origin)
        counts = np.diff(examples.ends, prepend=0).tolist()  # examples of each picture
        risk.allowed(alpha, delta, bound, len(counts))  # refuses too few before anything is sampled
        found = measured(sampler, examples, samples, by, alpha, seed, batch_size=batch_size, **options)
        pictures, sizes = list[Array](), set[tuple[int, ...]]()
        for count in tqdm(counts, "calibrating", unit="pair", disable=not progress):
            parts = [*islice(found, count)]
            pictures.append(np.concatenate([values for _, values in parts], axis=1))
            sizes |= {size for size, _ in parts}
        losses = Losses.of(pictures)
        lambda_ = losses.least_lambda(risk.allowed(alpha, delta, bound, losses.valued, losses.masked))
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
        checked = () if self.size is None else self.sampler._call(source, None, settings, split=False)[2].groups
        for _, images in checked:
            if (size := tuple(images.shape[2:])) != self.size:
                raise ValueError(
                    f"the intervals were calibrated on pictures of {shown(self.size or ())}, got {shown(size)}: "
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
    def load(cls, path: str | os.PathLike[str], sampler: BridgeSampler) -> Intervals:
        """The intervals in a file of :meth:`save`, for the sampler that they are of.

        Raises:
            FileNotFoundError: there is no such file.
            OtherSamplerError: they are of another solver, other steps, values or weights.
            ValueError: the file is damaged.
        """
        found = cls._read(path, sampler)
        if differing := manifest.differences(found.sampled, describe(sampler)):
            raise OtherSamplerError(f"{path} was calibrated for another sampler ({differing}): calibrate again")
        return found

    @classmethod
    def call_of(cls, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a file of :meth:`save` fixes of every use: solver, steps, samples, and windows and guidance.

        The names are those of a call's options, and ``samples``. A sampler that was given other times than
        those of its number of steps is known by :meth:`load` alone.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged.
        """
        found = cls._read(path, None)
        solver, times = found.sampled["solver"], found.sampled["timesteps"]
        return {"solver": solver, "steps": len(times), "samples": found.samples, **found.options}

    @classmethod
    def _read(cls, path: str | os.PathLike[str], sampler: Any) -> Intervals:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there are no intervals {path}: bbdm calibrate makes them")
        with manifest.reading(path, "calibrate again") as content:
            if content.pop("format") != FORMAT or content.pop("version") != VERSION:
                raise ValueError("another format")
            size, options, times = content["size"], content["options"], content["sampled"]["timesteps"]
            if isinstance(options["window"], list):
                options["window"] = tuple(options["window"])
            content |= {"size": size and tuple(size), "options": asdict(GuidanceOptions(**options))}
            if not times or options.keys() != {*OPTIONS} or not isinstance(content["sampled"]["solver"], str):
                raise ValueError("not all that decides a call")
            return cls(sampler, **content)


def describe(sampler: BridgeSampler) -> dict[str, Any]:
    """What decides the results of a sampler, as plain values: its weights by SHA-256."""
    from bbdm.networks.restore import state_hash
    from bbdm.translation.results import description

    about, kind = description(sampler, state_hash(sampler.unet.state_dict())), sampler.pictures
    about |= {"source_values": str(kind.source), "target_values": str(kind.target)}
    about |= {"slices": kind.slices} | ({"direction": sampler.direction} if sampler.direction else {})
    return manifest.as_json({**about, "crop": kind.crop})


def check_risk(alpha: Any, delta: Any, by: Any, bound: Any) -> None:
    """Raise ValueError unless both numbers are in (0, 1), and the others are known."""
    for name, value in (("alpha", alpha), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
    for name, value, known in (("by", by, get_args(By)), ("bound", bound, get_args(Bound))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
