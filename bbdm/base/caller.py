"""Warnings that name the line of the caller, however deep in the library they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

ROOT = f"{Path(__file__).parents[1]}{os.sep}"  # not a folder beside it, such as bbdm_scripts
BETWEEN = ("contextlib.py", "_contextlib.py")  # files of functions that call the library for itself


def warn(message: str) -> None:
    """Warn at the line that called the library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(ROOT) or Path(frame.f_code.co_filename).name in BETWEEN
    ):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
