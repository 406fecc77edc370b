"""LoRA beside a pretrained network: it begins as that network, and what is merged computes the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from bbdm import BridgeSampler, save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.files.content import NetworkState
from bbdm.files.pretrained import pretrained
from bbdm.networks.config import LoRA
from bbdm.networks.lora import PROMPTS, add_lora, completed, merged, trained
from tests.conftest import same_weights
from tests.files.test_pretrained import save

NETWORKS = ("pixels", "text", "DiT", "SDXL")


def read(folder: Path, name: str, channels: int | None = None) -> Any:
    save(folder, DDPMScheduler(), name)
    return pretrained(folder, BrownianBridge(), source_channels=3, channels=channels)[0]


def moved(network: Any) -> Any:
    """The network, whose trained weights have moved as training moves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained(network).values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return network


def called(network: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, network.channels, 8, 8, generator=generator)
    source = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.3, -1.0]), {"source": source})


@pytest.mark.parametrize("name", NETWORKS)
def test_it_begins_as_the_network_and_merges_to_what_it_computes(name: str, tmp_path: Path) -> None:
    network = read(tmp_path, name)
    before = called(network)
    keys = set(network.state_dict())
    add_lora(network, 4, f"{tmp_path}")
    assert torch.equal(called(network), before)
    output = called(moved(network))
    assert (output - before).abs().max() > 0.01
    assert set(merged(network)) == keys
    plain = NetworkState.of(network).build()
    torch.testing.assert_close(called(plain), output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_projections_and_convolutions_are_trained_and_the_first_layer_in_full(
    name: str, tmp_path: Path
) -> None:
    """Each convolution but the first, and of linear layers those of attention and feed-forward blocks."""
    network = read(tmp_path, name)
    expected: set[str] = set()
    for key, layer in network.named_modules():
        is_linear = isinstance(layer, nn.Linear) and re.search(
            r"attn|attentions|\.ff\.|transformer_blocks", key
        )
        if isinstance(layer, nn.Conv2d) or (is_linear and not re.search(r"emb|norm", key)):
            expected.add(key)
    first = "module.pos_embed.proj" if name == "DiT" else "module.conv_in"
    expected -= {first}
    add_lora(network, 2, f"{tmp_path}")
    gradients = {key for key, weight in network.named_parameters() if weight.requires_grad}
    assert gradients == set(trained(network)) - {*PROMPTS}
    assert {key.partition(".lora_")[0] for key in gradients if ".lora_" in key} == expected
    assert {key for key in gradients if ".lora_" not in key} == {f"{first}.weight", f"{first}.bias"}
    assert len(expected) > 5


def test_layers_that_are_new_are_trained_in_full_and_kept(tmp_path: Path) -> None:
    """Of two channels on a network of three: another reading of the base draws them anew, and is one base."""
    network = read(tmp_path, "pixels", channels=2)
    add_lora(network, 2, f"{tmp_path}")
    ends = {
        f"module.{layer}.{part}" for layer in ("conv_in", "conv_out") for part in ("weight", "bias")
    }
    kept = {key for key in trained(network) if ".lora_" not in key}
    assert kept == ends | {*PROMPTS}
    assert ends <= {key for key, weight in network.named_parameters() if weight.requires_grad}
    state = NetworkState.of_trained(moved(network), network)
    torch.manual_seed(1)
    assert same_weights(state.build(), NetworkState.of(network).build())


def test_a_prompt_is_kept_with_what_is_trained_and_is_not_of_the_base(tmp_path: Path) -> None:
    """A text encoder's output differs in rounding from machine to machine."""
    network, other = read(tmp_path, "text"), read(tmp_path, "text")
    network.prompt += 1e-6
    add_lora(network, 2, f"{tmp_path}")
    add_lora(other, 2, f"{tmp_path}")
    network.lora.check(other.lora)
    other.load_state_dict(completed(other, trained(network)))
    assert torch.equal(other.prompt, network.prompt)


def test_a_base_in_bfloat16_has_adapters_in_float32_and_merges_in_float32(tmp_path: Path) -> None:
    """A small step, which a sum in bfloat16 would lose, is in the merged weight."""
    network = read(tmp_path, "text")
    add_lora(network, 4, f"{tmp_path}", torch.bfloat16)
    assert {value.dtype for value in trained(network).values()} == {torch.float32}
    layer = network.module.mid_block.resnets[0].conv1
    assert layer.base_layer.weight.dtype == torch.bfloat16
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-5)
    weight = merged(network)["module.mid_block.resnets.0.conv1.weight"]
    step = torch.nn.functional.conv2d(
        layer.lora_A["default"].weight.permute(1, 0, 2, 3), layer.lora_B["default"].weight
    ).permute(1, 0, 2, 3)
    torch.testing.assert_close(weight - layer.base_layer.weight.float(), step, rtol=0, atol=1e-8)
    assert step.abs().max() > 1e-6


def test_a_file_of_it_is_a_plain_networks(tmp_path: Path) -> None:
    """Saved in Python without a run, too."""
    network = read(tmp_path, "pixels")
    bridge = pretrained(tmp_path, BrownianBridge())[1]
    add_lora(network, 4, f"{tmp_path}")
    moved(network)
    save_checkpoint(tmp_path / "a.pt", network, bridge, image_size=8)
    plain = BridgeSampler.from_checkpoint(tmp_path / "a.pt")
    assert plain.unet.lora is None
    torch.testing.assert_close(called(plain.unet), called(network), rtol=1e-5, atol=1e-5)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="lora must be a rank of at least 1, got 0"):
        LoRA(0, "folder", "0")
