"""Triton where it is installed, and stand-ins that leave kernels importable where it is not (macOS, Windows).

Kernels run on CUDA and ROCm devices, and on the CPU where TRITON_INTERPRET=1 is set before bbdm is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

jit: Any  # a kernel, or a function that kernels call
constexpr: Any  # a module's number that its kernels read
try:
    import triton
    import triton.language as tl

    AVAILABLE = True
    jit, constexpr = triton.jit, tl.constexpr
except ImportError:
    if TYPE_CHECKING:
        raise
    triton = tl = None
    AVAILABLE = False
    jit = constexpr = lambda value: value
