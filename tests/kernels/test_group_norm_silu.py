"""GroupNorm, affine map and SiLU against F.group_norm and F.silu in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.kernels.group_norm_silu import decomposed, group_norm_silu, reference

EPS = 1e-5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES: list[dict[str, Any]] = [
    {"shape": (1, 24, 5, 7), "groups": 3},
    {"shape": (3, 24, 5, 7), "groups": 3, "shared": True},
    {"shape": (3, 32, 9, 9), "groups": 8, "activation": False},
    {"shape": (2, 40, 11, 11), "groups": 2, "mean": 30.0},
    {"shape": (2, 6, 1, 7), "groups": 2, "shared": True},
    {"shape": (2, 5, 4, 4), "groups": 1},
]


def formula(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = EPS,
    activation: bool = True,
) -> Tensor:
    one = (..., *[None] * (x.ndim - 2))
    z = F.group_norm(x, num_groups, eps=eps) * weight[one] + bias[one]
    return F.silu(z) if activation else z


def inputs(
    shape: tuple[int, ...] = (2, 8, 3, 5), mean: float = 0.0, shared: bool = False
) -> tuple[Tensor, ...]:
    """x and dy (B, C, H, W), channels_last, and weight and bias (B or 1, C)."""
    draws = torch.Generator().manual_seed(0)
    rows = (1 if shared else shape[0], shape[1])
    weight, bias, x, dy = (
        torch.randn(each, generator=draws) for each in (rows, rows, shape, shape)
    )
    return (x + mean).to(memory_format=torch.channels_last), dy, weight, bias


def differentiated(
    forward: Any, given: tuple[Tensor, ...], groups: int, activation: bool = True
) -> list[Tensor]:
    """The output, and the gradients of x, weight and bias."""
    x, dy, weight, bias = given
    leaves = [each.detach().clone().requires_grad_() for each in (x, weight, bias)]
    y = forward(leaves[0], groups, *leaves[1:], EPS, activation)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=[*DTYPES])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_compiler_s_form_is_the_formula(dtype: torch.dtype, case: dict[str, Any]):
    """In float32 by a bound, in half precision by eager PyTorch's error in it."""
    case = dict(case)
    groups = case.pop("groups")
    activation = case.pop("activation", True)
    mean = case.get("mean", 0.0)
    x, dy, weight, bias = inputs(**case)
    given = (x.to(dtype), dy.to(dtype), weight, bias)
    exact = differentiated(formula, tuple(each.double() for each in given), groups, activation)
    eager = differentiated(
        formula, (*given[:2], weight.to(dtype), bias.to(dtype)), groups, activation
    )
    made = differentiated(decomposed, given, groups, activation)
    assert [each.dtype for each in made[:2]] == [dtype, dtype]
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    for name, found, wanted, rival in zip(
        ("y", "dx", "dweight", "dbias"), made, exact, eager, strict=True
    ):
        # The mean is rounded to float32: that error grows with mean / std, and std is 1.
        bound = (
            2.0**-23 * (8 + mean) * max(1.0, wanted.abs().max().item()) * (1 if name == "y" else 2)
        )
        bound += 0 if dtype == torch.float32 else 2 * (rival.double() - wanted).abs().max().item()
        assert (found.double() - wanted).abs().max().item() <= bound, name


@pytest.mark.parametrize("forward", [reference, decomposed])
@pytest.mark.parametrize("shared", [False, True], ids=["per image", "shared"])
def test_float64_and_its_gradients_are_exact(forward: Any, shared: bool):
    given = tuple(each.double() for each in inputs((2, 6, 2, 3), shared=shared))
    for made, wanted in zip(
        differentiated(forward, given, 3), differentiated(formula, given, 3), strict=True
    ):
        torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (2, 8, 3, 4, 5)], ids=["picture", "volume"])
def test_memory_formats_do_not_matter(shape: tuple[int, ...]):
    """Of volumes too, compiled or not, which keep their format."""
    x, weight, bias = torch.randn(shape), torch.randn(2, 8), torch.randn(1, 8)
    last = x.to(memory_format=CHANNELS_LAST[x.ndim])
    compiled = torch.compile(group_norm_silu, backend="aot_eager", fullgraph=True, dynamic=False)
    for op, each in (
        (group_norm_silu, x),
        (group_norm_silu, torch.cat([x, x], 1)[:, :8]),
        (compiled, last),
    ):
        made = op(each, 4, weight, bias)
        torch.testing.assert_close(made, formula(x, 4, weight, bias))
    assert made.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])
