"""The nearest code: reference and Triton against all distances in float64."""

import pytest
import torch
from torch import Tensor

from bbdm.kernels import nearest_code as module
from bbdm.kernels.nearest_code import nearest_code
from tests.kernels.triton_aot import compile_kernel, every_target, needs_compiler, on_a_gpu

SHAPES = [(1, 1, 1), (5, 3, 7), (300, 3, 512), (257, 4, 65), (64, 8, 1000)]  # vectors, channels, codes


def given(vectors: int, channels: int, codes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(vectors, channels, generator=generator, dtype=torch.float64)
    return z.to(dtype), torch.randn(codes, channels, generator=generator, dtype=torch.float64).to(dtype)


def check(index: Tensor, z: Tensor, codes: Tensor) -> None:
    """No code is nearer than the chosen ones, up to rounding of a squared distance."""
    distances = torch.cdist(z.double().flatten(0, -2).cpu(), codes.double().cpu()).square()
    chosen = distances.gather(1, index.flatten().cpu()[:, None])[:, 0]
    assert index.shape == z.shape[:-1]
    assert index.dtype == torch.int64
    assert (chosen - distances.amin(1)).max() <= 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_code_is_nearer(shape: tuple[int, int, int]):
    z, codes = given(*shape)
    check(nearest_code(z, codes), z, codes)


def test_autocast_changes_nothing():
    """Training calls it under autocast: in bfloat16, many vectors would get another code."""
    z, codes = given(300, 3, 512)
    expected = nearest_code(z, codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(z, codes), expected)


def test_float64_finds_the_nearest_of_all():
    z, codes = given(200, 3, 700, torch.float64)
    assert torch.equal(nearest_code(z, codes), torch.cdist(z, codes).argmin(1))


def test_any_leading_shape_and_dtype():
    z, codes = given(24, 3, 50)
    index = nearest_code(z, codes)
    assert torch.equal(nearest_code(z.view(2, 3, 4, 3), codes), index.view(2, 3, 4))
    assert torch.equal(nearest_code(z.view(2, 3, 4, 3).transpose(0, 2), codes), index.view(2, 3, 4).transpose(0, 2))
    rounded = z.bfloat16()
    check(nearest_code(rounded, codes), rounded, codes)


def test_codes_find_themselves_and_ties_go_to_the_first():
    codes = torch.arange(200.0)[:, None].repeat(1, 3)
    assert torch.equal(nearest_code(codes, codes), torch.arange(200))
    assert torch.equal(nearest_code(codes[:3], codes[:3].repeat(90, 1)), torch.arange(3))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (0, 3)])
def test_codes_that_do_not_fit(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"codes must be \(N, 3\) with N at least 1, got"):
        nearest_code(torch.zeros(5, 3), torch.zeros(shape))


def test_operator_is_registered_in_full():
    torch.library.opcheck(torch.ops.bbdm.nearest_code.default, given(10, 3, 70))


@needs_compiler
@every_target
@pytest.mark.parametrize("channels", [3, 4, 8])
def test_compiled_kernel_is_lean(target: str, channels: int):
    signature = {"out_ptr": "*i64", "z_ptr": "*fp32", "codes_ptr": "*fp32", "vectors": "i32", "count": "i32"}
    constexprs = {"C": channels, "BLOCK": module.BLOCK, "CODES": module.CODES}
    kernel = compile_kernel(module._nearest_code_kernel, signature, constexprs, target)
    assert kernel.spills == 0
    assert kernel.registers <= 128


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def interpreted_no_code_is_nearer(shape: tuple[int, int, int]):
    z, codes = given(*shape)
    check(module._launch(z, codes), z, codes)


def interpreted_ties_go_to_the_first():
    codes = torch.arange(3.0)[:, None].repeat(50, 3)
    assert torch.equal(module._launch(codes[:3], codes), torch.arange(3))


@on_a_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_no_code_is_nearer(shape: tuple[int, int, int]):
    z, codes = (v.cuda() for v in given(*shape))
    check(nearest_code(z, codes), z, codes)
