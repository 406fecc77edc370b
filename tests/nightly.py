"""Parameters of which a few are tested with every change, and all every night."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(values: Iterable[Any], daily: Collection[Any]) -> list[Any]:
    """Values for ``parametrize``, marked nightly unless ``daily``; a tuple has a value for each name."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=() if value in daily else pytest.mark.nightly
        )
        for value in values
    ]
