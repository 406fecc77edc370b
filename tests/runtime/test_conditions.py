"""An export with images, classes and tokens, guided, and one of two directions, against PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import bbdm
from bbdm import DDBM, ABridge, BridgeSampler, save_checkpoint, solvers
from bbdm.bridges import Bridge
from bbdm.bridges.timesteps import StepTable
from bbdm.networks.base import Conditions, Network
from bbdm.runtime import OnnxBridgeSampler
from bbdm.runtime.command import Runtime
from tests.conftest import noise, sweep, tiny_dit, tiny_unet
from tests.onnx.exports import export, tiny_codec

BRIDGE = ABridge(50)
SEEN: dict[str, Any] = {
    "images": {"sar": 2},
    "classes": {"style": ("ink", "oil")},
    "tokens": {"text": 6},
    "drop": {"sar": 0.1, "style": 0.1, "text": 0.1},
}
RANDOM = np.random.default_rng(0)
SOURCE = RANDOM.uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
TEXTS = [RANDOM.standard_normal((length, 6)).astype(np.float32) for length in (2, 5)]
SAR = RANDOM.uniform(-1, 1, (2, 2, 8, 8)).astype(np.float32)
CONDITIONS: dict[str, Any] = {"sar": SAR, "style": ["oil", None], "text": TEXTS}
GUIDED: dict[str, dict[str, Any]] = {
    "guided": {"guidance": 3.0},
    "by name": {"guidance": {"style": 2, "text": 0.5}},
    "windows": {"guidance": 2, "window": 4, "batch_size": 3},
}


@pytest.fixture(scope="module")
def network() -> Network:
    return tiny_dit(depth=1, condition_channels=3, **SEEN)


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("conditions") / "c.pt"
    save_checkpoint(file, network, BRIDGE, solver="sde-dpm2m", steps=3)
    return export(file, file.parent / "onnx", "--pipeline")


@pytest.fixture(scope="module")
def sampler(folder: Path) -> OnnxBridgeSampler:
    return OnnxBridgeSampler(folder)


def compare(
    network: Network, sampler: OnnxBridgeSampler, conditions: dict[str, Any], **settings: Any
) -> np.ndarray:
    """The runtime's result, which is PyTorch's to 1e-4."""
    reference = BridgeSampler(network, BRIDGE, "sde-dpm2m", 3)
    tensors = {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in conditions.items()
    }
    expected = reference(torch.from_numpy(SOURCE), seed=7, conditions=tensors, **settings)
    result = sampler(SOURCE, seed=7, conditions=conditions, **settings)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    return result


@pytest.mark.parametrize("settings", GUIDED.values(), ids=GUIDED.keys())
def test_a_guided_call_is_pytorch_s(
    network: Network, sampler: OnnxBridgeSampler, settings: dict[str, Any]
):
    guided = compare(network, sampler, CONDITIONS, **settings)
    plain = {name: value for name, value in settings.items() if name != "guidance"}
    unguided = compare(network, sampler, CONDITIONS, **plain)
    assert np.abs(guided - unguided).max() > 0.01
    # each condition is seen
    for changed in ({"style": "ink"}, {"text": None}, {"sar": np.zeros_like(SAR)}):
        other = compare(network, sampler, CONDITIONS | changed, **plain)
        assert np.abs(other - unguided).max(axis=(1, 2, 3)).min() > 1e-3


def test_the_whole_translation_in_one_graph(network: Network, folder: Path):
    whole = onnxruntime.InferenceSession(
        folder / "pipeline.onnx", providers=["CPUExecutionProvider"]
    )
    text = np.zeros((2, 5, 6), np.float32)
    for row, tokens in zip(text, TEXTS, strict=True):
        row[: len(tokens)] = tokens
    sampler = BridgeSampler(network, BRIDGE, "sde-dpm2m", 3)
    normals = RANDOM.standard_normal((3, *SOURCE.shape)).astype(np.float32)
    feeds = {"source": SOURCE, "sar": SAR, "style": np.array([1, 2]), "text": text}
    (result,) = whole.run(None, feeds | {"noise": normals[sampler.table.noisy]})
    conditions = CONDITIONS | {"sar": torch.from_numpy(SAR)}
    expected = sampler(
        torch.from_numpy(SOURCE), noise=torch.from_numpy(normals), conditions=conditions
    )
    np.testing.assert_allclose(np.asarray(result), expected, rtol=0, atol=1e-4)


def test_settings_say_what_the_network_sees(folder: Path, tmp_path: Path):
    settings = json.loads((folder / "bridge.json").read_text())
    assert settings["version"] == 6
    assert {name: settings[name] for name in SEEN} == json.loads(json.dumps(SEEN))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "bridge.json").write_text(json.dumps(settings | {"drop": {"other": 0.1}}))
    with pytest.raises(
        ValueError, match="drop must be of the conditions sar, style, text, got 'other'"
    ):
        OnnxBridgeSampler(copy)


def test_command_line(folder: Path, sampler: OnnxBridgeSampler, tmp_path: Path):
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "text.npy", TEXTS[0])
    np.save(tmp_path / "sar.npy", SAR[0])
    command = [str(folder), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--seed", "3"]
    words = [
        f"--condition=text={tmp_path}/text.npy",
        f"--condition=sar={tmp_path}/sar.npy",
        "--condition=style=oil",
    ]
    conditions = {"text": TEXTS[0], "sar": SAR[:1], "style": "oil"}
    guided = {"guidance": {"style": 3, "sar": 0.5}}
    for flags, options in (
        (words, {"conditions": conditions}),
        ([*words, "--guidance", "style=3,sar=0.5"], {"conditions": conditions, **guided}),
        (
            [f"--condition={name}=none" for name in conditions],
            {"conditions": dict.fromkeys(conditions)},
        ),
    ):
        Runtime.main([*command, *flags])
        result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
        assert np.array_equal(result, np.asarray(sampler(tmp_path / "a.png", 3, **options)[0]))
    for flags, message in (
        (words[:2], "condition 'style' is missing: this network has 'sar'"),
        (
            [*words[:2], "--condition=style=comic"],
            "condition 'style' must be of ink, oil, got 'comic'",
        ),
        (
            [*words[1:], "--condition=text=hello"],
            r"condition 'text' takes FILE\.npy or none, got 'hello'",
        ),
        (
            [*words, "--condition=light=1"],
            r"--condition takes NAME=VALUE, once of .* 'sar' .*; got 'light=1'",
        ),
        ([*words, "--guidance", "light=2"], "guidance must be for conditions, .*, got 'light'"),
    ):
        with pytest.raises(ValueError, match=message):
            Runtime.main([*command, *flags])
    with pytest.raises(SystemExit, match="2"):
        Runtime.main([*command, *words, "--guidance", "much"])


@pytest.mark.parametrize(
    "flags", [["--quantize", "int8", "--calibrate", "."], []], ids=["int8", "codec"]
)
def test_exports_that_are_refused(tmp_path: Path, flags: list[str]):
    network = tiny_unet(0, condition_channels=3, images={"sar": 2}, classes={"style": 2})
    save_checkpoint(tmp_path / "c.pt", network, BRIDGE, codec=None if flags else tiny_codec())
    message = "sources alone, .* has sar, style too" if flags else "with a codec, .* has sar too"
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "c.pt", tmp_path / "onnx", *flags)


@pytest.mark.nightly
def test_another_network(tmp_path: Path):
    unet = tiny_unet(
        0, condition_channels=3, channel_mult=(1,), attention_resolutions=(1,), **SEEN
    ).eval()
    save_checkpoint(tmp_path / "c.pt", unet, BRIDGE, solver="sde-dpm2m", steps=3)
    sampler = OnnxBridgeSampler(export(tmp_path / "c.pt", tmp_path / "onnx", "--check"))
    compare(unet, sampler, CONDITIONS, guidance={"style": 2, "text": 3})


PRECONDITIONED = DDBM(sigma_data=0.3, sigma_source=0.6, cov=0.1)  # whose tables differ by direction


@pytest.mark.parametrize(
    ("bridge", "version"), sweep([(BRIDGE, 6), (PRECONDITIONED, 7)], [(PRECONDITIONED, 7)])
)
def test_an_export_goes_both_ways(bridge: Bridge, version: int, tmp_path: Path) -> None:
    parts = nn.ModuleDict({"conv": nn.Conv2d(6, 3, 3, padding=1), "way": nn.Embedding(2, 3)})

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return (
            m["conv"](torch.cat([x, c["source"]], 1))
            + (m["way"](c["direction"]) + t[:, None] / 50)[..., None, None]
        )

    network = bbdm.wrap(parts, 3, 3, call=call, classes={"direction": ("AtoB", "BtoA")}).eval()
    save_checkpoint(tmp_path / "c.pt", network, bridge, image_size=8)
    folder = export(tmp_path / "c.pt", tmp_path / "onnx", "--steps", "3", network=network)
    # which the page refuses, or reads
    assert json.loads((folder / "bridge.json").read_text())["version"] == version
    exported, sampler = OnnxBridgeSampler(folder), BridgeSampler(network, bridge, steps=3)
    for how in ({}, {"steps": 2}):
        results = [exported(SOURCE, seed=7, direction=way, **how) for way in ("AtoB", "BtoA")]
        for way, result in zip(("AtoB", "BtoA"), results, strict=True):
            expected = sampler(torch.from_numpy(SOURCE), seed=7, direction=way, **how).numpy()
            np.testing.assert_allclose(result, expected, atol=1e-4)
        assert np.abs(results[0] - results[1]).max() > 0.01
    noise(3, 8, 8).save(tmp_path / "x.png")
    command = [str(folder), str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), "--seed", "5"]
    (expected,) = exported([tmp_path / "x.png"], 5, direction="BtoA")
    for flags in (
        ["--direction", "BtoA"],
        ["--condition", "direction=BtoA"],
        ["--condition", "direction=1"],
    ):
        Runtime.main([*command, *flags])
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out" / "x.png")), np.asarray(expected)
        )
    with pytest.raises(
        ValueError,
        match=r"^give the direction once, by --direction; got --condition direction=AtoB too$",
    ):
        Runtime.main([*command, "--direction", "BtoA", "--condition", "direction=AtoB"])
    with pytest.raises(ValueError, match=r"^direction must be AtoB or BtoA, .* got None$"):
        Runtime.main([*command, "--condition", "direction=none"])
    if version == 7:
        with pytest.raises(ValueError, match=r"pipeline\.onnx has the steps of one direction"):
            export(tmp_path / "c.pt", tmp_path / "whole", "--pipeline", network=network)


def test_an_export_of_a_solver_of_your_own_goes_both_ways_without_its_module(
    tmp_path: Path,
) -> None:
    """The solver takes no timesteps, and one of its times stands twice."""

    def doubled(bridge: Bridge, steps: int | None) -> StepTable:
        times = bridge.top * np.array([1, 0.5, 0.5])
        rows = np.array([[0, 0.5, 0.5, 0, 0], [0, 0.5, 0.7, -0.2, 0], [0, 0, 0.5, 0.5, 0]])
        return solvers.table(bridge, times, rows)

    parts = nn.ModuleDict({"conv": nn.Conv2d(6, 3, 3, padding=1), "way": nn.Embedding(2, 3)})

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return m["conv"](torch.cat([x, c["source"]], 1)) + m["way"](c["direction"])[..., None, None]

    network = bbdm.wrap(parts, 3, 3, call=call, classes={"direction": ("AtoB", "BtoA")}).eval()
    with pytest.MonkeyPatch.context() as registered:
        registered.setitem(solvers.SOLVERS._things, "doubled", (doubled, None))
        save_checkpoint(tmp_path / "c.pt", network, PRECONDITIONED, solver="doubled", image_size=8)
        folder = export(tmp_path / "c.pt", tmp_path / "onnx", network=network)
    exported = OnnxBridgeSampler(folder)
    sampler = BridgeSampler(network, PRECONDITIONED)
    for way, bridge in (("AtoB", PRECONDITIONED), ("BtoA", PRECONDITIONED.turned)):
        (result,) = exported(SOURCE[:1], seed=7, direction=way)
        (expected,) = sampler(
            torch.from_numpy(SOURCE[:1]), seed=7, direction=way, solver=doubled(bridge, None)
        )
        np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)


def test_a_class_may_be_called_direction(tmp_path: Path) -> None:
    """Of a network that translates one way, it is a condition as any other."""
    parts = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "wind": nn.Embedding(2, 3)})

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return m["conv"](x) + m["wind"](c["direction"])[..., None, None]

    network = bbdm.wrap(parts, 3, call=call, classes={"direction": ("north", "south")}).eval()
    save_checkpoint(tmp_path / "c.pt", network, BRIDGE, steps=2)
    folder = export(tmp_path / "c.pt", tmp_path / "onnx", network=network)
    noise(3, 8, 8).save(tmp_path / "x.png")
    command = [str(folder), str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), "--seed", "5"]
    Runtime.main([*command, "--condition", "direction=south"])
    result = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    conditions = {"direction": "south"}
    (expected,) = BridgeSampler(network, BRIDGE, steps=2)(
        [tmp_path / "x.png"], 5, conditions=conditions
    )
    assert np.abs(result.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    with pytest.raises(ValueError, match=r"^the network has one direction, got --direction BtoA$"):
        Runtime.main([*command, "--direction", "BtoA"])
