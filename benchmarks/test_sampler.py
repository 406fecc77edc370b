"""A translation of one image, 3 x 64 x 64: ours in 10, 5, 2 and 1 evaluations, sde-bbdm's in 199 and 10.

``outside_network`` is the share of a call's time outside the network: the same call again, with each network
call timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, UNet, solvers
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
FEW: dict[str, Any] = {  # two calls and one are of distilled networks
    f"compiled, {steps} steps": {"solver": solver, "steps": steps}
    for solver, steps in (("dpm2m", 5), ("consistency", 2), ("consistency", 1))
}
ROWS = [BASELINE, AS_MANY, EAGER, EAGER_BFLOAT16, COMPILED, GRAPH, *FEW]


def share_outside(sampler: BridgeSampler, call: Callable[[], object]) -> float:
    """The share of a call's time outside the network."""
    network = sampler._own.loop.network
    inside: list[float] = []

    def timed(*arguments: Any) -> torch.Tensor:
        results: list[torch.Tensor] = []
        inside.append(seconds_of(lambda: results.append(network(*arguments))))
        return results[0]

    sampler._own.loop.network = timed
    try:
        total = seconds_of(call)
    finally:
        sampler._own.loop.network = network
    assert len(inside) == len(sampler.table)
    return 1 - sum(inside) / total


@pytest.fixture(scope="module")
def measured(unet: UNet, sampler: BridgeSampler, peaks: Peaks, quick: bool) -> Comparison:
    source = images(1, sampler.device, quick)
    comparison = Comparison("Translation of one image", BASELINE, {})
    samplers = {
        EAGER: BridgeSampler(unet, BRIDGE, steps=STEPS),
        EAGER_BFLOAT16: BridgeSampler(unet, BRIDGE, steps=STEPS, dtype=torch.bfloat16),
        COMPILED: sampler,
    }
    # Explicit noise makes a sampler go without its graph, and is the same for every row.
    noise = torch.randn(STEPS, *source.shape, generator=torch.Generator().manual_seed(2)) if source.is_cuda else None
    rows: dict[str, Callable[[], Any]] = {
        name: (lambda s=s: s(source, seed=None if noise is not None else 0, noise=noise))
        for name, s in samplers.items()
    }
    expected = rows[EAGER]()
    comparison.info = {name: {"relative_error": relative_error(row(), expected)} for name, row in rows.items()}
    if source.is_cuda:
        rows[GRAPH] = lambda: sampler(source, seed=0)
        with_seed = samplers[EAGER](source, seed=0)
        comparison.info[GRAPH] = {"relative_error": relative_error(rows[GRAPH](), with_seed)}
    for name, settings in FEW.items():
        rows[name] = lambda settings=settings: sampler(source, seed=0, **settings)
        by_hand = samplers[EAGER](source, seed=0, **settings)
        comparison.info[name] = {"relative_error": relative_error(rows[name](), by_hand)}
    for name, info in comparison.info.items():
        assert info["relative_error"] < 0.1, f"{name}: {info}"
        info["evaluations"] = FEW.get(name, {"steps": STEPS})["steps"]
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
