"""The systems that we compare with, one in each module: the same weights in, a callable out."""

from __future__ import annotations

from importlib import import_module


def why_missing(name: str) -> str | None:
    """Why a peer cannot be measured here; None where it can."""
    try:
        import_module(f"{__name__}.{name}")
    except ImportError as error:
        return f"needs the extra peers: {error}"
    return None
