"""OnnxBridgeSampler: translates images on ONNX Runtime, with numpy and pillow and without PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from bbdm import bridges, solvers
from bbdm.base.frontend import Advance, FrontEnd
from bbdm.base.frontend import Step as Step
from bbdm.kernels.philox_numpy import normal
from bbdm.runtime.bridge_json import PIPELINE, read_settings
from bbdm.runtime.session import Provider, Session, with_options

Array = npt.NDArray[np.float32]
State = tuple[onnxruntime.OrtValue, onnxruntime.OrtValue]  # the state and the estimate of the target, on the device


class OnnxBridgeSampler(FrontEnd[Array]):
    """Translates images with an exported network, called as :class:`bbdm.BridgeSampler` is.

    A seed gives the image that :class:`bbdm.BridgeSampler` returns for it. Results are float32.

    Args:
        folder: what ``export/to_onnx.py`` wrote.
        providers: execution providers of ONNX Runtime, the preferred first, with or without options; None for
            CUDA where this ONNX Runtime has it, and else the CPU.
        threads: of the CPU provider; None for one a core.
        solver: another solver than the one exported, as for
        steps: another number of network evaluations, and
        timesteps: other times; see :func:`bbdm.solvers.build`.

    On CUDA the state stays on the device between steps. Threads may share a sampler. ``table`` is its
    :class:`~bbdm.solvers.StepTable`, ``settings`` the content of ``bridge.json``, and ``static`` the only
    (number, height, width) of pictures that the export takes, or None.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file was changed, is of a newer version or of another export; an unknown provider, or
            one that does not start.
    """

    kind = np.ndarray
    noun = "an array"
    _from_numpy = staticmethod(np.asarray)
    _concatenate = staticmethod(np.concatenate)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: str | Iterable[int] | None = None,
    ) -> None:
        folder = Path(folder)
        self.settings = read_settings(folder)
        self.providers = with_options(providers)
        static = self.settings["static"]
        self.static = None if static is None else cast(tuple[int, int, int], tuple(static))
        self.table = self._table(solver, steps, timesteps)
        super().__init__(
            self.table.timesteps.tolist(),
            image_channels=self.settings["image_channels"],
            channels=self.settings["channels"],
            stride=self.settings["stride"],
            latent_stride=self.settings["latent_stride"],
            batch=self.static[0] if self.static else None,
            fill=self.static is not None,
        )
        self.graphs = {
            name.removesuffix(".onnx"): Session(folder / name, self.providers, threads)
            for name in self.settings["files"]
            if name.endswith(".onnx") and name != PIPELINE
        }
        self._put = self.graphs["unet"].put
        self._rows = [self._put(row) for row in self.table.rows.astype(np.float32)]
        self._times = [self._put(np.array([t])) for t in self.table.timesteps]
        self._no_noise = self._put(np.zeros((1, 1, 1, 1), np.float32))

    def _table(self, solver: str | None, steps: int | None, timesteps: str | Iterable[int] | None) -> solvers.StepTable:
        """The exported table, or another of the exported bridge where an argument asks for one."""
        if solver is steps is timesteps is None:
            stored = (np.array(self.settings[name]) for name in ("timesteps", "prediction", "coefficients"))
            return solvers.StepTable(*stored)
        bridge = bridges.from_config(self.settings["bridge"])
        return solvers.build(bridge, solver or self.settings["solver"], timesteps, steps)

    @contextmanager
    def _progress(self, total: int) -> Iterator[Advance]:
        done = 0

        def advance(evaluations: int) -> None:
            nonlocal done
            done += evaluations
            print(f"\rstep {done} of {total}", end="", file=sys.stderr, flush=True)

        try:
            yield advance
        finally:
            print(file=sys.stderr)

    def _run(self, source: Array, seeds: Sequence[int], noise: Array | None, advance: Advance) -> Array:
        x = y = self._start(source)
        for state in self._states(y, seeds, noise):
            x = state[0]
            advance(1)
        if "decoder" in self.graphs:
            (x,) = self.graphs["decoder"].run({"latent": x})
        return x.numpy()

    def _steps(self, source: Array, seeds: Sequence[int], noise: Array | None) -> Iterator[tuple[Array, Array]]:
        if self.static is not None and len(source) != self.static[0]:
            raise ValueError(f"source must hold {self.static[0]} images for this export, got {len(source)}")
        states = self._states(self._start(source), seeds, noise)
        return ((x.numpy(), x0hat.numpy()) for x, x0hat in states)

    def _states(self, y: onnxruntime.OrtValue, seeds: Sequence[int], noise: Array | None) -> Iterator[State]:
        """State and estimate after each step, on the device."""
        x = x0hat = y
        shape = tuple(y.shape())[1:]
        for index, (row, time) in enumerate(zip(self._rows, self._times, strict=True)):
            inputs = {"x": x, "t": time} | ({"condition": y} if self.settings["conditioned"] else {})
            (prediction,) = self.graphs["unet"].run(inputs)
            z = self._no_noise
            if self.table.coefficients[index, 4]:
                z = self._put(normal(seeds, index, shape) if noise is None else noise[index].astype(np.float32))
            x, x0hat = self.graphs["step"].run(
                {"x": x, "x0hat": x0hat, "prediction": prediction, "y": y, "z": z, "row": row}
            )
            yield x, x0hat

    def _start(self, source: Array) -> onnxruntime.OrtValue:
        """The source in the space of the bridge, padded below and to the right."""
        height, width = source.shape[2:]
        padded = self._padded(height, width)
        if self.static is not None and padded != self.static[1:]:
            sizes = f"{self.static[1]} x {self.static[2]} only, got {height} x {width}"
            raise ValueError(f"this export takes pictures of height x width {sizes}")
        padding = ((0, 0), (0, 0), (0, padded[0] - height), (0, padded[1] - width))
        image = self._put(np.pad(source.astype(np.float32), padding, mode="edge"))
        return self.graphs["encoder"].run({"image": image})[0] if "encoder" in self.graphs else image
