"""Steps on ONNX Runtime, with the noise of NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from bbdm.bridges.timesteps import Row
from bbdm.files.bridge_json import PIPELINE
from bbdm.kernels.philox_numpy import normal
from bbdm.networks.conditions import SOURCE
from bbdm.sampling.loop import Batch, Inputs, Run, State, predict, wrong_prediction
from bbdm.solvers import StepTable

Array = npt.NDArray[np.float32]
# of which those are taken that there are
PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
Provider = str | tuple[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A table in float32."""

    rows: Array  # (K, 10)
    opening: Array  # (10,) the row that makes the first state
    times: Array  # (K, 1) as the network takes them


class OnnxBackend:
    """Steps on ONNX Runtime; a :class:`bbdm.sampling.loop.Backend`.

    Args:
        folder: an export, which ``bbdm export`` wrote.
        files: the names of its files, of which the graphs are loaded.
        axes: of space, 2 or 3.
        providers: execution providers, the preferred first; None for CUDA where there is it, and the CPU.
        threads: of the CPU provider; None for one a core.

    Raises:
        ValueError: a graph does not load, or the first provider does not start.
    """

    array = np.ndarray
    noun = "an array"
    like = np.zeros((), np.float32)
    turn = nullcontext  # nothing is shared, and nothing records gradients

    def __init__(
        self,
        folder: Path,
        files: Iterable[str],
        axes: int,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        available = onnxruntime.get_available_providers()
        self.providers: list[Any] = [
            *(providers or [name for name in PREFERRED if name in available])
        ]
        self.graphs: dict[str, onnxruntime.InferenceSession] = {}
        for name in files:
            if name.endswith(".onnx") and name != PIPELINE:
                self.graphs[name.removesuffix(".onnx")] = self._session(folder / name, threads)
        self._one = np.ones((1,) * (2 + axes), np.float32)
        self._zero = np.zeros((1,) * (2 + axes), np.float32)

    def _session(self, path: Path, threads: int | None) -> onnxruntime.InferenceSession:
        """A graph, ready to run."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = onnxruntime.InferenceSession(path, options, providers=self.providers)
        except Exception as error:  # of many kinds, without a common base
            raise ValueError(
                f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}"
            ) from error
        first = self.providers[0]
        if (first if isinstance(first, str) else first[0]) not in session.get_providers():
            known = f"{onnxruntime.get_available_providers()}, or lacks its libraries or device"
            raise ValueError(f"provider {first!r} did not start: it is none of {known}")
        return session

    def load(self, table: StepTable) -> Loaded:
        """The table in float32."""
        times = table.network_times.astype(np.float32)
        return Loaded(
            table.rows.astype(np.float32), table.opening.astype(np.float32), times[:, None]
        )

    def encode(self, source: Array) -> Array:
        """Padded sources in the space of the bridge."""
        if "encoder" not in self.graphs:
            return source
        return self._run("encoder", image=source)[0]

    def decode(self, state: Array) -> Array:
        """The pictures of a state; of image space the state itself."""
        if "decoder" not in self.graphs:
            return state
        return self._run("decoder", latent=state)[0]

    def prepare(self, conditions: Mapping[str, Any], sides: Sequence[int]) -> dict[str, Any]:
        """The conditions as they are, which the graph takes."""
        return dict(conditions)

    def begin(self, batch: Batch, inputs: Inputs) -> Run:
        """A run with its first state."""
        y = inputs.y
        run = Run(batch, inputs, State(y, y, y))
        loaded: Loaded = batch.plan.loaded
        # whose noise has the last row's number
        self._advance(run, y, loaded.opening, len(loaded.rows) - 1)
        return run

    def step(self, run: Run, index: int) -> None:
        """One call of the network's graph, then one of the step's."""
        loaded: Loaded = run.batch.plan.loaded
        network = partial(self._call, loaded.times[index])
        prediction = predict(network, run.batch, run.inputs, run.state.inputs)
        self._advance(run, prediction, loaded.rows[index], index)

    def copy(self, array: Array) -> Array:
        """A state or an estimate in memory of its own."""
        return array.copy()

    def _run(self, graph: str, **inputs: Any) -> Any:
        return self.graphs[graph].run(None, inputs)

    def _call(self, time: Array, x: Array, conditions: Mapping[str, Any]) -> Array:
        named = {
            "condition" if name == SOURCE else name: value for name, value in conditions.items()
        }
        prediction = self._run("unet", x=x, t=time, **named)[0]
        if prediction.shape != x.shape or prediction.dtype.kind != "f":
            raise wrong_prediction(prediction, x)
        return prediction

    def _advance(self, run: Run, prediction: Array, row: Array, index: int) -> None:
        inputs = run.inputs
        y = inputs.y
        z = self._zero
        if Row(*row).c_z != 0 and inputs.noise is not None:
            z = inputs.noise[index]
        elif Row(*row).c_z != 0:
            z = normal(inputs.seeds, index, y.shape[1:])
        mask = self._one if inputs.mask is None else inputs.mask
        x = run.state.x
        x0hat = run.state.x0hat
        arrays = self._run(
            "step", x=x, x0hat=x0hat, prediction=prediction, y=y, z=z, row=row, mask=mask
        )
        run.state = State(*arrays)
