"""Values: which stored values of a picture are -1 and 1, their unit, and the type that results are stored in.

Nothing here imports torch; the functions take NumPy arrays and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

EXACT = 2**24  # integers up to here are exact in float32
LARGEST_SAMPLE = 2**22  # values of which percentiles are taken; of larger pictures, an even share
Level = float | tuple[float, ...]  # of all channels, or one for each


@dataclass(frozen=True)
class Values:
    """A range of stored values: ``low`` becomes -1 and ``high`` 1, linearly, and back.

    Values outside the range are clipped to it.

    Args:
        low: the stored value of -1, or one for each channel.
        high: the stored value of 1, or one for each channel.
        unit: of stored values, such as ``HU``; for messages, metrics and files.
        dtype: the NumPy type that results are stored in.

    Raises:
        ValueError: low is not below high, they are not finite or have other counts, or the type is not one of
            real numbers; or an integer type has more levels in the range than float32 can tell apart.
    """

    low: Level
    high: Level
    unit: str = ""
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            level = getattr(self, name)
            try:
                level = tuple(map(float, level)) if isinstance(level, tuple | list) else float(level)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} must be a number, or one for each channel, got {level!r}") from error
            if not np.isfinite(level).all() or level == ():
                raise ValueError(f"{name} must be finite, got {level!r}")
            object.__setattr__(self, name, level)
        low, high = (np.atleast_1d(level) for level in (self.low, self.high))
        if len({len(low), len(high)} - {1}) > 1:
            raise ValueError(f"values must have as many low as high levels, got {len(low)} and {len(high)}")
        if not (low < high).all():
            raise ValueError(f"values must have low below high, got {self}")
        kind = np.dtype(self.dtype)
        if kind.kind not in "uif":
            raise ValueError(f"values must be stored as real numbers, got {kind}")
        object.__setattr__(self, "dtype", kind.name)
        if kind.kind != "f":
            if max((high - low).max(), abs(low).max(), abs(high).max()) > EXACT:
                found = f"values {self} of {kind} need more than {EXACT} levels, which float32 cannot tell apart"
                raise ValueError(f"{found}: give a narrower range around 0")
            limits = np.iinfo(kind)
            if low.min() < limits.min or high.max() > limits.max:
                raise ValueError(f"values {self} do not fit into {kind}, which ends at {limits.min} and {limits.max}")

    def stored_like(self, dtype: np.dtype[Any]) -> Values:
        """These values with results of a file's type, where it holds the levels; of floats float32."""
        levels = [*np.atleast_1d(self.low), *np.atleast_1d(self.high)]
        if dtype.kind == "f":
            return replace(self, dtype="float32")
        return replace(self, dtype=dtype.name) if all(holds(dtype, level) for level in levels) else self

    def of(self, array: npt.NDArray[Any]) -> Values:
        """The values of one picture (C, *S): these."""
        return self

    def scaled(self, array: Any, axes: int = 2) -> Any:
        """(..., C, *S) of stored values as float32 in [-1, 1]; ``axes`` is the number of axes of S.

        Raises:
            ValueError: there are ranges for another number of channels.
        """
        low, half = _levels(self.low, self.high, axes)
        if half.size > 1 and half.size != array.shape[-1 - axes]:
            raise ValueError(f"it has {array.shape[-1 - axes]} channels, and there are values of {half.size}")
        if isinstance(array, np.ndarray):
            scaled = array.astype(np.float32) - low
        else:
            import torch

            low, half = (torch.as_tensor(level, device=array.device) for level in (low, half))
            scaled = array.float() - low
        scaled /= half  # of tensors a tensor: CUDA multiplies by the reciprocal of a number
        scaled -= 1
        return scaled.clip(-1, 1)

    def stored(self, array: Any, axes: int = 2) -> npt.NDArray[Any]:
        """The inverse of :meth:`scaled`: an array of ``dtype``, integers rounded to the nearest."""
        values = array if isinstance(array, np.ndarray) else array.detach().float().cpu().numpy()
        low, half = _levels(self.low, self.high, axes)
        numbers = (values.astype(np.float32).clip(-1, 1) + 1) * half + low
        kind = np.dtype(self.dtype)
        return numbers.astype(kind) if kind.kind == "f" else np.rint(numbers).astype(kind)

    def config(self) -> dict[str, Any]:
        """Plain values, of which :func:`from_config` makes these again."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """What :func:`read_values` reads, without the type."""
        pairs = zip(*np.broadcast_arrays(np.atleast_1d(self.low), np.atleast_1d(self.high)), strict=True)
        ranges = ",".join(f"{low:g}:{high:g}" for low, high in pairs)
        return f"{ranges}:{self.unit}" if self.unit else ranges


@dataclass(frozen=True)
class Percentiles:
    """The range of each picture's own values, channel by channel, for sources without a unit, such as MR.

    Args:
        low: the percentile that becomes -1.
        high: the percentile that becomes 1.

    Raises:
        ValueError: they are not in 0 <= low < high <= 100.
    """

    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles must be in 0 <= low < high <= 100, got {self.low:g} and {self.high:g}")

    def of(self, array: npt.NDArray[Any]) -> Values:
        """The values of one picture (C, *S). A channel of one value alone gets a range of 1 around it."""
        flat = array.reshape(len(array), -1)
        if not flat.size:
            raise ValueError("no pixel has a value, of which percentiles could be taken")
        if not np.isfinite(flat).all():
            raise ValueError("NaN or infinity is among the values, of which no percentiles can be taken")
        flat = flat[:, :: -(-flat.size // LARGEST_SAMPLE)].astype(np.float64)
        low, high = np.percentile(flat, [self.low, self.high], axis=1)
        same = low >= high
        low, high = np.where(same, low - 0.5, low), np.where(same, high + 0.5, high)
        return Values(tuple(low.tolist()), tuple(high.tolist()), dtype="float32")

    def config(self) -> dict[str, Any]:
        """Plain values, of which :func:`from_config` makes these again."""
        return {"percentiles": [self.low, self.high]}

    def __str__(self) -> str:
        """What :func:`read_values` reads."""
        return f"p{self.low:g}:{self.high:g}"


AnyValues = Values | Percentiles
ValuesLike = AnyValues | str | tuple[float, float] | None


def read_values(text: str) -> AnyValues:
    """Values from text: ``0:4095``, ``-1024:3071:HU``, ``0:3000,0:1`` for two channels, or ``p0.5:99.5``.

    Results have the type of the targets' files. Without files it is the first of uint8, int16, uint16, int32
    and float32 that holds the levels.

    Raises:
        ValueError: the text has another form, or what :class:`Values` refuses.
    """
    wanted = f"values are written as LOW:HIGH, LOW:HIGH:UNIT or pLOW:HIGH for percentiles, got {text!r}"
    parts = [part.split(":", 2) for part in text.removeprefix("p").split(",")]
    units = [unit for _, _, unit in (part for part in parts if len(part) == 3)]
    try:
        lows, highs = zip(*((float(low), float(high)) for low, high, *_ in parts), strict=True)
        if text.startswith("p") and (units or len(parts) > 1):
            raise ValueError("percentiles are of all channels, and have no unit")
    except ValueError as error:
        raise ValueError(wanted) from error
    if text.startswith("p"):
        return Percentiles(lows[0], highs[0])
    kinds = ("uint8", "int16", "uint16", "int32")
    kind = next((kind for kind in kinds if all(holds(np.dtype(kind), each) for each in lows + highs)), "float32")
    low, high = (levels[0] if len(levels) == 1 else levels for levels in (lows, highs))
    return Values(low, high, units[-1] if units else "", kind)


@lru_cache
def _levels(low: Level, high: Level, axes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The low level and half the range: () of all channels, or (C, 1, ...) for so many axes of S."""
    shape = (-1, *[1] * axes) if isinstance(low, tuple) or isinstance(high, tuple) else ()
    first, last = np.broadcast_arrays(*(np.reshape(level, shape) for level in (low, high)))
    return np.asarray(first, np.float32), np.asarray((last - first) / 2, np.float32)


def as_values(values: ValuesLike) -> Any:
    """Values of themselves, of text for :func:`read_values`, or of (low, high); None of None."""
    if isinstance(values, tuple | list):
        return Values(*values, dtype="float32")
    return read_values(values) if isinstance(values, str) else values


def from_config(config: Mapping[str, Any]) -> AnyValues:
    """Values from :meth:`Values.config` or :meth:`Percentiles.config`; ValueError where it is of neither."""
    try:
        return Percentiles(*config["percentiles"]) if "percentiles" in config else Values(**config)
    except TypeError as error:
        raise ValueError(f"values must have low, high, unit and dtype, or percentiles, got {dict(config)}") from error


def check_finite(array: npt.NDArray[Any], absent: Any = False) -> None:
    """Raise ValueError where a pixel of (C, *S) that has a value is NaN or infinite; its channel is named.

    ``absent`` is (*S), where pixels have none, or False.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    wrong = ~(np.isfinite(array) | absent)
    if wrong.any():
        found = f"{array[wrong][0]} stands in channel {np.argwhere(wrong)[0, 0]}"
        raise ValueError(f"{found}, where a finite number is needed")


def scaled_present(values: Values, array: npt.NDArray[Any], absent: Any = False) -> npt.NDArray[np.float32]:
    """(C, *S) of stored values as float32 in [-1, 1]; pixels without a value, (*S) ``absent``, are -1.

    Raises:
        ValueError: a channel has no range, or see :func:`check_finite`.
    """
    check_finite(array, absent)
    if not np.any(absent):
        return values.scaled(array, axes=array.ndim - 1)
    scaled = values.scaled(np.where(absent, array.dtype.type(0), array), axes=array.ndim - 1)
    scaled[:, absent] = -1
    return scaled


def holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a type has a value exactly."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


EIGHT_BIT = Values(0, 255)
