"""The conditions of a call as arrays. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.networks.arrays import as_numpy, concatenated, converted
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import images


def read_conditions(
    conditions: Mapping[str, Any] | None,
    known: ConditionsConfig,
    source: Any,
    owners: Sequence[int],
) -> dict[str, Any]:
    """Conditions by name as a network takes them, a row for each image of a call.

    Images are (N, C, H, W) of the type, dtype and device of a source (B, C', H, W), and have its size;
    classes are (N,) int64, and tokens (N, L, D) float32.

    Args:
        conditions: those of a call, by name.
        known: those of the network.
        source: images of the call.
        owners: of each image, the source that it is of. Classes and tokens are given for sources.

    Raises:
        ValueError: they are no mapping, or one is missing or unknown, of another kind or shape, or not
            finite; or one is None that the network was never trained without.
    """
    conditions = {} if conditions is None else conditions
    if not isinstance(conditions, Mapping):
        kind = type(conditions).__name__
        raise ValueError(f"conditions must be a mapping of names to values, such as {{'sar': sar}}, got a {kind}")
    if unknown := [name for name in conditions if name not in known.kinds]:
        seen = known.wanted if known.kinds else "none besides the source"
        raise ValueError(f"conditions of this network are {seen}, got {', '.join(map(repr, unknown))}")
    values: dict[str, Any] = {}
    for name, kind in known.kinds.items():
        if name not in conditions:
            also = "; None leaves it out" if name in known.drop else ""
            raise ValueError(f"condition {name!r} is missing: this network has {known.wanted}{also}")
        value = conditions[name]
        if _is_none(value) and name not in known.drop:
            raise ValueError(f"condition {name!r} cannot be None: the network was never trained without it")
        if kind == "image":
            values[name] = _image(name, value, known.sizes[name], source, len(owners))
            continue
        rows = (_classes if kind == "class" else _tokens)(name, value, owners[-1] + 1, known)
        values[name] = rows if len(rows) == len(owners) else rows[list(owners)]
    return values


def _is_none(value: Any) -> bool:
    """Whether a condition is left out, or that of a source."""
    return value is None or (isinstance(value, list | tuple) and any(each is None for each in value))


def _image(name: str, value: Any, channels: int, source: Any, count: int) -> Any:
    """(N, C, *S), of a condition that is images."""
    sides = tuple(source.shape[2:])
    shape = count, channels, *sides
    if value is None:
        return converted(np.zeros(shape, np.float32), source)
    if "float" not in str(getattr(value, "dtype", "")):
        got = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"condition {name!r} must be an array or a tensor of floats in [-1, 1], got {got}")
    got = tuple(value.shape)
    resizes = len(sides) == 2 and len(got) == 4 and all(got)
    if len(got) != len(shape) or got[0] not in (1, count) or got[1] != channels or not (resizes or got[2:] == sides):
        raise ValueError(f"condition {name!r} must have shape {shape}, got {got}")
    if not np.isfinite(float(abs(value).max())):
        raise ValueError(f"condition {name!r} must be finite, got NaN or infinity")
    if got[2:] != sides:
        value = np.stack([images.fitted(each, sides) for each in as_numpy(value).astype(np.float32)])
    value = converted(value, source)
    return value if len(value) == count else concatenated([value] * count)


def _classes(name: str, value: Any, count: int, known: ConditionsConfig) -> npt.NDArray[np.int64]:
    """(N,) numbers of classes, of a name, a number or None for all sources, or a list of these."""
    classes, size = known.classes[name], known.sizes[name]
    names = () if isinstance(classes, int) else classes
    numbers: list[int] = []
    for each in _listed(name, value, count, lambda each: np.ndim(each) == 0):
        number = size if each is None else names.index(each) if each in names else each
        if isinstance(number, str) or int(number) != number or not 0 <= number < size + (name in known.drop):
            expected = ", ".join(names) if names else f"numbers from 0 to {size - 1}"
            raise ValueError(f"condition {name!r} must be of {expected}, got {each!r}")
        numbers.append(int(number))
    return np.array(numbers, np.int64)


def _tokens(name: str, value: Any, count: int, known: ConditionsConfig) -> npt.NDArray[np.float32]:
    """(N, L, D), of tokens (L, D) or None for all sources, or of each; padded with rows of zeros."""
    width = known.tokens[name]
    arrays = [
        np.zeros((0, width), np.float32)
        if each is None
        else np.asarray(as_numpy(each) if hasattr(each, "detach") else each, np.float32)
        for each in _listed(name, value, count, lambda each: getattr(each, "ndim", 0) == 2)
    ]
    for each in arrays:
        if each.ndim != 2 or each.shape[1] != width:
            raise ValueError(f"condition {name!r} must be tokens (L, {width}), or (B, L, {width}), got {each.shape}")
        if not np.isfinite(each).all():
            raise ValueError(f"condition {name!r} must be finite, got NaN or infinity")
    rows = np.zeros((count, max(1, *map(len, arrays)), width), np.float32)
    for row, each in zip(rows, arrays, strict=True):
        row[: len(each)] = each
    return rows


def _listed(name: str, value: Any, count: int, single: Any) -> list[Any]:
    """A value for each source, of one for all or of several."""
    if value is None or isinstance(value, str) or single(value):
        return [value] * count
    values = value.tolist() if getattr(value, "ndim", 0) == 1 else list(value)
    if len(values) not in (1, count):
        raise ValueError(f"condition {name!r} must be one value, or one for each of {count} sources, got {len(values)}")
    return values * count if len(values) == 1 else values
