"""Writing a checkpoint as a folder of ONNX graphs, which are compared with PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import math
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from bbdm.base import machine
from bbdm.base.atomic import file_sha256
from bbdm.base.sizes import shown
from bbdm.data.rows import read_rows
from bbdm.files.bridge_json import FORMAT, FURTHER, PIPELINE, PLAIN, SETTINGS, VERSION
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import Network, placed
from bbdm.networks.conditions import DIRECTION
from bbdm.onnx import graphs
from bbdm.onnx.config import ExportConfig
from bbdm.pictures.images import convert, open_image, resized, to_array
from bbdm.runtime.sampler import OnnxBridgeSampler
from bbdm.sampling.sampler import BridgeSampler

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PACKAGES = ("bbdm", "torch", "onnx", "onnxscript", "onnxruntime")
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}  # of the largest difference over the largest value; int8 has none
EXTERNAL = 2**30  # bytes from which weights are in a second file: a protobuf holds 2 GB
CALIBRATION = 8  # pictures


def load(config: ExportConfig, network: Network | None = None) -> BridgeSampler:
    """The sampler of the flags; arguments and errors are those of :func:`export`."""
    sampler = config.build_sampler(config.checkpoint, network=network, solver=config.solver, steps=config.steps)
    if config.quantize:
        check_pictures(sampler.unet.axes, "quantize")
    others = sampler.unet.network_config
    if refused := others.each if config.quantize else others.images if sampler.codec is not None else {}:
        what = "int8 is calibrated on sources alone" if config.quantize else "with a codec, exports have no images"
        raise ValueError(f"{what}, and this network has {', '.join(refused)} too")
    if config.pipeline and _differ(sampler):
        raise ValueError("pipeline.onnx has the steps of one direction, and those of this network's two differ")
    return sampler


def _differ(sampler: BridgeSampler) -> bool:
    """Whether a network has two directions, which take other steps."""
    return sampler.direction is not None and sampler.bridge.turned is not sampler.bridge


def calibration(folder: Path, sampler: BridgeSampler) -> list[torch.Tensor]:
    """Up to ``CALIBRATION`` of the user's pictures, spread over the folder."""
    channels, size = sampler._shapes.source_channels, sampler.image_size or 64 * sampler._shapes.stride[0]
    rows = read_rows("folder", str(folder), "val")
    chosen = [rows[i]["source"] for i in range(0, len(rows), math.ceil(len(rows) / CALIBRATION))]
    images = (to_array(resized(convert(open_image(path), channels), size), channels) for path in chosen)
    return [torch.from_numpy(image)[None] for image in images]


def trajectory(sampler: BridgeSampler, sources: list[torch.Tensor]) -> Iterator[dict[str, Any]]:
    """The inputs of the network's graph at each step of each picture's translation."""
    feeds: list[dict[str, Any]] = []
    times, noting = sampler.table.network_times.astype(np.float32), copy.copy(sampler)

    def net(plan: Any, conditions: Any, x: torch.Tensor, index: int) -> torch.Tensor:
        seen = [(graphs.CONDITION, each.numpy()) for each in conditions.values()]  # of the source alone
        feeds.append({"x": x.numpy().copy(), "t": times[index : index + 1], **dict(seen)})
        return sampler._net(plan, conditions, x, index)

    vars(noting)["_net"] = net
    for seed, source in enumerate(sources):
        noting(source, seed)
        yield from feeds
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

    feeds, convolutions = trajectory(sampler, sources), [n.name for n in model.graph.node if n.op_type == "Conv"]
    logging.disable(logging.WARNING)  # its advice on preprocessing is for graphs that are not folded
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            plain, small = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
            onnx.save_model(model, plain, save_as_external_data=model.ByteSize() > EXTERNAL, location="float32.data")
            quantize_static(
                plain,
                small,
                SimpleNamespace(get_next=lambda: next(feeds, {})),  # pyright: ignore[reportArgumentType]
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[convolutions[0], convolutions[-1]],
                calibrate_method=CalibrationMethod.MinMax,
            )
            return onnx.load(small)
    finally:
        logging.disable(logging.NOTSET)


def build_graphs(config: ExportConfig, sampler: BridgeSampler, folder: Path) -> dict[str, onnx.ModelProto]:
    """The graphs by name; ``folder`` is for temporary files."""
    dtype, codec = DTYPES[config.dtype or "fp32"], sampler.codec
    models = {"unet": graphs.network_graph(placed(sampler.unet, CPU, dtype))}
    if config.calibrate is not None:
        models["unet"] = quantized(models["unet"], sampler, calibration(config.calibrate, sampler), folder)
    if codec is not None:  # codes and decoder stay in float32: float16 would choose other codes
        models["encoder"] = graphs.codec_graph(codec.placed(CPU, dtype), decodes=False)
        models["decoder"] = graphs.codec_graph(codec, decodes=True)
    whole = {"pipeline": graphs.pipeline_graph(models, sampler.table, sampler._shapes)} if config.pipeline else {}
    return {**models, "step": graphs.step_graph(sampler.unet.axes), **whole}


def settings(config: ExportConfig, sampler: BridgeSampler, folder: Path) -> dict[str, Any]:
    """The content of bridge.json for the files in a folder."""
    network, shapes, files = sampler.unet, sampler._shapes, sorted(folder.iterdir())
    stride = shapes.stride[0] if len(set(shapes.stride)) == 1 else list(shapes.stride)  # of all axes, or of each
    optional = {
        **sampler.pictures.config(),
        **({} if shapes.source_channels == shapes.image_channels else {"source_channels": shapes.source_channels}),
        **({} if network.endpoint_channels is None else {"endpoint": list(network.endpoint_channels)}),
        **network.network_config.settings(),
        **({} if network.axes == 2 else {"axes": network.axes}),
    }
    further = FURTHER if optional or isinstance(stride, list) else PLAIN
    return {
        "format": FORMAT,
        "version": VERSION if _differ(sampler) else further,
        "bridge": sampler.bridge.config(),
        "solver": sampler.solver,
        "calls": sampler.calls,
        **sampler.table.description(),
        "noise_rows": sampler.table.noisy,
        "channels": network.channels,
        "conditioned": shapes.shown,
        "image_channels": shapes.image_channels,
        **optional,
        "image_size": sampler.image_size,
        "value_range": [-1, 1],
        "stride": stride,
        "latent_stride": shapes.cell,
        "latent_statistics": None if sampler.codec is None else sampler.codec.config()["statistics"],
        "dtype": config.quantize or config.dtype or "fp32",
        "opset": graphs.OPSET,
        "versions": machine.versions(PACKAGES),
        "files": {path.name: file_sha256(path) for path in files},
        "sizes": {path.name: path.stat().st_size for path in files},
    }


def write(config: ExportConfig, sampler: BridgeSampler, folder: Path) -> None:
    """Write all files into an empty folder."""
    for name, model in build_graphs(config, sampler, folder.parent).items():
        path = folder / f"{name}.onnx"
        onnx.save_model(model, path, save_as_external_data=model.ByteSize() > EXTERNAL, location=f"{path.name}.data")
        onnx.checker.check_model(path, full_check=True)
    (folder / SETTINGS).write_text(json.dumps(settings(config, sampler, folder), indent=1) + "\n")


@torch.inference_mode()
def check(folder: Path, sampler: BridgeSampler, limit: float | None) -> None:
    """Print how far an export's results are from PyTorch's in float32, relative to the largest value.

    The sampler has the same checkpoint, solver and steps. Results are the first estimate and the last state
    of the loop, the image of the decoder, and that of ``pipeline.onnx``.

    Raises:
        ValueError: a difference is above the limit, where there is one.
    """
    exported, sampler = OnnxBridgeSampler(folder, ["CPUExecutionProvider"]), copy.copy(sampler)
    exported.image_size = sampler.image_size = None  # any size serves here: no warning of another than the training's
    shapes, table, path = sampler._shapes, sampler.table, folder / PIPELINE
    whole = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) if path.exists() else None
    generator, judged = torch.Generator().manual_seed(0), list[float]()
    inputs = graphs.pipeline_inputs(shapes, len(table))
    side = [4 * step for step in shapes.stride]
    for batch, sides in [(1, side), (2, side), (5, [*side[:-1], 5 * shapes.stride[-1]])]:
        values = graphs.examples(inputs, graphs.sizes(batch, sides, shapes.cell), generator)
        image, noise = values.pop("source"), values.pop("noise")
        if sampler.direction is not None:  # one of all
            values[DIRECTION] = values[DIRECTION][:1].repeat(batch)
        arrays = {name: value.numpy() for name, value in values.items()}
        # on whole pictures, where the network was trained on crops too
        states = [*exported.stream(image.numpy(), seed=0, conditions=arrays, window=None)]
        wanted = [*sampler.stream(image, seed=0, conditions=values, window=None)]
        rows = {"first step": (states[0].x0hat, wanted[0].x0hat), "last step": (states[-1].x, wanted[-1].x)}
        if sampler.codec is not None:
            latent = wanted[-1].x.contiguous()
            rows["decoder.onnx"] = exported._decode(latent.numpy()), sampler.codec.decode(latent)
        if whole is not None:
            feeds = arrays | {"source": image.numpy(), "noise": noise.numpy()[table.noisy]}
            outputs = whole.run(None, {each.name: feeds[each.name] for each in whole.get_inputs()})[0]
            rows[PIPELINE] = outputs, sampler(image, noise=noise, conditions=values, window=None)
        for name, (result, reference) in rows.items():
            off = float(np.abs(result - reference.numpy()).max() / reference.abs().max())
            print(f"{name:16}{shown(image.shape):>20}, largest difference {off:.1e}")
            if sampler.codec is None or name in ("first step", "decoder.onnx"):  # a latent may have another code
                judged.append(off)
    if limit is not None and not all(off <= limit for off in judged):
        raise ValueError(f"results differ by {max(judged):.1e} from PyTorch, more than {limit:.0e}")


def export(config: ExportConfig, network: Network | None = None) -> None:
    """Write a folder of graphs, check it, and print what it holds.

    Args:
        config: what is exported, and how.
        network: the network that a file of a wrapped network is of.

    Raises:
        ValueError: the folder exists, or the graphs differ from PyTorch.
    """
    folder = config.output
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} exists and is not an export: give another folder")
    if folder.exists() and not config.overwrite:
        raise ValueError(f"{folder} exists: overwrite replaces it")
    sampler = load(config, network)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary) / "written"
        written.mkdir()
        write(config, sampler, written)
        if config.check:
            check(written, sampler, None if config.quantize else LIMITS[config.dtype or "fp32"])
        if folder.exists():
            folder.rename(Path(temporary) / f"replaced-{secrets.token_hex(4)}")
        written.rename(folder)
    files = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {', '.join(path.name for path in files)}; {size / 1e6:.1f} MB")
