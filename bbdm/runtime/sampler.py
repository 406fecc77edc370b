"""OnnxBridgeSampler: translates images on ONNX Runtime, with numpy and pillow and without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from bbdm import bridges, solvers
from bbdm.bridges.timesteps import Row
from bbdm.data.spec import Spec
from bbdm.files.bridge_json import PIPELINE, conditions_of, read_settings
from bbdm.kernels.philox_numpy import normal
from bbdm.networks.arrays import along
from bbdm.networks.conditions import SOURCE
from bbdm.pictures import images
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Inputs, Plan, Shapes, State, check_prediction
from bbdm.sampling.options import USUAL as USUAL_OPTIONS
from bbdm.sampling.options import Options
from bbdm.solvers import AnySolver, StepTable

Array = npt.NDArray[np.float32]
USUAL = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of which those are taken that there are
Provider = str | tuple[str, dict[str, Any]]


class OnnxBridgeSampler(Sampler[Array]):
    """Translates images with an exported network, called as :class:`bbdm.BridgeSampler` is.

    A seed gives the image that :class:`bbdm.BridgeSampler` returns for it. Results are float32.

    Args:
        folder: an export of ``bbdm export``.
        providers: execution providers of ONNX Runtime, the preferred first, with or without options; None for
            CUDA where this ONNX Runtime has it, and else the CPU.
        threads: of the CPU provider; None for one a core.

    Threads may share a sampler. Attributes: ``settings``, the content of ``bridge.json``; ``bridge``;
    ``image_size``, the side or (height, width) of its training pictures, or None; ``pictures``, their values.
    Solver and steps are those exported, and may change at each call.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file was changed, is of a newer version or of another export; an unknown provider, or
            one that does not start.
    """

    array, noun, _like = np.ndarray, "an array", np.zeros((), np.float32)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        folder = Path(folder)
        self._network_name = repr(str(folder))
        self.settings = settings = read_settings(folder)
        self.bridge = bridges.from_config(settings["bridge"])
        usual = [name for name in USUAL if name in onnxruntime.get_available_providers()]
        self.providers: list[Any] = [*(providers or usual)]
        axes, size = settings.get("axes", 2), settings.get("image_size")
        self.image_size = None if size is None else images.as_size(size, axes)
        self.pictures = Spec.from_config(settings)
        self.graphs = {
            name.removesuffix(".onnx"): self._session(folder / name, threads)
            for name in settings["files"]
            if name.endswith(".onnx") and name != PIPELINE
        }
        self._one, self._zero = (np.full((1,) * (2 + axes), value, np.float32) for value in (1, 0))
        shapes = Shapes(
            source_channels=settings.get("source_channels", settings["image_channels"]),
            image_channels=settings["image_channels"],
            channels=settings["channels"],
            endpoint=settings.get("endpoint"),
            conditions=conditions_of(settings),
            shown=settings["conditioned"],
            stride=along(settings["stride"], axes),
            cell=settings["latent_stride"],
        )
        exported: AnySolver = settings["solver"]
        if exported not in solvers.SOLVERS:  # a name that its module has not registered here
            exported = StepTable.from_description(settings)
        super().__init__(shapes, solvers.Defaults(exported, calls=settings.get("calls")))

    def _session(self, path: Path, threads: int | None) -> onnxruntime.InferenceSession:
        """A graph, ready to run; ValueError where it does not load, or the first provider does not start."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = onnxruntime.InferenceSession(path, options, providers=self.providers)
        except Exception as error:  # of many kinds, without a common base
            raise ValueError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error
        first = self.providers[0]
        if (first if isinstance(first, str) else first[0]) not in session.get_providers():
            known = f"{onnxruntime.get_available_providers()}, or lacks its libraries or device"
            raise ValueError(f"provider {first!r} did not start: it is none of {known}")
        return session

    # The backend of the loop, see :class:`bbdm.sampling.loop.Loop`.

    def _plan(self, o: Options = USUAL_OPTIONS) -> Plan:
        """The plan of a call, in which the exported solver's name needs no module that registers it."""
        if isinstance(self._choice.solver, StepTable) and isinstance(o.solver, str) and o.solver == self.solver:
            o = replace(o, solver=None)
        return super()._plan(o)

    def _table(self, choice: solvers.Defaults) -> tuple[str, StepTable]:
        """The exported table, or another of the exported bridge where an argument asks for one."""
        if choice is not self._choice:
            return solvers.name_of(choice.chosen), choice.table(self.bridge)
        exported: str = self.settings["solver"]
        table = StepTable.from_description(self.settings)
        if self.bridge != bridges.from_config(self.settings["bridge"]):  # that of the other direction
            table = solvers.build(self.bridge, exported, table.timesteps)
        return exported, table

    def _load(self, table: StepTable) -> tuple[Any, ...]:
        """The rows, the one that makes the first state, and the times as the network takes them."""
        rows, opening = (each.astype(np.float32) for each in (table.rows, table.opening))
        return rows, opening[-1], table.network_times.astype(np.float32)[:, None]

    def _run(self, graph: str, **inputs: Any) -> Any:
        return self.graphs[graph].run(None, inputs)

    def _encode(self, source: Array) -> Array:
        return self._run("encoder", image=source)[0] if "encoder" in self.graphs else source

    def _decode(self, state: Array) -> Array:
        return self._run("decoder", latent=state)[0] if "decoder" in self.graphs else state

    def _net(self, plan: Plan, conditions: Mapping[str, Any], x: Array, index: int) -> Array:
        others = {"condition" if name == SOURCE else name: value for name, value in conditions.items()}
        prediction = self._run("unet", x=x, t=plan.loaded[2][index], **others)[0]
        check_prediction(prediction, x)
        return prediction

    def _step(self, plan: Plan, inputs: Inputs, state: State | None, prediction: Any, index: int) -> State:
        rows, opening, _ = plan.loaded
        y = inputs.y
        if state is None:
            state = State(y, y, y)
            prediction = y
            row = opening
            index = len(plan.times) - 1  # noise of the start has the number of the last row
        else:
            row = rows[index]
        z = self._zero
        if Row(*row).c_z != 0:
            z = normal(inputs.seeds, index, y.shape[1:]) if inputs.noise is None else inputs.noise[index]
        mask = self._one if inputs.mask is None else inputs.mask
        x, x0hat = state.x, state.x0hat
        return State(*self._run("step", x=x, x0hat=x0hat, prediction=prediction, y=y, z=z, row=row, mask=mask))
