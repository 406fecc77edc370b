"""The step of a sampling loop as a graph, and a whole translation as one graph.

Both take the table's rows as numbers, so neither depends on the bridge or the solver.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from bbdm.onnx.graphs import CONDITION, GRIDS, name_dims
from bbdm.onnx.opsets import IR_VERSIONS
from bbdm.sampling.batch import Shapes
from bbdm.solvers import StepTable

STEP = """
  p_x, p_y, p_prediction, c_x, c_y, c_x0hat, c_before, c_z, i_x, i_y = Split <axis = 0, num_outputs = 10> (row)
  part_x = Mul (p_x, x)
  part_y = Mul (p_y, y)
  part_prediction = Mul (p_prediction, prediction)
  estimate = Sum (part_x, part_y, part_prediction)
  made = Mul (mask, estimate)
  all = Constant <value_float = 1.0> ()
  rest = Sub (all, mask)
  kept = Mul (rest, y)
  x0hat_next = Add (made, kept)
  term_x = Mul (c_x, x)
  term_y = Mul (c_y, y)
  term_x0hat = Mul (c_x0hat, x0hat_next)
  term_before = Mul (c_before, x0hat)
  term_z = Mul (c_z, z)
  x_next = Sum (term_x, term_y, term_x0hat, term_before, term_z)
  shown_x = Mul (i_x, x_next)
  shown_y = Mul (i_y, y)
  inputs_next = Sum (shown_x, shown_y)
"""
KEEP = """
keep (float[n] clipped, float[n] mask, float[n] stays, float high) => (float[n] image) {
  made_part = Mul (mask, clipped)
  kept_share = Sub (high, mask)
  kept_part = Mul (kept_share, stays)
  image = Add (made_part, kept_part)
}"""
Proto = TypeVar("Proto", onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto)


def _image(axes: int) -> str:
    """The type of images of some axes."""
    return f"float[{', '.join(GRIDS[axes])}]"


def step_graph(opset: int, axes: int = 2) -> onnx.ModelProto:
    """One step, to ``x_next``, ``x0hat_next`` and what the network is shown next, ``inputs_next``.

    Its inputs are ``x``, the previous step's ``x0hat``, ``prediction``, ``y`` and noise ``z``, all
    (B, C, H, W), the table's ``row``, (10,), and ``mask``, (B, 1, H, W) or, for a whole picture, a 1 of shape
    (1, 1, 1, 1). For a row without noise z may be (1, 1, 1, 1). Of volumes, of 3 ``axes``, they have 5 sides.
    """
    image, sides = _image(axes), GRIDS[axes][2:]
    z = f"float[z_batch, z_channels, {', '.join(f'z_{side}' for side in sides)}] z"
    mask = f"float[mask_batch, one, {', '.join(f'mask_{side}' for side in sides)}] mask"
    inputs = ", ".join(f"{image} {name}" for name in ("x", "x0hat", "prediction", "y"))
    outputs = ", ".join(f"{image} {name}_next" for name in ("x", "x0hat", "inputs"))
    return parser.parse_model(
        f'<ir_version: {IR_VERSIONS[opset]}, opset_import: ["": {opset}]>\n'
        f"step ({inputs}, {z}, float[10] row, {mask}) => ({outputs}) {{{STEP}}}"
    )


def pipeline_graph(
    unet: onnx.ModelProto,
    encoder: onnx.ModelProto | None,
    decoder: onnx.ModelProto | None,
    table: StepTable,
    shapes: Shapes,
    masked: bool = False,
) -> onnx.ModelProto:
    """A translation in one graph: ``source`` (B, C, H, W) in [-1, 1] and ``noise`` to ``image``.

    Further conditions of the network are inputs by their names. A source whose channels are others than the
    target's becomes y by the ``endpoint`` of ``shapes``: :func:`bbdm.networks.endpoint.in_channels`.

    The steps are a Loop around one copy of the network. ``noise``, (S, B, C', H', W'), is standard normal, in
    the space of the bridge: one slot for each row of the table that needs it, in the table's order, and the
    last for a start from noise. Where none is needed the graph has no such input. With ``masked`` there is an
    input ``mask``, (B, 1, H, W) in [0, 1]: 0 where the source stays, in the target's channels.
    """
    dims = unet.graph.input[0].type.tensor_type.shape.dim
    axes = len(dims) - 2
    names = GRIDS[axes]
    noisy = table.noisy
    slots = np.zeros(len(table), np.int64)
    slots[noisy] = np.arange(len(noisy))
    first = dict(zip(("start_y", "start_z", "show_x", "show_y"), (*table.start, *table.inputs[0]), strict=True))
    graph = onnx.GraphProto(name="pipeline")
    for name, values in (
        ("times", np.asarray(table.network_times, np.float32)),
        ("rows", table.rows.astype(np.float32)),
        ("slots", slots),
        ("steps", np.array(len(table))),
        ("low", np.array(-1.0, np.float32)),
        ("high", np.array(1.0, np.float32)),
        *((name, np.array(value, np.float32)) for name, value in first.items()),
    ):
        graph.initializer.append(numpy_helper.from_array(values, name))
    graph.initializer.extend(_weights(unet.graph, "unet/"))  # outside the loop, so that there is one copy
    if encoder is not None:
        _include(graph, encoder.graph, {"image": "source", "latent": "y"}, "encoder/")
        graph.initializer.extend(_weights(encoder.graph, "encoder/"))
    else:
        channels = dims[1].dim_value
        graph.node.extend(_ended(shapes.source_channels, channels, shapes.endpoint, _image(axes)))
    seen = {CONDITION: "source" if encoder is None else "y"}
    body = _loop_body(unet.graph, bool(noisy), seen, _image(axes))
    graph.node.extend(_first_state(bool(table.start[1]), _image(axes)))
    carried = ["x_last", "x0hat_last", "inputs_last"]
    graph.node.append(helper.make_node("Loop", ["steps", "", "x_first", "y", "inputs_first"], carried, body=body))
    if masked:
        side = [shapes.cell] * axes
        graph.node.insert(0, helper.make_node("MaxPool", ["mask"], ["grid_mask"], kernel_shape=side, strides=side))
        sizes = ["batch", 1, *names[2:]]
        graph.input.append(helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, sizes))
    else:
        graph.initializer.append(numpy_helper.from_array(np.ones((1,) * (2 + axes), np.float32), "grid_mask"))
    last = "x_last"
    if decoder is not None:
        _include(graph, decoder.graph, {"latent": last, "image": "decoded"}, "decoder/")
        graph.initializer.extend(_weights(decoder.graph, "decoder/"))
        last = "decoded"
    graph.node.append(helper.make_node("Clip", [last, "low", "high"], ["clipped" if masked else "image"]))
    if masked:  # also what a codec lost
        graph.node.append(helper.make_node("Identity", ["y" if encoder is None else "source"], ["stays"]))
        graph.node.extend(parser.parse_graph(KEEP).node)

    source = _like((encoder or unet).graph.input[0], "source", names)
    source.type.tensor_type.shape.dim[1].dim_value = shapes.source_channels
    graph.input.append(source)
    graph.input.extend(
        _like(value, value.name, names if len(value.type.tensor_type.shape.dim) > 3 else ())
        for value in unet.graph.input
        if value.name not in ("x", "t", CONDITION)
    )
    if noisy:
        grid = names if encoder is None else ("batch", "channels", "latent_height", "latent_width")
        shape = [dim.dim_value or name for name, dim in zip(grid, dims, strict=True)]
        graph.input.append(helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, [len(noisy), *shape]))
    graph.output.append(_like((decoder or unet).graph.output[0], "image", names))
    opset = helper.make_opsetid("", unet.opset_import[0].version)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSIONS[opset.version])


def _ended(count: int, channels: int, endpoint: Sequence[int] | None, image: str) -> Iterable[onnx.NodeProto]:
    """Nodes that make ``y``, of some channels, from ``source``, of ``count``."""
    if count == channels and endpoint is None:
        return [helper.make_node("Identity", ["source"], ["y"])]
    chosen = ", ".join(map(str, [0] * channels if endpoint is None else endpoint))
    mean = "all_channels = Identity (source)"
    if endpoint is None:
        mean = (
            "mean_axis = Constant <value_ints = [1]> ()\n all_channels = ReduceMean <keepdims = 1> (source, mean_axis)"
        )
    return parser.parse_graph(
        f"""
        ended ({image} source) => ({image} y) {{
          {mean}
          chosen_channels = Constant <value_ints = [{chosen}]> ()
          y = Gather <axis = 1> (all_channels, chosen_channels)
        }}"""
    ).node


def _loop_body(unet: onnx.GraphProto, noisy: bool, seen: dict[str, str], image: str) -> onnx.GraphProto:
    """One step of the Loop: the network, then :data:`STEP` with the row of the step's index.

    ``seen`` are names outside the loop of the network's conditions that have others there.
    """
    draw = "z = Gather (noise, slot)" if noisy else "z = Constant <value_floats = [0.0]> ()"
    body = parser.parse_graph(
        f"""
        step (int64 index, bool go, {image} x, {image} x0hat, {image} inputs)
          => (bool again, {image} x_next, {image} x0hat_next, {image} inputs_next) {{
          again = Identity (go)
          axis = Constant <value_ints = [0]> ()
          one = Unsqueeze (index, axis)
          t = Gather (times, one)
          row = Gather (rows, index)
          slot = Gather (slots, index)
          {draw}
          {STEP.replace("mask", "grid_mask")}
        }}"""
    )
    inner = {value.name: value.name for value in unet.input} | seen
    inner |= {"x": "inputs", "t": "t", "prediction": "prediction"}
    before = next(i for i, node in enumerate(body.node) if node.op_type == "Split")
    after = list(body.node[before:])
    del body.node[before:]
    _include(body, unet, inner, "unet/")
    body.node.extend(after)
    return body


def _first_state(noisy: bool, image: str) -> Iterable[onnx.NodeProto]:
    """Nodes that make ``x_first`` and what the network is shown of it; a start's noise has the last slot."""
    drawn = "first_z = Gather (noise, first_slot)" if noisy else "first_z = Identity (first_slot_value)"
    return parser.parse_graph(
        f"""
        first ({image} y) => ({image} x_first, {image} inputs_first) {{
          first_slot = Constant <value_int = -1> ()
          first_slot_value = Constant <value_float = 0.0> ()
          {drawn}
          first_part_y = Mul (start_y, y)
          first_part_z = Mul (start_z, first_z)
          x_first = Add (first_part_y, first_part_z)
          first_shown_x = Mul (show_x, x_first)
          first_shown_y = Mul (show_y, y)
          inputs_first = Add (first_shown_x, first_shown_y)
        }}"""
    ).node


def _include(graph: onnx.GraphProto, other: onnx.GraphProto, known: dict[str, str], prefix: str) -> None:
    """Append another graph's nodes: known values under their new names, the others with a prefix."""

    def rename(name: str) -> str:
        return known.get(name, prefix + name) if name else name

    for node in other.node:
        copy = _copy(node, prefix + node.name if node.name else "")
        copy.input[:] = map(rename, node.input)
        copy.output[:] = map(rename, node.output)
        graph.node.append(copy)
    graph.value_info.extend(_copy(value, prefix + value.name) for value in other.value_info)


def _weights(graph: onnx.GraphProto, prefix: str) -> Iterable[onnx.TensorProto]:
    return (_copy(tensor, prefix + tensor.name) for tensor in graph.initializer)


def _like(value: onnx.ValueInfoProto, name: str, dims: tuple[str, ...]) -> onnx.ValueInfoProto:
    """An input or output like another, with names for the dimensions that are not fixed."""
    copy = _copy(value, name)
    name_dims(copy, dims)
    return copy


def _copy(message: Proto, name: str) -> Proto:
    """A copy under another name."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.name = name
    return copy
