"""DiT of diffusers as a network of a bridge: beside its own forward pass, exported, of any two sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bbdm import BridgeSampler
from bbdm.bridges import BrownianBridge
from bbdm.files.pretrained import pretrained
from bbdm.networks.pretrained import dit_output
from bbdm.onnx import exporter
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.files.test_pretrained import save
from tests.onnx.exports import needs_exporter

TIMES = torch.tensor([3.5, 700.0])
NO_CLASS = torch.full((2,), 5)


@pytest.mark.parametrize("side", [4, 8, 12])
def test_it_is_diffusers_own_of_squares(side: int, tmp_path: Path) -> None:
    """At the size that it was trained at, and at others."""
    own = save(tmp_path, DDPMScheduler(), "DiT")
    x = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own(x, TIMES, class_labels=NO_CLASS).sample
        torch.testing.assert_close(dit_output(own, x, TIMES), expected, rtol=1e-6, atol=1e-6)


def test_pictures_that_are_no_squares(tmp_path: Path) -> None:
    """By diffusers' own parts, which know both sides, and patches that torch folds."""
    own = save(tmp_path, DDPMScheduler(), "DiT")
    x = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = own.pos_embed(x)
        for block in own.transformer_blocks:
            h = block(h, timestep=TIMES, class_labels=NO_CLASS)
        embedding = own.transformer_blocks[0].norm1.emb(TIMES, NO_CLASS, hidden_dtype=torch.float32)
        shift, scale = own.proj_out_1(F.silu(embedding))[:, None].chunk(2, dim=-1)
        patches = own.proj_out_2(own.norm_out(h) * (1 + scale) + shift).unflatten(-1, (4, 8))
        expected = F.fold(patches.permute(0, 3, 2, 1).flatten(1, 2), (6, 10), 2, stride=2)
        torch.testing.assert_close(dit_output(own, x, TIMES), expected, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler(), "DiT")
    network, _ = pretrained(tmp_path, BrownianBridge(), source_channels=4)
    layer: Any = network.module.pos_embed.proj
    gradients: list[torch.Tensor] = []
    for on in (False, True):
        network.gradient_checkpointing = on
        source = torch.ones(2, 4, 8, 6)
        network.zero_grad()
        network(
            torch.ones(2, 4, 8, 6), torch.zeros(2), {"source": source}
        ).square().mean().backward()
        gradients.append(layer.weight.grad.clone())
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


@needs_exporter
def test_its_export_is_of_any_size(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler(), "DiT")
    network, bridge = pretrained(tmp_path, BrownianBridge(), source_channels=4)
    sampler = BridgeSampler(network, bridge, "sde-dpm2m", 3)
    exporter.export(sampler, tmp_path / "graphs", check=False)
    runtime = OnnxBridgeSampler(tmp_path / "graphs")
    for shape in ((1, 4, 8, 8), (3, 4, 6, 12)):
        source = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        expected = sampler(source, seed=1)
        outputs = runtime(source.numpy(), seed=1)
        np.testing.assert_allclose(
            outputs, expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max())
        )
