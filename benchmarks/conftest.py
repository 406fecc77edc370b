"""Fixtures of the benchmarks: pytest benchmarks/ --benchmark-only [--quick] [--benchmark-json=RESULTS.json].

``python benchmarks/report.py RESULTS.json`` makes tables of the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bbdm import BridgeSampler, UNet
from bbdm.base.machine import processor
from benchmarks import networks
from benchmarks.machine import Peaks, hardware, measure_peaks
from benchmarks.timing import REPLAY, Comparison

Record = Callable[[Comparison, str], None]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="a small network, small images and few rounds: some minutes",
    )
    parser.addoption(
        "--pairs",
        help="folder with train/*.png, source left and target right, for test_throughput.py",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=REPLAY))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["bbdm"] = {**hardware(DEVICE), "quick": config.getoption("--quick")}


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def peaks(quick: bool) -> Peaks:
    return measure_peaks(DEVICE, quick)


@pytest.fixture(scope="session")
def unet(quick: bool) -> UNet:
    """The network in float32, which no test may change."""
    return networks.build(DEVICE, quick)


@pytest.fixture(scope="session")
def sampler(unet: UNet) -> BridgeSampler:
    """A compiled sampler, one for all suites, so that each shape is compiled once."""
    return BridgeSampler(unet, networks.BRIDGE, steps=networks.STEPS, compile=True)


@pytest.fixture
def record(benchmark: BenchmarkFixture, peaks: Peaks) -> Record:
    """Makes a row of a comparison, timed in turns with the others, the result of this test."""

    def replay(comparison: Comparison, row: str) -> None:
        if row not in comparison.seconds:
            pytest.skip(comparison.missing.get(row, f"not on {DEVICE.type}"))
        samples = comparison.seconds[row]
        REPLAY.load(samples)
        benchmark.group = comparison.case
        benchmark.extra_info.update(
            row=row,
            baseline=comparison.baseline,
            samples=len(samples),
            hardware=processor(DEVICE),
            threads=torch.get_num_threads(),
            peaks=asdict(peaks),
            **comparison.info.get(row, {}),
        )
        if comparison.baseline in comparison.seconds:
            benchmark.extra_info["times_as_fast"] = comparison.times_as_fast(row)
        benchmark.pedantic(REPLAY.play, rounds=len(samples))

    return replay
