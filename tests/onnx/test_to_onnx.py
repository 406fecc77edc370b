"""`bbdm export`: graphs that agree with PyTorch at any batch and size, its flags, and its errors."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, load_checkpoint, save_checkpoint, solvers, wrap
from bbdm.cli.export import parse
from bbdm.data.spec import Spec
from bbdm.files.bridge_json import read_settings
from bbdm.networks.base import Conditions
from bbdm.networks.unet import AttentionBlock
from bbdm.onnx import check, graphs, pipeline, quantize
from bbdm.pictures.images import from_array, open_image, to_array
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.conftest import ROOT, tiny_unet
from tests.onnx.exports import BRIDGE, SIZE, checkpoint, export, once, tiny_codec

STEPS = 10
DEMO = ROOT / "bbdm" / "demo"
SHAPES = [(1, 16, 16), (2, 16, 16), (5, 16, 16), (2, 24, 32)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "bridge.pt")


@pytest.fixture(scope="module")
def latent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "latent.pt", 0, tiny_codec())


@pytest.fixture(scope="module")
def folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(file, tmp_path_factory.mktemp("export") / "plain", "--pipeline", "--steps", str(STEPS))


@pytest.fixture(scope="module")
def latent_folder(latent_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("--pipeline", "--solver", "sde-dpm2m", "--steps", str(STEPS))
    return export(latent_file, tmp_path_factory.mktemp("export") / "latent", *flags)


@pytest.fixture(scope="module")
def unusual_folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every flag that changes the UNet's graph or its file."""
    flags = ("--static", "2,16,24", "--opset", "21", "--dtype", "fp16", "--external-data", "--pipeline", "--steps", "3")
    return export(file, tmp_path_factory.mktemp("export") / "unusual", *flags)


def test_the_check_of_a_network_that_was_trained_on_crops(tmp_path: Path):
    """The check takes pictures that are larger than these crops; windows are no part of it."""
    unet = tiny_unet(0, condition_channels=3)
    save_checkpoint(tmp_path / "crops.pt", unet, BRIDGE, image_size=8, pictures=Spec(crop=8))
    made = OnnxBridgeSampler(export(tmp_path / "crops.pt", tmp_path / "onnx", "--check", "--steps", "2"))
    assert made.pictures.crop == 8


def source(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(batch)) * 2 - 1


def by_pipeline(folder: Path, image: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """The result of pipeline.onnx for noise of all rows."""
    session = onnxruntime.InferenceSession(folder / "pipeline.onnx")
    rows = json.loads((folder / "bridge.json").read_text())["noise_rows"]
    return np.asarray(session.run(None, {"source": image.numpy(), "noise": noise[rows].numpy()})[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_those_of_pytorch(file: Path, folder: Path, shape: tuple[int, int, int]):
    sampler = BridgeSampler.from_checkpoint(file, steps=STEPS)
    image = source(*shape)
    noise = torch.randn(STEPS, *image.shape, generator=torch.Generator().manual_seed(0))
    assert sampler(image, seed=4).std() > 0.1
    made = OnnxBridgeSampler(folder)(image.numpy(), seed=4)
    np.testing.assert_allclose(made, sampler(image, seed=4).numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        by_pipeline(folder, image, noise), sampler(image, noise=noise).numpy(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_latent_images_are_those_of_pytorch(latent_file: Path, latent_folder: Path, shape: tuple[int, int, int]):
    sampler = BridgeSampler.from_checkpoint(latent_file, solver="sde-dpm2m", steps=STEPS)
    image = source(*shape)
    noise = torch.randn(STEPS, shape[0], 3, shape[1] // 2, shape[2] // 2, generator=torch.Generator().manual_seed(0))
    made = OnnxBridgeSampler(latent_folder)(image.numpy(), seed=4)
    np.testing.assert_allclose(made, sampler(image, seed=4).numpy(), rtol=0, atol=1e-4)
    made = by_pipeline(latent_folder, image, noise)
    np.testing.assert_allclose(made, sampler(image, noise=noise).numpy(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("error:the network was trained on pictures of")
def test_the_check_is_silent_about_the_size_of_its_pictures(file: Path, folder: Path):
    sampler = BridgeSampler(load_checkpoint(file).build_unet(), BRIDGE, steps=STEPS)  # as the script makes it
    assert [each.largest < 1e-4 for each in check.differences(folder, sampler)] == 9 * [True]
    with pytest.warns(UserWarning, match="trained on pictures of 16 x 16"):
        OnnxBridgeSampler(folder)(source(1, SIZE // 2, SIZE // 2).numpy(), seed=0)


def assert_weights_of(model: onnx.ModelProto, dtype: str) -> None:
    weights = {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 200}
    assert weights == {onnx.TensorProto.FLOAT if dtype == "fp32" else onnx.TensorProto.FLOAT16}


def assert_norms_and_softmax_in_float32(model: onnx.ModelProto) -> None:
    """By the types that shape inference finds for the nodes' inputs."""
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    by_kind: dict[str, set[int]] = {}
    for node in model.graph.node:
        by_kind.setdefault(node.op_type, set()).add(types.get(node.input[0], 0))
        if node.op_type == "Attention":
            precision = {a.name: a.i for a in node.attribute}["softmax_precision"]
            assert precision == onnx.TensorProto.FLOAT
    assert by_kind["GroupNormalization"] == {onnx.TensorProto.FLOAT}
    assert by_kind.get("Softmax", {onnx.TensorProto.FLOAT}) == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in by_kind["Conv"]


def test_unusual_flags(file: Path, unusual_folder: Path):
    model = onnx.load(unusual_folder / "unet.onnx")
    assert model.opset_import[0].version == 21
    assert_weights_of(model, "fp16")
    assert_norms_and_softmax_in_float32(model)
    for name in ("unet.onnx", "pipeline.onnx"):
        dims = onnx.load(unusual_folder / name).graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [2, 3, 16, 24]
    graph, weights = unusual_folder / "unet.onnx", unusual_folder / "unet.onnx.data"
    assert graph.stat().st_size < weights.stat().st_size > 100_000
    assert "unet.onnx.data" in read_settings(unusual_folder)["files"]
    image = source(3, 15, 24)  # padded, and in two batches
    wanted = BridgeSampler.from_checkpoint(file, steps=3)(image, seed=0)
    made = OnnxBridgeSampler(unusual_folder)(image.numpy(), seed=0)
    np.testing.assert_allclose(made, wanted.numpy(), rtol=0, atol=2e-2)


@pytest.mark.nightly
@pytest.mark.parametrize("opset", [21, 22, 23])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_opset_and_dtype(file: Path, tmp_path: Path, opset: int, dtype: str):
    made = export(file, tmp_path / "made", "--opset", str(opset), "--dtype", dtype, "--steps", str(STEPS), "--pipeline")
    sampler = BridgeSampler.from_checkpoint(file, steps=STEPS)
    image, tolerance = source(2, 16, 24), 1e-4 if dtype == "fp32" else 2e-2
    result = OnnxBridgeSampler(made)(image.numpy(), seed=0)
    np.testing.assert_allclose(result, sampler(image, seed=0).numpy(), rtol=0, atol=tolerance)
    model = onnx.load(made / "unet.onnx")
    assert model.opset_import[0].version == opset
    assert_weights_of(model, dtype)


@pytest.mark.nightly
@pytest.mark.parametrize("opset", [21, 23])
def test_fp16_keeps_norms_softmax_and_decoder_in_float32(latent_file: Path, tmp_path: Path, opset: int):
    made = export(latent_file, tmp_path / "made", "--opset", str(opset), "--dtype", "fp16")
    assert_norms_and_softmax_in_float32(onnx.load(made / "unet.onnx"))
    decoder = onnx.load(made / "decoder.onnx")
    assert {tensor.data_type for tensor in decoder.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }


def test_graphs_are_valid_and_of_the_kind_that_runtimes_fuse(file: Path, folder: Path, latent_folder: Path):
    for path in [*folder.glob("*.onnx"), *latent_folder.glob("*.onnx")]:
        onnx.checker.check_model(path, full_check=True)
    unet = load_checkpoint(file).build_unet()
    counts = Counter(node.op_type for node in onnx.load(folder / "unet.onnx").graph.node)
    assert counts["Attention"] == sum(isinstance(m, AttentionBlock) for m in unet.modules())
    assert counts["GroupNormalization"] == sum(isinstance(m, torch.nn.GroupNorm) for m in unet.modules())
    assert not counts.keys() & {"Dropout", "BatchNormalization", "If", "Loop", "ReduceMean", "Identity"}
    whole = onnx.load(folder / "pipeline.onnx").graph
    made = Counter(node.op_type for node in whole.node)  # nothing is made twice around the loop
    assert made == {"Identity": 2, "Constant": 2, "Mul": 4, "Add": 2, "Loop": 1, "Clip": 1}
    weights = sum(np.prod(tensor.dims) for tensor in whole.initializer)
    assert weights == pytest.approx(sum(p.numel() for p in unet.parameters()), rel=0.05)  # one copy


def test_noise_has_a_slot_for_each_row_that_needs_it(file: Path, folder: Path):
    shapes = BridgeSampler.from_checkpoint(file)._shapes

    def with_solver(solver: str, steps: int) -> onnx.ModelProto:
        table = solvers.build(BRIDGE, solver, steps=steps)
        return pipeline.pipeline_graph(onnx.load(folder / "unet.onnx"), None, None, table, shapes)

    def slots(model: onnx.ModelProto) -> int | None:
        noise = [value for value in model.graph.input if value.name == "noise"]
        return noise[0].type.tensor_type.shape.dim[0].dim_value if noise else None

    assert slots(onnx.load(folder / "pipeline.onnx")) == 1  # dpm2m: only the first step has noise
    assert slots(with_solver("fast", 6)) == 5
    none = with_solver("dpm2m", 1)
    assert slots(none) is None
    image = source(1, 16, 16)
    (made,) = onnxruntime.InferenceSession(none.SerializeToString()).run(None, {"source": image.numpy()})
    wanted = BridgeSampler.from_checkpoint(file, steps=1)(image, seed=0)
    np.testing.assert_allclose(np.asarray(made), wanted.numpy(), rtol=0, atol=1e-4)


def test_int8_is_small_and_near(file: Path, tmp_path: Path):
    for i in range(4):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        from_array(source(i + 1, 16, 16)[0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    made = export(file, tmp_path / "made", "--quantize", "int8", "--calibrate", str(tmp_path / "pictures"))
    counts = Counter(node.op_type for node in onnx.load(made / "unet.onnx").graph.node)
    assert counts["QuantizeLinear"] > 20
    image = source(2, 16, 16)
    wanted = BridgeSampler.from_checkpoint(file)(image, seed=0).numpy()
    off = np.abs(OnnxBridgeSampler(made)(image.numpy(), seed=0) - wanted)
    assert 0 < off.mean() < 0.05


@pytest.mark.parametrize("calls", [None, 1, 2])
def test_int8_is_calibrated_on_what_the_network_sees(calls: int | None):
    seen: list[np.ndarray] = []

    def call(module: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, conditions: Conditions):
        seen.append(x.numpy().copy())
        return module(x)

    network = wrap(torch.nn.Conv2d(3, 3, 1), channels=3, call=call)
    sampler = BridgeSampler(network, BrownianBridge(objective="pinned"), calls=calls)
    feeds = list(iter(quantize._Trajectory(sampler, [source(1, 8, 8), source(2, 8, 8)[:1]]).get_next, {}))
    assert len(feeds) == len(seen) == 2 * len(sampler.table)
    for feed, x in zip(feeds, seen, strict=True):
        np.testing.assert_allclose(feed["x"], x, rtol=0, atol=1e-5)


def test_settings_describe_the_export(folder: Path, latent_folder: Path):
    settings, latent = read_settings(folder), read_settings(latent_folder)
    assert settings["bridge"] == BRIDGE.config()
    assert len(settings["timesteps"]) == len(settings["prediction"]) == len(settings["coefficients"]) == STEPS
    assert settings["conditioned"]
    assert settings["latent_statistics"] is None
    assert latent["latent_statistics"]["source_mean"] == [0.1, -0.2, 0.3]
    assert (latent["stride"], latent["latent_stride"]) == (4, 2)
    assert set(latent["files"]) == {"unet.onnx", "step.onnx", "encoder.onnx", "decoder.onnx", "pipeline.onnx"}
    assert latent["sizes"] == {name: (latent_folder / name).stat().st_size for name in latent["files"]}


def test_the_check_prints_differences_and_fails(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    export(file, tmp_path / "made", "--check", "--steps", "2", "--pipeline")
    printed = capsys.readouterr().out
    for line in ("unet.onnx", "image, step by step", "image, pipeline.onnx"):
        assert printed.count(line) >= 3
    network_graph = once(graphs.network_graph)

    def off(*args: Any) -> onnx.ModelProto:
        model = network_graph(*args)
        bias = next(t for t in model.graph.initializer if t.name.endswith("out.2.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return model

    monkeypatch.setattr(graphs, "network_graph", off)
    with pytest.raises(ValueError, match=r"differs by .* from PyTorch, more than 1e-04"):
        export(file, tmp_path / "wrong", "--check", "--steps", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_is_not_replaced_unasked(file: Path, tmp_path: Path):
    made = export(file, tmp_path / "made", "--steps", "2", "--pipeline")
    (made / "pipeline.onnx").unlink()  # which may be shipped apart
    assert OnnxBridgeSampler(made)(source(1, 16, 16).numpy(), seed=0).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="exists: --overwrite replaces it"):
        export(file, made, "--steps", "3")
    assert len(read_settings(made)["timesteps"]) == 2
    export(file, made, "--steps", "3", "--overwrite")
    assert len(read_settings(made)["timesteps"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is not an export"):
        export(file, tmp_path / "mine", "--overwrite")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--opset", "17"], r"--opset must be in \[21, 23\], got 17"),
        (["--quantize", "int8"], "need each other"),
        (["--quantize", "int8", "--calibrate", "x", "--dtype", "fp16"], "leaves the rest in fp32"),
        (["--static", "1,64"], "invalid|three positive numbers"),
    ],
)
def test_flags_that_are_refused(file: Path, tmp_path: Path, flags: list[str], message: str, capfd: Any):
    with pytest.raises(SystemExit):
        export(file, tmp_path / "made", *flags)
    assert re.search(message, capfd.readouterr().err)


def test_what_is_noticed_at_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "network_graph", pytest.fail)
    with pytest.raises((ValueError, FileNotFoundError), match="no folder"):
        export(file, tmp_path / "made", "--quantize", "int8", "--calibrate", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="multiples of 2"):
        export(file, tmp_path / "made", "--static", "1,15,16")


def test_float16_does_not_overflow_on_real_activations():
    """The bundled network's largest activation on the bundled drawings, against float16's 65504."""
    sampler = BridgeSampler.from_checkpoint(DEMO / "openmoji64.safetensors", solver="sde-dpm2m", steps=5)
    largest: list[float] = []
    for module in sampler.unet.modules():
        module.register_forward_hook(lambda module, given, made: largest.append(float(made.abs().max())))
    drawings = [open_image(path) for path in sorted((DEMO / "drawings").glob("*.png"))]
    sampler(drawings, seed=0)
    assert len(largest) > 5 * 50
    assert max(largest) < 65504 / 16


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_bundled_network(tmp_path: Path, dtype: str):
    """On noise to 1e-4 in float32 and 3e-2 in float16; on drawings as near to float64 as PyTorch's float32.

    The trained network amplifies rounding at the edges of colours, a thousand times over ten steps. The
    largest errors of two right answers in float32 may differ by a factor of two.
    """
    file = DEMO / "openmoji64.safetensors"
    flags = ("--solver", "dpm2m", "--steps", str(STEPS), "--dtype", dtype, "--pipeline")
    made = export(file, tmp_path / "made", *flags)
    checkpoint = load_checkpoint(file)
    sampler = BridgeSampler(checkpoint.build_unet(), checkpoint.bridge, steps=STEPS)
    exact = BridgeSampler(checkpoint.build_unet().double(), checkpoint.bridge, steps=STEPS)
    exported, tolerance = OnnxBridgeSampler(made), 1e-4 if dtype == "fp32" else 3e-2
    paths = sorted((DEMO / "drawings").glob("*.png"))
    drawings = torch.from_numpy(np.stack([to_array(Image.open(path)) for path in paths]))
    for noise in (source(1, 64, 64), source(2, 64, 64), source(5, 48, 40)):
        result = exported(noise.numpy(), seed=0)
        np.testing.assert_allclose(result, sampler(noise, seed=0).numpy(), rtol=0, atol=tolerance)
    noise = torch.randn(STEPS, *drawings.shape, generator=torch.Generator().manual_seed(0))
    for result, ours, wanted in (
        (exported(drawings.numpy(), seed=0), sampler(drawings, seed=0), exact(drawings.double(), seed=0)),
        (by_pipeline(made, drawings, noise), sampler(drawings, noise=noise), exact(drawings.double(), noise=noise)),
    ):
        limit = 2 * float((ours - wanted).abs().max()) if dtype == "fp32" else 5e-3
        assert 1e-6 < limit < 0.01
        assert np.abs(result - wanted.numpy()).max() <= limit


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [["--pipeline"], ["--dtype", "fp16"]], ids=["fp32", "fp16"])
def test_the_papers_network(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]):
    """237.1 M parameters, 10 steps: the script's own check against PyTorch, to 1e-4 and 2e-2."""
    unet = UNet(3, 3)
    torch.manual_seed(0)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=(3 * parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.02)
    save_checkpoint(tmp_path / "paper.pt", unet, ABridge(), image_size=64)
    made = export(tmp_path / "paper.pt", tmp_path / "made", "--check", "--steps", str(STEPS), *flags)
    print(capsys.readouterr().out)
    for path in made.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)


@pytest.mark.nightly
def test_a_pipeline_with_a_mask(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The check compares it with PyTorch's."""
    folder = export(file, tmp_path / "masked", "--steps", "2", "--pipeline", "--mask", "--check")
    inputs = onnxruntime.InferenceSession(folder / "pipeline.onnx").get_inputs()
    assert {value.name for value in inputs} == {"source", "noise", "mask"}
    assert "image, pipeline.onnx" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse([str(file), "--mask"])
