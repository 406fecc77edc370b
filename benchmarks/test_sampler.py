"""A translation of one image, 3 x 64 x 64: ours in 10, 5, 2 and 1 evaluations, sde-bbdm's in 199 and 10.

``outside_network`` is the share of a call's time outside the network: the same call again, with each network
call timed. The int8 export is calibrated on one translation of the image itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, UNet, save_checkpoint, solvers
from bbdm.cli.files import Export
from bbdm.pictures.images import from_array
from bbdm.runtime.sampler import OnnxBridgeSampler
from benchmarks.conftest import Record
from benchmarks.machine import Peaks
from benchmarks.networks import BRIDGE, STEPS, gflop, images, relative_error
from benchmarks.timing import Comparison, interleaved, seconds_of

BASELINE = "sde-bbdm float32, 199 steps"
AS_MANY = f"sde-bbdm float32, {STEPS} steps"  # compares code alone; its pictures are worse
# On a GPU "compiled" is the loop without its graph, "graph" what compile=True gives.
EAGER, EAGER_BFLOAT16, COMPILED, GRAPH = (
    f"{row}, {STEPS} steps" for row in ("eager float32", "eager bfloat16", "compiled", "graph")
)
INT8 = "int8 export"
FEW: dict[str, tuple[str, dict[str, Any]]] = {  # two calls and one are of distilled networks
    f"{form}, {steps} steps": (form, {"solver": solver, "steps": steps})
    for form in ("compiled", INT8)
    for solver, steps in (("dpm2m", 5), ("consistency", 2), ("consistency", 1))
}
ROWS = [BASELINE, AS_MANY, EAGER, EAGER_BFLOAT16, COMPILED, GRAPH, *FEW]


def share_outside(sampler: BridgeSampler, call: Callable[[], object]) -> float:
    """The share of a call's time outside the network."""
    network = sampler.backend.body
    inside: list[float] = []

    def timed(*arguments: Any) -> torch.Tensor:
        results: list[torch.Tensor] = []
        inside.append(seconds_of(lambda: results.append(network(*arguments))))
        return results[0]

    sampler.backend.body = timed
    try:
        total = seconds_of(call)
    finally:
        sampler.backend.body = network
    assert len(inside) == len(sampler.table)
    return 1 - sum(inside) / total


def int8_export(unet: UNet, source: torch.Tensor, folder: Path) -> OnnxBridgeSampler:
    """The network in int8 on ONNX Runtime, with as many threads as PyTorch has."""
    save_checkpoint(folder / "unet.pt", unet, BRIDGE)
    (folder / "pictures").mkdir()
    from_array(source[0].numpy()).save(folder / "pictures" / "source.png")
    flags = [
        "--steps",
        str(STEPS),
        "--quantize",
        "int8",
        "--calibrate",
        str(folder / "pictures"),
        "--no-check",
    ]
    Export.main([str(folder / "unet.pt"), str(folder / "export"), *flags])
    return OnnxBridgeSampler(folder / "export", threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def measured(
    unet: UNet,
    sampler: BridgeSampler,
    peaks: Peaks,
    quick: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Comparison:
    source = images(1, sampler.device, quick)
    comparison = Comparison("Translation of one image", BASELINE, {})
    samplers = {
        EAGER: BridgeSampler(unet, BRIDGE, steps=STEPS),
        EAGER_BFLOAT16: BridgeSampler(unet, BRIDGE, steps=STEPS, dtype=torch.bfloat16),
        COMPILED: sampler,
    }
    # Explicit noise makes a sampler go without its graph, and is the same for every row.
    noise = (
        torch.randn(STEPS, *source.shape, generator=torch.Generator().manual_seed(2))
        if source.is_cuda
        else None
    )
    rows: dict[str, Callable[[], Any]] = {
        name: (lambda s=s: s(source, seed=None if noise is not None else 0, noise=noise))
        for name, s in samplers.items()
    }
    expected = rows[EAGER]()
    comparison.info = {
        name: {"relative_error": relative_error(row(), expected)} for name, row in rows.items()
    }
    if source.is_cuda:
        rows[GRAPH] = lambda: sampler(source, seed=0)
        with_seed = samplers[EAGER](source, seed=0)
        comparison.info[GRAPH] = {"relative_error": relative_error(rows[GRAPH](), with_seed)}
    forms: dict[str, Callable[..., Any]] = {
        "compiled": lambda **settings: sampler(source, seed=0, **settings)
    }
    if not source.is_cuda:
        exported = int8_export(unet, source, tmp_path_factory.mktemp("int8"))
        forms[INT8] = lambda **settings: exported(source.numpy(), seed=0, **settings)
    for name, (form, settings) in FEW.items():
        if form in forms:
            rows[name] = partial(forms[form], **settings)
            by_hand = samplers[EAGER](source, seed=0, **settings)
            comparison.info[name] = {"relative_error": relative_error(rows[name](), by_hand)}
    for name, info in comparison.info.items():
        assert info["relative_error"] < (0.2 if name.startswith(INT8) else 0.1), f"{name}: {info}"
        info["evaluations"] = FEW[name][1]["steps"] if name in FEW else STEPS
    try:
        peer = import_module("benchmarks.peers.sde_bbdm")
    except ImportError as error:
        comparison.missing = dict.fromkeys([BASELINE, AS_MANY], f"needs the extra peers: {error}")
    else:  # test_unet.py compares a call of its network, the tests compare each of its steps
        for name, steps in {BASELINE: None, AS_MANY: STEPS}.items():
            times = solvers.build(BRIDGE, "fast", steps=steps).timesteps.tolist()
            rows[name] = peer.translation(unet, source, times)
            comparison.info[name] = {"evaluations": len(times)}
    comparison.seconds = interleaved(rows, rounds=3, settle=False, once=(BASELINE,))
    work = gflop(unet, source)
    for name, info in comparison.info.items():
        if name.startswith(INT8):
            info["dtype"] = "int8"
            continue
        dtype = torch.float32 if name in (BASELINE, AS_MANY) else samplers.get(name, sampler).dtype
        info["dtype"] = str(dtype).removeprefix("torch.")
        info |= peaks.rates(info["evaluations"] * work, comparison.median(name), dtype)
    for name, s in samplers.items():
        shares = [share_outside(s, rows[name]) for _ in range(3)]
        comparison.info[name]["outside_network"] = statistics.median(shares)
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_sampler(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
