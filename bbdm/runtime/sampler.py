"""OnnxBridgeSampler: translates images on ONNX Runtime, with numpy and pillow and without PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from bbdm import bridges, solvers
from bbdm.data.spec import Spec
from bbdm.files.bridge_json import PIPELINE, conditions_of, find_export, read_settings
from bbdm.kernels.philox_numpy import normal
from bbdm.networks.checks import along
from bbdm.networks.windows import Spans, Windowing, blend, concatenated
from bbdm.pictures import images
from bbdm.runtime.guided import Guided
from bbdm.runtime.session import Provider, Session, with_options
from bbdm.sampling import sources
from bbdm.sampling.base import BaseSampler
from bbdm.sampling.batch import Batch
from bbdm.sampling.call import Timesteps
from bbdm.sampling.engine import Advance, Given
from bbdm.sampling.plans import SolverPlan
from bbdm.sampling.shapes import Shapes
from bbdm.sampling.step import Step as Step

MASKED = 2  # the version of exports since which steps take a mask
Array = npt.NDArray[np.float32]
Told = dict[str, onnxruntime.OrtValue]  # what the network is told, by the names of its inputs
Predict = Callable[[onnxruntime.OrtValue, Told], onnxruntime.OrtValue]  # of what the network is shown and told
State = tuple[onnxruntime.OrtValue, onnxruntime.OrtValue]  # the state and the estimate of the target, on the device


@dataclass(frozen=True)
class OnnxSolverPlan(SolverPlan):
    """A solver with its table, its rows and times on the device."""

    rows: list[onnxruntime.OrtValue]
    opening: onnxruntime.OrtValue  # the row that makes the first state
    inputs: list[onnxruntime.OrtValue]  # the times as the network takes them


class OnnxBridgeSampler(BaseSampler[Array, OnnxSolverPlan]):
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

    On CUDA the state stays on the device between steps. Threads may share a sampler. Attributes, which are
    fixed: ``settings``, the content of ``bridge.json``; ``image_size``, the side or (height, width) of its
    training pictures, or None. Solver and steps may change at each call.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file was changed, is of a newer version or of another export; an unknown provider, or
            one that does not start.
    """

    backend = sources.NUMPY

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
    ) -> None:
        folder = Path(folder)
        self.settings = read_settings(folder)
        self.providers = with_options(providers)
        known = self.settings.get("image_size")
        axes = self.settings.get("axes", 2)
        self.image_size = None if known is None else images.as_size(known, axes)
        self.pictures = Spec.from_config(self.settings)
        self.graphs = {
            name.removesuffix(".onnx"): Session(folder / name, self.providers, threads)
            for name in self.settings["files"]
            if name.endswith(".onnx") and name != PIPELINE
        }
        self._put = self.graphs["unet"].put
        self._no_noise = self._put(np.zeros((1,) * (2 + axes), np.float32))
        self._whole = self._put(np.ones((1,) * (2 + axes), np.float32))
        super().__init__(
            solver,
            steps,
            timesteps,
            shapes=Shapes(
                source_channels=self.settings.get("source_channels", self.settings["image_channels"]),
                image_channels=self.settings["image_channels"],
                channels=self.settings["channels"],
                endpoint=self.settings.get("endpoint"),
                further=conditions_of(self.settings),
                stride=along(self.settings["stride"], axes),
                latent_stride=self.settings["latent_stride"],
                batch=None,
                size=None,
                fill=False,
            ),
        )

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
            repr(bridges.from_config(self.settings["bridge"])),
            f"solver={self.solver!r}",
            f"steps={len(self.table)}",
            f"dtype={self.settings['dtype']!r}",
            f"providers={[name for name, _ in self.providers]}",
        ]
        return f"OnnxBridgeSampler({', '.join(parts)})"

    def _make_plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> OnnxSolverPlan:
        """The exported table, or another of the exported bridge where an argument asks for one."""
        exported: str = self.settings["solver"]
        if steps is timesteps is None and solver in (None, exported):
            table = solvers.StepTable.from_description(self.settings)
        else:
            bridge = bridges.from_config(self.settings["bridge"])
            table = solvers.build(bridge, solver or exported, timesteps, steps)
        solvers.check_calls(self.settings.get("calls"), solver or exported, table)
        columns, times = (8, np.int64) if self.settings["version"] == 1 else (10, np.float32)
        rows = [self._put(row[:columns]) for row in table.rows.astype(np.float32)]
        inputs = [self._put(np.array([t], times)) for t in np.asarray(table.network_times)]
        opening = self._put(table.opening[-1, :columns].astype(np.float32))
        return OnnxSolverPlan(solver or exported, table, rows, opening, inputs)

    @contextmanager
    def _progress(self, total: int) -> Iterator[Advance]:
        done = 0

        def advance(calls: int) -> None:
            nonlocal done
            done += calls
            print(f"\rnetwork call {done} of {total}", end="", file=sys.stderr, flush=True)

        try:
            yield advance
        finally:
            print(file=sys.stderr)

    def _states(self, plan: OnnxSolverPlan, batch: Batch, advance: Advance) -> Iterator[State]:
        """State and estimate after each step, on the device."""
        y, told = self._given(batch)
        guided = None if batch.guidance is None else Guided(batch.guidance, plan.table, batch.seeds)
        parts = [self._beside(told)] if guided is not None else told  # evaluations of a step are one batch
        version = self.settings["version"]
        if batch.mask is not None and version < MASKED:
            raise ValueError("this export was made before masks: export the checkpoint again")
        masked = (
            {} if version < MASKED else {"mask": self._whole if batch.mask is None else self._put(self._mask(batch))}
        )
        last = len(plan.rows) - 1
        z = self._noise(batch, last, y) if plan.table.start[1] else self._no_noise
        x, x0hat, inputs = self._advance(plan.opening, {"x": y, "x0hat": y, "prediction": y, "y": y, "z": z} | masked)
        for index, (row, time) in enumerate(zip(plan.rows, plan.inputs, strict=True)):
            predict = partial(self._predict, time, batch.windows, advance)
            if guided is None or not guided.guides[index]:
                prediction = predict(inputs, told[0])
            else:
                prediction = self._put(guided(partial(self._evaluated, predict, parts), inputs.numpy(), index))
            if batch.windows is None:
                advance(1)
            z = self._noise(batch, index, y) if plan.table.coefficients[index, 4] else self._no_noise
            state = {"x": x, "x0hat": x0hat, "prediction": prediction, "y": y, "z": z}
            x, x0hat, inputs = self._advance(row, state | masked)
            yield x, x0hat

    def _beside(self, told: list[Told]) -> Told:
        """What the network is told in several evaluations, as one batch."""
        return {name: self._put(np.concatenate([each[name].numpy() for each in told])) for name in told[0]}

    def _evaluated(self, predict: Predict, told: list[Told], shown: list[Array]) -> list[Array]:
        """The predictions of several evaluations, which are one batch where ``told`` is."""
        inputs = shown if len(told) == len(shown) else [np.concatenate(shown)]
        values = [predict(self._put(x), each) for x, each in zip(inputs, told, strict=True)]
        made = [value.numpy().copy() for value in values]  # of a value's own memory, which goes with it
        return made if len(made) == len(shown) else np.split(made[0], len(shown))

    def _predict(
        self,
        time: onnxruntime.OrtValue,
        windows: Windowing | None,
        advance: Advance,
        inputs: onnxruntime.OrtValue,
        conditions: Told,
    ) -> onnxruntime.OrtValue:
        """The network's prediction, by windows, if any, each call of which it reports."""
        network = self.graphs["unet"]
        if windows is None:
            return network.run({"x": inputs, "t": time, **conditions})[0]
        whole = [value.numpy() for value in (inputs, *conditions.values())]
        sides = windows.sides(whole[0].shape[2:])

        def predictions(spans: list[Spans]) -> Array:
            made: list[Array] = []
            for count, (x, *seen) in windows.batches(whole, spans):
                others = {name: self._put(value) for name, value in zip(conditions, seen, strict=True)}
                (prediction,) = network.run({"x": self._put(x), "t": time, **others})
                made.append(prediction.numpy()[:count])
                advance(1)
            return concatenated(made)

        weights = [each.astype(whole[0].dtype) for each in windows.weights(sides)]
        return self._put(blend(predictions, sides, weights, windows.together(len(whole[0]))))

    def _advance(self, row: onnxruntime.OrtValue, given: dict[str, onnxruntime.OrtValue]) -> list[onnxruntime.OrtValue]:
        """The next state, its estimate, and what the network is shown: in exports of version 1, the state."""
        x, x0hat, *shown = self.graphs["step"].run({**given, "row": row})
        return [x, x0hat, *(shown or [x])]

    def _noise(self, batch: Batch, index: int, y: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
        """The batch's noise of a row."""
        noise = normal(batch.seeds, index, tuple(y.shape())[1:]) if batch.noise is None else batch.noise[index]
        return self._put(noise.astype(np.float32))

    def _mask(self, batch: Batch) -> Array:
        """The batch's mask on the grid that the network sees: of a latent, whatever it covers is made."""
        mask, cell = np.pad(batch.mask, self._padding(batch.mask)), self._shapes.latent_stride
        cells = (n for side in mask.shape[2:] for n in (side // cell, cell))
        within = tuple(3 + 2 * axis for axis in range(self.axes))
        return mask.reshape(len(mask), 1, *cells).max(within).astype(np.float32)

    def _padding(self, image: Array) -> list[tuple[int, int]]:
        """What pads images, as np.pad takes it."""
        return [(0, 0), (0, 0), *((0, lacking) for lacking in self._shapes.lacking(image.shape[2:]))]

    def _copied(self, state: onnxruntime.OrtValue) -> Array:
        return state.numpy()

    def _decoded(self, state: onnxruntime.OrtValue | Array) -> Array:
        if "decoder" in self.graphs:
            value = self._put(state) if isinstance(state, np.ndarray) else state
            (state,) = self.graphs["decoder"].run({"latent": value})
        return state if isinstance(state, np.ndarray) else state.numpy()

    def _given(self, batch: Batch) -> Given:
        """See :meth:`BaseSampler._given`."""
        if batch.encoded is not None:
            return batch.encoded
        image = self._picture(batch.source)
        source = self._put(image)
        if "encoder" in self.graphs:
            source = y = self.graphs["encoder"].run({"image": source})[0]
        else:
            ended = self._ended(image)
            y = source if ended is image else self._put(ended)
        seen = {"condition": source} if self.settings["conditioned"] else {}
        kinds, sizes = self._shapes.further.kinds, self._shapes.further.sizes
        arrays = {k: self._picture(v) if kinds[k] == "image" else v for k, v in batch.conditions.items()}
        arrays = {k: v if kinds[k] == "class" else v.astype(np.float32) for k, v in arrays.items()}
        told = seen | {name: self._put(value) for name, value in arrays.items()}

        def without(names: tuple[str, ...]) -> Told:
            none = {k: np.full_like(arrays[k], sizes[k] if kinds[k] == "class" else 0) for k in names}
            return told | {name: self._put(value) for name, value in none.items()}

        return y, [told] if batch.guidance is None else batch.guidance.told(told, without)

    def _repeated(self, given: Given, places: list[int]) -> Given:
        y = self._put(given[0].numpy()[places])
        told: list[dict[str, Any]] = []
        for each in given[1]:
            told.append({k: y if v is given[0] else self._put(v.numpy()[places]) for k, v in each.items()})
        return y, told

    def _picture(self, source: Array) -> Array:
        """Pictures in float32, padded below and to the right."""
        return np.pad(source.astype(np.float32), self._padding(source), mode="edge")
