"""The networks of a checkpoint as ONNX graphs, by torch.onnx.export.

Inputs and outputs of a graph are float32, whatever the dtype of its weights. GroupNorm is one node
(GroupNormalization). Attention is one node (Attention) from opset 23 on, and MatMul, Softmax, MatMul before.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
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


def input_names(network: Network) -> dict[str, str]:
    """The names of a network's conditions as inputs of its graph."""
    return {name: CONDITION if name == SOURCE else name for name in network.conditions}


def network_graph(network: Network, static: tuple[int, ...] | None, opset: int) -> onnx.ModelProto:
    """The graph of a network: inputs ``x``, ``t`` and conditions, output ``prediction``.

    The source is the input ``condition``, other conditions have their own names: images (B, C, H, W) in the
    size of x, classes (B,) int64, and tokens (B, L, width) of any length L.

    Args:
        network: in float32 or float16.
        static: the only (B, H, W) that the graph takes, of volumes (B, D, H, W); None for any batch and size.
        opset: the ONNX operator set, one of ``OPSETS``.
    """
    sizes = [cells * step for cells, step in zip((8, 10, 12), network.strides, strict=False)]  # of each axis another
    batch, *size = static or (2, *sizes)
    inputs = {"x": torch.zeros(batch, network.channels, *size), "t": torch.ones(1)}
    names = input_names(network)
    if network.condition_channels:
        inputs[names[SOURCE]] = torch.zeros(batch, network.condition_channels, *size)
    for name, each in network.further.each.items():
        inputs[names[name]] = torch.zeros(each.shape(batch, size, length=3), dtype=getattr(torch, each.dtype))
    graph = UNetGraph(network) if isinstance(network, UNet) else NetworkGraph(network)
    return _export(graph, inputs, ("prediction", GRIDS[network.axes]), static is None, opset, fixed=2)


def encoder_graph(codec: Codec, static: tuple[int, int, int] | None, opset: int) -> onnx.ModelProto:
    """The graph of a codec's encoder, ``image`` to ``latent``; for arguments see :func:`network_graph`."""
    batch, height, width = static or (2, 8 * codec.stride, 10 * codec.stride)
    image = torch.zeros(batch, codec.image_channels, height, width)
    output = ("latent", ("batch", "channels", "latent_height", "latent_width"))
    graph = CodecGraph(codec, lambda image: codec.normalize(codec.encoder(image.to(codec.dtype)), "source"))
    return _export(graph, {"image": image}, output, static is None, opset)


def decoder_graph(codec: Codec, static: tuple[int, int, int] | None, opset: int) -> onnx.ModelProto:
    """The graph of a codec's decoder, ``latent`` to ``image``; ``static`` is (B, H, W) of the image."""
    batch, height, width = static or (2, 8 * codec.stride, 10 * codec.stride)
    latent = torch.zeros(batch, codec.channels, height // codec.stride, width // codec.stride)
    output = ("image", ("batch", "channels", "image_height", "image_width"))
    graph = CodecGraph(codec, lambda latent: codec.decoder(codec.denormalize(latent)))
    return _export(graph, {"latent": latent}, output, static is None, opset)


def _nearest_code(z: Any, codes: Any) -> Any:
    """``bbdm::nearest_code`` in ONNX: the index of the least |e|^2 / 2 - z e, the lowest of several."""
    op: Any = opset21
    offset = op.Mul(op.ReduceSumSquare(codes, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.5))
    scores = op.Sub(offset, op.MatMul(z, op.Transpose(codes, perm=[1, 0])))
    return op.ArgMin(scores, axis=1, keepdims=0)


@torch.no_grad()
def _export(
    network: nn.Module,
    inputs: dict[str, torch.Tensor],
    output: tuple[str, tuple[str, ...]],
    dynamic: bool,
    opset: int,
    fixed: int = 1,  # arguments of forward before *arguments
) -> onnx.ModelProto:
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {list(OPSETS)}, got {opset}")
    values = list(inputs.values())
    free = [_free(value, dynamic and name != "t") for name, value in inputs.items()]
    shapes: list[Any] = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free]
    shapes[fixed:] = [tuple(shapes[fixed:])] if values[fixed:] else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.onnx.export(
            network.eval().requires_grad_(False),
            tuple(values),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[output[0]],
            dynamic_shapes=shapes if any(free) else None,
            custom_translation_table={torch.ops.bbdm.nearest_code.default: _nearest_code},
            verbose=False,
        )
    assert program is not None
    # Sums of weights are folded here: quantisation needs weights that are constants.
    optimizer.optimize_ir(program.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    model = program.model_proto
    _tidy(model, half=any(p.dtype == torch.float16 for p in network.parameters()))
    if any(free):
        symbols = {v.name: [dim.dim_param for dim in v.type.tensor_type.shape.dim] for v in model.graph.input}
        names = {of[1]: f"{name}_length" for name, of in symbols.items() if inputs[name].ndim == 3}
        grid = symbols[model.graph.input[0].name]
        names |= {symbol: name for symbol, name in zip(grid, GRIDS[len(grid) - 2], strict=True) if symbol}
        for value in (*model.graph.input, *model.graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
        for value in model.graph.output:
            name_dims(value, output[1])
    return model


def _free(value: torch.Tensor, dynamic: bool) -> list[int]:
    """The axes of an input that may have any size: of tokens (B, L, width), L in any case."""
    tokens = [1] if value.ndim == 3 else []
    return sorted([0, *range(2, value.ndim if value.ndim > 3 else 0), *tokens]) if dynamic else tokens


def _tidy(model: onnx.ModelProto, half: bool) -> None:
    """Compute softmax in float32, give masks of attention all rows, and remove the exporter's metadata."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
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
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:], model.functions[:]
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
