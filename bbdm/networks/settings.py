"""What the settings of all networks are checked for."""

from __future__ import annotations

from typing import Any


def check_integers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where an attribute, or a member of one that is a tuple, is no integer of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{name} must be of integers, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
