"""Manifests: a JSON file beside cached or generated files, which holds all that decided their content."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bbdm.base.atomic import short, write_atomically

LONGEST = 40  # characters of a value in a message


def write(path: Path, content: Any) -> None:
    """Write JSON, atomically; infinity and NaN, which are no JSON, as :func:`finite` has them."""
    text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def finite(content: Any) -> Any:
    """The content with texts for numbers that are not finite: ``Infinity``, ``-Infinity``, ``NaN``."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if not isinstance(content, float) or math.isfinite(content):
        return content
    if math.isnan(content):
        return "NaN"
    return "Infinity" if content > 0 else "-Infinity"


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[Any]:
    """The content of a manifest; ValueError with the ``remedy`` where it is damaged or lacks an entry."""
    with parsing(path, remedy):
        yield json.loads(path.read_text())


@contextmanager
def parsing(path: Path | str, remedy: str) -> Iterator[None]:
    """ValueError with the ``remedy`` where content of a manifest is not as expected."""
    try:
        yield
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"cannot read {path}: {remedy}") from error


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as it will be read back, with lists for tuples."""
    return json.loads(json.dumps(finite(content), allow_nan=False))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """The values that differ, such as ``seed 0, now 1, codec.kind none, now vqgan``; empty if none does.

    An absent key counts as None. Hashes are shortened.
    """

    def text(value: Any) -> str:
        shown = short(value)
        half = LONGEST // 2 - 2
        return shown if len(shown) <= LONGEST else f"{shown[:half]}...{shown[-half:]}"

    parts: list[str] = []
    for key in {**before, **now}:
        old = before.get(key)
        new = now.get(key)
        if old == new:
            continue
        inner = ""
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = differences(old, new, f"{prefix}{key}.")
        parts.append(inner or f"{prefix}{key} {text(old)}, now {text(new)}")
    return ", ".join(parts)
