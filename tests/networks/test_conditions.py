"""Images, classes and tokens besides the source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bbdm
from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.networks.base import Network
from bbdm.networks.config import DiTConfig, UNetConfig
from bbdm.networks.dit import DiT
from bbdm.networks.unet import UNet
from tests.conftest import TINY, tiny_dit, tiny_unet
from tests.networks.test_every_network import further

BRIDGE = ABridge(50)
CONDITIONS: dict[str, Any] = {
    "images": {"sar": 2},
    "classes": {"style": ("ink", "oil", "chalk")},
    "tokens": {"text": 5},
    "drop": {"style": 0.1, "text": 0.2},
}


def unet(**settings: Any) -> Network:
    return tiny_unet(**settings).eval()


def dit(**settings: Any) -> Network:
    return tiny_dit(condition_channels=0, **settings)


both = pytest.mark.parametrize("make", [unet, dit])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def conditions() -> dict[str, torch.Tensor]:
    """Of two images: the second has two tokens, and the class "none"."""
    text = drawn(2, 4, 5, seed=2)
    text[1, 2:] = 0
    return {"sar": drawn(2, 2, 8, 8, seed=1), "style": torch.tensor([1, 3]), "text": text}


X, T = drawn(2, 3, 8, 8), torch.tensor([3.0, 40.0])


def moved(network: Network, **others: Any) -> torch.Tensor:
    """How far predictions of each image move where conditions change."""
    return (
        (network(X, T, {**conditions(), **others}) - network(X, T, conditions()))
        .abs()
        .amax((1, 2, 3))
    )


@both
def test_each_condition_counts_in_its_own_image(make: Callable[..., Network]):
    network = make(**CONDITIONS)
    sar, text = conditions()["sar"], conditions()["text"]
    assert (moved(network, sar=torch.cat([sar[:1] + 0.1, sar[1:]])) > 1e-4).tolist() == [
        True,
        False,
    ]
    assert (moved(network, style=torch.tensor([0, 3])) > 1e-4).tolist() == [True, False]
    assert (moved(network, style=torch.tensor([1, 2])) > 1e-4).tolist() == [False, True]
    # a set
    assert (moved(network, text=torch.cat([text[:1], text[1:].flip(1)])) > 1e-4).tolist() == [
        False,
        False,
    ]
    assert (moved(network, text=torch.cat([text[:1], text[1:] * 1.5])) > 1e-5).tolist() == [
        False,
        True,
    ]
    assert (moved(network, text=torch.zeros(2, 1, 5)) > 1e-5).tolist() == [True, True]


@both
def test_a_row_of_zeros_is_no_token(make: Callable[..., Network]):
    network, text = make(**CONDITIONS), conditions()["text"]
    longer = F.pad(text, (0, 0, 0, 3))
    assert moved(network, text=longer).max() < 1e-6
    alone = {name: value[1:] for name, value in conditions().items()}
    alone["text"] = alone["text"][:, :2]
    torch.testing.assert_close(
        network(X[1:], T[1:], alone), network(X, T, conditions())[1:], rtol=0, atol=1e-5
    )


def test_channels_are_the_state_s_then_the_source_s_then_images_by_name():
    network = unet(condition_channels=1, images={"b": 2, "a": 1})
    seen = {"source": drawn(2, 1, 8, 8), "a": drawn(2, 1, 8, 8), "b": drawn(2, 2, 8, 8)}
    first = network.get_submodule("input_blocks.0.0")
    for name, channels in (("source", [3]), ("a", [4]), ("b", [5, 6])):
        kept = first.weight.clone()  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            first.weight[:, channels] = 0  # pyright: ignore[reportIndexIssue]
            assert torch.equal(network(X, T, seen), network(X, T, {**seen, name: seen[name] + 1}))
            first.weight.copy_(kept)  # pyright: ignore[reportCallIssue]
            assert not torch.equal(
                network(X, T, seen), network(X, T, {**seen, name: seen[name] + 1})
            )


def test_a_class_is_an_embedding_added_to_the_times():
    """By hand, of the layers that the network has: ADM's label embedding."""
    network = unet(classes={"style": 3})
    assert isinstance(network, UNet)
    plain = unet()
    plain.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith("condition_embedding.")}
    )
    # a shift of the time's embedding by the class's is a shift of its last bias
    with torch.no_grad():
        classes = network.state_dict()["condition_embedding.classes._style.weight"]
        last: Any = plain.time_embed[2]  # pyright: ignore
        last.bias += classes[2]
    torch.testing.assert_close(
        network(X, T, {"style": torch.tensor([2, 2])}), plain(X, T), rtol=0, atol=1e-6
    )


@both
def test_images_are_resized_to_the_states(make: Callable[..., Network]):
    network, sar = make(**CONDITIONS), drawn(2, 2, 16, 16, seed=5)
    small = F.interpolate(sar, (8, 8), mode="bilinear", antialias=True)
    assert moved(network, sar=sar).min() > 1e-4
    others = {**conditions(), "sar": sar}
    torch.testing.assert_close(
        network(X, T, others), network(X, T, {**others, "sar": small}), rtol=0, atol=1e-6
    )


@both
def test_new_conditions_begin_without_influence(make: Callable[..., Network]):
    fresh = (
        UNet(**TINY, **CONDITIONS)
        if make is unet
        else DiT(width=16, depth=2, heads=2, patch=2, **CONDITIONS)
    )
    last = fresh.out[2] if isinstance(fresh, UNet) else fresh.out
    torch.nn.init.normal_(last.weight, std=0.1)  # pyright: ignore
    seen = {"source": drawn(2, 3, 8, 8)} if fresh.condition_channels else {}
    others = {"style": torch.tensor([0, 2]), "text": drawn(2, 3, 5, seed=9)}
    first = fresh(X, T, {**seen, **conditions()})
    torch.testing.assert_close(
        fresh(X, T, {**seen, **conditions(), **others}), first, rtol=0, atol=1e-6
    )


@both
def test_files_have_the_names_of_classes(make: Callable[..., Network], tmp_path: Path):
    network = make(**CONDITIONS)
    save_checkpoint(tmp_path / "c.safetensors", network, BRIDGE)
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.safetensors", steps=2)
    assert sampler.unet.network_config == network.network_config
    others = {name: conditions()[name] for name in ("sar", "text")}
    wanted = BridgeSampler(network, BRIDGE, steps=2)(X, 0, conditions={**others, "style": 2})
    torch.testing.assert_close(
        sampler(X, 0, conditions=others, style="chalk"), wanted, rtol=0, atol=1e-6
    )
    # the same settings are the same file
    assert list(UNetConfig(classes={"b": 2, "a": 3}).classes) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"classes": {"style": 0}},
            r"classes\['style'\] must be an integer of at least 1 or names, got 0",
        ),
        (
            {"classes": {"style": ()}},
            r"classes\['style'\] must be an integer of at least 1 or names, got \(\)",
        ),
        ({"classes": {"style": ("a", "a")}}, "a class has its name alone, got a, a"),
        (
            {"classes": {"style": "ab"}},
            r"classes\['style'\] must be an integer of at least 1 or names, got 'ab'",
        ),
        (
            {"tokens": {"two words": 3}},
            "a name of tokens must be an identifier, .* got 'two words'",
        ),
        (
            {"images": {"source": 1}},
            "a name of images must be an identifier, and none of source, .*, got 'source'",
        ),
        (
            {"tokens": {"a": 3}, "classes": {"a": 3}},
            "each condition needs a name of its own, got a, a",
        ),
        (
            {"drop": {"style": 0.1}},
            r"drop must be of the conditions \(there are none\), got 'style'",
        ),
        (
            {"classes": {"direction": ("AtoB", "BtoA")}, "drop": {"direction": 0.1}},
            "other conditions than 'direction'",
        ),
        ({"tokens": {"a": 3}, "drop": {"a": 1}}, r"drop\['a'\] must be above 0 and below 1, got 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str):
    for build in (
        UNetConfig,
        DiTConfig,
        lambda **given: bbdm.wrap(torch.nn.Conv2d(3, 3, 1), **given),
    ):
        with pytest.raises(ValueError, match=message):
            build(**settings)


@both
def test_what_does_not_fit_is_refused(make: Callable[..., Network]):
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"style": torch.rand(2)},
            r"'style' must have shape \(B,\) of int64, got \(2,\) of torch.float32",
        ),
        (
            {"text": torch.rand(2, 3, 6)},
            r"'text' must have shape \(B, L, 5\), got \(2, 3, 6\) of torch.float32",
        ),
        ({"sar": torch.rand(2, 3, 8, 8)}, r"'sar' must have 2 channels, got \(2, 3, 8, 8\)"),
    ]
    for others, message in cases:
        with pytest.raises(ValueError, match=message):
            make(**CONDITIONS)(X, T, {**conditions(), **others})


IMAGES, DEM = {"sar": drawn(2, 2, 8, 8), "text": None}, drawn(2, 1, 8, 8)
STYLED, SAR = {**IMAGES, "style": 1}, IMAGES["sar"]
NETWORKS: dict[str, Callable[[], Network]] = {
    "every kind": lambda: unet(**CONDITIONS),
    "classes": lambda: unet(classes={"style": 3}),
    "images": lambda: further().eval(),
}
REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "every kind": [
        (
            {**IMAGES, "style": "watercolour"},
            "'style' must be of ink, oil, chalk, got 'watercolour'",
        ),
        (
            {**IMAGES, "style": ["ink"] * 3},
            "'style' must be one value, or one for each of 2 sources, got 3",
        ),
        (
            {**IMAGES, "stile": "ink"},
            r"'stile' is no argument .*'style' \(3 classes: ink, oil, chalk\)",
        ),
        (IMAGES, "'style' is missing: this network has .*; None leaves it out"),
        ({**STYLED, "text": drawn(4, 6)}, r"'text' must be tokens \(L, 5\), .*, got \(4, 6\)"),
        ({**STYLED, "text": drawn(4, 5) / 0}, "'text' must be finite"),
        ({**STYLED, "guidance": -1}, "guidance must be a number of at least 0, got -1"),
        ({**STYLED, "guidance": {"sar": 2}}, "without 'sar', and the network was not trained"),
        ({**STYLED, "guidance": {"s": 2}}, "guidance must be for conditions, .*, got 's'"),
    ],
    "classes": [
        ({"style": 1, "guidance": 2.0}, "the network was not trained so: see drop"),
        ({"style": None}, "'style' cannot be None: the network was never trained without it"),
    ],
    "images": [
        ({}, r"'dem' is missing: this network has 'dem' \(1 channels\), 'sar' \(2 channels\)$"),
        ({"dem": DEM, "sar": DEM}, r"'sar' must have shape \(2, 2, 8, 8\), got \(2, 1, 8, 8\)"),
        (
            {"dem": DEM, "sar": None},
            "'sar' cannot be None: the network was never trained without it",
        ),
        (
            {"dem": DEM, "sar": DEM.int()},
            "'sar' must be an array or a tensor of floats .*, got torch.int32",
        ),
        ({"dem": DEM / 0, "sar": SAR}, "'dem' must be finite"),
        (
            {"conditions": {"dem": DEM, "sar": DEM, "source": X}},
            r"'sar' \(2 channels\), got 'source'",
        ),
        (
            {"conditions": DEM},
            "must be a mapping of names to values, such as {'source': y}, got a Tensor",
        ),
    ],
}


@pytest.mark.parametrize("network", REFUSED)
def test_bad_calls(network: str):
    sampler = BridgeSampler(NETWORKS[network](), BRIDGE, steps=2)
    for options, message in REFUSED[network]:
        with pytest.raises((ValueError, TypeError), match=message):
            sampler(X, 0, **options)


def test_values_may_be_for_all_or_for_each_source():
    sampler = BridgeSampler(unet(**CONDITIONS), BRIDGE, steps=2)
    sar, text = drawn(1, 2, 8, 8), drawn(3, 5)
    one = sampler(X, 0, sar=sar, style="oil", text=text)
    listed = sampler(
        X, 0, sar=sar.expand(2, -1, -1, -1).numpy(), style=["oil", 1], text=[text, text.numpy()]
    )
    assert torch.equal(one, listed)
    assert torch.equal(one, sampler(X, 0, sar=sar, style=["oil"], text=[text]))
    with pytest.raises(ValueError, match="conditions needs pictures of one size, got several"):
        sampler([X[0], X[0][:, :4]], seed=0, sar=sar, style="oil", text=text)


def test_sources_of_several_sizes_have_classes_of_their_own():
    sampler = BridgeSampler(unet(classes={"style": 3}), BRIDGE, steps=2)
    sources = [X[0], drawn(3, 16, 8), X[1]]
    for i, result in enumerate(sampler(sources, [1, 2, 3], style=[0, 1, 2])):
        torch.testing.assert_close(
            sampler([sources[i]], i + 1, style=i)[0], result, rtol=0, atol=1e-6
        )
