"""A translation as one ONNX graph: a module of the table's rows, whose networks are graphs themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import helper, inliner
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

from bbdm.networks.arrays import NAMES, in_channels
from bbdm.onnx.graphs import CELLS, OPSET, Input, condition_inputs, export_graph, sizes, step, subgraphs
from bbdm.sampling.loop import Shapes
from bbdm.solvers import StepTable

DOMAIN = "bbdm"  # of nodes that stand for a graph


@torch.compiler.allow_in_graph
def _node(name: str, inputs: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The result of a graph, float32 of a shape: a node that :func:`pipeline_graph` replaces by the graph."""
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, dtype=torch.float32, shape=shape, version=1)


class Pipeline(nn.Module):
    """A translation: the inputs of :func:`pipeline_inputs`, in the order of ``names``, to the image."""

    def __init__(self, table: StepTable, shapes: Shapes, latent: bool, names: list[str]) -> None:
        super().__init__()
        self.shapes, self.latent, self.names = shapes, latent, names
        self.start, self.shown = table.start, table.inputs[0].tolist()
        slots = np.zeros(len(table), np.int64)
        slots[table.noisy] = np.arange(len(table.noisy))
        self.slots = nn.Buffer(torch.from_numpy(slots))
        self.rows = nn.Buffer(torch.from_numpy(table.rows).float())
        self.times = nn.Buffer(torch.tensor(table.network_times, dtype=torch.float32))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The image, clamped to [-1, 1]."""
        known = dict(zip(self.names, inputs, strict=True))
        source, shapes = known.pop("source"), self.shapes
        ones, (batch, _, *sides) = (1,) * source.ndim, source.shape
        noise = known.pop("noise") if "noise" in known else source.new_zeros((1, *ones))
        y = in_channels(source, shapes.channels, shapes.endpoint)
        if self.latent:
            y = _node("encoder", [source], [batch, shapes.channels, *(side // shapes.cell for side in sides)])
        y = y if y is source else y.clone()  # while_loop takes no view of another input
        conditions = [*([y if self.latent else source] if shapes.shown else []), *known.values()]
        (of_y, of_z), (i_x, i_y) = self.start, self.shown
        x = of_y * y + of_z * noise[-1] if of_z else of_y * y

        def goes_on(index: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return index < len(self.rows)

        def advance(
            index: torch.Tensor, x: torch.Tensor, x0hat: torch.Tensor, inputs: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            at = index.reshape(1)
            prediction = _node("unet", [inputs, self.times.index_select(0, at), *conditions], inputs.shape)
            z = noise.index_select(0, self.slots.index_select(0, at)).squeeze(0)
            row = self.rows.index_select(0, at).squeeze(0)
            return index + 1, *step(x, x0hat, prediction, y, z, row, source.new_ones(ones))

        first = torch.zeros((), dtype=torch.int64), x, y.clone(), i_x * x + i_y * y
        _, x, _, _ = while_loop(goes_on, advance, first)
        if self.latent:
            x = _node("decoder", [x], [batch, shapes.image_channels, *sides])
        return x.clamp(-1, 1)


def pipeline_inputs(shapes: Shapes, slots: int) -> dict[str, Input]:
    """The inputs of a translation: ``source``, the network's further conditions, and ``noise``.

    ``slots`` is the number of steps that have noise; without any there is no such input.
    """
    sides = NAMES[len(shapes.stride)]
    inputs = {"source": Input(("batch", shapes.source_channels, *sides))}
    inputs |= condition_inputs(shapes.conditions.each, len(sides))
    if slots:
        cells = sides if shapes.cell == 1 else [f"latent_{side}" for side in sides]
        inputs["noise"] = Input((slots, "batch", shapes.channels, *cells))
    return inputs


def pipeline_graph(parts: Mapping[str, onnx.ModelProto], table: StepTable, shapes: Shapes) -> onnx.ModelProto:
    """A translation in one graph: ``source`` (B, C, H, W) in [-1, 1] and ``noise`` to ``image``.

    Further conditions of the network are inputs by their names. A source whose channels are others than the
    target's becomes y by the ``endpoint`` of ``shapes``: :func:`bbdm.networks.arrays.in_channels`.

    The steps are a Loop around one copy of the network. ``noise``, (S, B, C', H', W'), is standard normal, in
    the space of the bridge: one slot for each row of the table that needs it, in the table's order, and the
    last for a start from noise. Where none is needed the graph has no such input.

    Args:
        parts: the graph ``unet`` and, with a codec, ``encoder`` and ``decoder``.
        table: the steps of the loop, one row each.
        shapes: what the network takes.
    """
    axes, inputs = len(shapes.stride), pipeline_inputs(shapes, len(table.noisy))
    known = sizes(2, [cells * shapes.cell for cells in CELLS[:axes]], shapes.cell)
    module = Pipeline(table, shapes, "encoder" in parts, list(inputs))
    model = export_graph(module, inputs, {"image": ("batch", shapes.image_channels, *NAMES[axes])}, known)
    for name, part in parts.items():
        weights = {tensor.name: f"{name}/{tensor.name}" for tensor in part.graph.initializer}
        names = [value.name for value in part.graph.input], [value.name for value in part.graph.output]
        body = part.graph.node, part.opset_import
        model.functions.append(helper.make_function(DOMAIN, name, [*names[0], *weights], names[1], *body))
        for node in (node for graph in subgraphs(model.graph) for node in graph.node):
            if (node.domain, node.op_type) == (DOMAIN, name):
                node.input.extend(weights.values())
    model = inliner.inline_local_functions(model)
    for name, part in parts.items():  # outside the loop, so that there is one copy
        for tensor in part.graph.initializer:
            model.graph.initializer.add().CopyFrom(tensor)
            model.graph.initializer[-1].name = f"{name}/{tensor.name}"
    del model.opset_import[:]
    model.opset_import.add(version=OPSET)
    return model
