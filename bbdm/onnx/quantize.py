"""Static int8 quantisation of the UNet's graph, calibrated on the states of translations of pictures.

Convolutions and matrix products are in int8, with a scale for each output channel. The first and the last
convolution, the time embedding, norms and attention stay in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from bbdm.kernels import philox
from bbdm.onnx.graphs import CONDITION
from bbdm.sampling.sampler import BridgeSampler


class _Trajectory(CalibrationDataReader):
    """Inputs of the graph: every state of every picture's translation."""

    def __init__(self, sampler: BridgeSampler, sources: list[torch.Tensor]) -> None:
        self._feeds = (feed for seed, source in enumerate(sources) for feed in _states(sampler, source, seed))

    def get_next(self) -> dict[str, Any]:
        return next(self._feeds, {})


def _states(sampler: BridgeSampler, source: torch.Tensor, seed: int) -> Iterator[dict[str, Any]]:
    table, seen = sampler.table, source if sampler.codec is None else sampler.codec.encode(source, "source")
    y = sampler.unet.endpoint(seen)
    condition = {CONDITION: seen.numpy()} if sampler.unet.condition_channels else {}
    of_y, of_z = table.start
    x = of_y * y + of_z * philox.normal(torch.tensor([seed]), len(table) - 1, tuple(y.shape[1:]))
    times = table.network_times.astype(np.float32)
    for step in sampler.stream(source, seed):
        i_x, i_y = table.inputs[step.index].tolist()
        yield {"x": (i_x * x + i_y * y).numpy(), "t": times[step.index : step.index + 1], **condition}
        x = step.x


def quantized(
    model: onnx.ModelProto, sampler: BridgeSampler, sources: list[torch.Tensor], folder: Path
) -> onnx.ModelProto:
    """The graph of ``sampler``'s network with int8 weights and activations (QDQ nodes).

    Args:
        model: the float32 graph of the network.
        sampler: computes the states from which activations' ranges are measured.
        sources: (1, C, H, W) each, of a size that the network takes.
        folder: for temporary files, as large as the graph.
    """
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    plain, small = folder / "float32.onnx", folder / "int8.onnx"
    onnx.save_model(model, plain, save_as_external_data=model.ByteSize() > 2**30, location="float32.onnx.data")
    logging.disable(logging.WARNING)  # its advice on preprocessing is for graphs that are not folded
    try:
        quantize_static(
            plain,
            small,
            _Trajectory(sampler, sources),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[convolutions[0], convolutions[-1]],
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(small)
