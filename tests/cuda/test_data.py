"""Batches, caches and codecs on a card: pinned memory, and nothing left on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm.codec import Codec, DiffusersCodec, VQGANCodec
from bbdm.codec.tiles import Tiling
from bbdm.data import loading
from bbdm.data.cached import LatentDataset, measure
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from tests.codec.autoencoders import own_codec, tiny_kl, tiny_tiny
from tests.cuda.card import DEVICE, Card, CardTensor, off_the_card
from tests.networks.test_vqgan import tiny_vqgan

CODECS = {
    "vqgan": lambda: VQGANCodec(tiny_vqgan()),
    "kl": lambda: DiffusersCodec(tiny_kl()),
    "tiny": lambda: DiffusersCodec(tiny_tiny()),
    "own": own_codec,
}
TILES = {"whole": Tiling(), "tiles": Tiling(whole=16 * 16, side=16, overlap=8)}


def on_the_card(codec: Codec, dtype: torch.dtype = torch.float32) -> Codec:
    return codec.placed(DEVICE, dtype)


def test_batches_come_from_pinned_memory(card: Card, pairs: Pairs):
    batches = list(Batches(pairs, 2, DEVICE)())
    assert len(batches) == len(pairs) // 2
    for batch in batches:
        assert isinstance(batch.source, CardTensor)
        assert isinstance(batch.target, CardTensor)
        assert batch.source.is_contiguous(memory_format=torch.channels_last)
    assert card.waits == []


def test_finds_a_loader_without_pinned_memory(card: Card, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    loader = loading.DataLoader
    monkeypatch.setattr(loading, "DataLoader", lambda *given, **more: loader(*given, **{**more, "pin_memory": False}))
    list(Batches(pairs, 4, DEVICE)())
    assert card.waits == ["data.loading._placed: to the card from memory that is not pinned"] * 2


@pytest.mark.parametrize("tiling", TILES.values(), ids=[*TILES])
@pytest.mark.parametrize("make", CODECS.values(), ids=[*CODECS])
def test_codecs(card: Card, make: Any, tiling: Tiling):
    picture = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with off_the_card():
        codec = make()
        codec.tiling = tiling
        latents = codec.latents(picture)
        wanted = codec.image(latents)
    mine = on_the_card(codec)
    card.waits.clear()
    found = mine.latents(picture)
    torch.testing.assert_close(found.cpu(), latents, rtol=0, atol=1e-5)
    assert card.waits[0] == "codec.base.latents: to the card"
    card.waits.clear()
    found = mine.image(latents.to(DEVICE))
    weights = ["networks.windowed.on_device: to the card"] * (2 if tiling.side == 16 else 0)  # of tiles
    assert card.waits == ["test: to the card", *weights]
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-5)
    half = on_the_card(codec, torch.bfloat16)
    assert half.image(half.latents(picture)).isfinite().all()


@pytest.mark.parametrize("flip", [False, True])
def test_caches_of_latents(card: Card, pairs: Pairs, tmp_path: Path, flip: bool):
    codec = VQGANCodec(tiny_vqgan())
    with off_the_card():
        wanted, statistics = LatentDataset(pairs, codec, tmp_path / "cpu", flip), measure(pairs, codec, flip)
    mine = on_the_card(codec)
    card.waits.clear()
    found = LatentDataset(pairs, mine, tmp_path / "card", flip)
    rest = [wait for wait in card.waits if not wait.startswith("networks.restore")]  # hashes of weights
    assert rest == ["codec.base.latents: to the card", "data.cached.encode: to the CPU"]
    for i in range(len(pairs)):
        for ours, theirs in zip(found[i], wanted[i], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for name, values in vars(measure(pairs, mine, flip)).items():
        assert values == pytest.approx(getattr(statistics, name), rel=1e-4)
