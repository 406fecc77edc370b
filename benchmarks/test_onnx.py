"""Our ONNX export in ONNX Runtime on the CPU against PyTorch: a UNet call and a translation at 3 x 64 x 64.

int8 is calibrated on translations of a few pictures, as in `bbdm export`. Its error in the image is
measured with the bundled network, which is trained: the mean difference to the float32 image over the bundled
drawings, as a share of the range.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from bbdm import BridgeSampler, UNet, demo
from bbdm.cli.files import Export
from bbdm.onnx import graphs
from bbdm.onnx.exporter import quantized
from bbdm.pictures.images import to_array
from bbdm.runtime.sampler import OnnxBridgeSampler
from benchmarks.conftest import DEVICE, Record
from benchmarks.machine import Peaks
from benchmarks.networks import BRIDGE, STEPS, gflop, images, relative_error
from benchmarks.peers import onnx_runtime
from benchmarks.timing import Comparison, interleaved

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="about the CPU provider")
BASELINE = "sde-bbdm exported as it is, ONNX Runtime float32"
ROWS = [
    BASELINE,
    "ONNX Runtime float32",
    "ONNX Runtime float16",
    "ONNX Runtime int8",
    "eager float32",
    "compiled float32",
    "compiled, as compile=True chooses",
]
SIZE = 64  # of the demo's pictures


def write(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    onnx.save_model(
        model, folder / "unet.onnx", save_as_external_data=True, location="unet.onnx.data"
    )
    return folder / "unet.onnx"


@pytest.fixture(scope="module")
def measured(
    unet: UNet, sampler: BridgeSampler, peaks: Peaks, quick: bool, tmp_path_factory: Any
) -> Comparison:
    comparison = Comparison("UNet call in ONNX Runtime, batch 1", BASELINE, {})
    x = images(1, DEVICE, quick).to(memory_format=torch.channels_last)
    t = torch.tensor([500])
    folder: Path = tmp_path_factory.mktemp("onnx")
    model = graphs.network_graph(unet)
    plain = BridgeSampler(unet, BRIDGE, steps=STEPS)
    files = {  # int8 first: the model refers to its file once it is written
        "ONNX Runtime int8": write(quantized(model, plain, [x], folder), folder / "int8"),
        "ONNX Runtime float32": write(model, folder / "float32"),
    }
    halved = UNet.from_config(unet.config)
    halved.load_state_dict(unet.state_dict())
    files["ONNX Runtime float16"] = write(graphs.network_graph(halved.half()), folder / "float16")
    calls: dict[str, Callable[[], Any]] = {}
    try:
        onnx_runtime.export(
            import_module("benchmarks.peers.sde_bbdm").network(unet), x, t, folder / "public.onnx"
        )
        calls[BASELINE] = onnx_runtime.call(folder / "public.onnx", x, t)
    except ImportError as error:
        comparison.missing[BASELINE] = f"needs the extra peers: {error}"
    for row, path in files.items():
        calls[row] = onnx_runtime.call(path, x, t.float())
    with torch.inference_mode():
        modulation = unet.embed(t)
        float32 = BridgeSampler(unet, BRIDGE, steps=STEPS, compile=True, dtype=torch.float32)
        calls["eager float32"] = lambda: unet.body(x, modulation, {})
        calls["compiled float32"] = lambda: float32.backend.body(x, modulation, {})
        chosen = x.to(sampler.dtype)
        body = sampler.backend.body
        calls["compiled, as compile=True chooses"] = lambda: body(
            chosen, modulation.to(torch.float32), {}
        )
        reference = unet(x, t)
        for row, call in calls.items():
            error = relative_error(call(), reference)
            assert error < 0.2, f"{row}: relative error {error:.3g}"
            comparison.info[row] = {"relative_error": error}
        comparison.seconds = interleaved(calls, rounds=5)
    work = gflop(unet, x)
    for row, info in comparison.info.items():
        if "int8" not in row:
            info |= peaks.rates(
                work, comparison.median(row), torch.float32 if "float" in row else sampler.dtype
            )
    return comparison


@pytest.mark.parametrize("row", ROWS)
def test_unet(measured: Comparison, row: str, record: Record) -> None:
    record(measured, row)


EAGER = "eager float32"
FORMS = {
    "ONNX Runtime float32": [],
    "ONNX Runtime float16": ["--dtype", "fp16"],
    "ONNX Runtime int8": [],
}


@pytest.fixture(scope="module")
def translated(tmp_path_factory: Any) -> Comparison:
    """The bundled network, one picture at a time, the solver and steps of the README."""
    folder: Path = tmp_path_factory.mktemp("demo")
    (folder / "sources").mkdir()
    drawings = [
        Image.open(path).crop((0, 0, SIZE, SIZE))
        for path in sorted((demo.FOLDER / "val").glob("*.png"))
    ]
    # half for calibration, the other half for the error
    for i, drawing in enumerate(drawings[::2]):
        drawing.save(folder / "sources" / f"{i}.png")
    file, solver = demo.WEIGHTS, ["--solver", "sde-dpm2m", "--steps", "5"]  # as the README
    reference = BridgeSampler.from_checkpoint(file, solver="sde-dpm2m", steps=5)
    source = torch.stack([torch.from_numpy(to_array(drawing)) for drawing in drawings[1::2]])
    wanted = reference(source, seed=0).numpy()
    comparison = Comparison("Translation by the bundled network, 5 steps", EAGER, {}, {EAGER: {}})
    calls: dict[str, Callable[[], Any]] = {EAGER: lambda: reference(source[:1], seed=0)}
    for row, flags in FORMS.items():
        if "int8" in row:
            flags = ["--quantize", "int8", "--calibrate", str(folder / "sources")]
        Export.main([str(file), str(folder / row), "--no-check", *solver, *flags])
        exported = OnnxBridgeSampler(folder / row, threads=torch.get_num_threads())
        calls[row] = lambda exported=exported: exported(source[:1].numpy(), seed=0)
        off = np.abs(exported(source.numpy(), seed=0) - wanted)
        comparison.info[row] = {
            "image_error": float(off.mean() / 2),
            "image_error_max": float(off.max() / 2),
        }
    comparison.seconds = interleaved(calls, rounds=5)
    return comparison


@pytest.mark.parametrize("row", [EAGER, *FORMS])
def test_translation(translated: Comparison, row: str, record: Record) -> None:
    record(translated, row)
