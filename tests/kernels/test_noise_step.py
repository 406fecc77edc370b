"""Forward diffusion and the noise of kernels: reference and Triton against the formulas in float64 NumPy."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.kernels import noise_step as module
from bbdm.kernels import philox, philox_numpy
from bbdm.kernels.elementwise import CHANNELS_LAST, jit, tl
from bbdm.kernels.noise_step import noise_step
from tests.kernels import triton_aot as aot

SEEDS = [2**63 - 1, 2**32 + 7, 5]
STEP = 2**31 + 3
NORMAL_BOUND = 2e-6  # |normal - exact|, for the float32 normals of any backend
TABLE = np.random.default_rng(0).normal(size=(11, 6))
TOLERANCE = {
    torch.float32: 5e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float64: 1e-12,
}


def check(
    apply: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    shape: tuple[int, ...] = (3, 3, 5, 7),
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    drawn: bool = True,
    device: str = "cpu",
) -> None:
    """One call against the formula."""
    generator = torch.Generator().manual_seed(0)
    memory_format = CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format
    x0, y, noise = (
        torch.randn(shape, generator=generator)
        .to(device, dtype)
        .contiguous(memory_format=memory_format)
        for _ in range(3)
    )
    t = torch.tensor([10, 0, 4][: shape[0]])
    table = torch.tensor(TABLE, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    seeds = torch.tensor(SEEDS[: shape[0]], device=device)
    step = torch.tensor([STEP], device=device)
    extra = (None, seeds, step) if drawn else (noise, None, None)
    z = philox_numpy.normal(SEEDS[: shape[0]], STEP, shape[1:], 1).astype(np.float64)
    if not drawn:
        z = noise.double().cpu().numpy()
    w = TABLE[t.numpy()].T[(..., *[None] * (len(shape) - 1))]
    images = x0.double().cpu().numpy(), y.double().cpu().numpy(), z
    made = apply(x0, y, t.to(device), table.to(device), *extra)
    tolerance = max(TOLERANCE[dtype], 5e-6 * drawn)
    for tensor, weights in zip(made, (w[:3], w[3:]), strict=True):
        assert tensor.dtype == dtype
        assert tensor.is_contiguous(memory_format=memory_format)
        expected = sum(weight * image for weight, image in zip(weights, images, strict=True))
        np.testing.assert_allclose(
            tensor.double().cpu().numpy(), expected, rtol=tolerance, atol=5e-6
        )


def arguments(**changes: Any) -> dict[str, Any]:
    """A call that works, unless changed."""
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    table = torch.tensor(TABLE, dtype=torch.float32)
    given = {
        "x0": image,
        "y": image + 1,
        "t": torch.tensor([1, 2]),
        "table": table,
        "noise": image * 2,
    }
    return {**given, "seeds": None, "step": None, **changes}


@aot.layouts
@pytest.mark.parametrize("drawn", [True, False], ids=["seeds", "noise"])
@aot.every_dtype
def test_step_is_the_formula(dtype: torch.dtype, drawn: bool, channels_last: bool):
    check(noise_step, dtype=dtype, drawn=drawn, channels_last=channels_last)


def test_a_step_may_be_an_integer_and_images_may_have_gaps():
    given, seeds = arguments(), torch.tensor([1, 2])
    wide = torch.zeros(2, 3, 4, 9)
    wide[..., 2:7] = given["x0"]
    drawn = {"noise": None, "seeds": seeds, "step": torch.tensor([7])}
    for changes, same in (({**drawn, "step": 7}, drawn), ({"x0": wide[..., 2:7]}, {})):
        made, expected = noise_step(**{**given, **changes}), noise_step(**{**given, **same})
        assert all(
            torch.equal(a, b) and a.is_contiguous() for a, b in zip(made, expected, strict=True)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": None}, "one of noise and seeds, got neither"),
        ({"seeds": torch.tensor([1, 2]), "step": 0}, "one of noise and seeds, got both"),
        ({"noise": None, "seeds": torch.tensor([1, 2])}, "seeds need the optimizer step"),
        (
            {"noise": None, "seeds": torch.tensor([1]), "step": 0},
            r"seeds must be \(2,\) of int64, got \(1,\)",
        ),
        ({"t": torch.tensor([1])}, r"t must be \(2,\), got \(1,\)"),
        ({"table": torch.zeros(11, 3)}, r"table must be \(11, 6\), got \(11, 3\)"),
        (
            {
                "noise": None,
                "seeds": torch.tensor([1, 2]),
                "step": torch.zeros(30, dtype=torch.int64),
            },
            r"step must be \(1,\), got \(30,\)",
        ),
        (
            {"y": torch.zeros(2, 3, 4, 4)},
            r"y must be a float tensor of shape \(2, 3, 4, 5\), got \(2, 3, 4, 4\)",
        ),
        (
            {"y": torch.zeros(2, 3, 4, 5).int()},
            "y must be a float tensor of shape .* of torch.int32",
        ),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        noise_step(**arguments(**changes))


@aot.layouts
def test_operator_is_registered_in_full(channels_last: bool):
    given = arguments(noise=None, seeds=torch.tensor([1, 2]), step=torch.tensor([3]))
    if channels_last:
        given["x0"] = given["x0"].contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.bbdm.noise_step.default, tuple(given.values()))


@aot.needs_compiler
@aot.every_target
@pytest.mark.parametrize("channels", [0, 3], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("drawn", [True, False], ids=["seeds", "noise"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiled_kernel_is_wide_and_lean(target: str, channels: int, drawn: bool, dtype: str):
    types = dict.fromkeys(["x_t_ptr", "target_ptr", "x0_ptr", "y_ptr", "noise_ptr"], f"*{dtype}")
    types |= dict.fromkeys(["t_ptr", "seeds_ptr", "step_ptr"], "*i64")
    constexprs = {
        **dict.fromkeys(["noise_ptr"] if drawn else ["seeds_ptr", "step_ptr"]),
        "CHANNELS": channels,
    }
    count = Counter(aot.compile_kernel(module._noise_step_kernel, target, constexprs, types))
    bits = {"fp32": 128, "bf16": 64}[dtype]
    # x_t and target
    assert {key: n for key, n in count.items() if key[0] == "store"} == {("store", bits): 2}
    # x0, y, noise; 64 bits are also the width of t, seeds and step
    assert count["load", bits] >= 3 - drawn
    assert not count["load", 16]


def interpreted_kernel_shows_a_time_outside_its_table():
    given = arguments(t=torch.tensor([3, 11]))
    for made in module._launch(*given.values()):
        assert made[1].isnan().all()
        assert not made[0].isnan().any()


@jit
def box_muller_kernel(
    radius_ptr, cos_ptr, sin_ptr, first, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """For each STRIDE-th u, of words k << 9, as the lower bits have no influence."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = (first + at * STRIDE).to(tl.uint32) << 9
    cos, sin = philox._direction(word)
    tl.store(radius_ptr + at, philox._radius(word))
    tl.store(cos_ptr + at, cos)
    tl.store(sin_ptr + at, sin)


@pytest.mark.parametrize(
    ("first", "stride"), [(0, 64), (63, 64), pytest.param(0, 1, marks=pytest.mark.nightly)]
)
def interpreted_normals_are_exact_to_rounding(first: int, stride: int):
    """Values of u, with those next to 0 and 1, and the bound that follows for a normal.

    Every night all 2^23 of them.
    """
    count = 2**23 // stride
    radius, cos, sin = torch.zeros(3, count)
    box_muller_kernel[(8,)](radius, cos, sin, first, STRIDE=stride, BLOCK=count // 8)
    u = (np.arange(first, 2**23, stride) + 0.5) * 2.0**-23
    exact = np.sqrt(-2 * np.log(u))
    assert np.max(np.abs(radius.numpy() / exact - 1)) < 1.2e-7
    assert np.max(np.abs(cos.numpy() - np.cos(2 * np.pi * u))) < 1e-7
    assert np.max(np.abs(sin.numpy() - np.sin(2 * np.pi * u))) < 1e-7
    assert exact.max() * (1.2e-7 + 1e-7 + 2.0**-24) < NORMAL_BOUND


@aot.on_a_gpu
@aot.layouts
@pytest.mark.parametrize("drawn", [True, False], ids=["seeds", "noise"])
@aot.every_dtype
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 4, 64, 64)], ids=["odd", "even"])
def test_gpu_step_is_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, drawn: bool, channels_last: bool
):
    check(noise_step, shape, channels_last, dtype, drawn, device="cuda")
