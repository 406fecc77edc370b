"""What a call tells the network besides the source, as arrays. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import images
from bbdm.sampling.sources import ArrayBackend


def read_conditions(
    conditions: Mapping[str, Any] | None,
    further: ConditionsConfig,
    backend: ArrayBackend,
    source: Any,
    owners: Sequence[int],
) -> dict[str, Any]:
    """Conditions by name as a network takes them, a row for each image of a call.

    Images are (N, C, H, W) of the kind, dtype and device of a source (B, C', H, W), and have its size;
    classes are (N,) int64, and tokens (N, L, D).

    Args:
        conditions: those of a call, by name.
        further: those of the network.
        backend: the kind of arrays of the sampler.
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
    if unknown := [name for name in conditions if name not in further.kinds]:
        seen = further.wanted if further.kinds else "none besides the source"
        raise ValueError(f"conditions of this network are {seen}, got {', '.join(map(repr, unknown))}")
    made: dict[str, Any] = {}
    for name, kind in further.kinds.items():
        if name not in conditions:
            also = "; None leaves it out" if name in further.drop else ""
            raise ValueError(f"condition {name!r} is missing: this network has {further.wanted}{also}")
        value, size = conditions[name], further.sizes[name]
        if kind == "image":
            made[name] = _image(name, value, size, further, backend, source, len(owners))
            continue
        read = _classes if kind == "class" else _tokens
        each = read(name, value, owners[-1] + 1, further)
        rows = backend.from_numpy(each if each.shape[0] == len(owners) else each[list(owners)])
        made[name] = rows if kind == "class" else backend.like(rows, source)
    return made


def _check_none(name: str, further: ConditionsConfig) -> None:
    if name not in further.drop:
        raise ValueError(f"condition {name!r} cannot be None: the network was never trained without it")


def _image(
    name: str, value: Any, channels: int, further: ConditionsConfig, backend: ArrayBackend, source: Any, count: int
) -> Any:
    """(N, C, *S), of a condition that is images."""
    sides = tuple(source.shape[2:])
    shape = count, channels, *sides
    if value is None:
        _check_none(name, further)
        return backend.like(backend.from_numpy(np.zeros(shape, np.float32)), source)
    value = backend.from_numpy(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, backend.type) or "float" not in str(value.dtype):
        got = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"condition {name!r} must be {backend.noun} of floats in [-1, 1], got {got}")
    got = tuple(value.shape)
    if len(got) != len(shape) or got[0] not in (1, count) or got[1] != channels or not all(got):
        raise ValueError(f"condition {name!r} must have shape {shape}, got {got}")
    if not np.isfinite(float(abs(value).max())):
        raise ValueError(f"condition {name!r} must be finite, got NaN or infinity")
    if got[2:] != sides:
        if len(sides) == 3:
            raise ValueError(f"condition {name!r} must have shape {shape}, got {got}")
        pictures = backend.to_numpy(value).astype(np.float32)
        value = backend.from_numpy(np.stack([images.fitted(each, sides) for each in pictures]))
    value = backend.like(value, source)
    return value if len(value) == count else backend.concatenate([value] * count)


def _classes(name: str, value: Any, count: int, further: ConditionsConfig) -> npt.NDArray[np.int64]:
    """(N,) numbers of classes, of a name, a number or None for all sources, or a list of these."""
    classes, size = further.classes[name], further.sizes[name]
    names = () if isinstance(classes, int) else classes
    given = _listed(name, value, count, lambda each: np.ndim(each) == 0)
    made: list[int] = []
    for each in given:
        if each is None:
            _check_none(name, further)
            made.append(size)
            continue
        number = names.index(each) if each in names else each
        if isinstance(number, str) or int(number) != number or not 0 <= number < size + (name in further.drop):
            wanted = ", ".join(names) if names else f"numbers from 0 to {size - 1}"
            raise ValueError(f"condition {name!r} must be of {wanted}, got {each!r}")
        made.append(int(number))
    return np.array(made, np.int64)


def _tokens(name: str, value: Any, count: int, further: ConditionsConfig) -> npt.NDArray[np.float32]:
    """(N, L, D), of tokens (L, D) or None for all sources, or of each; padded with rows of zeros."""
    width = further.tokens[name]
    given = [
        np.zeros((0, width), np.float32) if each is None else np.asarray(_plain(each), np.float32)
        for each in _listed(name, value, count, lambda each: getattr(each, "ndim", 0) == 2)
    ]
    if value is None or (isinstance(value, list) and any(each is None for each in value)):
        _check_none(name, further)
    for each in given:
        if each.ndim != 2 or each.shape[1] != width:
            raise ValueError(f"condition {name!r} must be tokens (L, {width}), or (B, L, {width}), got {each.shape}")
        if not np.isfinite(each).all():
            raise ValueError(f"condition {name!r} must be finite, got NaN or infinity")
    made = np.zeros((count, max(1, *(len(each) for each in given)), width), np.float32)
    for row, each in zip(made, given, strict=True):
        row[: len(each)] = each
    return made


def _plain(value: Any) -> Any:
    """A tensor as an array."""
    return value.float().cpu().numpy() if hasattr(value, "cpu") and value.is_floating_point() else value


def _listed(name: str, value: Any, count: int, single: Any) -> list[Any]:
    """A value for each source, of one for all or of several."""
    if value is None or isinstance(value, str) or single(value):
        return [value] * count
    values = value.tolist() if getattr(value, "ndim", 0) == 1 else list(value)
    if len(values) not in (1, count):
        raise ValueError(f"condition {name!r} must be one value, or one for each of {count} sources, got {len(values)}")
    return values * count if len(values) == 1 else values
