"""Parameters of which a few are tested with every change, and all every night."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

Value = TypeVar("Value")


def sweep(values: Iterable[Value], daily: Collection[Value]) -> list[Any]:
    """Values for ``parametrize``: those that are not ``daily`` are marked nightly."""
    return [value if value in daily else pytest.param(value, marks=pytest.mark.nightly) for value in values]
