"""Upsampling and convolution against nearest neighbours and PyTorch's convolution in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.kernels.upsample_conv import _phases, upsample_conv3x3
from tests.conftest import sweep

with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: tuple[int, ...] = (2, 2)
) -> Tensor:
    for axis, factor in enumerate(factors, 2):
        x = x.repeat_interleave(factor, axis)
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, padding=1)


def inputs(shape: tuple[int, ...] = (2, 6, 5, 7), bias: bool = True) -> Any:
    """x (B, C, *S), channels_last, weight (4, C, 3, 3) and bias (4,), in float64."""
    sizes = (shape, (4, shape[1], *[3] * (len(shape) - 2)), (4,))
    x, weight, b = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return x.to(memory_format=CHANNELS_LAST[len(shape)]), weight, b if bias else None


def flops(op: Any, given: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        op(*given)
    return counter.get_total_flops()


@with_bias
@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (1, 1, 1, 4), (2, 3, 5, 7)])
def test_phases_are_the_formula_by_four_ninths_of_its_work(shape: tuple[int, ...], bias: bool):
    given = inputs(shape, bias)
    for op in (_phases, upsample_conv3x3):
        torch.testing.assert_close(op(*given), formula(*given), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            op(given[0].contiguous(), *given[1:]), formula(*given), rtol=1e-12, atol=1e-12
        )
    assert 9 * flops(_phases, given) == 4 * flops(formula, given) > 0
    assert flops(upsample_conv3x3, given) == flops(formula, given)


@pytest.mark.parametrize("backend", sweep(["aot_eager", "inductor"], daily=["aot_eager"]))
@pytest.mark.parametrize(
    ("shape", "factors"), [((2, 6, 5, 7), (2, 2)), ((2, 3, 2, 3, 4), (1, 2, 2))]
)
def test_only_compiled_inference_of_pictures_takes_the_phases(
    shape: Any, factors: Any, backend: str
):
    given: Any = inputs(shape)

    def op(*arguments: Any) -> Tensor:  # of its own: each function is compiled a few times at most
        return upsample_conv3x3(*arguments, factors=factors)

    compiled = torch.compile(op, fullgraph=True, dynamic=False, backend=backend)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            made = compiled(*given)
            torch.testing.assert_close(
                made, formula(*given, factors=factors), rtol=1e-12, atol=1e-12
            )
            assert len(shape) == 5 or made.is_contiguous(memory_format=torch.channels_last)
            program = torch._dynamo.export(op)(*given)
        phases = 4 if len(shape) == 4 and not grad else 1
        assert (
            sum("conv" in str(node.target) for node in program.graph_module.graph.nodes) == phases
        )
