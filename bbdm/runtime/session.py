"""Sessions of ONNX Runtime whose inputs and outputs stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

CPU = "CPUExecutionProvider"
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
Provider = str | tuple[str, dict[str, Any]]


def with_options(wanted: Sequence[Provider] | None) -> list[tuple[str, dict[str, Any]]]:
    """Providers with their options, the CPU last; None chooses CUDA where this ONNX Runtime has it.

    Raises:
        ValueError: a provider that this ONNX Runtime lacks.
    """
    available = onnxruntime.get_available_providers()
    if isinstance(wanted, str) or (wanted is not None and not wanted):
        raise ValueError(f"providers must be None or a list with at least one name, got {wanted!r}")
    if wanted is None:
        wanted = [name for name in ("CUDAExecutionProvider",) if name in available]
    listed = [(entry, {}) if isinstance(entry, str) else (entry[0], dict(entry[1])) for entry in wanted]
    for name, _ in listed:
        if name not in available:
            raise ValueError(f"providers must be of those that this onnxruntime has, {available}, got {name!r}")
    return listed if any(name == CPU for name, _ in listed) else [*listed, (CPU, {})]


class Session:
    """A session whose inputs and outputs are on the device of its first provider."""

    def __init__(self, path: Path, providers: list[tuple[str, dict[str, Any]]], threads: int | None) -> None:
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise ValueError(f"threads must be None or an integer of at least 1, got {threads!r}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # of many kinds, without a common base
            raise ValueError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error
        name, settings = providers[0]
        if name not in self._session.get_providers():
            raise ValueError(f"{name} did not start: its libraries are missing, or there is no such device")
        self._device = ("cuda", int(settings.get("device_id", 0))) if name in ON_CUDA else ("cpu", 0)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def put(self, array: npt.NDArray[Any]) -> onnxruntime.OrtValue:
        """The array on the device."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._device)

    def run(self, inputs: dict[str, onnxruntime.OrtValue]) -> list[onnxruntime.OrtValue]:
        """The graph's outputs for inputs by name."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, *self._device)
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()
