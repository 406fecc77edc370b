"""Triton kernels without a GPU: compiled ahead of time for NVIDIA and AMD, or interpreted on the CPU.

:func:`compile_kernel` needs no device, and shows the code. Pointers are assumed to be aligned to 16 bytes, as
those of PyTorch's tensors are.

Triton decides at import, by TRITON_INTERPRET=1, whether kernels run line by line in NumPy. Such tests are
named ``interpreted_*``, and ``test_random_shapes.py`` runs them in a second process. To run one file's alone:
``TRITON_INTERPRET=1 pytest -o 'python_functions=interpreted_*' tests/kernels/test_bridge_step.py``.
The interpreter truncates float32 to bfloat16, where a GPU rounds to nearest: results may differ by one unit.
"""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from bbdm.kernels.elementwise import AVAILABLE, BLOCK, triton
from tests.conftest import sweep

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "f64": torch.float64}
layouts = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)
every_dtype = pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=[*DTYPES])
every_target = pytest.mark.parametrize("target", sweep(TARGETS, daily=["sm_90"]))
needs_compiler = pytest.mark.skipif(
    not AVAILABLE or triton.knobs.runtime.interpret,  # pyright: ignore[reportAttributeAccessIssue]
    reason="needs Triton, and TRITON_INTERPRET not set",
)


def on_a_gpu(test: Any) -> Any:
    """A test that needs a CUDA device."""
    return pytest.mark.gpu(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test)
    )


# The two assemblers' accesses to global memory: PTX ld.global.v4.b32, AMD global_load_dwordx4.
PTX_ACCESS = re.compile(
    r"\b(ld|st)\.global(?:\.[a-uw-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\b"
)
AMD_ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")
AMD_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}  # the others are narrower


def compile_kernel(
    kernel: Any, target: str, constexprs: Mapping[str, object], types: Mapping[str, str]
) -> list[tuple[str, int]]:
    """Compile the kernel of a step for a GPU, which this machine may lack; its accesses to global memory.

    Each is ("load" or "store", its bits a thread); what moves between threads through shared memory is
    ("shared", bytes).

    ``constexprs`` has values at compile time, and ``types`` types of arguments; the others are pointers to
    float32, and integers. Sizes are multiples of 16.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia, names = target.startswith("sm_"), kernel.arg_names
    constexprs = {**constexprs, "BLOCK": BLOCK}
    signature = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names}
    signature |= {**types, **dict.fromkeys(constexprs, "constexpr")}
    aligned = [
        i for i, name in enumerate(names) if signature[name][0] == "*" or name in ("size", "pixels")
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    warps = 4 if nvidia else 2  # of 32 threads on NVIDIA, of 64 on AMD
    built = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps})
    shared = [("shared", built.metadata.shared)] if built.metadata.shared else []
    if nvidia:
        kinds, found = {"ld": "load", "st": "store"}, PTX_ACCESS.findall(built.asm["ptx"])
        return [(kinds[kind], int(count or 1) * int(bits)) for kind, count, bits in found] + shared
    found = AMD_ACCESS.findall(built.asm["amdgcn"])
    return [(kind, AMD_BITS.get(width, 16)) for kind, width in found] + shared
