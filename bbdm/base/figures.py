"""Figures of matplotlib, which draws scores and training runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from bbdm.base import optional
from bbdm.base.atomic import write_atomically


def figure(width: float, height: float, what: str) -> Any:
    """An empty figure of a size in inches; ModuleNotFoundError, which names ``what``, without matplotlib."""
    figures = optional.package("matplotlib.figure", what)
    return figures.Figure(figsize=(width, height), layout="constrained")


def write(drawn: Any, path: Path) -> None:
    """Write a figure as a PNG, atomically."""
    write_atomically(path, partial(drawn.savefig, format="png", dpi=120))
