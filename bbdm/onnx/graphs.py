"""The step of a loop, and the networks of a checkpoint, as ONNX graphs by torch.onnx.export.

Inputs and outputs of a graph are float32, whatever the dtype of its weights. GroupNorm is one node
(GroupNormalization). Attention is one node (Attention) from opset 23 on, and MatMul, Softmax, MatMul before.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import opset21, optimizer
from torch import nn

from bbdm.codec import Codec
from bbdm.networks.base import SOURCE, Network
from bbdm.networks.checks import NAMES
from bbdm.networks.layers import frequencies, sinusoids
from bbdm.networks.unet import UNet
from bbdm.onnx.opsets import IR_VERSIONS, OPSETS

# It warns that torchvision is missing, which no export needs.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
FOLDED = 2**31  # numbers: constants of any size
GRIDS = {axes: ("batch", "channels", *names) for axes, names in NAMES.items()}
GRID = GRIDS[2]
LATENT, IMAGE = ("latent_height", "latent_width"), ("image_height", "image_width")
CONDITION = "condition"  # the name of the source as an input; others have their own


class NetworkGraph(nn.Module):
    """A network: what it is shown of the state, the time and its conditions to the prediction."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """What depends on the time alone."""
        return self.network.embed(t)

    def forward(self, x: torch.Tensor, t: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), (1,) and conditions in their order to (B, C, H, W), all float32 but classes."""
        dtype = next(self.network.parameters()).dtype
        given = dict(zip(self.network.conditions, conditions, strict=True))
        given = {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.items()}
        seen = self.network.prepared(given, x.shape[2:])
        return self.network.body(x.to(dtype), self.embed(t), seen).float()


class UNetGraph(NetworkGraph):
    """The UNet, with frequencies that are not folded."""

    def __init__(self, unet: UNet) -> None:
        super().__init__(unet)
        # Computed here: constants that the exporter folds differ in the last bit, which a time of 1000
        # multiplies.
        self.frequencies = nn.Buffer(frequencies(unet.config.model_channels))
        self.modulation = unet.embedder()

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """The modulation or, with classes, the time's embedding."""
        return self.modulation.of(sinusoids(t, self.frequencies))


class CodecGraph(nn.Module):
    """A function of a codec, whose weights are those of the graph."""

    def __init__(self, codec: Codec, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.module, self.function = codec.module, function

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The function of a batch."""
        return self.function(batch)


class StepGraph(nn.Module):
    """One step of the loop: :func:`step` with all of its arguments."""

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x, x0hat, prediction, y, z, row and mask to the three results."""
        return step(*arguments)


def step(
    x: torch.Tensor,
    x0hat: torch.Tensor,
    prediction: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    row: torch.Tensor,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`bbdm.kernels.bridge_step.bridge_step` in operators that ONNX has, with a row (10,) of the table.

    Returns the next x, this step's x0hat, and what the network is shown next.
    """
    p_x, p_y, p_prediction, c_x, c_y, c_x0hat, c_before, c_z, i_x, i_y = row.split(1)
    estimate = p_x * x + p_y * y + p_prediction * prediction
    estimate = mask * estimate + (1 - mask) * y
    x = c_x * x + c_y * y + c_x0hat * estimate + c_before * x0hat + c_z * z
    return x, estimate, i_x * x + i_y * y


def step_graph(opset: int, axes: int = 2) -> onnx.ModelProto:
    """One step, to ``x_next``, ``x0hat_next`` and what the network is shown next, ``inputs_next``.

    Its inputs are ``x``, the previous step's ``x0hat``, ``prediction``, ``y`` and noise ``z``, all
    (B, C, H, W), the table's ``row``, (10,), and ``mask``, (B, 1, H, W) or, for a whole picture, a 1 of shape
    (1, 1, 1, 1). For a row without noise z may be (1, 1, 1, 1). Of volumes, of 3 ``axes``, they have 5 sides.
    """
    names = GRIDS[axes]
    image = dict(enumerate(map(torch.export.Dim, names)))
    shapes: dict[str, dict[int, Any]] = dict.fromkeys(("x", "x0hat", "prediction", "y"), image)
    inputs = {name: torch.zeros(2, 3, *range(4, 4 + axes)) for name in shapes}
    inputs |= {"z": torch.ones((1,) * (2 + axes)), "row": torch.zeros(10), "mask": torch.ones((1,) * (2 + axes))}
    shapes |= {"z": {}, "row": {}, "mask": {}}
    outputs: dict[str, tuple[str, ...]] = dict.fromkeys(("x_next", "x0hat_next", "inputs_next"), names)
    model = export_graph(StepGraph(), inputs, shapes, outputs, opset, fixed=0)
    for value in model.graph.input:
        if value.name in ("z", "mask"):  # of size 1 or that of the picture
            for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
                dim.dim_param = f"{value.name}_{name}"
    del model.graph.value_info[:]
    return model


def input_names(network: Network) -> dict[str, str]:
    """The names of a network's conditions as inputs of its graph."""
    return {name: CONDITION if name == SOURCE else name for name in network.conditions}


def network_graph(network: Network, opset: int) -> onnx.ModelProto:
    """The graph of a network, of any batch and size: ``x``, ``t`` and conditions to ``prediction``.

    The source is the input ``condition``, other conditions have their own names: images (B, C, H, W) in the
    size of x, classes (B,) int64, and tokens (B, L, width) of any length L.

    Args:
        network: in float32 or float16.
        opset: the ONNX operator set, one of ``OPSETS``.
    """
    size = [cells * step for cells, step in zip((8, 10, 12), network.strides, strict=False)]  # of each axis another
    inputs = {"x": torch.zeros(2, network.channels, *size), "t": torch.ones(1)}
    names = input_names(network)
    if network.condition_channels:
        inputs[names[SOURCE]] = torch.zeros(2, network.condition_channels, *size)
    for name, each in network.further.each.items():
        inputs[names[name]] = torch.zeros(each.shape(2, size, length=3), dtype=getattr(torch, each.dtype))
    graph = UNetGraph(network) if isinstance(network, UNet) else NetworkGraph(network)
    shapes = {name: dict.fromkeys(free_axes(value), torch.export.Dim.DYNAMIC) for name, value in inputs.items()}
    shapes["t"] = {}
    return export_graph(graph, inputs, shapes, {"prediction": GRIDS[network.axes]}, opset, fixed=2)


def encoder_graph(codec: Codec, opset: int) -> onnx.ModelProto:
    """The graph of a codec's encoder, ``image`` to ``latent``."""
    image = torch.zeros(2, codec.image_channels, 8 * codec.stride, 10 * codec.stride)
    graph = CodecGraph(codec, lambda image: codec.normalize(codec.encoder(image.to(codec.dtype)), "source"))
    return _codec_graph(graph, {"image": image}, {"latent": ("batch", "channels", *LATENT)}, opset)


def decoder_graph(codec: Codec, opset: int) -> onnx.ModelProto:
    """The graph of a codec's decoder, ``latent`` to ``image``."""
    latent = torch.zeros(2, codec.channels, 8, 10)
    graph = CodecGraph(codec, lambda latent: codec.decoder(codec.denormalize(latent)))
    return _codec_graph(graph, {"latent": latent}, {"image": ("batch", "channels", *IMAGE)}, opset)


def _codec_graph(
    graph: nn.Module, inputs: dict[str, torch.Tensor], outputs: dict[str, tuple[str, ...]], opset: int
) -> onnx.ModelProto:
    shapes = {name: dict.fromkeys(free_axes(v), torch.export.Dim.DYNAMIC) for name, v in inputs.items()}
    return export_graph(graph, inputs, shapes, outputs, opset, fixed=1)


def _nearest_code(z: Any, codes: Any) -> Any:
    """``bbdm::nearest_code`` in ONNX: the index of the least |e|^2 / 2 - z e, the lowest of several."""
    op: Any = opset21
    offset = op.Mul(op.ReduceSumSquare(codes, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.5))
    scores = op.Sub(offset, op.MatMul(z, op.Transpose(codes, perm=[1, 0])))
    return op.ArgMin(scores, axis=1, keepdims=0)


TRANSLATED = {torch.ops.bbdm.nearest_code.default: _nearest_code}


@torch.no_grad()
def export_graph(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Mapping[int, Any]],
    outputs: Mapping[str, tuple[str, ...]],
    opset: int,
    fixed: int,
    table: Mapping[Any, Callable[..., Any]] = TRANSLATED,
) -> onnx.ModelProto:
    """A module as a graph, with names for the dimensions that are not fixed.

    Args:
        module: its ``forward`` takes ``fixed`` arguments, then any others.
        inputs: examples of all arguments by their names in the graph.
        shapes: for each input, the axes that are not fixed, as torch.export takes them.
        outputs: the names of results, with those of their dimensions.
        opset: the ONNX operator set, one of ``OPSETS``.
        fixed: the number of arguments of ``forward`` before ``*arguments``.
        table: functions of onnxscript for operators of torch that are ours.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {list(OPSETS)}, got {opset}")
    values, free = list(inputs.values()), [dict(shapes[name]) for name in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.onnx.export(
            module.eval().requires_grad_(False),
            tuple(values),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(*free[:fixed], *([tuple(free[fixed:])] if free[fixed:] else [])),
            custom_translation_table=dict(table),
            verbose=False,
        )
    assert program is not None
    # Sums of weights are folded here: quantisation needs weights that are constants.
    optimizer.optimize_ir(program.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    model = program.model_proto
    _tidy(model, half=any(p.dtype == torch.float16 for p in module.parameters()))
    symbols = {v.name: [dim.dim_param for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
    names = {of[1]: f"{name}_length" for name, of in symbols.items() if inputs[name].ndim == 3}
    grid = symbols[model.graph.input[0].name]
    names |= {symbol: name for symbol, name in zip(grid, GRIDS[len(grid) - 2], strict=True) if symbol}
    for graph in subgraphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
    for value in model.graph.output:
        name_dims(value, outputs[value.name])
    return model


def free_axes(value: torch.Tensor) -> list[int]:
    """The axes of an input that may have any size: batch, sides and, of tokens (B, L, width), L."""
    return [0, 1] if value.ndim == 3 else [0, *range(2, value.ndim)]


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)


def _tidy(model: onnx.ModelProto, half: bool) -> None:
    """Compute softmax in float32, give masks of attention all rows, and remove the exporter's metadata."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
            if len(node.input) > 3:  # ONNX Runtime does not broadcast (B, 1, 1, L) over the positions
                nodes += _all_rows(node)
        if node.op_type == "Softmax" and half:
            wide, result, dtype = f"{node.input[0]}_wide", node.output[0], TensorProto.FLOAT16
            nodes.append(helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
            node.input[0], node.output[0] = wide, f"{result}_wide"
            nodes += [node, helper.make_node("Cast", [f"{result}_wide"], [result], to=dtype)]
        else:
            nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    for graph in subgraphs(model.graph):
        for node in graph.node:
            node.ClearField("doc_string")
        for each in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info, graph):
            del each.metadata_props[:]
    del model.metadata_props[:], model.functions[:]
    model.ir_version = IR_VERSIONS[model.opset_import[0].version]


def _all_rows(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes that expand the mask of an Attention node, (B, 1, 1, L), to (B, 1, N, L) for N positions."""
    rows, shape, mask = (f"{node.output[0]}_{name}" for name in ("rows", "shape", "mask"))
    made = [
        helper.make_node("Shape", [node.input[0]], [rows], start=2, end=3),
        helper.make_node("Constant", [], [f"{shape}_1"], value_ints=[1]),
        helper.make_node("Concat", [f"{shape}_1", f"{shape}_1", rows, f"{shape}_1"], [shape], axis=0),
        helper.make_node("Expand", [node.input[3], shape], [mask]),
    ]
    node.input[3] = mask
    return made


def name_dims(value: onnx.ValueInfoProto, names: tuple[str, ...]) -> None:
    """Name the dimensions that are not fixed."""
    for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        if not dim.HasField("dim_value"):
            dim.dim_param = name
