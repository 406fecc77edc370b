"""An export compared with PyTorch: every graph, and the final image, at several shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from bbdm.base.sizes import shown
from bbdm.files.bridge_json import PIPELINE
from bbdm.onnx.graphs import examples, input_name, sizes
from bbdm.onnx.pipeline import pipeline_inputs
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


def check(folder: Path, sampler: BridgeSampler, limit: float | None) -> None:
    """Print an export's differences from PyTorch.

    Args:
        folder: the folder of the export.
        sampler: has the same checkpoint, solver and steps.
        limit: of the largest relative difference; None for any.

    Raises:
        ValueError: a difference is above the limit.
    """
    print(f"{'against PyTorch float32':24}{'input':>20}{'largest':>12}{'mean':>12}")
    worst: Difference | None = None
    for each in differences(folder, sampler):
        print(f"{each.graph:24}{shown(each.shape):>20}{each.largest:12.1e}{each.mean:12.1e}")
        # With a codec, rounding may choose a neighbouring code.
        judged = sampler.codec is None or not each.graph.startswith("image")
        if limit is not None and judged and not each.largest <= limit:
            worst = each
    if worst is not None:
        raise ValueError(f"{worst.graph} differs by {worst.largest:.1e} from PyTorch, more than {limit:.0e}")


@torch.inference_mode()
def differences(folder: Path, sampler: BridgeSampler) -> Iterator[Difference]:
    """Differences of a folder's graphs, of the loop's image and of ``pipeline.onnx`` from a float32 sampler.

    Args:
        folder: the folder of the export.
        sampler: has the same checkpoint, solver and steps.
    """
    exported, sampler = OnnxBridgeSampler(folder, ["CPUExecutionProvider"]), copy.copy(sampler)
    exported.image_size = sampler.image_size = None  # any size serves here: no warning of another than the training's
    shapes, unet, codec, table = sampler._shapes, sampler.unet, sampler.codec, sampler.table
    generator = torch.Generator().manual_seed(0)
    pipeline = folder / PIPELINE
    whole = onnxruntime.InferenceSession(pipeline, providers=["CPUExecutionProvider"]) if pipeline.exists() else None
    size = [4 * step for step in shapes.stride]
    longer = [*size[:-1], size[-1] + shapes.stride[-1]]
    for batch, sides in [(1, size), (2, size), (5, longer)]:
        inputs = pipeline_inputs(shapes, len(table), masked=True)
        values = examples(inputs, sizes(batch, sides, shapes.cell), generator)
        image, noise, mask = values.pop("source"), values.pop("noise"), (values.pop("mask") > 0).float()
        seen = image if codec is None else codec.encode(image, "source")
        if codec is not None:
            yield Difference.of("encoder.onnx", image.shape, _run(exported, "encoder", image=image), seen)
            yield Difference.of("decoder.onnx", seen.shape, _run(exported, "decoder", latent=seen), codec.decode(seen))
        t = torch.tensor(table.network_times[len(table) // 2 :][:1], dtype=torch.float32)
        conditions, y = unet.given(seen, values), unet.endpoint(seen)
        feeds = {"x": y, "t": t, **{input_name(name): value for name, value in conditions.items()}}
        yield Difference.of("unet.onnx", y.shape, _run(exported, "unet", **feeds), unet(y, t, conditions))
        # both on whole pictures, where the network was trained on crops too
        settings: dict[str, Any] = {"conditions": values, "window": None}
        arrays = {name: value.numpy() for name, value in values.items()}
        result = exported(image.numpy(), seed=0, conditions=arrays, window=None)
        yield Difference.of("image, step by step", image.shape, result, sampler(image, seed=0, **settings))
        if whole is not None:
            taken = [each.name for each in whole.get_inputs()]
            arrays |= {"source": image.numpy(), "noise": noise.numpy()[table.noisy], "mask": mask.numpy()}
            (result,) = whole.run(None, {name: arrays[name] for name in taken})
            expected = sampler(image, noise=noise, mask=mask if "mask" in taken else None, **settings)
            yield Difference.of("image, pipeline.onnx", image.shape, np.asarray(result), expected)


def _run(exported: OnnxBridgeSampler, graph: str, **inputs: torch.Tensor) -> np.ndarray:
    """The first output of a graph."""
    arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
    return exported.graphs[graph].run({name: exported._put(array) for name, array in arrays.items()})[0].numpy()
