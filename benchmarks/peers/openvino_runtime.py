"""OpenVINO on sde-bbdm's network, read from the ONNX file; its conversion from PyTorch runs no faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import torch


def call(path: Path, x: torch.Tensor, t: torch.Tensor, precision: str) -> Callable[[], Any]:
    """One call of the network on the CPU, ``precision`` f32 or bf16."""
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    inputs = [x.contiguous().numpy(), t.numpy()]
    return lambda: request.infer(inputs)[0]
