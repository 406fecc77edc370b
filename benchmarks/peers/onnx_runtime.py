"""ONNX Runtime on the network of sde-bbdm, as exported by PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn


def export(public: nn.Module, x: torch.Tensor, t: torch.Tensor, path: Path) -> None:
    """Write the ONNX file for this batch, which OpenVINO reads too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            public,
            (x, t),
            path,
            input_names=["x", "t"],
            output_names=["prediction"],
            dynamo=True,
            external_data=True,
            verbose=False,
        )


def call(path: Path, x: torch.Tensor, t: torch.Tensor) -> Callable[[], Any]:
    """One call of the network; images are in the host's memory before and after, also on a GPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    provider = "CUDAExecutionProvider" if x.is_cuda else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise ImportError(f"this onnxruntime has no {provider}")
    inputs = {"x": x.cpu().contiguous().numpy(), "t": t.cpu().numpy()}
    return lambda: session.run(None, inputs)[0]
