"""GroupNorm, affine map and SiLU against F.group_norm and F.silu in float64."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbdm.kernels.group_norm_silu import decomposed, group_norm_silu, reference

EPS = 1e-5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Results = tuple[Tensor, ...]  # y and the gradients of x, weight and bias


@dataclass(frozen=True)
class Case:
    """Random inputs, and PyTorch's results."""

    shape: tuple[int, ...]
    num_groups: int
    dtype: torch.dtype = torch.float32
    mean: float = 0.0
    shared: bool = False  # one row of weight and bias for all images
    activation: bool = True

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and dy (B, C, H, W), channels_last, and weight and bias (B or 1, C)."""
        generator = torch.Generator().manual_seed(0)
        rows = (1 if self.shared else self.shape[0], self.shape[1])
        weight, bias = (torch.randn(rows, generator=generator) for _ in range(2))
        x, dy = (torch.randn(self.shape, generator=generator) for _ in range(2))
        x, dy = (t.to(self.dtype, memory_format=torch.channels_last) for t in (x + self.mean, dy))
        return x, dy, weight, bias

    def differentiated(self, forward: Any, dtype: torch.dtype | None = None) -> Results:
        """Output and gradients of ``forward``, from inputs that are cast to ``dtype`` if one is given."""
        x, dy, weight, bias = self.inputs()
        leaves = [(t if dtype is None else t.to(dtype)).requires_grad_() for t in (x, weight, bias)]
        y = forward(leaves[0], self.num_groups, leaves[1], leaves[2], EPS, self.activation)
        return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))

    def check(self, results: Results) -> None:
        """Compare with float64: float32 by a bound, half precision by eager PyTorch's error in it."""
        exact = self.differentiated(formula, torch.float64)
        eager = self.differentiated(formula, self.dtype)
        for name, made, wanted, rival in zip(("y", "dx", "dweight", "dbias"), results, exact, eager, strict=True):
            error, scale = _largest(made.double() - wanted), max(1.0, _largest(wanted))
            # The mean is rounded to float32: that error grows with mean / std, and std is 1.
            bound = 2.0**-23 * (8 + self.mean) * scale * (1 if name == "y" else 2)
            if self.dtype != torch.float32:
                bound += 2 * _largest(rival.double() - wanted)
            assert error <= bound, name


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def formula(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    z = F.group_norm(x, num_groups, eps=eps) * weight[:, :, None, None] + bias[:, :, None, None]
    return F.silu(z) if activation else z


CASES = [
    Case((1, 24, 5, 7), 3),
    Case((3, 24, 5, 7), 3, shared=True),
    Case((3, 32, 9, 9), 8, activation=False),
    Case((2, 40, 11, 11), 2, mean=30.0),
    Case((2, 6, 1, 7), 2, shared=True),
    Case((2, 5, 4, 4), 5),
    Case((2, 5, 4, 4), 1),
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=[*DTYPES])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_compiler_s_form_is_the_formula(dtype: torch.dtype, case: Case):
    case = replace(case, dtype=dtype)
    results = case.differentiated(decomposed)
    assert [made.dtype for made in results[:2]] == [dtype, dtype]
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    case.check(results)


@pytest.mark.parametrize("forward", [reference, decomposed])
@pytest.mark.parametrize("shared", [False, True], ids=["per image", "shared"])
def test_float64_and_its_gradients_are_exact(forward: Any, shared: bool):
    case = Case((2, 6, 2, 3), 3, shared=shared)
    both = zip(case.differentiated(forward, torch.float64), case.differentiated(formula, torch.float64), strict=True)
    for made, wanted in both:
        torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


def test_memory_formats_and_dtypes_of_weights_do_not_matter():
    x, _, weight, bias = Case((2, 8, 3, 3), 2).inputs()
    expected = group_norm_silu(x, 2, weight, bias)
    for other in (x.contiguous(), torch.cat([x, x], 1)[:, :8]):
        torch.testing.assert_close(group_norm_silu(other, 2, weight, bias), expected)
    rounded = weight.bfloat16().requires_grad_(), bias.requires_grad_()
    gradients = torch.autograd.grad(decomposed(x.bfloat16(), 2, *rounded, EPS, True).float().sum(), rounded)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("num_groups", "weight", "bias", "message"),
    [
        (3, (2, 8), (2, 8), r"channels must be a multiple of num_groups=3, got 8"),
        (0, (2, 8), (2, 8), r"channels must be a multiple of num_groups=0, got 8"),
        (2, (3, 8), (2, 8), r"weight must be \(2 or 1, 8\), got \(3, 8\)"),
        (2, (2, 8), (1, 4), r"bias must be \(2 or 1, 8\), got \(1, 4\)"),
        (2, (8,), (2, 8), r"weight must be \(2 or 1, 8\), got \(8,\)"),
    ],
)
def test_wrong_shapes_are_named(num_groups: int, weight: tuple[int, ...], bias: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        group_norm_silu(torch.zeros(2, 8, 3, 3), num_groups, torch.zeros(weight), torch.zeros(bias))


@pytest.mark.nightly
def test_compiles_whole():
    case = Case((2, 8, 3, 5), 2)
    case.check(case.differentiated(torch.compile(group_norm_silu, fullgraph=True)))


class _Module(nn.Module):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_silu(x, 2, weight, bias)


def test_exports_with_any_batch():
    x, _, weight, bias = Case((2, 8, 3, 5), 2, shared=True).inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(_Module(), (x, weight, bias), dynamic_shapes=({0: batch}, None, None))
    x = torch.cat([x, x + 1])
    torch.testing.assert_close(program.module()(x, weight, bias), formula(x, 2, weight, bias, EPS, True))
