"""Upsampling and convolution by four phases against F.interpolate and F.conv2d in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bbdm.kernels.upsample_conv import _phases, upsample_conv3x3
from tests.nightly import sweep

Op = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Given = tuple[Tensor, Tensor, Tensor | None]


def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def inputs(
    shape: tuple[int, int, int, int] = (2, 6, 5, 7), bias: bool = True, dtype: torch.dtype = torch.float64
) -> Given:
    """x (B, C, H, W), channels_last, weight (4, C, 3, 3) and bias (4,)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (4, shape[1], 3, 3), (4,))
    x, weight, b = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    return x.to(memory_format=torch.channels_last), weight, b if bias else None


def gradients(op: Op, given: Given) -> list[Tensor]:
    """Of x, weight and bias."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in given]
    y = op(*leaves)  # pyright: ignore[reportArgumentType]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return list(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))


def assert_exact(made: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module", params=sweep(["aot_eager", "inductor"], daily=["aot_eager"]))
def compiled(request: pytest.FixtureRequest) -> Op:
    return torch.compile(upsample_conv3x3, fullgraph=True, dynamic=False, backend=request.param)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (1, 1, 1, 4), (2, 3, 5, 7), (3, 8, 8, 4), (1, 5, 2, 2)])
@pytest.mark.parametrize("op", [_phases, upsample_conv3x3], ids=["phases", "public"])
def test_eager_is_the_formula(op: Op, shape: tuple[int, int, int, int], bias: bool):
    given = inputs(shape, bias)
    assert_exact(op(*given), formula(*given))
    contiguous = (given[0].contiguous(), *given[1:])
    assert_exact(op(*contiguous), formula(*given))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_compiled_for_inference_is_the_formula(compiled: Op, bias: bool):
    given = inputs(bias=bias)
    with torch.inference_mode():
        assert_exact(compiled(*given), formula(*given))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_compiled_for_training_has_the_formulas_gradients(compiled: Op, bias: bool):
    given = inputs(bias=bias)
    for made, wanted in zip(gradients(compiled, given), gradients(formula, given), strict=True):
        assert_exact(made, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "fp16"])
def test_phases_lose_no_more_than_the_plain_form(dtype: torch.dtype):
    """Their weights are rounded after the sum: twice the error of one rounding is allowed."""
    given = inputs((2, 32, 6, 5), dtype=dtype)
    exact = formula(*(None if t is None else t.double() for t in given))  # pyright: ignore[reportArgumentType]
    made, plain = _phases(*given), formula(*given)
    assert made.dtype == dtype
    error, rival = ((y.double() - exact).abs().max().item() for y in (made, plain))
    assert error <= 2 * rival


def convolutions(grad: bool) -> int:
    """The number of convolutions that a compiler gets."""
    counts: list[int] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        counts.append(sum(node.target in (F.conv2d, torch.conv2d) for node in module.graph.nodes))
        return module.forward

    with torch.set_grad_enabled(grad):
        torch.compile(upsample_conv3x3, fullgraph=True, backend=backend)(*inputs())
    (count,) = counts
    return count


@pytest.mark.parametrize(("grad", "expected"), [(False, 4), (True, 1)], ids=["inference", "training"])
def test_only_compiled_inference_takes_the_phases(grad: bool, expected: int):
    assert convolutions(grad) == expected


def flops(op: Op, given: Given) -> int:
    with FlopCounterMode(display=False) as counter:
        op(*given)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 6, 5, 7)])
def test_phases_take_four_ninths_of_the_work(shape: tuple[int, int, int, int]):
    given = inputs(shape)
    assert 9 * flops(_phases, given) == 4 * flops(formula, given) > 0
    assert flops(upsample_conv3x3, given) == flops(formula, given)


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 3, 1, 1)])
def test_output_is_channels_last(compiled: Op, shape: tuple[int, int, int, int]):
    given = inputs(shape)
    with torch.inference_mode():
        for op in (_phases, upsample_conv3x3, compiled):
            y = op(*given)
            assert y.shape == (shape[0], 4, 2 * shape[2], 2 * shape[3])
            assert y.is_contiguous(memory_format=torch.channels_last)
