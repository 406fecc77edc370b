"""The ops of bbdm/kernels against a plain copy that moves as many bytes.

Bytes are what must be read and written once. Rows:
- ``copy``: torch's copy of as many bytes, cached as much as the others, so no op can beat it by much;
- ``reference``: the op in PyTorch, eager;
- ``compiled``: the same through inductor. bridge_step has none: it reads its row on the host, where no
  compiler follows;
- ``own form, compiled``: of group_norm_silu, what networks contain that are compiled for a CPU;
- ``op``: the public op with its checks and dispatch: of the two steps the Triton kernel on a GPU, otherwise
  the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from bbdm import solvers
from bbdm.kernels.bridge_step import _bridge_step, bridge_step
from bbdm.kernels.group_norm_silu import decomposed, group_norm_silu, reference
from bbdm.kernels.noise_step import _noise_step, noise_step
from benchmarks.conftest import DEVICE, Record
from benchmarks.machine import Peaks
from benchmarks.networks import BRIDGE, relative_error
from benchmarks.timing import Comparison, interleaved

Size = tuple[int, int, int, int]
Rows = dict[str, Callable[[], Any]]  # each returns a tensor to validate
BASELINE = "reference"
SECONDS = 0.005  # of a sample
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative error to the reference


def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def copy_row(moved: int) -> Callable[[], Tensor]:
    source = torch.ones(moved // 2, dtype=torch.uint8, device=DEVICE)
    return partial(torch.empty_like(source).copy_, source)


def noise_rows(size: Size, drawn: bool) -> tuple[Rows, int]:
    """Training's noise, in float32: explicit, or drawn from seeds."""
    x0, y, noise = random(*size), random(*size).flip(0), random(*size).flip(1)
    t = torch.arange(1, size[0] + 1, device=DEVICE)
    table = torch.from_numpy(BRIDGE.training_weights(range(BRIDGE.num_steps + 1))).to(
        DEVICE, torch.float32
    )
    seeds = torch.arange(size[0], device=DEVICE)
    step = torch.ones(1, dtype=torch.int64, device=DEVICE)
    arguments = (
        (x0, y, t, table, None, seeds, step) if drawn else (x0, y, t, table, noise, None, None)
    )
    plain = _noise_step._init_fn
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    functions = {"reference": plain, "compiled": compiled, "op": noise_step}
    rows: Rows = {name: (lambda f=f: f(*arguments)[0]) for name, f in functions.items()}
    return rows, (4 if drawn else 5) * x0.nbytes


def bridge_rows(size: Size, noise: str) -> tuple[Rows, int]:
    """One step of a sampler with a bfloat16 network: noise from seeds, explicit noise, or none."""
    table = solvers.build(BRIDGE, "dpm2m" if noise == "none" else "sde-dpm2m", steps=10)
    weights = torch.from_numpy(table.rows[5]).to(DEVICE, torch.float32)
    step = torch.full((1,), 5, device=DEVICE)
    seeds = torch.arange(size[0], device=DEVICE) if noise == "seeds" else None
    z = random(*size).flip(1) if noise == "explicit" else None
    y, pred = random(*size), random(*size, dtype=torch.bfloat16)

    def row(function: Callable[..., None], *mask: None) -> Callable[[], Tensor]:
        # own buffers, which it overwrites
        x, x0hat, inputs = y.clone(), y.clone(), torch.empty_like(pred)

        def call() -> Tensor:
            function(x, x0hat, inputs, pred, y, weights, step, seeds, z, *mask)
            return x

        return call

    moved = 5 * y.nbytes + 2 * pred.nbytes + (0 if z is None else z.nbytes)
    return {"reference": row(_bridge_step._init_fn, None), "op": row(bridge_step)}, moved


def norm_rows(size: Size, backward: bool) -> tuple[Rows, int]:
    """GroupNorm, scale and shift, SiLU in bfloat16: forward, or backward from a kept forward."""
    x = random(*size, dtype=torch.bfloat16).requires_grad_(backward)
    dy = random(*size, dtype=torch.bfloat16)
    weight, bias = (random(size[0], size[1]).add(1).requires_grad_(backward) for _ in range(2))
    compiled, own = (
        torch.compile(form, fullgraph=True, dynamic=False) for form in (reference, decomposed)
    )

    def row(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
        forward = partial(function, x, 32, weight, bias, 1e-5, True)
        if not backward:
            return forward
        # the graph is kept for another backward pass
        with functorch_config.patch(donated_buffer=False):
            y = forward()
        return lambda: torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)[0]

    functions = {
        "reference": reference,
        "compiled": compiled,
        "own form, compiled": own,
        "op": group_norm_silu,
    }
    rows: Rows = {name: row(function) for name, function in functions.items()}
    return rows, (3 if backward else 2) * x.nbytes


# Name, function from a size to the rows, and sizes: of training and sampling, or of the network's two widest
# levels.
IMAGES: list[Size] = [(64, 3, 64, 64), (8, 3, 256, 256), (1, 3, 64, 64)]
FEATURES: list[Size] = [(8, 128, 64, 64), (1, 128, 64, 64), (8, 512, 32, 32)]
CASES: list[tuple[str, Callable[[Size], tuple[Rows, int]], list[Size]]] = [
    ("noise_step, explicit noise", partial(noise_rows, drawn=False), IMAGES[:2]),
    ("noise_step, seeds", partial(noise_rows, drawn=True), IMAGES[:2]),
    ("bridge_step, no noise", partial(bridge_rows, noise="none"), IMAGES[1:]),
    ("bridge_step, explicit noise", partial(bridge_rows, noise="explicit"), IMAGES[1:]),
    ("bridge_step, seeds", partial(bridge_rows, noise="seeds"), IMAGES[1:]),
    ("group_norm_silu forward", partial(norm_rows, backward=False), FEATURES),
    ("group_norm_silu backward", partial(norm_rows, backward=True), FEATURES),
]
PARAMETERS = [
    pytest.param((name, make, size, i), id=f"{name} {'x'.join(map(str, size))}")
    for name, make, sizes in CASES
    for i, size in enumerate(sizes)
]


@pytest.fixture(scope="module", params=PARAMETERS)
def measured(request: pytest.FixtureRequest, peaks: Peaks, quick: bool) -> Comparison:
    name, make, size, index = request.param
    if quick and index:
        pytest.skip("one size of each with --quick")
    rows, moved = make(size)
    with torch.set_grad_enabled("backward" in name):
        expected = rows[BASELINE]().float().clone()
        info: dict[str, dict[str, Any]] = {"copy": {}}
        for row, call in rows.items():
            error = 0.0 if row == BASELINE else relative_error(call().float(), expected)
            dtype = torch.bfloat16 if "group_norm" in name else torch.float32
            assert error < ALLOWED[dtype], f"{row}: relative error {error:.3g}"
            info[row] = {"relative_error": error}
        rows = {"copy": copy_row(moved), **rows}
        seconds = interleaved(rows, rounds=5 if quick else 20, least=SECONDS)
    comparison = Comparison(f"{name}, {' x '.join(map(str, size))}", BASELINE, seconds, info)
    for row in rows:
        rate = moved / comparison.median(row)
        info[row] |= {"bytes": moved, "gb_per_s": rate / 1e9, "share_of_copy": rate / peaks.copy}
        info[row]["share_of_equal_copy"] = comparison.median("copy") / comparison.median(row)
    return comparison


@pytest.mark.parametrize("row", ["copy", "reference", "compiled", "own form, compiled", "op"])
def test_kernel(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
