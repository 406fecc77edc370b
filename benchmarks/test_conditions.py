"""What conditions and guidance cost: calls of the demo's network, plain, told a class, and guided.

All rows have the same weights besides those of the class. ``class`` is told one; ``guided`` evaluates each
with and without it; ``guided, half of the steps`` does so in an interval of times that holds half of them.
Rows of exports are ONNX Runtime's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bbdm.cli.export
from bbdm import BridgeSampler, demo, load_checkpoint, save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.execution.device import best_dtype
from bbdm.networks.unet import UNet
from bbdm.runtime import OnnxBridgeSampler
from bbdm.training.initial import copy_weights
from benchmarks import networks
from benchmarks.conftest import DEVICE, Record
from benchmarks.timing import Comparison, Row, interleaved

BRIDGE = BrownianBridge(objective="pinned", density="high")
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class": {"style": 1},
    "guided": {"style": 1, "guidance": 2.0},
    "guided, half of the steps": {"style": 1, "guidance": 2.0, "guidance_interval": (0.0, 0.7)},
}
EXPORTS = ["plain, ONNX", "class, ONNX"]
TIMES = [1000, 800, 600, 400]  # of which the interval holds two


def build(told: bool) -> UNet:
    """The bundled network of drawings, or the same with a class that shifts its embedding a little."""
    checkpoint = load_checkpoint(demo.WEIGHTS)
    config = checkpoint.unet.config
    unet = UNet.from_config(replace(config, classes={"style": 12}, drop={"style": 0.1}) if told else config)
    copy_weights(unet, checkpoint)
    for module in unet.condition_embedding.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01)
    return unet.to(DEVICE).eval()


def of(call: dict[str, Any]) -> bool:
    """Whether a call is of the network with a class."""
    return "style" in call


@pytest.fixture(scope="module")
def sampled(quick: bool) -> Comparison:
    batch = 2 if quick else 16
    source = networks.images(batch, DEVICE, quick)
    made = {
        told: BridgeSampler(build(told), BRIDGE, "dpm2m", timesteps=TIMES, dtype=best_dtype(DEVICE))
        for told in (False, True)
    }
    rows: dict[str, Row] = {
        name: lambda call=call: made[of(call)](source, seed=0, **call) for name, call in CALLS.items()
    }
    for row in rows.values():
        row()
    case = f"Conditions, preset demo, batch {batch}, {len(TIMES)} steps"
    return Comparison(case, "plain", interleaved(rows, 1 if quick else 9))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, quick: bool) -> Comparison:
    source = networks.images(2 if quick else 8, DEVICE, quick).cpu().numpy()
    folder: Path = tmp_path_factory.mktemp("exports")
    rows: dict[str, Row] = {}
    for name, call in zip(EXPORTS, (CALLS["plain"], CALLS["class"]), strict=True):
        path = folder / f"{of(call)}.pt"
        save_checkpoint(path, build(of(call)), BRIDGE)
        bbdm.cli.export.main([str(path), str(path.with_suffix("")), "--steps", "4"])
        sampler = OnnxBridgeSampler(path.with_suffix(""))
        rows[name] = lambda sampler=sampler, call=call: sampler(source, seed=0, **call)
    for row in rows.values():
        row()
    return Comparison("Conditions, exports", EXPORTS[0], interleaved(rows, 1 if quick else 9))


@pytest.mark.parametrize("row", CALLS)
def test_sampled(sampled: Comparison, row: str, record: Record) -> None:
    record(sampled, row)


@pytest.mark.parametrize("row", EXPORTS)
def test_exported(exported: Comparison, row: str, record: Record) -> None:
    record(exported, row)
