"""Packages that import a public name at its first use, so that importing the package is cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bbdm.base import optional


def public(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose public names are in the modules ``homes``."""

    def get(name: str) -> Any:
        try:
            if name in homes:
                return getattr(optional.package(homes[name], name), name)
            if not name.startswith("__") and find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            message = f"{name} needs PyTorch, which is not installed; bbdm.runtime runs without it"
            raise ModuleNotFoundError(message, name="torch") from error
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(homes)
