"""OnnxBridgeSampler: translates images on ONNX Runtime, with numpy and pillow and without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from bbdm import bridges, solvers
from bbdm.data.spec import Spec
from bbdm.files.bridge_json import PIPELINE, conditions_of, find_export, read_settings
from bbdm.kernels.philox_numpy import normal
from bbdm.networks.arrays import along
from bbdm.networks.conditions import SOURCE
from bbdm.pictures import images
from bbdm.runtime.session import Provider, Session, with_options
from bbdm.sampling.base import Sampler
from bbdm.sampling.batch import Inputs, Shapes
from bbdm.sampling.loop import Plan, State
from bbdm.sampling.options import Timesteps
from bbdm.sampling.step import Step as Step
from bbdm.solvers import AnySolver, StepTable

Array = npt.NDArray[np.float32]
NOISE = 4  # the column of a table's coefficients that is the weight of noise


@dataclass(frozen=True)
class Rows:
    """A step table on the device."""

    rows: list[OrtValue]
    opening: OrtValue  # the row that makes the first state
    times: list[OrtValue]  # as the network takes them


class OnnxBridgeSampler(Sampler[Array]):
    """Translates images with an exported network, called as :class:`bbdm.BridgeSampler` is.

    A seed gives the image that :class:`bbdm.BridgeSampler` returns for it. Results are float32.

    Args:
        folder: an export of ``bbdm export``.
        providers: execution providers of ONNX Runtime, the preferred first, with or without options; None for
            CUDA where this ONNX Runtime has it, and else the CPU.
        threads: of the CPU provider; None for one a core.
        solver: another solver than the one exported; see :func:`bbdm.solvers.build`.
        steps: another number of steps, each of which is one network call.
        timesteps: other times, in place of ``steps``.

    On CUDA the state stays on the device between steps. Threads may share a sampler. Attributes:
    ``settings``, the content of ``bridge.json``; ``bridge``; ``image_size``, the side or (height, width) of
    its training pictures, or None; ``pictures``, their values. Solver and steps may change at each call.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file was changed, is of a newer version or of another export; an unknown provider, or
            one that does not start.
    """

    array, noun = np.ndarray, "an array"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        *,
        solver: AnySolver | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
    ) -> None:
        folder = Path(folder)
        self.settings = settings = read_settings(folder)
        self.bridge = bridges.from_config(settings["bridge"])
        self.providers = with_options(providers)
        axes, size = settings.get("axes", 2), settings.get("image_size")
        self.image_size = None if size is None else images.as_size(size, axes)
        self.pictures = Spec.from_config(settings)
        self.graphs = {
            name.removesuffix(".onnx"): Session(folder / name, self.providers, threads)
            for name in settings["files"]
            if name.endswith(".onnx") and name != PIPELINE
        }
        self._one, self._zero = (self._put(np.full((1,) * (2 + axes), value, np.float32)) for value in (1, 0))
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
        super().__init__(shapes, settings.get("calls"), solver, steps, timesteps)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> OnnxBridgeSampler:
        """A sampler of the ``onnx/`` of a repository on the Hugging Face Hub, or of a folder.

        The first arguments are those of :meth:`bbdm.BridgeSampler.from_pretrained`, ``settings`` those of the
        constructor.
        """
        return cls(find_export(name_or_folder, revision, token, cache_dir), **settings)

    def __repr__(self) -> str:
        parts = [
            repr(self.bridge),
            f"solver={self.solver!r}",
            f"steps={len(self.table)}",
            f"dtype={self.settings['dtype']!r}",
            f"providers={[name for name, _ in self.providers]}",
        ]
        return f"OnnxBridgeSampler({', '.join(parts)})"

    # What the loop needs of a backend; see :class:`bbdm.sampling.base.Sampler`. States and predictions are on
    # the device; all else is in arrays, which conditions and windows are cut from.

    def _table(self, solver: AnySolver | None, steps: int | None, timesteps: Timesteps) -> tuple[str, StepTable]:
        """The exported table, or another of the exported bridge where an argument asks for one."""
        exported: str = self.settings["solver"]
        if steps is timesteps is None and (solver is None or solver == exported):
            table = StepTable.from_description(self.settings)
            own = self.bridge == bridges.from_config(self.settings["bridge"])  # and not that of the other direction
            return exported, table if own else solvers.build(self.bridge, exported, table.timesteps)
        chosen = solver or exported
        return solvers.name_of(chosen), solvers.build(self.bridge, chosen, timesteps, steps)

    def _load(self, table: StepTable) -> Rows:
        rows = [self._put(row) for row in table.rows.astype(np.float32)]
        times = [self._put(np.array([time], np.float32)) for time in table.network_times]
        return Rows(rows, self._put(table.opening[-1].astype(np.float32)), times)

    def _array(self, array: Any) -> npt.NDArray[Any]:
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

    def _seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        return seeds

    def _encode(self, source: Array) -> Array:
        return (
            self.graphs["encoder"].run({"image": self._put(source)})[0].numpy() if "encoder" in self.graphs else source
        )

    def _decode(self, state: Any) -> Array:
        if "decoder" in self.graphs:
            (state,) = self.graphs["decoder"].run({"latent": self._put(state)})
        return self._get(state)

    def _prepared(self, conditions: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
        return {"condition" if name == SOURCE else name: value for name, value in conditions.items()}

    def _put(self, array: Any) -> OrtValue:
        return array if isinstance(array, OrtValue) else self.graphs["unet"].put(array)

    def _get(self, value: Any) -> Array:
        return value.numpy().copy() if isinstance(value, OrtValue) else value  # of memory that goes with the value

    def _network(self, plan: Plan, x: OrtValue, index: int, conditions: Mapping[str, Any]) -> OrtValue:
        return self.graphs["unet"].run({"x": x, "t": plan.loaded.times[index], **conditions})[0]

    def _start(self, plan: Plan, inputs: Inputs) -> State:
        inputs.y, inputs.mask = self._put(inputs.y), self._one if inputs.mask is None else self._put(inputs.mask)
        state = State(inputs.y, inputs.y, inputs.y)
        self._step(plan, inputs, state, inputs.y, -1)
        return state

    def _step(self, plan: Plan, inputs: Inputs, state: State, prediction: Any, index: int) -> None:
        opening = index < 0
        weight = plan.table.start[1] if opening else plan.table.coefficients[index, NOISE]
        row, index = (plan.loaded.opening, len(plan.times) - 1) if opening else (plan.loaded.rows[index], index)
        feeds = {"x": state.x, "x0hat": state.x0hat, "prediction": self._put(prediction), "y": inputs.y}
        feeds |= {"z": self._noise(inputs, index) if weight else self._zero, "mask": inputs.mask, "row": row}
        state.x, state.x0hat, state.inputs = self.graphs["step"].run(feeds)

    def _noise(self, inputs: Inputs, index: int) -> OrtValue:
        """The noise of a row."""
        if inputs.noise is not None:
            return self._put(inputs.noise[index])
        return self._put(normal(inputs.seeds, index, tuple(inputs.y.shape())[1:]))
