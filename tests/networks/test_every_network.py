"""Any network, wherever one runs: transformers, UNets, modules; of other channels, with further images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.arrays import in_channels
from bbdm.networks.base import Conditions, Network
from bbdm.networks.dit import DiT
from bbdm.networks.layers import ConditionedNetwork
from bbdm.networks.unet import UNet
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import TINY, MakeTrainer, newest, sweep, tiny_unet
from tests.onnx.exports import export, tiny_codec

BRIDGE = ABridge(50)
SHORT: dict[str, Any] = {**TINY, "channel_mult": (1,), "attention_resolutions": ()}
SIZES: dict[str, Any] = {
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
}
SIZES |= {"norm_num_groups": 4, "attention_head_dim": 8}  # of networks of diffusers


def drawn(channels: int, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return (
        torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2
        - 1
    )


class Plain(nn.Module):
    """Convolutions that see the time, with a buffer, weights that are used twice, and a dtype of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.middle.weight
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.scale = nn.Buffer(torch.full((1, 8, 1, 1), 0.5))
        self.dtype = dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(
            self.first(torch.cat([x, condition], 1)) + t.to(x.dtype)[:, None, None, None] / 50
        )
        return self.last(self.again(self.middle(h)) * self.scale.to(x.dtype)).to(self.dtype)


class Two(nn.Module):
    """A module that sees a source of 3 channels, and two further images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1 + 3 + 2 + 1, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        seen = torch.cat([x, *(conditions[name] for name in ("sar", "source", "dem"))], 1)
        return self.last(torch.tanh(self.first(seen) + t.to(x.dtype)[:, None, None, None] / 50))


class Own(Network):
    """A user's class, with weights for the time."""

    channels, condition_channels, stride = 3, 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.time, self.layer = nn.Linear(1, 3), nn.Conv2d(6, 3, 1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(t[:, None] / 1000)

    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        return self.layer(torch.cat([x, conditions["source"]], 1)) + embedding[:, :, None, None]


def diffusers_unet() -> Network:
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    model: Any = UNet2DModel(**blocks, **SIZES)
    call: Any = lambda m, x, t, c: m(torch.cat([x, c["source"]], dim=1), t).sample  # noqa: E731
    return bbdm.wrap(model, condition_channels=3, stride=2, call=call)


def further(**images: int) -> Network:
    return bbdm.wrap(
        Two(), channels=1, condition_channels=3, images=images or {"sar": 2, "dem": 1}, stride=2
    )


MAKERS: dict[str, Callable[[], Network]] = {  # the first ones have 3 channels on both sides
    "plain": lambda: bbdm.wrap(Plain(), condition_channels=3),
    # what it returns, of any dtype
    "bfloat16": lambda: bbdm.wrap(Plain(torch.bfloat16), condition_channels=3),
    "diffusers": diffusers_unet,
    "dit": lambda: DiT(width=16, depth=2, heads=2, patch=2),
    "unet, patch": lambda: UNet(
        **{**TINY, "condition_channels": 3, "patch": 2, "channel_mult": (1, 1)}
    ),
    "own class": Own,
    "3 to 1": lambda: tiny_unet(**SHORT, in_channels=1, out_channels=1, condition_channels=3),
    "2 to 3": lambda: tiny_unet(**SHORT, condition_channels=2, endpoint=(1, 0, 1)),
    # it does not see the source, of which the bridge ends in the third channel
    "unseen": lambda: tiny_unet(**SHORT, in_channels=1, out_channels=1, endpoint=(2,)),
    "further": further,
}


def made(name: str) -> Network:
    """The same weights at each call, none of them zero."""
    torch.manual_seed(0)
    network = MAKERS[name]()
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


every_network = pytest.mark.parametrize("name", MAKERS)
daily_networks = pytest.mark.parametrize("name", sweep(MAKERS, ["further"]))


def given(
    network: Network, height: int = 8, width: int = 8
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A source and further images for a network."""
    images = {
        name: drawn(count, height, width, seed=i + 1)
        for i, (name, count) in enumerate(network.images.items())
    }
    return drawn(network.source_channels, height, width), images


def module_of(name: str) -> dict[str, Any]:
    """The keyword with which its file is loaded."""
    network = made(name)
    return {} if isinstance(network, ConditionedNetwork) else {"network": network}


def within(network: Network) -> float:
    """How far results may differ; of a network that returns bfloat16, two of its steps."""
    return (
        2e-2 if getattr(getattr(network, "module", None), "dtype", None) == torch.bfloat16 else 1e-4
    )


# The source in the target's channels


def test_the_source_is_itself_its_mean_or_the_channels_that_are_named():
    """Of an array, with the bits of a tensor."""
    module, source = nn.Conv2d(1, 1, 1), drawn(3)
    mean = source.double().mean(1, keepdim=True).float()
    assert (
        bbdm.wrap(module, 3).endpoint(source)
        is bbdm.wrap(module, endpoint=(0, 1, 2)).endpoint(source)
        is source
    )
    cases: list[tuple[int, Any, torch.Tensor]] = [
        (1, None, mean),
        (2, None, mean.expand(-1, 2, -1, -1)),
        (2, (2, 0), source[:, [2, 0]]),
        (3, (2, 1, 0), source.flip(1)),
    ]
    for channels, endpoint, wanted in cases:
        found = bbdm.wrap(module, channels, 3, endpoint=endpoint).endpoint(source)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0 if endpoint else 1e-6)
        np.testing.assert_array_equal(
            in_channels(source.numpy(), channels, endpoint), found.numpy()
        )
    wrapped = bbdm.wrap(module, 1), bbdm.wrap(module, 1, 13), bbdm.wrap(module, 2, endpoint=(3, 1))
    assert [each.source_channels for each in wrapped] == [1, 13, 4]
    with pytest.raises(ValueError, match="the source must have 3 channels, got 2"):
        bbdm.wrap(module, 1, 3).endpoint(drawn(2))


# Wherever a network runs


@pytest.mark.parametrize("name", [*MAKERS][:6])
def test_it_is_trained_saved_and_resumed(name: str, make_trainer: MakeTrainer, tmp_path: Path):
    def run(folder: str, **settings: Any) -> Any:
        torch.manual_seed(0)
        return make_trainer(folder, unet=MAKERS[name](), **settings)

    whole = run("whole")
    whole.fit()
    run("half", epochs=1).fit()
    resumed = run("half")
    assert resumed.resume_newest()
    resumed.fit()
    assert resumed.step == whole.step == 4
    for one, other in zip(
        whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    whole.save(tmp_path / "w.pt")
    sampler = BridgeSampler.from_checkpoint(tmp_path / "w.pt", steps=2, **module_of(name))
    assert torch.equal(
        sampler(drawn(3), seed=0),
        BridgeSampler(whole.average, whole.bridge, steps=2)(drawn(3), seed=0),
    )
    assert load_checkpoint(newest(whole)).unet.kind == whole.network.kind


@every_network
def test_the_sampler_of_its_file_calls_it_as_its_user_does(name: str, tmp_path: Path):
    # of which weights are tied
    network, path = made(name), tmp_path / ("c.safetensors" if name == "plain" else "c.pt")
    save_checkpoint(path, network, BRIDGE)
    sampler = BridgeSampler.from_checkpoint(path, solver="ddim", steps=2, **module_of(name))
    assert sampler.unet.description() == network.description()
    source, images = given(network)
    first, second = sampler.stream(source, seed=0, conditions=images)
    y = source if source.shape[1] == network.channels else source.mean(1, keepdim=True)
    if network.endpoint_channels is not None:
        y = torch.stack([source[:, channel] for channel in network.endpoint_channels], 1)
    seen = {**({"source": source} if network.condition_channels else {}), **images}
    with torch.no_grad():
        prediction = network(y, torch.full((2,), 50.0), seen).float()
        torch.testing.assert_close(first.x0hat, y - prediction, rtol=1e-4, atol=1e-4)
        prediction = network(first.x, torch.full((2,), float(second.t)), seen).float()
    torch.testing.assert_close(second.x0hat, first.x - prediction, rtol=1e-3, atol=1e-2)


@every_network
def test_sizes_are_padded_and_batches_split(name: str):
    """By repeating the last row and column, of all images."""
    network = made(name)
    source, images = given(network, 7, 5)
    sampler = BridgeSampler(network, BRIDGE, steps=2)
    results = sampler(source, seed=3, conditions=images)
    assert results.shape == (2, network.channels, 7, 5)
    one_by_one = sampler(source, seed=3, conditions=images, batch_size=1)
    torch.testing.assert_close(one_by_one, results, rtol=0, atol=1e-5)
    if network.stride == 2:  # of stride 1, this is another size
        wide = [nn.functional.pad(v, (0, 1, 0, 1), "replicate") for v in (source, *images.values())]
        padded = sampler(wide[0], seed=3, conditions=dict(zip(images, wide[1:], strict=True)))
        torch.testing.assert_close(padded[:, :, :7, :5], results)


@pytest.mark.nightly
@every_network
def test_it_is_compiled_and_packaged(name: str, tmp_path: Path):
    network = made(name)
    source, images = given(network)
    eager = BridgeSampler(network, BRIDGE, steps=3)(source, seed=0, conditions=images)
    sampler = BridgeSampler(network, BRIDGE, steps=3, compile=True, dtype="fp32")
    torch.testing.assert_close(
        sampler(source, seed=0, conditions=images), eager, rtol=0, atol=within(network)
    )
    with torch.compiler.set_stance("fail_on_recompile"):  # another step, another source
        sampler(source.flip(0), seed=1, conditions=images)
    sampler.save_compiled(tmp_path / "n.pt2", 8, 2)
    packaged = BridgeSampler(network, BRIDGE, steps=3, compiled=tmp_path / "n.pt2")
    torch.testing.assert_close(
        packaged(source, seed=0, conditions=images), eager, rtol=0, atol=within(network)
    )


@daily_networks
def test_it_is_exported_and_runs_without_torch(name: str, tmp_path: Path):
    """Step by step, with a mask, and as one graph."""
    network = made(name)
    save_checkpoint(tmp_path / "c.pt", network, BRIDGE)
    flags = ("--steps", "2", "--pipeline", "--solver", "sde-dpm2m")
    folder = export(tmp_path / "c.pt", tmp_path / "onnx", *flags, **module_of(name))
    source, images = given(network)
    arrays = {name: image.numpy() for name, image in images.items()}
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:] = 1
    sampler = BridgeSampler(network, BRIDGE, "sde-dpm2m", steps=2)
    exported = OnnxBridgeSampler(folder)
    noise = torch.randn(2, 2, network.channels, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted = sampler(source, noise=noise, conditions=images, mask=mask)
    results = exported(source.numpy(), noise=noise.numpy(), conditions=arrays, mask=mask.numpy())
    np.testing.assert_allclose(results, wanted, rtol=0, atol=within(network))
    whole = onnxruntime.InferenceSession(
        folder / "pipeline.onnx", providers=["CPUExecutionProvider"]
    )
    drawn_there = noise.numpy()[sampler.table.noisy]
    (at_once,) = whole.run(None, {"source": source.numpy(), "noise": drawn_there, **arrays})
    wanted = sampler(source, noise=noise, conditions=images)
    np.testing.assert_allclose(np.asarray(at_once), wanted, rtol=0, atol=within(network))


def test_other_channels_than_the_source_s():
    """Where a mask is 0 the source stays, in the target's channels; an array gives an array."""
    source, mask = drawn(3), torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    sampler, mean = BridgeSampler(made("3 to 1"), BRIDGE, steps=2), source.mean(1, keepdim=True)
    results = sampler(source, seed=0, mask=mask)
    torch.testing.assert_close(results[:, :, 4:], mean[:, :, 4:])
    assert not torch.allclose(results[:, :, :4], mean[:, :, :4], atol=1e-2)
    array = source[0].permute(1, 2, 0).numpy()
    assert sampler(array, seed=0).shape == (8, 8, 1)
    assert BridgeSampler(made("2 to 3"), BRIDGE, steps=2)(array[:, :, :2], seed=0).shape == (
        8,
        8,
        3,
    )
    with pytest.raises(
        ValueError,
        match=r"source must be a non-empty \(B, 3, H, W\) batch, got shape \(2, 1, 8, 8\)",
    ):
        sampler(drawn(1), seed=0)
    network = tiny_unet(**SHORT, condition_channels=3, endpoint=(1, 0, 2))
    with pytest.raises(ValueError, match="with a codec, source and target have the same channels"):
        BridgeSampler(network, BRIDGE, codec=tiny_codec())


def test_a_file_of_a_wrapped_network_needs_it(tmp_path: Path):
    """Of the same sizes, conditions and weights; its class may have moved, and tied weights stay tied."""
    wide = Plain()
    wide.last = nn.Conv2d(8, 3, 5, padding=2)
    cases: list[tuple[str, Network | None, str]] = [
        ("plain", None, r"weights of a tests.*network.Plain .* network=bbdm.wrap"),
        (
            "plain",
            bbdm.wrap(Plain(), condition_channels=3, stride=4),
            r"'stride': 1}; the one given .*'stride': 4}",
        ),
        (
            "plain",
            bbdm.wrap(wide, condition_channels=3),
            r"another shape: module.last.weight \(3, 8, 3, 3\) \(wanted",
        ),
        ("further", further(sar=2, dsm=1), r"'dem': 1, .*; the one given has .*'dsm': 1, "),
        ("dit", made("plain"), "a network was given, and the file describes its own, a DiT"),
    ]
    for name, network, message in cases:
        save_checkpoint(tmp_path / f"{name}.pt", made(name), BRIDGE)
        with pytest.raises(ValueError, match=message) as caught:
            BridgeSampler.from_checkpoint(tmp_path / f"{name}.pt", network=network)
        assert isinstance(caught.value, IncompleteFileError) == (network is None)
    moved = bbdm.wrap(type("Moved", (Plain,), {})(), condition_channels=3)
    loaded: Any = load_checkpoint(tmp_path / "plain.pt").build_unet(network=moved)
    assert loaded.module.again.weight is loaded.module.middle.weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"condition_channels": -1}, "condition_channels must be at least 0, got -1"),
        ({"stride": 2.0}, "stride must be of integers, got 2.0"),
        ({"module": "unet"}, "module must be a torch.nn.Module, got str"),
        (
            {"axes": 3, "stride": (1, 2)},
            r"stride must be a number, or one for each of 3 axes, got \(1, 2\)",
        ),
        (
            {"endpoint": (0,)},
            r"a source channel, counted from 0, for each of 3 channels, got \(0,\)",
        ),
        (
            {"endpoint": (0, 1, -1)},
            r"a source channel, counted from 0, for each of 3 channels, got \(0, 1, -1\)",
        ),
        (
            {"endpoint": (0, 1, 3), "condition_channels": 3},
            r"of 3 counted from 0, for each .*, got \(0, 1, 3\)",
        ),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str):
    builders: list[Any] = [bbdm.wrap] + ([UNet, DiT] if "endpoint" in settings else [])
    for build in builders:
        with pytest.raises(ValueError, match=message):
            build(
                **({"module": Plain()} if build is bbdm.wrap else {"condition_channels": 0})
                | settings
            )
    plain: Any = Plain()
    for build in (
        lambda: BridgeSampler(plain, BRIDGE),
        lambda: save_checkpoint("c.pt", plain, BRIDGE),
    ):
        with pytest.raises(
            ValueError, match=r"must be a network, got Plain: bbdm\.wrap makes one of any module"
        ):
            build()
