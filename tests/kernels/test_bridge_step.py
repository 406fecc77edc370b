"""The step of every solver: reference and Triton kernel against the formula in float64 NumPy."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.kernels import bridge_step as module
from bbdm.kernels import philox_numpy
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.elementwise import CHANNELS_LAST
from tests.kernels import triton_aot as aot

# p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y: from a first row that ignores x and x0hat to a last one
# that is x0hat alone.
ROWS = [
    [0.0, 1.0, -1.0, 0.0, 0.3, 0.7, 0.0, 0.5, 1.0, 0.0],
    [1.0, 0.0, -1.0, 0.6, 0.15, 0.25, 0.0, 0.0, 0.0, 0.0],
    [1.1, -0.3, 0.2, 0.5, 0.1, 0.7, -0.3, 0.0, 1.7, -0.6],
    [1.0, 0.0, -1.0, 0.4, 0.2, 0.6, -0.2, 0.3, 0.5, 0.0],
    [1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0],
]
SEEDS = [2**63 - 1, 2**32 + 7, 5]

# Sizes, of which those of 1 fit either format, then masks and float64.
SIZES: list[dict[str, Any]] = [
    *({"shape": shape} for shape in [(3, 1, 5, 7), (1, 3, 1, 1), (2, 8, 9, 9)]),
    *({"shape": shape, "masked": True} for shape in [(3, 3, 5, 7), (2, 3, 4, 5, 3)]),
]
OTHERS = [{**each, "channels_last": last} for each in SIZES for last in (False, True)]
OTHERS += [
    {"noise": noise, "dtype": torch.float64, "state": torch.float64} for noise in ("noise", "seeds")
]


def formula(row: list[float], x: Any, x0hat: Any, pred: Any, y: Any, z: Any, mask: Any) -> Any:
    """x_next, the new x0hat and the next input in float64; terms of weight 0 are left out."""

    def weighted(*terms: tuple[float, Any]) -> Any:
        return sum(weight * value for weight, value in terms if weight != 0)

    p_x, p_y, p_pred, c_x, c_y, c_0, c_h, c_z, i_x, i_y = row
    estimate = weighted((p_x, x), (p_y, y), (p_pred, pred))
    if mask is not None:
        estimate = mask * estimate + (1 - mask) * y
    x_next = weighted((c_x, x), (c_y, y), (c_0, estimate), (c_h, x0hat), (c_z, z))
    return x_next, estimate, weighted((i_x, x_next), (i_y, y)) + np.zeros_like(y)


def check_steps(
    apply: Callable[..., None],
    shape: tuple[int, ...] = (3, 3, 5, 7),
    channels_last: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    state: torch.dtype = torch.float32,
    noise: str = "seeds",
    device: str = "cpu",
    masked: bool = False,
) -> None:
    """Take the steps of ROWS from poisoned buffers, each against the formula; ``dtype`` is pred's."""
    generator = torch.Generator().manual_seed(0)
    memory_format = CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format

    def tensor(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return value.to(device, dtype).contiguous(memory_format=memory_format)

    y = tensor(torch.randn(shape, generator=generator), state)
    x, x0hat, inputs = (torch.full_like(y, torch.nan, dtype=kind) for kind in (state, state, dtype))
    rows = torch.tensor(ROWS, dtype=state, device=device)
    some = torch.tensor([0.0, 1.0, 0.25])[
        torch.randint(3, (shape[0], 1, *shape[2:]), generator=generator)
    ]
    mask = some.to(device, state) if masked else None
    seeds = torch.tensor(SEEDS[: shape[0]], device=device) if noise == "seeds" else None
    for index, row in enumerate(rows.tolist()):
        step = torch.tensor([index], device=device)
        pred = tensor(torch.randn(shape, generator=generator), dtype)
        given, z = None, None
        if noise == "seeds":
            z = philox_numpy.normal(SEEDS[: shape[0]], index, shape[1:]).astype(np.float64)
        elif row[7] != 0:
            given = torch.randn(shape, generator=generator).to(device)
            z = given.double().cpu().numpy()
        elif noise == "noise":
            given = torch.full(shape, torch.nan, device=device)
        before = [v.double().cpu().numpy() for v in (x, x0hat, pred, y)]
        covers = None if mask is None else mask.double().cpu().numpy()
        expected, estimate, shown = formula(row, *[*before, z, covers])
        apply(x, x0hat, inputs, pred, y, rows[index], step, seeds, given, mask)
        tolerance = 5e-6 if state == torch.float32 or noise == "seeds" else 1e-12
        np.testing.assert_allclose(
            x0hat.double().cpu().numpy(), estimate, rtol=tolerance, atol=tolerance
        )
        np.testing.assert_allclose(
            x.double().cpu().numpy(), expected, rtol=tolerance, atol=tolerance
        )
        # Near a tie, float32 may round to another neighbour than float64: one unit in the last place.
        eps = max(torch.finfo(dtype).eps, tolerance)
        wanted = torch.from_numpy(shown).to(device, dtype)
        torch.testing.assert_close(
            inputs, wanted.contiguous(memory_format=memory_format), rtol=eps, atol=tolerance
        )
        assert inputs.is_contiguous(memory_format=memory_format)


def arguments(**changes: Any) -> dict[str, Any]:
    """A call that works, unless changed."""
    image = torch.zeros(2, 3, 4, 5)
    tensors = {name: image.clone() for name in ("x", "x0hat", "inputs", "pred", "y")}
    row, step = torch.tensor(ROWS[0]), torch.tensor([0])
    return {**tensors, "row": row, "step": step, "seeds": torch.tensor([1, 2]), **changes}


@aot.layouts
@pytest.mark.parametrize("noise", ["seeds", "noise"])
@aot.every_dtype
def test_step_is_the_formula(dtype: torch.dtype, noise: str, channels_last: bool):
    check_steps(bridge_step, dtype=dtype, noise=noise, channels_last=channels_last)


@pytest.mark.parametrize("given", OTHERS, ids=str)
def test_steps_of_other_kinds_are_the_formula(given: dict[str, Any]):
    check_steps(bridge_step, **given)


def check_zeros(apply: Callable[..., None]) -> None:
    """What has the weight 0 has no influence, be it NaN; an estimate that is NaN is shown as such."""
    nan = torch.full((2, 3, 4, 5), torch.nan)
    row = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    given = arguments(
        x=torch.ones(2, 3, 4, 5), x0hat=nan.clone(), pred=nan, y=nan, row=torch.tensor(row)
    )
    apply(*given.values(), None, None)
    assert (given["x"] == 1).all()
    assert (given["inputs"] == 1).all()
    assert given["x0hat"].isnan().all()


def test_weights_of_zero():
    check_zeros(bridge_step)


def interpreted_weights_of_zero():
    check_zeros(module._launch)


def test_noise_that_is_missing_is_said():
    with pytest.raises(
        ValueError, match=r"step 0 has noise of weight 0\.5, got neither seeds nor noise"
    ):
        bridge_step(**arguments(seeds=None))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (1, 3, 4, 5), (2, 3, 4, 4)], ids=str)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]):
    """A CPU would broadcast them, and a kernel would read what lies behind them."""
    other = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"^the network must predict \(2, 3, 4, 5\), got \("):
        bridge_step(**arguments(pred=other))
    for name in ("x0hat", "inputs", "y", "noise"):
        with pytest.raises(ValueError, match=rf"^{name} must be \(2, 3, 4, 5\), got \("):
            bridge_step(**arguments(**{name: other}))


@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (2, 1, 1, 5), (2, 3, 4, 5)], ids=str)
def test_masks_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^mask must be \(2, 1, 4, 5\), got \("):
        bridge_step(**arguments(mask=torch.ones(shape)))


def test_a_row_has_all_its_weights():
    with pytest.raises(ValueError, match=r"^row must be \(10,\), got \(9,\)"):
        bridge_step(**arguments(row=torch.zeros(9)))


def test_every_picture_has_a_seed():
    with pytest.raises(ValueError, match=r"^seeds must be \(2,\), got \(1,\)"):
        bridge_step(**arguments(seeds=torch.tensor([1])))


def test_operator_is_registered_in_full():
    """Compilers and exports take it: which arguments it writes, without a device to look at."""
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    given = arguments(inputs=image.bfloat16(), pred=image.bfloat16(), row=torch.tensor(ROWS[3]))
    torch.library.opcheck(torch.ops.bbdm.bridge_step.default, (*given.values(), None, None))


@aot.needs_compiler
@aot.every_target
@pytest.mark.parametrize("channels", [0, 3], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("noise", ["seeds", "noise"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiled_kernel_is_wide_and_lean(target: str, channels: int, noise: str, dtype: str):
    absent = {"seeds": "noise_ptr", "noise": "seeds_ptr"}[noise]
    types = {
        "inputs_ptr": f"*{dtype}",
        "pred_ptr": f"*{dtype}",
        "step_ptr": "*i64",
        "seeds_ptr": "*i64",
    }
    constexprs = {absent: None, "mask_ptr": None, "CHANNELS": channels}
    count = Counter(aot.compile_kernel(module._bridge_step_kernel, target, constexprs, types))
    wide, explicit = dtype == "fp32", noise == "noise"
    assert count["load", 128] == 3 + wide + explicit  # x, x0hat, y, then pred, then noise
    assert count["store", 128] == 2 + wide  # x, x0hat, then inputs
    assert count["store", 64] == 1 - wide
    assert not any(
        kind == "shared" or bits == 16 or (kind, bits) == ("store", 32) for kind, bits in count
    )


@pytest.mark.parametrize("given", OTHERS, ids=str)
def interpreted_kernel_takes_other_kinds(given: dict[str, Any]):
    check_steps(module._launch, **given)


def interpreted_kernel_copies_what_has_another_format():
    pred, noise = torch.randn(2, 2, 4, 5, 3).permute(0, 1, 4, 2, 3).unbind()
    given = arguments(pred=pred, noise=noise, seeds=None)
    module._launch(*given.values(), None)
    expected = 0.7 * -given["pred"] + 0.5 * given["noise"]
    torch.testing.assert_close(given["x"], expected)


def interpreted_kernel_shows_that_noise_is_missing():
    given = arguments(seeds=None)
    module._launch(*given.values(), None, None)
    assert given["x"].isnan().all()
    assert not given["x0hat"].isnan().any()


@aot.on_a_gpu
@aot.layouts
@pytest.mark.parametrize("noise", ["seeds", "noise"])
@aot.every_dtype
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 4, 64, 64)], ids=["odd", "even"])
def test_gpu_step_is_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, noise: str, channels_last: bool
):
    check_steps(bridge_step, shape, channels_last, dtype, noise=noise, device="cuda")
