"""OnnxBridgeSampler: translates images on ONNX Runtime, with numpy and pillow and without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bbdm import bridges, solvers
from bbdm.data.spec import Spec
from bbdm.defaults import Defaults
from bbdm.files.bridge_json import conditions_of, read_settings
from bbdm.networks.arrays import along
from bbdm.pictures import images
from bbdm.runtime.backend import OnnxBackend, Provider
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Plan, Shapes
from bbdm.sampling.options import Options
from bbdm.solvers import AnySolver, StepTable

Array = npt.NDArray[np.float32]


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

    backend: OnnxBackend

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        folder = Path(folder)
        settings = read_settings(folder)
        axes = settings.get("axes", 2)
        size = settings.get("image_size")
        self.settings = settings
        self._exported: str = settings["solver"]
        if size is not None:
            self.image_size = images.as_size(size, axes)
        self.pictures = Spec.from_config(settings)
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
        solver: AnySolver = self._exported
        if solver not in solvers.SOLVERS:  # a name that its module has not registered here
            solver = StepTable.from_description(settings)
        choice = Defaults(solver, calls=settings.get("calls"))
        backend = OnnxBackend(folder, settings["files"], axes, providers, threads)
        bridge = bridges.from_config(settings["bridge"])
        super().__init__(backend, bridge, shapes, choice, repr(str(folder)))

    def plan(self, options: Options | None = None) -> Plan:
        """The plan of a call, in which the exported solver's name needs no module that registers it."""
        if (
            options is not None
            and options.solver == self._exported
            and isinstance(self._choice.solver, StepTable)
        ):
            options = replace(options, solver=None)
        return super().plan(options)

    def _table(self, choice: Defaults) -> tuple[str, StepTable]:
        """The exported table, or another of the exported bridge where an argument asks for one."""
        if choice != self._choice:
            return super()._table(choice)
        table = StepTable.from_description(self.settings)
        if self.bridge != bridges.from_config(self.settings["bridge"]):
            # of the other direction: what the network is shown and means differs, and the steps do not
            table = solvers.table(self.bridge, table.timesteps, table.coefficients)
        return self._exported, table
