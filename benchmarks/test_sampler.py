"""A whole translation of one image, 3 x 64 x 64: ours in 10 evaluations, sde-bbdm's fast sampling in its 199.

``outside_network`` is the share of a call's time that is not the network's: the same call again, with each of its
network calls timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, UNet
from benchmarks.conftest import Record
from benchmarks.networks import BRIDGE, IMAGE, STEPS, images, relative_error
from benchmarks.timing import Comparison, interleaved, seconds_of

BASELINE = "sde-bbdm float32, 199 steps"
# On a GPU "compiled" is the loop without its graph, "graph" what compile=True gives.
ROWS = [BASELINE, "eager float32", "eager bfloat16", "compiled", "graph"]


def share_outside(sampler: BridgeSampler, call: Callable[[], object]) -> float:
    """Of the time of one call, the share that is not spent in the network."""
    network = sampler._loop.network
    inside: list[float] = []

    def timed(*arguments: Any) -> torch.Tensor:
        results: list[torch.Tensor] = []
        inside.append(seconds_of(lambda: results.append(network(*arguments))))
        return results[0]

    sampler._loop.network = timed
    try:
        total = seconds_of(call)
    finally:
        sampler._loop.network = network
    assert len(inside) == len(sampler.table)
    return 1 - sum(inside) / total


@pytest.fixture(scope="module")
def measured(unet: UNet, sampler: BridgeSampler, quick: bool) -> Comparison:
    source = images(1, sampler.device)
    comparison = Comparison("Translation of one image", BASELINE, {})
    samplers = {
        "eager float32": BridgeSampler(unet, BRIDGE, steps=STEPS),
        "eager bfloat16": BridgeSampler(unet, BRIDGE, steps=STEPS, dtype=torch.bfloat16),
        "compiled": sampler,
    }
    # Explicit noise makes a sampler go without its graph, and is the same for every row.
    noise = torch.randn(STEPS, 1, *IMAGE, generator=torch.Generator().manual_seed(2)) if source.is_cuda else None
    rows: dict[str, Callable[[], Any]] = {
        name: (lambda s=s: s(source, seed=None if noise is not None else 0, noise=noise))
        for name, s in samplers.items()
    }
    expected = rows["eager float32"]()
    comparison.info = {name: {"relative_error": relative_error(row(), expected)} for name, row in rows.items()}
    if source.is_cuda:
        rows["graph"] = lambda: sampler(source, seed=0)
        with_seed = samplers["eager float32"](source, seed=0)
        comparison.info["graph"] = {"relative_error": relative_error(rows["graph"](), with_seed)}
    for name, info in comparison.info.items():
        assert info["relative_error"] < 0.1, f"{name}: {info}"
        info["evaluations"] = STEPS
    try:
        peer = import_module("benchmarks.peers.sde_bbdm")
    except ImportError as error:
        comparison.missing[BASELINE] = f"needs the extra peers: {error}"
    else:  # test_unet.py compares one call of its network, tests/peers each of its steps
        rows = {BASELINE: peer.translation(unet, source), **rows}
        comparison.info[BASELINE] = {"evaluations": 199}
    rounds = 3 if quick else 10
    comparison.seconds = interleaved(rows, rounds, settle=False, at_most={} if quick else {BASELINE: 2})
    for name, s in samplers.items():
        shares = [share_outside(s, rows[name]) for _ in range(rounds)]
        comparison.info[name]["outside_network"] = statistics.median(shares)
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_sampler(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
