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
# of results without files: the first that holds the levels
RESULT_TYPES = ("uint8", "int16", "uint16", "int32")
FORM = (
    "values are written as LOW:HIGH, LOW:HIGH:UNIT, log:LOW:HIGH, sqrt:LOW:HIGH, asinh:LOW:HIGH:SOFT, or pLOW:HIGH "
    "for percentiles"
)
MAPPINGS = ("", "log", "sqrt", "asinh")
Level = float | tuple[float, ...]  # of all channels, or one for each


@dataclass(frozen=True)
class Values:
    """A range of stored values: ``low`` becomes -1 and ``high`` 1, linearly or by a mapping, and back.

    Values outside the range are clipped to it.

    Args:
        low: the stored value of -1, or one for each channel.
        high: the stored value of 1, or one for each channel.
        unit: of stored values, such as ``HU``; for messages, metrics and files.
        dtype: the NumPy type that results are stored in.
        mapping: of the values v, whose results are scaled linearly: ``log``; ``sqrt``; ``asinh`` of v / soft;
            or "" for the values themselves.
        soft: the value below which ``asinh`` is nearly linear.

    Raises:
        ValueError: low is not below high, they are not finite or have other counts, or the type is not one of
            real numbers; an integer type has more levels in the range than float32 can tell apart; or the
            mapping is not one of these, or has no result at ``low``.
    """

    low: Level
    high: Level
    unit: str = ""
    dtype: str = "uint8"
    mapping: str = ""
    soft: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            level = getattr(self, name)
            try:
                if isinstance(level, tuple | list):
                    numbers = tuple(float(one) for one in level)
                else:
                    numbers = float(level)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} must be a number, or one for each channel, got {level!r}"
                ) from error
            if numbers == () or not np.isfinite(numbers).all():
                raise ValueError(f"{name} must be finite, got {numbers!r}")
            object.__setattr__(self, name, numbers)
        low = np.atleast_1d(self.low)
        high = np.atleast_1d(self.high)
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise ValueError(
                f"values must have as many low as high levels, got {len(low)} and {len(high)}"
            )
        if not (low < high).all():
            raise ValueError(f"values must have low below high, got {self}")
        self._check_mapping(low.min())
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "uif":
            raise ValueError(f"values must be stored as real numbers, got {dtype}")
        object.__setattr__(self, "dtype", dtype.name)
        if dtype.kind != "f":
            _check_integers(self, low, high)

    def _check_mapping(self, low: float) -> None:
        """Raise ValueError unless the mapping is known and has a result at the lowest value."""
        if self.mapping not in MAPPINGS:
            raise ValueError(
                f"mapping must be one of {', '.join(MAPPINGS[1:])}, got {self.mapping!r}"
            )
        if self.mapping == "log" and low <= 0:
            raise ValueError(f"the logarithm needs values above 0, and the lowest is {low:g}")
        if self.mapping == "sqrt" and low < 0:
            raise ValueError(
                f"the square root needs values of at least 0, and the lowest is {low:g}"
            )
        if not (np.isfinite(self.soft) and self.soft > 0):
            raise ValueError(f"soft must be above 0, got {self.soft}")

    @property
    def is_eight_bit(self) -> bool:
        """Whether it is the range of pictures of 8 bits, 0 to 255."""
        return self == EIGHT_BIT

    def stored_like(self, dtype: np.dtype[Any]) -> Values:
        """These values with results of a file's type, where it holds the levels; of floats float32."""
        if dtype.kind == "f":
            return replace(self, dtype="float32")
        levels = [*np.atleast_1d(self.low), *np.atleast_1d(self.high)]
        if not all(holds(dtype, level) for level in levels):
            return self
        return replace(self, dtype=dtype.name)

    def of(self, array: npt.NDArray[Any]) -> Values:
        """The values of one picture (C, *S): these."""
        return self

    def scaled(self, array: Any, axes: int = 2) -> Any:
        """(..., C, *S) of stored values as float32 in [-1, 1]; ``axes`` is the number of axes of S.

        Raises:
            ValueError: there are ranges for another number of channels.
        """
        low, half = _levels(self, axes)
        channels = array.shape[-1 - axes]
        if half.size > 1 and half.size != channels:
            raise ValueError(f"it has {channels} channels, and there are values of {half.size}")
        if isinstance(array, np.ndarray):
            scaled = self._mapped(array.astype(np.float32)) - low
        else:
            import torch

            low = torch.as_tensor(low, device=array.device)
            half = torch.as_tensor(half, device=array.device)
            scaled = self._mapped(array.float()) - low
        scaled /= half  # of tensors a tensor: CUDA multiplies by the reciprocal of a number
        scaled -= 1
        return scaled.clip(-1, 1)

    def stored(self, array: Any, axes: int = 2) -> npt.NDArray[Any]:
        """The inverse of :meth:`scaled`: an array of ``dtype``, integers rounded to the nearest.

        Args:
            array: (..., C, *S) in [-1, 1]; values outside are clipped.
            axes: the number of axes of S.

        Raises:
            ValueError: NaN is among the values, and the type is one of integers.
        """
        values = array if isinstance(array, np.ndarray) else array.detach().float().cpu().numpy()
        low, half = _levels(self, axes)
        numbers = self._unmapped((values.astype(np.float32).clip(-1, 1) + 1) * half + low, axes)
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return numbers.astype(dtype)
        if numbers.size and np.isnan(numbers.min()):
            raise ValueError(f"NaN is among the values of a result, and {dtype} cannot hold it")
        return np.rint(numbers).astype(dtype)

    def _mapped(self, array: Any) -> Any:
        """The mapping of floats, an array or a tensor; values below the lowest become it first."""
        if not self.mapping:
            return array
        library: Any = np
        if not isinstance(array, np.ndarray):
            import torch

            library = torch
        lowest = float(np.min(self.low))
        array = library.clip(array, lowest, None)
        if self.mapping == "asinh":
            return library.arcsinh(array / self.soft)
        return library.log(array) if self.mapping == "log" else library.sqrt(array)

    def _unmapped(self, numbers: npt.NDArray[np.float32], axes: int) -> npt.NDArray[np.float32]:
        """The inverse of the mapping, within the range."""
        if not self.mapping:
            return numbers
        if self.mapping == "asinh":
            numbers = np.sinh(numbers) * np.float32(self.soft)
        elif self.mapping == "log":
            numbers = np.exp(numbers)
        else:
            numbers = np.square(numbers)
        low, high = (
            np.asarray(level, np.float32) for level in _in_shape(self.low, self.high, axes)
        )
        return numbers.clip(low, high)

    def config(self) -> dict[str, Any]:
        """Plain values, of which :func:`from_config` makes these again; a mapping where there is one."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        if self.mapping != "asinh":
            del values["soft"]
        if not self.mapping:
            del values["mapping"]
        return values

    def __str__(self) -> str:
        """What :func:`read_values` reads, without the type."""
        lows, highs = np.broadcast_arrays(np.atleast_1d(self.low), np.atleast_1d(self.high))
        text = ",".join(f"{low:g}:{high:g}" for low, high in zip(lows, highs, strict=True))
        if self.mapping:
            text = f"{self.mapping}:{text}"
        if self.mapping == "asinh":
            text = f"{text}:{self.soft:g}"
        if self.unit:
            text = f"{text}:{self.unit}"
        return text


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
            raise ValueError(
                f"percentiles must be in 0 <= low < high <= 100, got {self.low:g} and {self.high:g}"
            )

    @property
    def is_eight_bit(self) -> bool:
        """Whether it is the range of pictures of 8 bits: it is not."""
        return False

    def of(self, array: npt.NDArray[Any]) -> Values:
        """The values of one picture (C, *S). A channel of one value alone gets a range of 1 around it.

        Raises:
            ValueError: there are no values, or NaN or infinity among them.
        """
        flat = array.reshape(len(array), -1)
        if not flat.size:
            raise ValueError("no pixel has a value, of which percentiles could be taken")
        if not np.isfinite(flat).all():
            raise ValueError(
                "NaN or infinity is among the values, of which no percentiles can be taken"
            )
        step = -(-flat.size // LARGEST_SAMPLE)
        sample = flat[:, ::step].astype(np.float64)
        low, high = np.percentile(sample, [self.low, self.high], axis=1)
        same = low >= high
        low = np.where(same, low - 0.5, low)
        high = np.where(same, high + 0.5, high)
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

    By a mapping, they are ``log:0.1:1e4``, ``sqrt:0:65535`` or ``asinh:-5:500:2``, with the softening value.

    Results have the type of the targets' files. Without files it is the first of uint8, int16, uint16, int32
    and float32 that holds the levels.

    Raises:
        ValueError: the text has another form, or what :class:`Values` refuses.
    """
    if text.startswith("p"):
        low, high, unit = _range_of(text.removeprefix("p"), text)
        if unit:
            raise ValueError(f"{FORM}, got {text!r}")
        return Percentiles(low, high)
    mapping, ranges, soft = _mapping_of(text)
    lows = tuple(low for low, _, _ in ranges)
    highs = tuple(high for _, high, _ in ranges)
    units = [unit for _, _, unit in ranges if unit]
    dtype = "float32"
    for name in reversed(RESULT_TYPES):
        if all(holds(np.dtype(name), level) for level in lows + highs):
            dtype = name
    unit = units[-1] if units else ""
    if len(ranges) == 1:
        return Values(lows[0], highs[0], unit, dtype, mapping, soft)
    return Values(lows, highs, unit, dtype, mapping, soft)


def _mapping_of(text: str) -> tuple[str, list[tuple[float, float, str]], float]:
    """The mapping of a text of values, its ranges with their units, and the softening value of asinh."""
    mapping, mark, rest = text.partition(":")
    if not mark or mapping not in MAPPINGS[1:]:
        return "", [_range_of(part, text) for part in text.split(",")], 1.0
    if mapping != "asinh":
        return mapping, [_range_of(part, text) for part in rest.split(",")], 1.0
    low, high, further = _range_of(rest, text)
    softening, _, unit = further.partition(":")
    try:
        return mapping, [(low, high, unit)], float(softening)
    except ValueError as error:
        raise ValueError(f"{FORM}, got {text!r}") from error


def _range_of(part: str, text: str) -> tuple[float, float, str]:
    """The ends and the unit of one range, a part of the text of values."""
    ends = part.split(":", 2)
    try:
        low = float(ends[0])
        high = float(ends[1])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{FORM}, got {text!r}") from error
    return low, high, ends[2] if len(ends) == 3 else ""


def _check_integers(
    values: Values, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> None:
    """Raise ValueError where an integer type does not hold a range, or float32 not each of its levels."""
    largest = max((high - low).max(), np.abs(low).max(), np.abs(high).max())
    if largest > EXACT:
        reason = f"values {values} of {values.dtype} need more than {EXACT} levels, which float32 cannot tell apart"
        raise ValueError(f"{reason}: give a narrower range around 0")
    limits = np.iinfo(values.dtype)
    if low.min() < limits.min or high.max() > limits.max:
        ends = f"{limits.min} and {limits.max}"
        raise ValueError(f"values {values} do not fit into {values.dtype}, which ends at {ends}")


@lru_cache
def _levels(values: Values, axes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The low level and half the range, mapped: () of all channels, or (C, 1, ...) for so many axes of S."""
    low, high = _in_shape(values.low, values.high, axes)
    if values.mapping:
        low, high = values._mapped(low), values._mapped(high)
    return np.asarray(low, np.float32), np.asarray((high - low) / 2, np.float32)


def _in_shape(
    low: Level, high: Level, axes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two levels as () of all channels, or (C, 1, ...) for so many axes of S."""
    shape: tuple[int, ...] = ()
    if isinstance(low, tuple) or isinstance(high, tuple):
        shape = (-1, *[1] * axes)
    first, last = np.broadcast_arrays(np.reshape(low, shape), np.reshape(high, shape))
    return np.asarray(first, np.float64), np.asarray(last, np.float64)


def as_values(values: ValuesLike) -> Any:
    """Values of themselves, of text for :func:`read_values`, or of (low, high); None of None."""
    if isinstance(values, tuple | list):
        return Values(*values, dtype="float32")
    if isinstance(values, str):
        return read_values(values)
    return values


def from_config(config: Mapping[str, Any]) -> AnyValues:
    """Values from :meth:`Values.config` or :meth:`Percentiles.config`.

    Raises:
        ValueError: it is of neither.
    """
    try:
        if "percentiles" in config:
            return Percentiles(*config["percentiles"])
        return Values(**config)
    except TypeError as error:
        raise ValueError(
            f"values must have low, high, unit and dtype, or percentiles, got {dict(config)}"
        ) from error


def check_finite(array: npt.NDArray[Any], absent: Any = False) -> None:
    """Raise ValueError where a pixel of (C, *S) that has a value is NaN or infinite; its channel is named.

    ``absent`` is (*S), where pixels have none, or False.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    wrong = ~(np.isfinite(array) | absent)
    if wrong.any():
        channel = np.argwhere(wrong)[0, 0]
        raise ValueError(
            f"{array[wrong][0]} stands in channel {channel}, where a finite number is needed"
        )


def scaled_present(
    values: Values, array: npt.NDArray[Any], absent: Any = False
) -> npt.NDArray[np.float32]:
    """(C, *S) of stored values as float32 in [-1, 1]; pixels without a value, (*S) ``absent``, are -1.

    Raises:
        ValueError: a channel has no range, or see :func:`check_finite`.
    """
    if array.dtype.kind == "f":
        check_finite(array, absent)
    if not np.any(absent):
        return values.scaled(array, axes=array.ndim - 1)
    present = np.where(absent, array.dtype.type(0), array)
    scaled = values.scaled(present, axes=array.ndim - 1)
    scaled[:, absent] = -1
    return scaled


def holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a type has a value exactly."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


EIGHT_BIT = Values(0, 255)
