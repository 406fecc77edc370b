"""`bbdm export`: graphs that agree with PyTorch at any batch and size, its flags, and its errors."""

import logging
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, demo, save_checkpoint, wrap
from bbdm.cli.files import Export
from bbdm.codec import LatentStatistics, wrap_codec
from bbdm.data.spec import Spec
from bbdm.files.bridge_json import read_settings
from bbdm.networks.base import Conditions, Network
from bbdm.networks.unet import AttentionBlock
from bbdm.networks.vqgan import Codebook, VQGANConfig
from bbdm.onnx import exporter, graphs
from bbdm.pictures.images import from_array, open_image
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.conftest import tiny_unet
from tests.onnx.exports import BRIDGE, checkpoint, export, needs_exporter, once

pytestmark = needs_exporter
STEPS = 10
FLOAT16 = onnx.TensorProto.FLOAT16
# attention is in the middle alone
SHORT: dict[str, Any] = {"channel_mult": (1,), "attention_resolutions": ()}


class Coded(nn.Module):
    """An autoencoder of one convolution each way, with codes far apart, so that rounding chooses no other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.down, self.up = nn.Conv2d(3, 3, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.codes = Codebook(VQGANConfig(num_codes=16))
        nn.init.normal_(self.codes.embedding.weight)


def latent_sampler(network: Network, steps: int) -> BridgeSampler:
    """Of a bridge in latents, with noise at each step."""
    codec = wrap_codec(
        Coded(), lambda m, x: m.down(x), lambda m, z: m.up(m.codes(z)), channels=3, stride=2
    )
    statistics = LatentStatistics(
        (0.1, -0.2, 0.3), (0.5, 0.6, 0.7), (-0.1, 0.2, 0.0), (0.9, 0.8, 0.7)
    )
    return BridgeSampler(
        network, BRIDGE, "sde-dpm2m", steps, codec=codec.with_statistics(statistics)
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "bridge.pt")


@pytest.fixture(scope="module")
def pixels(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BridgeSampler, Path]:
    """A sampler and its export by the command."""
    folder = export(
        file, tmp_path_factory.mktemp("export") / "plain", "--pipeline", "--steps", str(STEPS)
    )
    return BridgeSampler.from_checkpoint(file, steps=STEPS), folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> tuple[BridgeSampler, Path]:
    """The same in latents; what a UNet's graph is, is seen of pixels."""
    network = wrap(nn.Conv2d(3, 3, 3, padding=1), stride=2, call=lambda module, x, *_: module(x))
    sampler, folder = latent_sampler(network, STEPS), tmp_path_factory.mktemp("export") / "latent"
    exporter.export(sampler, folder, pipeline=True, check=False)
    return sampler, folder


def source(batch: int, height: int, width: int) -> torch.Tensor:
    return (
        torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(batch)) * 2 - 1
    )


def run(model: Any, **inputs: Any) -> np.ndarray:
    """The one output of a graph or of its file."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: each.numpy() for name, each in inputs.items()})[0])


def free(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The names of the dimensions of any size of each input."""
    inputs = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    return {name: [dim.dim_param for dim in dims if dim.dim_param] for name, dims in inputs.items()}


def counts(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("kind", ["pixels", "latents"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 24, 32)], ids=str)
def test_images_are_those_of_pytorch(
    kind: str, shape: tuple[int, int, int], request: pytest.FixtureRequest
):
    """Step by step by the runtime, also with a mask, and by pipeline.onnx with explicit noise."""
    sampler, folder = request.getfixturevalue(kind)
    image, cell = source(*shape), 1 if kind == "pixels" else 2
    noise = torch.randn(STEPS, shape[0], 3, shape[1] // cell, shape[2] // cell)
    wanted = sampler(image, seed=4)
    assert wanted.std() > 0.1
    # most latents are touched, few covered
    runtime, mask = OnnxBridgeSampler(folder), (image[:1, :1] > 0.6).float()
    for each, expected in ((None, wanted), (mask, sampler(image, seed=4, mask=mask))):
        made = runtime(image.numpy(), seed=4, mask=None if each is None else each.numpy())
        np.testing.assert_allclose(made, expected.numpy(), rtol=0, atol=1e-4)
    made = run(
        folder / "pipeline.onnx", source=image, noise=noise[read_settings(folder)["noise_rows"]]
    )
    np.testing.assert_allclose(made, sampler(image, noise=noise).numpy(), rtol=0, atol=1e-4)


def test_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Norms, softmax and the decoder stay in float32; weights may be a second file."""
    monkeypatch.setattr(exporter, "EXTERNAL", 20_000)
    sampler, made = latent_sampler(tiny_unet(0, **SHORT).eval(), 3), tmp_path / "made"
    exporter.export(sampler, made, "fp16", pipeline=True, check=False)
    model, decoder = (onnx.load(made / name) for name in ("unet.onnx", "decoder.onnx"))
    assert {
        tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 200
    } == {FLOAT16}
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    shown = {(node.op_type, types.get(node.input[0], FLOAT16)) for node in model.graph.node}
    assert {kind for op, kind in shown if op == "GroupNormalization"} == {onnx.TensorProto.FLOAT}
    assert ("Conv", FLOAT16) in shown
    (attention,) = (
        {a.name: a.i for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "Attention"
    )
    assert attention["softmax_precision"] == onnx.TensorProto.FLOAT
    assert FLOAT16 not in {tensor.data_type for tensor in decoder.graph.initializer}
    assert (made / "unet.onnx.data").stat().st_size > 20_000
    assert "unet.onnx.data" in read_settings(made)["files"]
    onnxruntime.InferenceSession(made / "pipeline.onnx")  # it refuses two nodes of one name
    image = source(3, 15, 24)  # padded
    *_, wanted = sampler.stream(image, seed=0)
    *_, result = OnnxBridgeSampler(made).stream(image.numpy(), seed=0)
    # of latents: a code may be another
    np.testing.assert_allclose(result.x, wanted.x.numpy(), rtol=0, atol=2e-2)


def test_graphs_are_valid_and_of_the_kind_that_runtimes_fuse(pixels: Any, latents: Any):
    unet, folder = pixels[0].unet, pixels[1]
    whole = onnx.load(folder / "pipeline.onnx")
    network = counts(onnx.load(folder / "unet.onnx").graph)
    assert network["Attention"] == sum(isinstance(m, AttentionBlock) for m in unet.modules())
    assert network["GroupNormalization"] == sum(isinstance(m, nn.GroupNorm) for m in unet.modules())
    assert not network.keys() & {
        "Dropout",
        "BatchNormalization",
        "If",
        "Loop",
        "ReduceMean",
        "Identity",
    }
    made = counts(whole.graph)
    assert made["Loop"] == made["Clip"] == 1
    # nothing is made twice around the loop
    assert not made.keys() & {"Conv", "GroupNormalization", "Attention"}
    (loop,) = (node for node in whole.graph.node if node.op_type == "Loop")
    assert loop.input[1]  # its condition
    assert free(whole) == {
        "source": ["batch", "height", "width"],
        "noise": ["batch", "height", "width"],
    }
    latent = free(onnx.load(latents[1] / "pipeline.onnx"))
    assert latent["noise"] == ["batch", "latent_height", "latent_width"]
    weights = sum(np.prod(tensor.dims) for tensor in whole.graph.initializer)
    assert weights == pytest.approx(sum(p.numel() for p in unet.parameters()), rel=0.05)  # one copy
    # paths of this machine
    assert str(Path(torch.__file__).parent).encode() not in whole.SerializeToString()


def test_noise_has_a_slot_for_each_row_that_needs_it(pixels: Any, latents: Any):
    noise = {value.name: value for value in onnx.load(pixels[1] / "pipeline.onnx").graph.input}[
        "noise"
    ]
    # dpm2m: only the first step has noise
    assert noise.type.tensor_type.shape.dim[0].dim_value == 1
    sampler, image = BridgeSampler(latents[0].unet, BRIDGE, "dpm2m", 1), source(1, 16, 16)
    none = graphs.pipeline_graph(
        {"unet": onnx.load(latents[1] / "unet.onnx")}, sampler.table, sampler.shapes
    )
    made = run(none.SerializeToString(), source=image)  # its only input
    np.testing.assert_allclose(made, sampler(image, seed=0).numpy(), rtol=0, atol=1e-4)


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="ONNX Runtime 1.23, the last there, has no such operators"
)
def test_int8_is_small_and_near(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the caller's program logs is as before."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.ERROR)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        from_array(source(i + 1, 16, 16)[0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    made = export(
        file, tmp_path / "made", "--quantize", "int8", "--calibrate", str(tmp_path / "pictures")
    )
    assert logging.root.manager.disable == logging.ERROR
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == logging.NOTSET
    assert counts(onnx.load(made / "unet.onnx").graph)["QuantizeLinear"] > 20
    image = source(2, 16, 16)
    wanted = BridgeSampler.from_checkpoint(file)(image, seed=0).numpy()
    off = np.abs(OnnxBridgeSampler(made)(image.numpy(), seed=0) - wanted)
    assert 0 < off.mean() < 0.05


def test_int8_is_calibrated_on_what_the_network_sees():
    """Of a student, which starts from noise."""
    seen: list[np.ndarray] = []

    def call(module: nn.Module, x: torch.Tensor, t: torch.Tensor, conditions: Conditions):
        seen.append(x.numpy().copy())
        return module(x)

    network = wrap(nn.Conv2d(3, 3, 1), channels=3, call=call)
    sampler = BridgeSampler(network, BrownianBridge(objective="pinned"), calls=2)
    feeds = list(exporter.trajectory(sampler, [source(1, 8, 8), source(2, 8, 8)[:1]]))
    assert len(feeds) == len(seen) == 2 * len(sampler.table)
    assert all((feed["x"] == x).all() for feed, x in zip(feeds, seen, strict=True))


def test_settings_describe_the_export(pixels: Any, latents: Any):
    settings, latent = read_settings(pixels[1]), read_settings(latents[1])
    assert (settings["bridge"], settings["conditioned"]) == (BRIDGE.config(), True)
    assert (
        len(settings["timesteps"])
        == len(settings["prediction"])
        == len(settings["coefficients"])
        == STEPS
    )
    assert latent["latent_statistics"]["source_mean"] == [0.1, -0.2, 0.3]
    assert (latent["stride"], latent["latent_stride"]) == (4, 2)
    assert latent["sizes"].keys() == {
        "unet.onnx",
        "step.onnx",
        "encoder.onnx",
        "decoder.onnx",
        "pipeline.onnx",
    }


@pytest.mark.filterwarnings("error:the network was trained on pictures of")
def test_the_check_prints_a_difference_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Of pictures larger than the crops of training, without a warning: windows are no part of it."""
    unet = tiny_unet(0, condition_channels=3)
    save_checkpoint(tmp_path / "a.pt", unet, BRIDGE, image_size=8, pictures=Spec(crop=8))
    made = export(tmp_path / "a.pt", tmp_path / "made", "--check", "--steps", "2")
    assert "largest difference from PyTorch: " in capsys.readouterr().out
    assert OnnxBridgeSampler(made).pictures.crop == 8
    network_graph, errors = once(graphs.network_graph), [np.nan, 0.01]

    def off(*args: Any) -> onnx.ModelProto:
        model = network_graph(*args)
        bias = next(t for t in model.graph.initializer if t.name.endswith("out.2.bias"))
        other = onnx.numpy_helper.to_array(bias) + np.float32(errors.pop())
        bias.CopyFrom(onnx.numpy_helper.from_array(other, bias.name))
        return model

    monkeypatch.setattr(graphs, "network_graph", off)
    while errors:
        with pytest.raises(ValueError, match=r"differ by .* from PyTorch, more than 1e-04"):
            export(tmp_path / "a.pt", tmp_path / "wrong", "--check", "--steps", "2")
    assert not (tmp_path / "wrong").exists()


@needs_exporter
def test_a_quiet_export_prints_nothing(file: Path, tmp_path: Path, capfd: Any):
    """Of the command itself, by itself and by PyTorch's exporter."""
    for flags in (["--quiet"], []):
        Export.main([f"{file}", f"{tmp_path / 'onnx'}", "--overwrite", *flags])
        printed = capfd.readouterr()
        if flags:
            assert printed.out + printed.err == ""
    assert printed.err == f"writing ONNX graphs of {file} to {tmp_path / 'onnx'}\n"
    assert "largest difference from PyTorch: " in printed.out


def test_a_folder_is_not_replaced_unasked(file: Path, pixels: Any, tmp_path: Path):
    made = shutil.copytree(pixels[1], tmp_path / "made")
    (made / "pipeline.onnx").unlink()  # which may be shipped apart
    with pytest.raises(ValueError, match="exists: overwrite replaces an export"):
        export(file, made, "--steps", "3")
    assert len(read_settings(made)["timesteps"]) == STEPS
    export(file, made, "--steps", "3", "--overwrite")
    assert len(read_settings(made)["timesteps"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        ValueError, match="exists: overwrite replaces an export, or give another folder"
    ):
        export(file, tmp_path / "mine", "--overwrite")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize", "int8"], "need each other"),
        (["--quantize", "int8", "--calibrate", "x", "--dtype", "fp16"], "leaves the rest in fp32"),
        (["--quantize", "int8", "--calibrate", "none"], "no folder"),
        (["--dtype", "bf16"], "bf16 is of --compiled"),
    ],
)
def test_flags_that_are_refused(file: Path, tmp_path: Path, flags: list[str], message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export(file, tmp_path / "made", *flags)


def test_an_old_pytorch_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(
        ValueError,
        match=r"^export needs PyTorch 2\.11 or newer, got 2\.9\.1: pip install -U torch$",
    ):
        export(file, tmp_path / "made")


def test_float16_does_not_overflow_on_real_activations():
    """The bundled network's largest activation on the bundled drawings, against float16's 65504."""
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=2)
    largest: list[float] = []
    for module in sampler.unet.modules():
        module.register_forward_hook(
            lambda module, given, made: largest.append(float(made.abs().max()))
        )
    sampler([open_image(path) for path in sorted(demo.DRAWINGS.glob("*.png"))[:4]], seed=0)
    assert len(largest) > 2 * 50
    assert max(largest) < 65504 / 16


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [["--pipeline"], ["--dtype", "fp16"]], ids=["fp32", "fp16"])
@pytest.mark.parametrize("network", ["paper's", "bundled"])
def test_large_networks(network: str, tmp_path: Path, flags: list[str]):
    """The paper's, of 237.1 M parameters, and the bundled one: the check of 10 steps against PyTorch."""
    file = demo.WEIGHTS
    if network == "paper's":
        unet, file = UNet(3, 3), tmp_path / "paper.pt"
        torch.manual_seed(0)
        for parameter in unet.parameters():
            if not parameter.any():
                std = (3 * parameter[0].numel()) ** -0.5 if parameter.ndim > 1 else 0.02
                nn.init.normal_(parameter, std=std)
        save_checkpoint(file, unet, ABridge(), image_size=64)
    export(file, tmp_path / "made", "--check", "--solver", "dpm2m", "--steps", str(STEPS), *flags)


@pytest.mark.nightly  # the export takes half a minute
def test_volumes(tmp_path: Path):
    volume: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "axes": 3,
        "strides": ((1, 2, 2),),
    }
    unet, model = tiny_unet(**volume, condition_channels=1), tmp_path / "volume.pt"
    save_checkpoint(model, unet, BRIDGE, image_size=(4, 8, 8), solver="sde-dpm2m", steps=3)
    exported = OnnxBridgeSampler(export(model, tmp_path / "onnx", "--pipeline", "--check"))
    sampler = BridgeSampler.from_checkpoint(model)
    assert (exported.axes, exported.image_size, exported.settings["stride"]) == (
        3,
        (4, 8, 8),
        [1, 2, 2],
    )
    image = source(2, 10, 7)[:, :1, None].repeat(1, 1, 5, 1, 1)
    calls: list[dict[str, Any]] = [{}, {"window": (4, 8, 4)}, {"mask": (image > 0).float()}]
    for settings in calls:
        wanted = sampler(image, seed=[3, 5], **settings).numpy()
        given = settings | {name: settings[name].numpy() for name in settings.keys() & {"mask"}}
        made = exported(image.numpy(), seed=[3, 5], **given)
        assert np.abs(made - wanted).max() <= 1e-4 * np.abs(wanted).max()
    with pytest.raises(
        ValueError, match=r"non-empty \(B, 1, D, H, W\) batch, got shape \(1, 2, 1, 10, 7\)"
    ):
        exported(image[None, :, :, 0].numpy())
