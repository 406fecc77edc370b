"""Triton where it is installed, and stand-ins that leave kernels importable where it is not (macOS, Windows).

Kernels run on CUDA and ROCm devices, and on the CPU where TRITON_INTERPRET=1 is set before bbdm is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:
    if TYPE_CHECKING:
        raise
    triton = tl = None
    AVAILABLE = False


def jit(fn: Any) -> Any:
    """``triton.jit``: a kernel, or a function that kernels call."""
    return triton.jit(fn) if AVAILABLE else fn


def constexpr(value: Any) -> Any:
    """``triton.language.constexpr``: a module's number that its kernels read."""
    return tl.constexpr(value) if AVAILABLE else value
