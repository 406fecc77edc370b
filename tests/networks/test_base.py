"""Any network: transformers, UNets, and modules with buffers, tied weights or another dtype."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bbdm
from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.base import Conditions, Network
from bbdm.networks.dit import DiT
from bbdm.networks.unet import UNet
from tests.conftest import TINY, MakeTrainer, newest

SOURCE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
BRIDGE = ABridge(50)


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
        h = torch.tanh(self.first(torch.cat([x, condition], 1)) + t.to(x.dtype)[:, None, None, None] / 50)
        return self.last(self.again(self.middle(h)) * self.scale.to(x.dtype)).to(self.dtype)


def randomised(make: Callable[[], Network]) -> Network:
    """A network with values in layers that start at zero."""
    network = make()
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def plain(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    return bbdm.wrap(Plain(dtype), condition_channels=3)


def bfloat16() -> Network:
    """It returns bfloat16, whatever it is given."""
    return plain(torch.bfloat16)


SIZES: dict[str, Any] = {  # of networks of diffusers
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def diffusers_unet() -> Network:
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    blocks = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    model = UNet2DModel(**SIZES, down_block_types=blocks[0], up_block_types=blocks[1])

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return m(torch.cat([x, c["source"]], dim=1), t).sample

    return bbdm.wrap(model, condition_channels=3, stride=2, call=call)


def diffusers_conditional() -> Network:
    """The network of text-to-image models, without a text."""
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    settings = {"down_block_types": blocks[0], "up_block_types": blocks[1], "cross_attention_dim": 8}
    model = UNet2DConditionModel(**SIZES, **settings)

    def call(m: Any, x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        return m(torch.cat([x, c["source"]], dim=1), t, x.new_zeros(len(x), 1, 8)).sample

    return bbdm.wrap(model, condition_channels=3, stride=2, call=call)


def dit(condition: str = "channels") -> Network:
    torch.manual_seed(0)
    return DiT(width=16, depth=2, heads=2, patch=2, condition=condition)


def dit_tokens() -> Network:
    return dit("tokens")


class Own(Network):
    """A user's class, with weights for the time."""

    channels, condition_channels, stride = 3, 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.time, self.layer = nn.Linear(1, 3), nn.Conv2d(6, 3, 1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(t[:, None] / 1000)

    def body(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return self.layer(torch.cat([x, conditions["source"]], 1)) + embedding[:, :, None, None]


def own() -> Network:
    torch.manual_seed(0)
    return Own()


def patched_unet() -> Network:
    torch.manual_seed(0)
    return UNet(**{**TINY, "condition_channels": 3, "patch": 2, "channel_mult": (1, 1)})


NETWORKS: dict[str, Callable[[], Network]] = {
    "plain": plain,
    "bfloat16": bfloat16,
    "diffusers": diffusers_unet,
    "diffusers, conditional": diffusers_conditional,
    "dit": dit,
    "dit, tokens": dit_tokens,
    "unet, patch": patched_unet,
    "own class": own,
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def module_of(network: Network) -> dict[str, Any]:
    """The keyword with which its file is loaded."""
    return {} if isinstance(network, DiT | UNet) else {"network": network}


@every_network
def test_it_is_trained_saved_and_resumed(make: Callable[[], Network], make_trainer: MakeTrainer, tmp_path: Path):
    def run(folder: str, **settings: Any) -> Any:
        return make_trainer(folder, unet=make(), **settings)

    whole = run("whole")
    whole.fit()
    run("half", epochs=1).fit()
    resumed = run("half")
    assert resumed.resume_newest()
    resumed.fit()
    assert resumed.step == whole.step == 4
    for one, other in zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    whole.save(tmp_path / "w.pt")
    sampler = BridgeSampler.from_checkpoint(tmp_path / "w.pt", steps=2, **module_of(make()))
    expected = BridgeSampler(whole.average, whole.bridge, steps=2)
    assert torch.equal(sampler(SOURCE, seed=0), expected(SOURCE, seed=0))
    assert load_checkpoint(newest(whole)).unet.kind == whole.network.kind


def test_a_file_of_a_wrapped_network_needs_it(tmp_path: Path):
    save_checkpoint(tmp_path / "c.pt", plain(), BRIDGE)
    with pytest.raises(IncompleteFileError, match=r"weights of a tests.networks.test_base.Plain .* network=bbdm.wrap"):
        BridgeSampler.from_checkpoint(tmp_path / "c.pt")
    other = bbdm.wrap(Plain(), condition_channels=3, stride=4)
    with pytest.raises(ValueError, match=r"'stride': 1\}; the one given has .*'stride': 4\}"):
        BridgeSampler.from_checkpoint(tmp_path / "c.pt", network=other)
    wide = Plain()
    wide.last = nn.Conv2d(8, 3, 5, padding=2)
    with pytest.raises(ValueError, match=r"of another shape: module.last.weight \(3, 8, 3, 3\) \(wanted"):
        BridgeSampler.from_checkpoint(tmp_path / "c.pt", network=bbdm.wrap(wide, condition_channels=3))
    save_checkpoint(tmp_path / "d.pt", dit(), BRIDGE)
    with pytest.raises(ValueError, match="a network was given, and the file describes its own, a DiT"):
        BridgeSampler.from_checkpoint(tmp_path / "d.pt", network=plain())

    class Moved(Plain):
        pass

    loaded: Any = load_checkpoint(tmp_path / "c.pt").build_unet(network=bbdm.wrap(Moved(), condition_channels=3))
    assert loaded.module.again.weight is loaded.module.middle.weight  # tied weights stay tied


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"condition_channels": -1}, "condition_channels must be at least 0, got -1"),
        ({"stride": 2.0}, "stride must be of integers, got 2.0"),
        ({"module": "unet"}, "module must be a torch.nn.Module, got str"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        bbdm.wrap(**{"module": Plain(), **settings})
    for build in (lambda: BridgeSampler(Plain(), BRIDGE), lambda: save_checkpoint("c.pt", Plain(), BRIDGE)):  # pyright: ignore
        with pytest.raises(ValueError, match=r"must be a network, got Plain: bbdm\.wrap makes one of any module"):
            build()
