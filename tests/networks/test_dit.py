"""The transformer against its paper, written out with torch's own modules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bbdm.networks.dit import DiT
from tests.conftest import tiny_dit


def places(height: int, width: int, channels: int) -> torch.Tensor:
    """The paper's two-dimensional sines and cosines, token by token."""
    rates = torch.tensor([10000 ** (-i / (channels / 4)) for i in range(channels // 4)])
    angles = [(x * rates, y * rates) for y in range(height) for x in range(width)]
    return torch.stack(
        [torch.cat([f(a) for a in each for f in (torch.sin, torch.cos)]) for each in angles]
    )


def reference(dit: DiT, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """DiT with adaLN-Zero, with the source as channels."""
    p, width = dit.config.patch, dit.config.width
    patches = F.unfold(torch.cat([x, y], 1), p, stride=p).transpose(1, 2)
    bias: Any = dit.embed_patches.bias
    h = (
        patches @ dit.embed_patches.weight.flatten(1).T
        + bias
        + places(x.shape[2] // p, x.shape[3] // p, width)
    )
    angles = t[:, None] * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    c = dit.time_embed(torch.cat([angles.cos(), angles.sin()], 1))

    def normed(v: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None])
            + shift[:, None]
        )

    for block in dit.blocks:
        parts: Any = block.modulation(c * c.sigmoid()).chunk(6, 1)  # pyright: ignore[reportCallIssue]
        q, k, v = block.qkv(normed(h, parts[0], parts[1])).chunk(3, -1)  # pyright: ignore[reportCallIssue]
        heads = [m.unflatten(-1, (2, 8)).transpose(1, 2) for m in (q, k, v)]
        weights = (heads[0] @ heads[1].mT / 8**0.5).softmax(-1)
        attended = (weights @ heads[2]).transpose(1, 2).flatten(2)
        h = h + parts[2][:, None] * block.proj(attended)  # pyright: ignore[reportCallIssue]
        h = h + parts[5][:, None] * block.mlp(normed(h, parts[3], parts[4]))  # pyright: ignore[reportCallIssue]
    shift, scale = dit.out_modulation(c * c.sigmoid()).chunk(2, 1)
    out = (
        dit.out(normed(h, shift, scale)).unflatten(-1, (p * p, 3)).permute(0, 3, 2, 1).flatten(1, 2)
    )
    return F.fold(out, x.shape[2:], p, stride=p)


def test_it_is_the_paper_s():
    dit = tiny_dit()
    x, y = torch.randn(2, 2, 3, 6, 8)
    t = torch.tensor([3.0, 40.0])
    torch.testing.assert_close(
        dit(x, t, {"source": y}), reference(dit, x, t, y), rtol=1e-4, atol=1e-5
    )
    untrained = DiT(width=16, depth=2, heads=2, patch=2)
    assert not untrained(x, t, {"source": y}).any()
    assert not any(block.modulation.weight.any() for block in untrained.blocks)  # pyright: ignore
    with pytest.raises(ValueError, match="multiples of 2 x 2"):
        dit(x[..., :5, :], t, {"source": y[..., :5, :]})
    with pytest.raises(
        ValueError, match="condition 'source' is missing: this network has 'source'"
    ):
        dit(x, t)
