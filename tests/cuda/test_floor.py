"""Inductor's code for an H100: whole, without the CPU, and with norms that it fuses."""

from typing import Any

import pytest
import torch

from bbdm.networks.unet import UNet
from benchmarks.floor import code_of
from tests.conftest import TINY
from tests.kernels.triton_aot import needs_compiler

pytestmark = [pytest.mark.nightly, needs_compiler]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs PyTorch without a card")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_code_for_a_card(dtype: torch.dtype):
    with torch.device("meta"):
        unet = UNet(**TINY).to(dtype).eval()
    sites: Any = code_of(unet, 2, 8)
    assert not any("norm" in kernel for kernel in sites.launches)  # inductor writes them: ATen's copy their input
    assert "rsqrt" in sites.source
    assert sites.launches["extern_kernels.convolution"] > 0
    assert "device='cpu'" not in sites.source
    assert ".item()" not in sites.source
