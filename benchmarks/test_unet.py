"""A UNet call at 3 x 64 x 64: ours against sde-bbdm, ONNX Runtime and OpenVINO, with the same weights.

Ours takes its modulation by the time as an argument, since a sampler computes it once for all steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import BridgeSampler, UNet
from bbdm.execution.compiled import Compiled
from benchmarks.conftest import Record
from benchmarks.machine import Peaks
from benchmarks.networks import gflop, images, relative_error
from benchmarks.timing import Comparison, interleaved

Call = Callable[[], Any]
BASELINE = "sde-bbdm float32"
ROWS = [
    BASELINE,
    "sde-bbdm bfloat16 autocast",  # one line more for its users
    "ONNX Runtime float32",
    "OpenVINO float32",
    "OpenVINO bfloat16",
    "eager float32",
    "eager bfloat16",
    "compiled float32",
    "compiled bfloat16",
]
# relative error of what is timed (TF32 on GPUs); wrong is 1
ALLOWED = {torch.float32: 1e-2, torch.bfloat16: 0.1}


def dtype_of(row: str) -> torch.dtype:
    return torch.bfloat16 if "bfloat16" in row else torch.float32


def peers(
    unet: UNet, x: torch.Tensor, t: torch.Tensor, folder: Path
) -> dict[str, Callable[[], Call]]:
    """For each peer a function that returns its call, or raises ImportError."""

    def peer(name: str) -> Any:
        return import_module(f"benchmarks.peers.{name}")

    @cache
    def public() -> nn.Module:
        return peer("sde_bbdm").network(unet)

    @cache
    def file() -> Path:
        path = folder / "network.onnx"
        peer("onnx_runtime").export(public(), x, t, path)
        return path

    def eager(autocast: bool) -> Call:
        network = public()

        def call() -> torch.Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                return network(x, t)

        return call

    made: dict[str, Callable[[], Call]] = {
        "sde-bbdm float32": lambda: eager(False),
        "sde-bbdm bfloat16 autocast": lambda: eager(True),
        "ONNX Runtime float32": lambda: peer("onnx_runtime").call(file(), x, t),
    }
    if x.device.type == "cpu":
        for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
            made[f"OpenVINO {name}"] = lambda p=precision: peer("openvino_runtime").call(
                file(), x, t, p
            )
    return made


def ours(
    unet: UNet, sampler: BridgeSampler, x: torch.Tensor, t: torch.Tensor
) -> dict[str, Callable[[], Call]]:
    """A function for each of our calls. The sampler has one of the two compiled networks already."""
    modulation = unet.embed(t[:1])
    rounded = copy.deepcopy(unet).bfloat16()
    inputs = {torch.float32: x, torch.bfloat16: x.bfloat16()}

    def compiled(network: UNet, dtype: torch.dtype) -> Call:
        call = sampler.backend.body if sampler.dtype == dtype else Compiled(network.body, x.device)
        return lambda: call(inputs[dtype], modulation, {})

    return {
        "eager float32": lambda: lambda: unet.body(x, modulation, {}),
        "eager bfloat16": lambda: lambda: rounded.body(inputs[torch.bfloat16], modulation, {}),
        "compiled float32": lambda: compiled(unet, torch.float32),
        "compiled bfloat16": lambda: compiled(rounded, torch.bfloat16),
    }


@pytest.fixture(scope="module", params=[1, 8], ids="batch-{}".format)
def measured(
    request: pytest.FixtureRequest,
    unet: UNet,
    sampler: BridgeSampler,
    peaks: Peaks,
    quick: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Comparison:
    batch: int = request.param
    if batch > 1 and quick:
        pytest.skip("only without --quick")
    comparison = Comparison(f"UNet call, batch {batch}", BASELINE, {})
    x = images(batch, sampler.device, quick).to(memory_format=torch.channels_last)
    t = torch.full((batch,), 500, device=x.device)
    calls: dict[str, Call] = {}
    with torch.inference_mode():
        reference = unet(x, t)
        for row, make in {
            **peers(unet, x, t, tmp_path_factory.mktemp("peers")),
            **ours(unet, sampler, x, t),
        }.items():
            try:
                call = make()
            except ImportError as error:
                comparison.missing[row] = f"needs the extra peers: {error}"
                continue
            error = relative_error(call(), reference)
            assert error < ALLOWED[dtype_of(row)], f"{row}: relative error {error:.3g}"
            calls[row] = call
            comparison.info[row] = {"relative_error": error}
        comparison.seconds = interleaved(calls, rounds=10 if quick or x.is_cuda else 5)
    work = gflop(unet, x)
    for row, info in comparison.info.items():
        info |= peaks.rates(work, comparison.median(row), dtype_of(row))
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_unet(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)
