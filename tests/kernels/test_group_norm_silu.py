"""GroupNorm, affine map and SiLU: PyTorch and Triton against F.group_norm and F.silu in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bbdm.kernels import group_norm_silu as module
from bbdm.kernels import group_norm_tiling as tiling
from bbdm.kernels.group_norm_silu import group_norm_silu
from tests.kernels.triton_aot import compile_kernel, every_target, needs_compiler, on_a_gpu
from tests.nightly import sweep

EPS = 1e-5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
daily_dtypes = pytest.mark.parametrize("dtype", sweep(DTYPES.values(), [torch.float32]), ids=[*DTYPES])
NAMES = ("y", "dx", "dweight", "dbias")
UNET_SHAPES = [(128, 64), (512, 64), (1024, 64), (640, 64), (512, 32), (1024, 32), (1536, 32), (1024, 16), (2048, 16)]

Forward = Callable[[Tensor, int, Tensor, Tensor, float, bool], Tensor]
Results = tuple[Tensor, ...]  # y and the gradients of x, weight and bias


def op(*arguments: Any) -> Tensor:
    return torch.ops.bbdm.group_norm_silu(*arguments)[0]


@dataclass(frozen=True)
class Case:
    """Random inputs, and PyTorch's results."""

    shape: tuple[int, int, int, int]
    num_groups: int
    dtype: torch.dtype = torch.float32
    mean: float = 0.0
    shared: bool = False  # one row of weight and bias for all images
    activation: bool = True
    device: str = "cpu"

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and dy (B, C, H, W), channels_last, and weight and bias (B or 1, C)."""
        generator = torch.Generator().manual_seed(0)
        rows = (1 if self.shared else self.shape[0], self.shape[1])
        weight, bias = (torch.randn(rows, generator=generator).to(self.device) for _ in range(2))
        x, dy = (torch.randn(self.shape, generator=generator).to(self.device) for _ in range(2))
        x, dy = (t.to(self.dtype, memory_format=torch.channels_last) for t in (x + self.mean, dy))
        return x, dy, weight, bias

    def differentiated(self, forward: Forward, dtype: torch.dtype | None = None) -> Results:
        """Output and gradients of ``forward``, from inputs that are cast to ``dtype`` if one is given."""
        x, dy, weight, bias = self.inputs()
        leaves = [(t if dtype is None else t.to(dtype)).requires_grad_() for t in (x, weight, bias)]
        y = forward(leaves[0], self.num_groups, leaves[1], leaves[2], EPS, self.activation)
        return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))

    def check(self, results: Results) -> None:
        """Compare with float64: float32 by a bound, half precision by eager PyTorch's error in it."""
        exact = self.differentiated(formula, torch.float64)
        eager = self.differentiated(formula, self.dtype)
        for name, made, wanted, rival in zip(NAMES, results, exact, eager, strict=True):
            assert made.shape == wanted.shape
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


SMALL = [
    Case((1, 24, 5, 7), 3),
    Case((3, 24, 5, 7), 3, shared=True),
    Case((3, 32, 9, 9), 8, activation=False),
    Case((2, 40, 11, 11), 2, mean=30.0),
    Case((2, 6, 1, 7), 2, shared=True),
    Case((2, 5, 4, 4), 5),
    Case((2, 5, 4, 4), 1),
]


def _id(case: Case) -> str:
    flags = [case.mean and f"mean{case.mean:.0f}", case.shared and "shared", not case.activation and "linear"]
    return "-".join(["x".join(map(str, case.shape)), f"g{case.num_groups}", *(str(f) for f in flags if f)])


@pytest.mark.parametrize("forward", [module.decomposed, op], ids=["decomposed", "op"])
@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=[*DTYPES])
@pytest.mark.parametrize("case", SMALL, ids=_id)
def test_plain_paths_are_the_formula(forward: Forward, dtype: torch.dtype, case: Case):
    case = Case(**{**vars(case), "dtype": dtype})
    results = case.differentiated(forward)
    assert results[0].dtype == results[1].dtype == dtype
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    case.check(results)


@pytest.mark.parametrize("forward", [module.reference, module.decomposed, op], ids=["reference", "decomposed", "op"])
@pytest.mark.parametrize("shared", [False, True], ids=["per image", "shared"])
def test_float64_and_its_gradients_are_exact(forward: Forward, shared: bool):
    case = Case((2, 6, 2, 3), 3, shared=shared)
    for made, wanted in zip(
        case.differentiated(forward, torch.float64), case.differentiated(formula, torch.float64), strict=True
    ):
        torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    x, _, weight, bias = (t.double().requires_grad_() for t in case.inputs())
    assert torch.autograd.gradcheck(lambda x, w, b: forward(x, 3, w, b, EPS, True), (x, weight, bias))


def test_weight_and_bias_of_another_dtype_keep_it():
    x, _, weight, bias = Case((2, 8, 3, 3), 2, torch.bfloat16).inputs()
    for forward in (module.decomposed, op):
        leaves = [x, weight.bfloat16(), bias]
        y = forward(leaves[0], 2, leaves[1].requires_grad_(), leaves[2].requires_grad_(), EPS, True)
        gradients = torch.autograd.grad(y.float().sum(), leaves[1:])
        assert [y.dtype, *(g.dtype for g in gradients)] == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_contiguous_input_gives_the_same():
    x, _, weight, bias = Case((2, 8, 3, 3), 2).inputs()
    expected = group_norm_silu(x, 2, weight, bias)
    for other in (x.contiguous(), torch.cat([x, x], 1)[:, :8]):
        torch.testing.assert_close(group_norm_silu(other, 2, weight, bias), expected)
        torch.testing.assert_close(op(other, 2, weight, bias, EPS, True), expected)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_operators_are_well_formed(dtype: torch.dtype):
    x, dy, weight, bias = Case((2, 8, 3, 5), 2, dtype, shared=True).inputs()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.bbdm.group_norm_silu.default, (leaves[0], 2, leaves[1], leaves[2], EPS, True))
    _, mean, rstd = torch.ops.bbdm.group_norm_silu(x, 2, weight, bias, EPS, True)
    torch.library.opcheck(torch.ops.bbdm.group_norm_silu_backward.default, (dy, x, weight, bias, mean, rstd, True))


def test_operator_returns_the_groups_mean_and_rstd():
    x, _, weight, bias = Case((2, 8, 3, 5), 2).inputs()
    _, mean, rstd = torch.ops.bbdm.group_norm_silu(x, 2, weight, bias, EPS, True)
    variance, expected = torch.var_mean(x.double().reshape(2, 2, -1), 2, correction=0)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "forward", [op, pytest.param(group_norm_silu, marks=pytest.mark.nightly)], ids=["op", "public"]
)
def test_compiles_whole(forward: Forward):
    case = Case((2, 8, 3, 5), 2)
    backend = "aot_eager" if forward is op else "inductor"  # inductor compiles nothing in the op
    case.check(case.differentiated(torch.compile(forward, fullgraph=True, backend=backend)))


class _Module(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.function(x, 2, weight, bias, EPS, True)


@pytest.mark.parametrize("forward", [op, group_norm_silu], ids=["op", "public"])
def test_exports_with_any_batch(forward: Forward):
    x, _, weight, bias = Case((2, 8, 3, 5), 2, shared=True).inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(_Module(forward), (x, weight, bias), dynamic_shapes=({0: batch}, None, None))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert ("bbdm.group_norm_silu.default" in operators) == (forward is op)  # ONNX wants plain operators
    x = torch.cat([x, x + 1])
    torch.testing.assert_close(program.module()(x, weight, bias), formula(x, 2, weight, bias, EPS, True))


def test_a_gpu_takes_the_operator_for_channels_last(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> Tensor:
        raise AssertionError("plain")

    monkeypatch.setattr(module, "AVAILABLE", True)
    monkeypatch.setattr(module, "reference", fail)
    with FakeTensorMode():
        x = torch.empty((2, 32, 8, 8), device="cuda", memory_format=torch.channels_last)
        rows = torch.empty((1, 32), device="cuda")
        y = group_norm_silu(x, 8, rows, rows)
        assert (y.shape, y.stride(), y.device.type) == (x.shape, x.stride(), "cuda")
        contiguous = torch.empty((2, 32, 8, 8), device="cuda")
        double = torch.empty_like(x, dtype=torch.float64)
        for other in (contiguous, double):
            with pytest.raises(AssertionError, match="plain"):
                group_norm_silu(other, 8, rows, rows)
        wide = torch.empty((1, 512, 8, 8), device="cuda", memory_format=torch.channels_last)
        rows = torch.empty((1, 512), device="cuda")
        assert group_norm_silu(wide, 2, rows, rows).shape == wide.shape
        with pytest.raises(AssertionError, match="plain"):
            group_norm_silu(wide, 1, rows, rows)  # 512 channels a group don't fit a block


@needs_compiler
@pytest.mark.parametrize(("channels", "size"), [*UNET_SHAPES, (24, 5), (32, 64), (96, 16), (384, 16), (256, 256)])
def test_plan_covers_an_image_once(channels: int, size: int):
    num_groups = {24: 3, 32: 8, 96: 8}.get(channels, 32)
    blocks, chunks, plan = tiling.plan(channels, num_groups, size * size, tiling.TILE)
    assert plan["GROUP"] * num_groups == channels
    assert (blocks - 1) * plan["GROUPS"] < num_groups <= blocks * plan["GROUPS"]
    assert (chunks - 1) * plan["SPAN"] < size * size <= chunks * plan["SPAN"]
    assert plan["GROUPS"] * plan["GROUP"] <= plan["BLOCK_C"]
    assert plan["GROUPS"] <= plan["BLOCK_G"]
    assert chunks <= plan["BLOCK_K"]
    assert plan["SPAN"] % plan["ROWS"] == 0
    assert plan["GROUPS"] * plan["GROUP"] % 8 == 0  # blocks start at 128 bits
    assert blocks * plan["BLOCK_C"] <= 1.5 * channels  # few idle lanes


KERNELS: dict[str, tuple[Any, int, dict[str, bool], int, int]] = {  # kernel, tile, constants, tensors read and written
    "statistics": (module._statistics_kernel, tiling.TILE, {}, 1, 0),
    "apply": (module._apply_kernel, tiling.TILE, {}, 1, 1),
    "backward sums": (module._backward_kernel, tiling.BACKWARD_TILE, {"MERGE": False}, 2, 0),
    "backward": (module._backward_kernel, tiling.BACKWARD_TILE, {"MERGE": True}, 2, 1),
}


@needs_compiler
@every_target
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*KERNELS])
def test_compiled_kernel_is_wide_and_lean(name: str, dtype: str, target: str):
    kernel, tile, constants, read, written = KERNELS[name]
    _, _, plan = tiling.plan(512, 32, 64 * 64, tile, ACTIVATION=True, **constants)
    plan = plan | {key: 1 for key in ("weight_stride", "bias_stride") if key in kernel.arg_names}
    types = dict.fromkeys(["x_ptr", "y_ptr", "dy_ptr", "dx_ptr"], f"*{dtype}") | {"eps": "fp32"}
    signature = {
        key: types.get(key, "*fp32" if key.endswith("_ptr") else "i32") for key in kernel.arg_names if key not in plan
    }
    steps = ("HW", "weight_step", "bias_step")
    compiled = compile_kernel(kernel, signature, plan, target, divisible=[key for key in steps if key in signature])

    threads = 4 * (32 if target.startswith("sm_") else 64)
    wide = tile * (4 if dtype == "fp32" else 2) // 16 // threads  # 128-bit accesses of a thread to a tile
    assert compiled.loads(128) >= read * wide
    assert compiled.stores(128) >= written * wide
    assert compiled.loads(16) == compiled.stores(16) == compiled.stores(64) == 0
    assert compiled.stores(32) == 2  # statistics or sums
    assert compiled.spills == 0
    assert compiled.registers <= 128


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that no kernel writes is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def kernels(case: Case) -> Results:
    x, dy, weight, bias = case.inputs()
    y, mean, rstd = module._forward_triton(x, case.num_groups, weight, bias, EPS, case.activation)
    dx, dweight, dbias = module._backward_triton(dy, x, weight, bias, mean, rstd, case.activation)
    return y, dx, dweight.sum_to_size(weight.shape), dbias.sum_to_size(bias.shape)


@pytest.mark.usefixtures("poisoned")
@daily_dtypes
@pytest.mark.parametrize("case", [*SMALL, Case((2, 40, 12, 11), 4), Case((1, 300, 5, 7), 3)], ids=_id)
def interpreted_kernels_are_the_formula(case: Case, dtype: torch.dtype):
    case = Case(**{**vars(case), "dtype": dtype})
    case.check(kernels(case))


@pytest.mark.usefixtures("poisoned")
def interpreted_kernels_take_several_small_tiles(monkeypatch: pytest.MonkeyPatch):
    """9 x 9 rows are 3 chunks of 2 tiles, the last short; 5 groups of 20 are 3 blocks, the last not full."""
    case = Case((1, 100, 9, 9), 5, torch.bfloat16, mean=30.0)
    for name in ("TILE", "BACKWARD_TILE"):
        monkeypatch.setattr(module, name, 1024)
    blocks, chunks, plan = tiling.plan(100, 5, 9 * 9, 1024)
    assert (blocks, chunks, plan["GROUPS"], plan["SPAN"] // plan["ROWS"]) == (3, 3, 2, 2)
    case.check(kernels(case))


def interpreted_kernels_give_an_image_the_same_in_any_batch():
    x, dy, weight, bias = Case((3, 24, 9, 9), 3, mean=1.0).inputs()

    def run(images: slice) -> Results:
        x_part, w, b = x[images], weight[images], bias[images]
        y, mean, rstd = module._forward_triton(x_part, 3, w, b, EPS, True)
        return y, *module._backward_triton(dy[images], x_part, w, b, mean, rstd, True)

    for whole, alone in zip(run(slice(3)), run(slice(1, 2)), strict=True):
        assert torch.equal(whole[1:2], alone)


def interpreted_kernels_take_volumes():
    """Planes of a volume are rows: the kernels get a view of its memory, and the result has its format."""
    x = torch.randn(2, 24, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(2, 2, 24).unbind()
    flat = x.flatten(2, 3)
    assert flat.data_ptr() == x.data_ptr()
    assert flat.is_contiguous(memory_format=torch.channels_last)
    made = module._forward_triton(flat, 3, weight, bias, EPS, True)[0].unflatten(2, (3, 4))
    assert made.is_contiguous(memory_format=torch.channels_last_3d)
    one = (..., None, None, None)
    wanted = F.silu(F.group_norm(x.double(), 3, eps=EPS) * weight[one] + bias[one])
    torch.testing.assert_close(made.double(), wanted, atol=1e-5, rtol=1e-5)


def interpreted_kernels_take_rows_of_any_stride():
    """Weight and bias are columns of a larger tensor, or its transpose; dy has another format."""
    case = Case((2, 24, 5, 7), 3)
    x, dy, weight, bias = case.inputs()
    expected = kernels(case)
    both = torch.cat([weight, bias], 1)
    for w, b in (both.chunk(2, 1), both.t().contiguous().t().chunk(2, 1)):
        y, mean, rstd = module._forward_triton(x.contiguous(), 3, w, b, EPS, True)
        results = y, *module._backward_triton(dy.contiguous(), x, w, b, mean, rstd, True)
        assert all(map(torch.equal, results, expected))


GPU_CASES = [Case((2, channels, size, size), 32, device="cuda") for channels, size in UNET_SHAPES]
GPU_CASES += [Case(**{**vars(case), "device": "cuda"}) for case in SMALL]


@on_a_gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=[*DTYPES])
@pytest.mark.parametrize("case", GPU_CASES, ids=_id)
def test_gpu_kernels_are_the_formula(case: Case, dtype: torch.dtype):
    case = Case(**{**vars(case), "dtype": dtype})
    case.check(case.differentiated(group_norm_silu))


@on_a_gpu
def test_gpu_kernels_repeat_themselves_and_compile_whole():
    case = Case((3, 128, 64, 64), 32, torch.bfloat16, device="cuda")
    first = case.differentiated(group_norm_silu)
    compiled = torch.compile(group_norm_silu, fullgraph=True)
    for again in (case.differentiated(group_norm_silu), case.differentiated(compiled)):
        assert all(map(torch.equal, again, first))
