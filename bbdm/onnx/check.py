"""An export compared with PyTorch: every graph, and the final image, at several shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from bbdm.files.bridge_json import PIPELINE
from bbdm.networks.checks import along
from bbdm.onnx.graphs import input_names
from bbdm.runtime.sampler import OnnxBridgeSampler
from bbdm.sampling.sampler import BridgeSampler

LIMITS = {"fp32": 1e-4, "fp16": 2e-2}  # of the largest difference over the largest value; int8 has none


@dataclass(frozen=True)
class Difference:
    """The difference of a graph from PyTorch on one input, relative to PyTorch's largest value."""

    graph: str
    shape: tuple[int, ...]  # of the input
    largest: float
    mean: float

    @classmethod
    def of(cls, graph: str, shape: tuple[int, ...], value: np.ndarray, reference: torch.Tensor) -> Difference:
        """The difference of an array from a tensor."""
        wanted = reference.numpy()
        off, scale = np.abs(value - wanted), np.abs(wanted).max()
        return cls(graph, tuple(shape), float(off.max() / scale), float(off.mean() / scale))


@torch.inference_mode()
def differences(folder: Path, sampler: BridgeSampler) -> Iterator[Difference]:
    """Differences of a folder's graphs, of the loop's image and of ``pipeline.onnx`` from a float32 sampler.

    Args:
        folder: the folder of the export.
        sampler: has the same checkpoint, solver and steps.
    """
    exported = OnnxBridgeSampler(folder, ["CPUExecutionProvider"])
    exported.image_size = None  # any size serves here: no warning of another than the training's
    stride = along(exported.settings["stride"], exported.axes)
    size = [4 * step for step in stride]
    longer = *size[:-1], size[-1] + stride[-1]
    generator = torch.Generator().manual_seed(0)
    unet, codec = sampler.unet, sampler.codec
    pipeline = folder / PIPELINE
    whole = onnxruntime.InferenceSession(pipeline, providers=["CPUExecutionProvider"]) if pipeline.exists() else None
    for batch, *sides in [(1, *size), (2, *size), (5, *longer)]:

        def drawn(channels: int, size: tuple[int, ...] = (batch, *sides)) -> torch.Tensor:
            return torch.rand(size[0], channels, *size[1:], generator=generator) * 2 - 1

        image = drawn(unet.source_channels if codec is None else codec.image_channels)
        y = image
        if codec is not None:
            y = codec.encode(image, "source")
            yield Difference.of("encoder.onnx", image.shape, _run(exported, "encoder", image=image), y)
            yield Difference.of("decoder.onnx", y.shape, _run(exported, "decoder", latent=y), codec.decode(y))
        t = torch.tensor(sampler.table.network_times[len(sampler.table) // 2 :][:1], dtype=torch.float32)
        others: dict[str, torch.Tensor] = {}
        for name, each in unet.further.each.items():
            values = torch.rand(each.shape(batch, sides, length=5), generator=generator)
            others[name] = (values * each.size).long() if each.dtype == "int64" else values * 2 - 1
        arrays = {name: value.numpy() for name, value in others.items()}
        conditions, y = unet.given(y, others), unet.endpoint(y)
        names = input_names(unet)
        inputs = {"x": y, "t": t} | {names[name]: value for name, value in conditions.items()}
        yield Difference.of("unet.onnx", y.shape, _run(exported, "unet", **inputs), unet(y, t, conditions))
        # both on whole pictures, where the network was trained on crops too
        wanted = sampler(image, seed=0, conditions=others, window=None)
        made = exported(image.numpy(), seed=0, conditions=arrays, window=None)
        yield Difference.of("image, step by step", image.shape, made, wanted)
        if whole is not None:
            noise = torch.randn(len(sampler.table), *y.shape, generator=generator)
            feeds = {"source": image.numpy(), **arrays}
            if sampler.table.noisy:
                feeds["noise"] = noise.numpy()[sampler.table.noisy]
            mask = (torch.rand(batch, 1, *sides, generator=generator) > 0.5).float()
            if "mask" in [each.name for each in whole.get_inputs()]:
                feeds["mask"] = mask.numpy()
            (made,) = whole.run(None, feeds)
            wanted = sampler(image, noise=noise, mask=mask if "mask" in feeds else None, conditions=others, window=None)
            yield Difference.of("image, pipeline.onnx", image.shape, np.asarray(made), wanted)


def _run(exported: OnnxBridgeSampler, graph: str, **inputs: torch.Tensor) -> np.ndarray:
    """The first output of a graph."""
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(value.contiguous().numpy()) for name, value in inputs.items()
    }
    return exported.graphs[graph].run(values)[0].numpy()
