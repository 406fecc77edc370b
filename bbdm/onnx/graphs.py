"""The step of a loop, the networks of a checkpoint, and a translation as ONNX graphs, by torch.onnx.export.

Inputs and outputs of a graph are float32, whatever the dtype of its weights. GroupNorm and attention are one
node each, GroupNormalization and Attention. A translation is a module of the table's rows, whose networks are
graphs themselves.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, inliner
from onnxscript import ir, opset21, optimizer
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

from bbdm.codec import Codec
from bbdm.networks.arrays import NAMES, in_channels
from bbdm.networks.base import SOURCE, Network
from bbdm.networks.conditions import ConditionInput
from bbdm.sampling.loop import Shapes
from bbdm.solvers import StepTable

OPSET = 23  # the first that has attention
IR_VERSION = 11  # the oldest format that has the opset
FOLDED = 2**31  # numbers: constants of any size
CELLS = (8, 10, 12)  # sides of examples, in strides: of each axis another
TOKENS = 3  # of an example, for each condition of tokens
Dims = tuple[int | str, ...]  # sizes, and names of the dimensions that are of any size
CONDITION = "condition"  # the name of the source as an input; others have their own
DOMAIN = "bbdm"  # of nodes that stand for a graph


@dataclass(frozen=True)
class Input:
    """An input of a graph."""

    dims: Dims
    classes: int = 0  # the integers are below it; 0 for float32

    def example(
        self, sizes: Mapping[str, int], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Random values, integers below ``classes`` or floats in [-1, 1]; other dimensions are of tokens."""
        shape = [sizes.get(dim, TOKENS) if isinstance(dim, str) else dim for dim in self.dims]
        uniform = torch.rand(shape, generator=generator or torch.Generator())
        if self.classes:
            return (uniform * self.classes).long()
        return uniform * 2 - 1


def sizes(batch: int, sides: Sequence[int], cell: int = 1) -> dict[str, int]:
    """Sizes of dimensions by name, for a batch of pictures with these sides."""
    names = dict(zip(NAMES[len(sides)], sides, strict=True))
    return {
        "batch": batch,
        **names,
        **{f"latent_{name}": side // cell for name, side in names.items()},
    }


def condition_inputs(conditions: Mapping[str, ConditionInput], axes: int) -> dict[str, Input]:
    """The inputs for conditions, by their names in graphs."""
    inputs: dict[str, Input] = {}
    condition: Any  # whose shape is asked for names in place of sizes
    for name, condition in conditions.items():
        dims = condition.shape("batch", NAMES[axes], f"{name}_length")
        classes = 0
        if condition.dtype == "int64":
            classes = condition.size
        if name == SOURCE:
            name = CONDITION
        inputs[name] = Input(dims, classes)
    return inputs


class FunctionModule(nn.Module):
    """A function of tensors, and the module whose weights it reads, if any."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The function of all inputs."""
        return self.function(*inputs)


def step(
    x: Any, x0hat: Any, prediction: Any, y: Any, z: Any, row: Any, mask: Any
) -> tuple[Any, Any, Any]:
    """:func:`bbdm.kernels.bridge_step.bridge_step` in operators that ONNX has, with a row (10,) of the table.

    Returns the next x, this step's x0hat, and what the network is shown next.
    """
    p_x, p_y, p_prediction, c_x, c_y, c_x0hat, c_before, c_z, i_x, i_y = row.split(1)
    estimate = p_x * x + p_y * y + p_prediction * prediction
    estimate = mask * estimate + (1 - mask) * y
    x = c_x * x + c_y * y + c_x0hat * estimate + c_before * x0hat + c_z * z
    return x, estimate, i_x * x + i_y * y


def step_graph(axes: int = 2) -> onnx.ModelProto:
    """One step, to ``x_next``, ``x0hat_next`` and what the network is shown next, ``inputs_next``.

    Its inputs are ``x``, the previous step's ``x0hat``, ``prediction``, ``y`` and noise ``z``, all
    (B, C, H, W), the table's ``row``, (10,), and ``mask``, (B, 1, H, W) or, for a whole picture, a 1 of shape
    (1, 1, 1, 1). For a row without noise z may be (1, 1, 1, 1). Of volumes, of 3 ``axes``, they have 5 sides.
    """
    dims = ("batch", "channels", *NAMES[axes])
    z = tuple(f"z_{dim}" for dim in dims)  # of size 1, or the picture's
    mask = tuple(f"mask_{dim}" for dim in dims)  # likewise
    inputs = dict.fromkeys(("x", "x0hat", "prediction", "y"), Input(dims))
    inputs |= {"z": Input(z), "row": Input((10,)), "mask": Input(mask)}
    known = sizes(2, CELLS[:axes])
    known["channels"] = 3
    known |= dict.fromkeys(z + mask, 1)
    outputs: dict[str, Dims] = dict.fromkeys(("x_next", "x0hat_next", "inputs_next"), dims)
    model = export_graph(FunctionModule(step), inputs, outputs, known)
    del model.graph.value_info[:]  # of a mask of size 1
    return model


def network_graph(network: Network) -> onnx.ModelProto:
    """The graph of a network, of any batch and size: ``x``, ``t`` and conditions to ``prediction``.

    The source is the input ``condition``, other conditions have their own names: images (B, C, H, W) in the
    size of x, classes (B,) int64, and tokens (B, L, width) of any length L. The network is in float32 or
    float16.
    """
    dtype = next(network.parameters()).dtype
    # Its frequencies are computed here: constants that the exporter folds differ in the last bit, which a
    # time of 1000 multiplies.
    embed = network.embedder()

    def predict(x: torch.Tensor, t: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        cast = [value.to(dtype) if value.is_floating_point() else value for value in values]
        conditions = network.prepared(dict(zip(network.inputs, cast, strict=True)), x.shape[2:])
        return network.body(x.to(dtype), embed(t), conditions).float()

    dims = "batch", network.channels, *NAMES[network.axes]
    inputs = {"x": Input(dims), "t": Input((1,)), **condition_inputs(network.inputs, network.axes)}
    sides = [cells * stride for cells, stride in zip(CELLS, network.strides, strict=False)]
    return export_graph(
        FunctionModule(predict, network), inputs, {"prediction": dims}, sizes(2, sides)
    )


def codec_graph(codec: Codec, decodes: bool) -> onnx.ModelProto:
    """The graph of a codec's encoder, ``image`` to ``latent``, or of its decoder, ``latent`` to ``image``."""
    image: Dims = ("batch", codec.image_channels)
    latent: Dims = ("batch", codec.channels)
    cells = CELLS[:2]

    def encode(x: torch.Tensor) -> torch.Tensor:
        return codec.normalize(codec.encoder(x.to(codec.dtype)), "source")

    def decode(x: torch.Tensor) -> torch.Tensor:
        return codec.decoder(codec.denormalize(x))

    outputs: dict[str, Dims]
    if decodes:
        inputs = {"latent": Input((*latent, *NAMES[2]))}
        outputs = {"image": (*image, "image_height", "image_width")}
        return export_graph(FunctionModule(decode, codec.module), inputs, outputs, sizes(2, cells))
    inputs = {"image": Input((*image, *NAMES[2]))}
    outputs = {"latent": (*latent, "latent_height", "latent_width")}
    sides = [cell * codec.stride for cell in cells]
    return export_graph(FunctionModule(encode, codec.module), inputs, outputs, sizes(2, sides))


def _nearest_code(z: Any, codes: Any) -> Any:
    """``bbdm::nearest_code`` in ONNX: the index of the least |e|^2 / 2 - z e, the lowest of several."""
    op: Any = opset21
    axis = op.Constant(value_ints=[1])
    squares = op.ReduceSumSquare(codes, axis, keepdims=0)
    half = op.Constant(value_float=0.5)
    offset = op.Mul(squares, half)
    products = op.MatMul(z, op.Transpose(codes, perm=[1, 0]))
    return op.ArgMin(op.Sub(offset, products), axis=1, keepdims=0)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out deprecations of torch itself, and its warning that torchvision is missing; none needs it."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _stride(image: Any, axis: int) -> Any:
    """The stride of an axis, from which torch.export may take the size of another; images are contiguous."""
    op: Any = opset21
    return op.ReduceProd(op.Shape(image, start=axis + 1), keepdims=0)


TRANSLATED = {
    torch.ops.bbdm.nearest_code.default: _nearest_code,
    torch.ops.aten.sym_stride.int: _stride,
}


@torch.no_grad()
def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Input],
    outputs: Mapping[str, Dims],
    known: Mapping[str, int],
) -> onnx.ModelProto:
    """A module as a graph, with names for the dimensions that are not fixed.

    Args:
        module: its ``forward`` takes ``*inputs``.
        inputs: all of them by their names in the graph, in order.
        outputs: the dimensions of results, by their names.
        known: sizes of dimensions in the example that is traced; those of size 1 are broadcast.
    """
    examples: list[torch.Tensor] = []
    free: list[dict[int, str]] = []  # the axes of each that are of any size, with their names
    for condition in inputs.values():
        example = condition.example(known)
        examples.append(example)
        sides = zip(condition.dims, example.shape, strict=True)
        free_axes: dict[int, str] = {}
        for axis, (dim, side) in enumerate(sides):
            if isinstance(dim, str) and side > 1:
                free_axes[axis] = dim
        free.append(free_axes)
    with _without_advice():
        program = torch.onnx.export(
            module.eval().requires_grad_(False),
            tuple(examples),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(tuple(free),),
            custom_translation_table=TRANSLATED,
            verbose=False,
        )
    assert program is not None
    model = program.model
    # Sums of weights are folded here: quantisation needs weights that are constants.
    optimizer.optimize_ir(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    for value, each in zip(model.graph.inputs, inputs.values(), strict=True):
        value.shape = ir.Shape(each.dims)
    for value, dims in zip(model.graph.outputs, outputs.values(), strict=True):
        value.shape = ir.Shape(dims)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64(
                "softmax_precision", TensorProto.FLOAT
            )
    _strip(model)
    model.functions.clear()
    model.ir_version = IR_VERSION
    return program.model_proto


def _strip(model: ir.Model) -> None:
    """Remove what the exporter notes of its source, with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.doc_string = None
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:  # an input that is left out
                value.metadata_props.clear()


@torch.compiler.allow_in_graph
def _node(name: str, inputs: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The result of a graph, float32 of a shape: a node that :func:`pipeline_graph` replaces by the graph."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, dtype=torch.float32, shape=shape, version=1
    )


def translation(
    table: StepTable, shapes: Shapes, latent: bool, names: Sequence[str]
) -> Callable[..., torch.Tensor]:
    """A function of the inputs of :func:`pipeline_inputs`, in the order of ``names``: the image."""
    rows = torch.from_numpy(table.rows).float()
    times = torch.tensor(table.network_times, dtype=torch.float32)
    slots = torch.zeros(len(table), dtype=torch.int64)  # of each step's noise, where it has any
    slots[table.noisy] = torch.arange(len(table.noisy))
    of_y, of_z = table.start
    i_x, i_y = table.inputs[0].tolist()

    def translate(*inputs: torch.Tensor) -> torch.Tensor:
        conditions = dict(zip(names, inputs, strict=True))
        source = conditions.pop("source")
        noise = conditions.pop("noise", None)
        batch, _, *sides = source.shape
        ones = (1,) * source.ndim
        if noise is None:
            noise = source.new_zeros((1, *ones))
        if latent:
            cells = [side // shapes.cell for side in sides]
            y = _node("encoder", [source], [batch, shapes.channels, *cells])
        else:
            y = in_channels(source, shapes.channels, shapes.endpoint)
        if y is not source:  # while_loop takes no view of another input
            y = y.clone()
        seen = list(conditions.values())
        if shapes.shown:
            shown_source = source
            if latent:
                shown_source = y
            seen.insert(0, shown_source)
        x = of_y * y
        if of_z:
            x = x + of_z * noise[-1]

        def goes_on(index: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return index < len(rows)

        def advance(
            index: torch.Tensor, x: torch.Tensor, x0hat: torch.Tensor, shown: torch.Tensor
        ) -> Any:
            at = index.reshape(1)
            prediction = _node("unet", [shown, times.index_select(0, at), *seen], shown.shape)
            z = noise.index_select(0, slots.index_select(0, at)).squeeze(0)
            row = rows.index_select(0, at).squeeze(0)
            return index + 1, *step(x, x0hat, prediction, y, z, row, source.new_ones(ones))

        first = torch.zeros((), dtype=torch.int64), x, y.clone(), i_x * x + i_y * y
        _, x, _, _ = while_loop(goes_on, advance, first)
        if latent:
            x = _node("decoder", [x], [batch, shapes.image_channels, *sides])
        return x.clamp(-1, 1)

    return translate


def pipeline_inputs(shapes: Shapes, slots: int) -> dict[str, Input]:
    """The inputs of a translation: ``source``, the network's further conditions, and ``noise``.

    ``slots`` is the number of steps that have noise; without any there is no such input.
    """
    sides = NAMES[len(shapes.stride)]
    inputs = {"source": Input(("batch", shapes.source_channels, *sides))}
    inputs |= condition_inputs(shapes.conditions.each, len(sides))
    if slots:
        if shapes.cell > 1:
            sides = [f"latent_{side}" for side in sides]
        inputs["noise"] = Input((slots, "batch", shapes.channels, *sides))
    return inputs


def pipeline_graph(
    parts: Mapping[str, onnx.ModelProto], table: StepTable, shapes: Shapes
) -> onnx.ModelProto:
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
    axes = len(shapes.stride)
    inputs = pipeline_inputs(shapes, len(table.noisy))
    image: Dims = ("batch", shapes.image_channels, *NAMES[axes])
    sides = [cells * shapes.cell for cells in CELLS[:axes]]
    module = FunctionModule(translation(table, shapes, "encoder" in parts, list(inputs)))
    model = export_graph(module, inputs, {"image": image}, sizes(2, sides, shapes.cell))
    for name, part in parts.items():
        function = _as_function(name, part)
        model.functions.append(function)
        weights = [f"{name}/{tensor.name}" for tensor in part.graph.initializer]
        for node in nodes(model.graph):
            if node.domain == DOMAIN and node.op_type == name:
                node.input.extend(weights)
    model = inliner.inline_local_functions(model)
    for name, part in parts.items():  # outside the loop, so that there is one copy
        for tensor in part.graph.initializer:
            weight = model.graph.initializer.add()
            weight.CopyFrom(tensor)
            weight.name = f"{name}/{tensor.name}"
    del model.opset_import[:]
    model.opset_import.add(version=OPSET)
    return model


def _as_function(name: str, model: onnx.ModelProto) -> onnx.FunctionProto:
    """A graph as a function of its inputs and then of its weights, which stay outside of it."""
    graph = model.graph
    inputs = [value.name for value in graph.input]
    weights = [tensor.name for tensor in graph.initializer]
    outputs = [value.name for value in graph.output]
    return helper.make_function(
        DOMAIN, name, [*inputs, *weights], outputs, graph.node, model.opset_import
    )


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and of the bodies of its loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)
