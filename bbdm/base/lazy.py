"""Packages that import a public name at its first use, so that importing the package is cheap.

The names stand once, in the package's stub ``__init__.pyi``, as imports. Type checkers read it too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bbdm.base import optional


def public(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package, whose ``__init__.py`` is ``file``."""
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text())
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    homes = {each.name: f"{node.module}" for node in imports for each in node.names}

    def get(name: str) -> Any:
        try:
            if name in homes:
                home = optional.package(homes[name], name)
                return getattr(home, name) if hasattr(home, name) else import_module(f"{homes[name]}.{name}")
            if not name.startswith("__") and find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            message = f"{name} needs PyTorch, which is not installed; bbdm.runtime runs without it"
            raise ModuleNotFoundError(message, name="torch") from error
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    names = sorted(homes)
    return get, lambda: names, names
