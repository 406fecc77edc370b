"""Upsampling and convolution by four phases against F.interpolate and F.conv2d in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bbdm.kernels.upsample_conv import _phases, upsample_conv3x3
from tests.nightly import sweep

SHAPES = [(2, 6, 1, 1), (1, 1, 1, 4), (2, 3, 5, 7)]
with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def inputs(shape: tuple[int, ...] = (2, 6, 5, 7), bias: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    """x (B, C, H, W), channels_last, weight (4, C, 3, 3) and bias (4,)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (4, shape[1], 3, 3), (4,))
    x, weight, b = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    return x.to(memory_format=torch.channels_last), weight, b if bias else None


def flops(op: Any, given: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        op(*given)
    return counter.get_total_flops()


@with_bias
@pytest.mark.parametrize("shape", SHAPES)
def test_phases_are_the_formula_by_four_ninths_of_its_work(shape: tuple[int, ...], bias: bool):
    given = inputs(shape, bias)
    wanted = formula(*given)
    for op in (_phases, upsample_conv3x3):
        torch.testing.assert_close(op(*given), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(op(given[0].contiguous(), *given[1:]), wanted, rtol=1e-12, atol=1e-12)
    assert 9 * flops(_phases, given) == 4 * flops(formula, given) > 0
    assert flops(upsample_conv3x3, given) == flops(formula, given)


@with_bias
@pytest.mark.parametrize("backend", sweep(["aot_eager", "inductor"], daily=["aot_eager"]))
def test_only_compiled_inference_takes_the_phases(backend: str, bias: bool):
    given = inputs(bias=bias)

    def op(*arguments: Any) -> Tensor:  # of its own: each function is compiled a few times at most
        return upsample_conv3x3(*arguments)

    compiled = torch.compile(op, fullgraph=True, dynamic=False, backend=backend)
    with torch.inference_mode():
        made = compiled(*given)
        torch.testing.assert_close(made, formula(*given), rtol=1e-12, atol=1e-12)
        assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(*given), formula(*given), rtol=1e-12, atol=1e-12)
    for grad, convolutions in ((False, 4), (True, 1)):
        with torch.set_grad_enabled(grad):
            program = torch._dynamo.export(op)(*given)
        assert sum("conv2d" in str(node.target) for node in program.graph_module.graph.nodes) == convolutions
