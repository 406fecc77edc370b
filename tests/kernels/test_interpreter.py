"""Runs the ``interpreted_*`` tests of this folder in a second process; see ``triton_aot.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bbdm.kernels.jit import AVAILABLE, jit, tl
from tests.conftest import ROOT


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.parametrize("marks", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
def test_kernels_in_the_interpreter(marks: str):
    folder = str(Path(__file__).parent)
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-m", marks, "-o", "python_functions=interpreted_*"]
    command = [sys.executable, "-m", "pytest", *options, folder]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)


@jit
def _copy_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out_ptr + place, tl.load(x_ptr + place).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def interpreted_float32_rounds_as_on_a_gpu(dtype: torch.dtype):
    """To the nearest number, and ties to even: random numbers, then 64 ties."""
    x = torch.randn(128, generator=torch.Generator().manual_seed(0))
    x[64:] = 1 + (torch.arange(64) + 0.5) * torch.finfo(dtype).eps
    out = torch.empty(128, dtype=dtype)
    _copy_kernel[(1,)](x, out, BLOCK=128)
    unit = torch.finfo(dtype).eps * 2.0 ** x.double().abs().log2().floor()
    assert ((out.double() - x.double()).abs() <= unit / 2).all()
    assert (out[64:].view(torch.int16) % 2 == 0).all()
