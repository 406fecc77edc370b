"""Writing a checkpoint as a folder of ONNX graphs, which are compared with PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import math
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import onnx
import torch

from bbdm.base import machine
from bbdm.base.atomic import file_sha256
from bbdm.data.rows import read_rows
from bbdm.files.bridge_json import FORMAT, SETTINGS, TWO_TABLES, VERSION
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import find_dtype, placed
from bbdm.networks.conditions import DIRECTION
from bbdm.onnx import graphs
from bbdm.pictures.images import convert, open_image, resized, to_array
from bbdm.runtime.sampler import OnnxBridgeSampler
from bbdm.sampling.loop import Loop
from bbdm.sampling.sampler import BridgeSampler

CPU = torch.device("cpu")
OLDEST_TORCH = "2.11"  # whose exporter can write these graphs
PACKAGES = ("bbdm", "torch", "onnx", "onnxscript", "onnxruntime")
# of the largest difference over the largest value; int8 has none
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}
EXTERNAL = 2**30  # bytes from which weights are in a second file: a protobuf holds 2 GB
CALIBRATION = 8  # pictures


def export(
    sampler: BridgeSampler,
    folder: Path,
    dtype: Literal["fp32", "fp16"] = "fp32",
    pipeline: bool = False,
    calibrate: Path | None = None,
    check: bool = True,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Write a folder of graphs, check it, and print what it holds.

    Args:
        sampler: what is exported, with its own solver and steps.
        folder: the folder that is written.
        dtype: of weights and products.
        pipeline: write ``pipeline.onnx`` too, a translation in one graph.
        calibrate: a folder of sources, on which the network becomes one of int8.
        check: compare the graphs with PyTorch.
        overwrite: replace the folder where it is an export.
        quiet: print nothing but errors.

    Raises:
        ValueError: PyTorch is too old, the folder exists, the network cannot be exported so, or the graphs
            differ from PyTorch.
    """
    if torch.__version__ < OLDEST_TORCH:  # it compares the numbers, not the texts
        raise ValueError(
            f"export needs PyTorch {OLDEST_TORCH} or newer, got {torch.__version__}: pip install -U torch"
        )
    if folder.exists() and not (overwrite and (folder / SETTINGS).is_file()):
        raise ValueError(f"{folder} exists: overwrite replaces an export, or give another folder")
    _check(sampler, pipeline, quantizes=calibrate is not None)
    precision = "int8"
    if calibrate is None:
        precision = dtype
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary) / "written"
        written.mkdir()
        for name, model in build_graphs(
            sampler, dtype, pipeline, calibrate, Path(temporary)
        ).items():
            _save(model, written / f"{name}.onnx")
            onnx.checker.check_model(written / f"{name}.onnx", full_check=True)
        (written / SETTINGS).write_text(
            json.dumps(settings(sampler, precision, written), indent=1) + "\n"
        )
        if check:
            difference = compare(written, sampler, LIMITS.get(precision))
            if not quiet:
                print(f"largest difference from PyTorch: {difference:.1e}")
        if folder.exists():
            folder.rename(Path(temporary) / f"replaced-{secrets.token_hex(4)}")
        written.rename(folder)
    if quiet:
        return
    files = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {', '.join(path.name for path in files)}; {size / 1e6:.1f} MB")


def _check(sampler: BridgeSampler, pipeline: bool, quantizes: bool) -> None:
    """Raise ValueError where a network cannot be exported so."""
    conditions = sampler.unet.network_config
    if quantizes:
        check_pictures(sampler.unet.axes, "quantize")
        if conditions.each:
            names = ", ".join(conditions.each)
            raise ValueError(
                f"int8 is calibrated on sources alone, and this network has {names} too"
            )
    elif sampler.codec is not None and conditions.images:
        names = ", ".join(conditions.images)
        raise ValueError(f"with a codec, exports have no images, and this network has {names} too")
    if pipeline and _two_tables(sampler):
        raise ValueError(
            "pipeline.onnx has the steps of one direction, and those of this network's two differ"
        )


def _two_tables(sampler: BridgeSampler) -> bool:
    """Whether a network has two directions, which take other steps."""
    return sampler.direction is not None and sampler.bridge.turned is not sampler.bridge


def build_graphs(
    sampler: BridgeSampler, dtype: str, pipeline: bool, calibrate: Path | None, folder: Path
) -> dict[str, onnx.ModelProto]:
    """The graphs by name; ``folder`` is for temporary files."""
    weights_dtype = find_dtype(dtype)
    codec = sampler.codec
    network = graphs.network_graph(placed(sampler.unet, CPU, weights_dtype))
    if calibrate is not None:
        network = quantized(network, sampler, calibration(calibrate, sampler), folder)
    models = {"unet": network}
    if codec is not None:  # codes and decoder stay in float32: float16 would choose other codes
        models["encoder"] = graphs.codec_graph(codec.placed(CPU, weights_dtype), decodes=False)
        models["decoder"] = graphs.codec_graph(codec, decodes=True)
    parts = dict(models)
    models["step"] = graphs.step_graph(sampler.unet.axes)
    if pipeline:
        models["pipeline"] = graphs.pipeline_graph(parts, sampler.table, sampler.shapes)
    return models


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(
        model, path, save_as_external_data=model.ByteSize() > EXTERNAL, location=f"{path.name}.data"
    )


def settings(sampler: BridgeSampler, precision: str, folder: Path) -> dict[str, Any]:
    """The content of bridge.json for the files in a folder.

    Args:
        sampler: the sampler that was exported.
        precision: that of the weights of the network, ``"fp32"``, ``"fp16"`` or ``"int8"``.
        folder: the folder that holds the graphs.
    """
    network = sampler.unet
    shapes = sampler.shapes
    files = sorted(folder.iterdir())
    version = VERSION
    if _two_tables(sampler):
        version = TWO_TABLES
    statistics = None
    if sampler.codec is not None:
        statistics = sampler.codec.config()["statistics"]
    unusual: dict[str, Any] = {}  # what most networks have alike
    if shapes.source_channels != shapes.image_channels:
        unusual["source_channels"] = shapes.source_channels
    if network.endpoint_channels is not None:
        unusual["endpoint"] = list(network.endpoint_channels)
    unusual |= network.network_config.settings()
    if network.axes != 2:
        unusual["axes"] = network.axes
    stride: Any = list(shapes.stride)  # of each axis
    if len(set(stride)) == 1:
        stride = stride[0]  # of all
    return {
        "format": FORMAT,
        "version": version,
        "bridge": sampler.bridge.config(),
        "solver": sampler.solver,
        "calls": sampler.calls,
        **sampler.table.description(),
        "noise_rows": sampler.table.noisy,
        "channels": network.channels,
        "conditioned": shapes.shown,
        "image_channels": shapes.image_channels,
        **sampler.pictures.config(),
        **unusual,
        "image_size": sampler.image_size,
        "value_range": [-1, 1],
        "stride": stride,
        "latent_stride": shapes.cell,
        "latent_statistics": statistics,
        "dtype": precision,
        "opset": graphs.OPSET,
        "versions": machine.versions(PACKAGES),
        "files": {path.name: file_sha256(path) for path in files},
        "sizes": {path.name: path.stat().st_size for path in files},
    }


def calibration(folder: Path, sampler: BridgeSampler) -> list[torch.Tensor]:
    """Up to ``CALIBRATION`` of the user's pictures, spread over the folder."""
    channels = sampler.shapes.source_channels
    size = sampler.image_size or 64 * sampler.shapes.stride[0]
    rows = read_rows("folder", str(folder), "val")
    every = math.ceil(len(rows) / CALIBRATION)
    sources: list[torch.Tensor] = []
    for index in range(0, len(rows), every):
        picture = convert(open_image(Path(rows[index]["source"])), channels)
        array = to_array(resized(picture, size), channels)
        sources.append(torch.from_numpy(array)[None])
    return sources


def trajectory(sampler: BridgeSampler, sources: list[torch.Tensor]) -> Iterator[dict[str, Any]]:
    """The inputs of the network's graph at each step of each picture's translation."""
    times = sampler.table.network_times.astype(np.float32)
    feeds: list[dict[str, Any]] = []
    body = sampler.backend.body

    def noting(
        x: torch.Tensor, embedding: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        feed = {"x": x.numpy().copy()}
        for value in conditions.values():  # the source alone, where the network sees it
            feed[graphs.CONDITION] = value.numpy()
        feeds.append(feed)
        return body(x, embedding, conditions)

    backend = copy.copy(sampler.backend)
    backend.body = noting
    loop = Loop(backend, sampler.shapes)
    for seed, source in enumerate(sources):
        for batch in sampler.read(source, seed, {}).batches():
            with backend.turn():
                run = backend.begin(batch, loop.inputs(batch))
            for index in range(len(times)):
                with backend.turn():
                    backend.step(run, index)
                for feed in feeds:
                    yield {**feed, "t": times[index : index + 1]}
                feeds.clear()


def quantized(
    model: onnx.ModelProto, sampler: BridgeSampler, sources: list[torch.Tensor], folder: Path
) -> onnx.ModelProto:
    """The float32 graph of a sampler's network with int8 weights and activations (QDQ nodes).

    Convolutions and matrix products are in int8, with a scale for each output channel. The first and the last
    convolution, the time embedding, norms and attention stay in float32. The ranges of activations are
    measured on translations of ``sources``, (1, C, H, W) each. In ``folder`` are temporary files, as large as
    the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    feeds = trajectory(sampler, sources)
    # of ONNX Runtime's CalibrationDataReader
    reader: Any = SimpleNamespace(get_next=lambda: next(feeds, {}))
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    disabled = logging.root.manager.disable
    # its advice on preprocessing is for graphs that are not folded
    logging.disable(max(disabled, logging.WARNING))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "float32.onnx"
            result = Path(scratch) / "int8.onnx"
            _save(model, path)
            quantize_static(
                path,
                result,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[convolutions[0], convolutions[-1]],
                calibrate_method=CalibrationMethod.MinMax,
            )
            return onnx.load(result)
    finally:
        logging.disable(disabled)


@torch.inference_mode()
def compare(folder: Path, sampler: BridgeSampler, limit: float | None) -> float:
    """How far an export is from PyTorch in float32, relative to the largest value.

    Compared are the first estimate of one picture and of five, and the result: with a codec, which may choose
    another code, the image of PyTorch's latent.

    Raises:
        ValueError: a difference is above the limit, where there is one.
    """
    exported = OnnxBridgeSampler(folder, ["CPUExecutionProvider"])
    sampler = copy.copy(sampler)
    sampler.image_size = None  # any size serves here: no warning of another than the training's
    exported.image_size = None
    shapes = sampler.shapes
    codec = sampler.codec
    inputs = graphs.pipeline_inputs(shapes, slots=0)
    generator = torch.Generator().manual_seed(0)
    differences: list[float] = []

    def add(result: Any, expected: torch.Tensor) -> None:
        largest = np.abs(result - expected.numpy()).max()
        differences.append(float(largest / expected.abs().max()))

    for batch in (1, 5):
        sides = [(4 + axis * batch) * step for axis, step in enumerate(shapes.stride)]
        lengths = graphs.sizes(batch, sides)
        values = {name: condition.example(lengths, generator) for name, condition in inputs.items()}
        source = values.pop("source")
        if sampler.direction is not None:  # one of all
            values[DIRECTION] = values[DIRECTION][:1].repeat(batch)
        # on whole pictures, where the network was trained on crops too
        steps = list(exported.stream(source.numpy(), seed=0, conditions=values, window=None))
        expected = list(sampler.stream(source, seed=0, conditions=values, window=None))
        add(steps[0].x0hat, expected[0].x0hat)
        state = expected[-1].x
        if codec is None:
            add(steps[-1].x, state)
        else:
            add(exported.backend.decode(state.contiguous().numpy()), codec.decode(state))
    is_near = limit is None or all(difference <= limit for difference in differences)  # NaN is not
    if not is_near:
        raise ValueError(
            f"results differ by {max(differences):.1e} from PyTorch, more than {limit:.0e}"
        )
    return max(differences)
