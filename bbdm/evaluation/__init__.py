"""Scores of results, and calibrated intervals."""

from __future__ import annotations

from bbdm.base.optional import public

__getattr__, __dir__, __all__ = public(__name__, __file__)
