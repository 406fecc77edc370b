"""Sources with other channels than the target, and further condition images, wherever a network runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.files.bridge_json import read_settings
from bbdm.networks.arrays import in_channels
from bbdm.networks.base import Conditions, Network
from bbdm.networks.dit import DiT
from bbdm.networks.layers import ConditionedNetwork
from bbdm.networks.unet import UNet
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import TINY, tiny_dit, tiny_unet
from tests.networks.test_base import NETWORKS, randomised
from tests.nightly import sweep
from tests.onnx.exports import export

BRIDGE = ABridge(50)
SHORT: dict[str, Any] = {**TINY, "channel_mult": (1,), "attention_resolutions": ()}


def drawn(channels: int, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Two(nn.Module):
    """A module that sees a source of 3 channels, and two further images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1 + 3 + 2 + 1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        seen = torch.cat([x, *(conditions[name] for name in ("sar", "source", "dem"))], 1)
        return self.last(torch.tanh(self.first(seen) + t.to(x.dtype)[:, None, None, None] / 50))


def three_to_one() -> Network:
    return tiny_unet(**SHORT, in_channels=1, out_channels=1, condition_channels=3)


def two_to_three() -> Network:
    return tiny_unet(**SHORT, condition_channels=2, endpoint=(1, 0, 1))


def transformer() -> Network:
    return tiny_dit(depth=1, channels=1, condition_channels=2, condition="tokens")


def unseen() -> Network:
    """It does not see the source, of which the bridge ends in the third channel."""
    return tiny_unet(**SHORT, in_channels=1, out_channels=1, endpoint=(2,))


def further() -> Network:
    torch.manual_seed(0)
    return bbdm.wrap(Two(), channels=1, condition_channels=3, images={"sar": 2, "dem": 1}, stride=2)


MAKERS = {"3 to 1": three_to_one, "2 to 3": two_to_three, "tokens": transformer, "unseen": unseen, "further": further}
MAKERS |= {name: partial(randomised, make) for name, make in NETWORKS.items()}  # of 3 channels on both sides
every_network = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
daily_networks = pytest.mark.parametrize("make", sweep(MAKERS.values(), [further]), ids=MAKERS.keys())


def given(network: Network, height: int = 8, width: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A source and further images for a network."""
    images = {name: drawn(count, height, width, seed=i + 1) for i, (name, count) in enumerate(network.images.items())}
    return drawn(network.source_channels, height, width), images


def y_of(network: Network, source: torch.Tensor) -> torch.Tensor:
    """By hand."""
    if source.shape[1] == network.channels and network.endpoint_channels is None:
        return source
    if network.endpoint_channels is not None:
        return torch.stack([source[:, channel] for channel in network.endpoint_channels], 1)
    return source.mean(1, keepdim=True)


def module_of(make: Callable[[], Network]) -> dict[str, Any]:
    """The keyword with which its file is loaded."""
    network = make()
    return {} if isinstance(network, ConditionedNetwork) else {"network": network}


def within(network: Network, other: float = 1e-4) -> float:
    """How far results may differ; of a network that returns bfloat16, two of its steps."""
    return 2e-2 if getattr(getattr(network, "module", None), "dtype", None) == torch.bfloat16 else other


# The source in the target's channels


def test_the_same_channels_are_the_source_itself():
    source = drawn(3)
    assert bbdm.wrap(nn.Conv2d(3, 3, 1)).endpoint(source) is source
    assert bbdm.wrap(nn.Conv2d(3, 3, 1), endpoint=(0, 1, 2)).endpoint(source) is source


def test_other_channels_are_their_mean_or_those_that_are_named():
    module, source = nn.Conv2d(1, 1, 1), drawn(3)
    mean = source.double().mean(1, keepdim=True).float()
    torch.testing.assert_close(bbdm.wrap(module, 1, 3).endpoint(source), mean)
    torch.testing.assert_close(bbdm.wrap(module, 2, 3).endpoint(source), mean.expand(-1, 2, -1, -1))
    assert torch.equal(bbdm.wrap(module, 2, 3, endpoint=(2, 0)).endpoint(source), source[:, [2, 0]])
    assert torch.equal(bbdm.wrap(module, 3, 3, endpoint=(2, 1, 0)).endpoint(source), source.flip(1))
    wrapped = bbdm.wrap(module, 1), bbdm.wrap(module, 1, 13), bbdm.wrap(module, 2, endpoint=(3, 1))
    assert [each.source_channels for each in wrapped] == [1, 13, 4]
    with pytest.raises(ValueError, match="the source must have 3 channels, got 2"):
        bbdm.wrap(module, 1, 3).endpoint(drawn(2))


def test_an_array_has_the_bits_of_a_tensor():
    source = drawn(5)
    for channels, endpoint in ((1, None), (3, None), (2, (4, 1))):
        made = in_channels(source.numpy(), channels, endpoint)
        np.testing.assert_array_equal(made, in_channels(source, channels, endpoint).numpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": (0,)}, r"a source channel for each of the 3 channels, got \(0,\)"),
        ({"endpoint": (0, 1, 3), "condition_channels": 3}, r"must be of the source's 3 channels, got \(0, 1, 3\)"),
        ({"endpoint": (0, 1, -1)}, r"must be of source channels, counted from 0, got \(0, 1, -1\)"),
        ({"images": {"sar": 0}}, r"images\['sar'\] must be an integer of at least 1, got 0"),
        ({"images": {"source": 1}}, "a name of images must be an identifier, and none of source, .*, got 'source'"),
        ({"images": {"two words": 1}}, "a name of images must be an identifier, .*, got 'two words'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        bbdm.wrap(nn.Conv2d(3, 3, 1), **settings)
    if "images" not in settings:
        for build in (UNet, DiT):
            with pytest.raises(ValueError, match=message):
                build(**{"condition_channels": 0, **settings})


# Wherever a network runs


@every_network
def test_the_sampler_calls_it_as_its_user_does(make: Callable[[], Network]):
    network = make().eval()
    source, images = given(network)
    first, second = BridgeSampler(network, BRIDGE, "ddim", steps=2).stream(source, seed=0, conditions=images)
    y = y_of(network, source)
    seen = {**({"source": source} if network.condition_channels else {}), **images}
    with torch.no_grad():
        prediction = network(y, torch.full((2,), 50.0), seen).float()
        torch.testing.assert_close(first.x0hat, y - prediction, rtol=1e-4, atol=1e-4)
        prediction = network(first.x, torch.full((2,), float(second.t)), seen).float()
    torch.testing.assert_close(second.x0hat, first.x - prediction, rtol=1e-3, atol=1e-2)


@every_network
def test_sizes_are_padded_and_batches_split(make: Callable[[], Network]):
    """By repeating the last row and column, of all images."""
    network = make().eval()
    source, images = given(network, 7, 5)
    sampler = BridgeSampler(network, BRIDGE, steps=2)
    made = sampler(source, seed=3, conditions=images)
    assert made.shape == (2, network.channels, 7, 5)
    one_by_one = sampler(source, seed=3, conditions=images, batch_size=1)
    torch.testing.assert_close(one_by_one, made, rtol=0, atol=1e-5)
    wide = [torch.cat([v, v[:, :, -1:]], 2) for v in (source, *images.values())]
    wide = [torch.cat([v, v[:, :, :, -1:]], 3) for v in wide]
    padded = sampler(wide[0], seed=3, conditions=dict(zip(images, wide[1:], strict=True)))
    if network.stride == 2:  # of stride 1, this is another size
        torch.testing.assert_close(padded[:, :, :7, :5], made)


def test_where_a_mask_is_0_the_source_stays_in_the_target_s_channels():
    network = three_to_one().eval()
    source, mask = drawn(3), torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    made = BridgeSampler(network, BRIDGE, steps=2)(source, seed=0, mask=mask)
    torch.testing.assert_close(made[:, :, 4:], source.mean(1, keepdim=True)[:, :, 4:])
    assert not torch.allclose(made[:, :, :4], source.mean(1, keepdim=True)[:, :, :4], atol=1e-2)


def test_an_array_of_sources_gives_one_of_results():
    source = drawn(3)[0].permute(1, 2, 0).numpy()
    assert BridgeSampler(three_to_one().eval(), BRIDGE, steps=2)(source, seed=0).shape == (8, 8, 1)
    assert BridgeSampler(two_to_three().eval(), BRIDGE, steps=2)(source[:, :, :2], seed=0).shape == (8, 8, 3)


@every_network
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_holds_it(make: Callable[[], Network], suffix: str, tmp_path: Path):
    network = make().eval()
    save_checkpoint(tmp_path / f"c{suffix}", network, BRIDGE)
    loaded = BridgeSampler.from_checkpoint(tmp_path / f"c{suffix}", steps=2, **module_of(make))
    assert loaded.unet.description() == network.description()
    source, images = given(network)
    wanted = BridgeSampler(network, BRIDGE, steps=2)(source, seed=0, conditions=images)
    assert torch.equal(loaded(source, seed=0, conditions=images), wanted)
    assert load_checkpoint(tmp_path / f"c{suffix}").unet.source_channels == network.source_channels


def test_a_network_with_other_images_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path / "c.pt", further(), BRIDGE)
    other = bbdm.wrap(Two(), channels=1, condition_channels=3, images={"sar": 2, "dsm": 1}, stride=2)
    with pytest.raises(ValueError, match=r"'dem': 1, .*; the one given has .*'dsm': 1, "):
        BridgeSampler.from_checkpoint(tmp_path / "c.pt", network=other)


@pytest.mark.nightly
@daily_networks
def test_it_is_compiled(make: Callable[[], Network]):
    network = make().eval()
    source, images = given(network)
    eager = BridgeSampler(network, BRIDGE, steps=3)(source, seed=0, conditions=images)
    sampler = BridgeSampler(network, BRIDGE, steps=3, compile=True, dtype="fp32")
    torch.testing.assert_close(sampler(source, seed=0, conditions=images), eager, rtol=0, atol=within(network))
    with torch.compiler.set_stance("fail_on_recompile"):  # another step, another source
        sampler(source.flip(0), seed=1, conditions=images)


@pytest.mark.nightly
@every_network
def test_it_is_packaged(make: Callable[[], Network], tmp_path: Path):
    network = make().eval()
    source, images = given(network)
    sampler = BridgeSampler(network, BRIDGE, steps=2, compile=True, dtype="fp32")
    sampler.save_compiled(tmp_path / "n.pt2", 2, (8, 8))
    packaged = BridgeSampler(network, BRIDGE, steps=2, compiled=tmp_path / "n.pt2")
    wanted = BridgeSampler(network, BRIDGE, steps=2)(source, seed=0, conditions=images)
    torch.testing.assert_close(packaged(source, seed=0, conditions=images), wanted, rtol=0, atol=within(network))


@daily_networks
def test_it_is_exported_and_runs_without_torch(make: Callable[[], Network], tmp_path: Path):
    """Step by step and as one graph, with a mask."""
    network = make().eval()
    save_checkpoint(tmp_path / "c.pt", network, BRIDGE)
    flags = ("--steps", "2", "--pipeline", "--mask", "--solver", "sde-dpm2m")
    folder = export(tmp_path / "c.pt", tmp_path / "onnx", *flags, **module_of(make))
    source, images = given(network)
    arrays = {name: image.numpy() for name, image in images.items()}
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:] = 1
    sampler, exported = BridgeSampler(network, BRIDGE, "sde-dpm2m", steps=2), OnnxBridgeSampler(folder)
    noise = torch.randn(2, 2, network.channels, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted = sampler(source, noise=noise, conditions=images, mask=mask)
    made = exported(source.numpy(), noise=noise.numpy(), conditions=arrays, mask=mask.numpy())
    np.testing.assert_allclose(made, wanted, rtol=0, atol=within(network))
    whole = onnxruntime.InferenceSession(folder / "pipeline.onnx", providers=["CPUExecutionProvider"])
    drawn_there = noise.numpy()[sampler.table.noisy]
    (at_once,) = whole.run(None, {"source": source.numpy(), "mask": mask.numpy(), "noise": drawn_there, **arrays})
    np.testing.assert_allclose(np.asarray(at_once), wanted, rtol=0, atol=within(network))
    settings = read_settings(folder)
    assert settings["image_channels"] == network.channels
    if network.source_channels != network.channels:
        assert settings["version"] == 4
        assert settings["source_channels"] == network.source_channels


# Calls that are refused


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (None, r"'dem' is missing: this network has 'dem' \(1 channels\), 'sar' \(2 channels\)$"),
        ({"dem": drawn(1)}, "condition 'sar' is missing"),
        ({"dem": drawn(1), "sar": drawn(1)}, r"'sar' must have shape \(2, 2, 8, 8\), got \(2, 1, 8, 8\)"),
        ({"dem": drawn(1), "sar": drawn(2)[0]}, r"'sar' must have shape \(2, 2, 8, 8\), got \(2, 8, 8\)"),
        ({"dem": drawn(1), "sar": None}, "'sar' cannot be None: the network was never trained without it"),
        ({"dem": drawn(1), "sar": drawn(2).int()}, "'sar' must be an array or a tensor of floats .*, got torch.int32"),
        ({"dem": drawn(1), "sar": drawn(2) / 0}, "'sar' must be finite"),
        ({"dem": drawn(1), "sar": drawn(2), "dsm": drawn(1)}, r"'sar' \(2 channels\), got 'dsm'"),
        ({"dem": drawn(1), "sar": drawn(2), "source": drawn(3)}, r"'sar' \(2 channels\), got 'source'"),
        (drawn(2), "must be a mapping of names to values, such as {'source': y}, got a Tensor"),
    ],
)
def test_bad_conditions(conditions: Any, message: str):
    sampler = BridgeSampler(further().eval(), BRIDGE, steps=2)
    with pytest.raises(ValueError, match=message):
        sampler(drawn(3), seed=0, conditions=conditions)


def test_conditions_of_a_network_that_has_none():
    sampler = BridgeSampler(three_to_one().eval(), BRIDGE, steps=2)
    with pytest.raises(ValueError, match="are none, got 'sar'"):
        sampler(drawn(3), seed=0, conditions={"sar": drawn(2)})
    with pytest.raises(ValueError, match=r"source must be a non-empty \(B, 3, H, W\) batch, got shape \(2, 1, 8, 8\)"):
        sampler(drawn(1), seed=0)


def test_one_image_serves_all_sources_and_has_one_size():
    sampler = BridgeSampler(further().eval(), BRIDGE, steps=2)
    images = {"sar": drawn(2), "dem": drawn(1)}
    one = {name: image[:1] for name, image in images.items()}
    both = {name: image.expand(2, -1, -1, -1) for name, image in one.items()}
    assert torch.equal(sampler(drawn(3), seed=0, conditions=one), sampler(drawn(3), seed=0, conditions=both))
    assert torch.equal(
        sampler(drawn(3), seed=0, conditions={name: image.numpy() for name, image in images.items()}),
        sampler(drawn(3), seed=0, conditions=images),
    )
    with pytest.raises(ValueError, match="conditions needs pictures of one size, got several"):
        sampler([drawn(3)[0], drawn(3, 4)[0]], seed=0, conditions=one)


def test_a_codec_needs_the_same_channels():
    from tests.onnx.exports import tiny_codec

    network = tiny_unet(**SHORT, condition_channels=3, endpoint=(1, 0, 2))
    with pytest.raises(ValueError, match="with a codec, source and target have the same channels"):
        BridgeSampler(network, BRIDGE, codec=tiny_codec())
