"""The names of bridges in files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bbdm.bridges.base import Bridge

BRIDGES: dict[str, Callable[..., Bridge]] = {}  # what builds them, by name
Kind = TypeVar("Kind", bound=type[Bridge])


def register(kind: str) -> Callable[[Kind], Kind]:
    """A decorator that gives a bridge its name in files: ``@register("mine")`` above the dataclass.

    Whoever loads such a file has to import the class before.

    Raises:
        ValueError: another class has this name.
    """

    def named(bridge: Kind) -> Kind:
        other = BRIDGES.get(kind, bridge)
        if f"{other!r}" != f"{bridge!r}":  # a module that is loaded again may replace its classes
            raise ValueError(f"bridge kind {kind!r} is taken by {other!r}")
        BRIDGES[kind] = bridge
        bridge.name = kind
        return bridge

    return named


def from_config(config: dict[str, Any]) -> Bridge:
    """The bridge that :meth:`Bridge.config` describes.

    Raises:
        ValueError: the kind is unknown or a value is out of range.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a bridge's settings must be a dictionary, got {config!r}")
    values = dict(config)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in BRIDGES:
        hint = "; import the module that registers your own bridge"
        raise ValueError(f"bridge kind must be one of {sorted(BRIDGES)}, got {kind!r}{hint}")
    try:
        return BRIDGES[kind](**values)
    except TypeError as error:
        raise ValueError(f"bridge {kind!r} does not take these settings: {error}") from error
