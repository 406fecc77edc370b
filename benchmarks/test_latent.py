"""One picture of 3 x 256 x 256 through a VQ-f4: encoder, decoder, and a whole translation.

The public system is diffusers' VQModel and sde-bbdm's network, as users of the A-Bridge scripts have them:
float32, eager, 199 steps. A --quick run skips it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bbdm import VQGAN, BridgeSampler, UNet, VQGANCodec, solvers
from bbdm.codec import Codec
from benchmarks import networks
from benchmarks.conftest import DEVICE, Record
from benchmarks.machine import Peaks
from benchmarks.timing import Comparison, interleaved

BASELINE = "diffusers float32"
PUBLIC = "diffusers and sde-bbdm float32, 199 steps"
PARTS = [BASELINE, "eager float32", "eager bfloat16", "compiled"]
TRANSLATIONS = [
    PUBLIC,
    *(f"{row}, {networks.STEPS} steps" for row in ("eager float32", "eager bfloat16", "compiled")),
]


@pytest.fixture(scope="module")
def codec(quick: bool) -> Codec:
    if quick:
        pytest.skip("only without --quick")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqgan = VQGAN.from_preset("vq-f4")
        torch.nn.init.normal_(vqgan.quantize.embedding.weight)
    return VQGANCodec(vqgan.to(DEVICE))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """(1, 3, 256, 256), smooth, as no encoder is trained on noise."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (
        torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(-1, 1).to(DEVICE)
    )


@pytest.fixture(scope="module")
def samplers(unet: UNet, codec: Codec) -> dict[str, BridgeSampler]:
    settings: dict[str, dict[str, Any]] = {
        "eager float32": {},
        "eager bfloat16": {"dtype": torch.bfloat16},
        "compiled": {"compile": True},
    }
    return {
        name: BridgeSampler(unet, networks.BRIDGE, steps=networks.STEPS, codec=codec, **setting)
        for name, setting in settings.items()
    }


@pytest.fixture(scope="module", params=["encode", "decode"])
def part(
    request: pytest.FixtureRequest,
    codec: Codec,
    samplers: dict[str, BridgeSampler],
    picture: torch.Tensor,
    peaks: Peaks,
) -> Comparison:
    name: str = request.param
    latents = codec.latents(picture)
    given = picture if name == "encode" else latents
    comparison = Comparison(f"VQ-f4 {name}, {picture.shape[2]} x {picture.shape[3]}", BASELINE, {})
    rows: dict[str, Callable[[], torch.Tensor]] = {}
    for row, sampler in samplers.items():
        assert sampler.codec is not None
        way = sampler.codec.latents if name == "encode" else sampler.codec.image
        rows[row] = lambda way=way: way(given)
    with torch.inference_mode():
        try:
            peer = import_module("benchmarks.peers.diffusers_vqgan").network(codec.module)
        except ImportError as error:
            comparison.missing[BASELINE] = f"needs the extra peers: {error}"
        else:
            rows[BASELINE] = (
                (lambda: peer.encode(given).latents)
                if name == "encode"
                else (lambda: peer.decode(given).sample)
            )
        expected = rows["eager float32"]()
        for row, call in rows.items():
            error = networks.relative_error(call(), expected)
            assert error < 0.1, f"{row}: relative error {error:.3g}"
            comparison.info[row] = {"relative_error": error}
        comparison.seconds = interleaved(rows, rounds=5)
        with FlopCounterMode(display=False) as counter:
            rows["eager float32"]()
    for row, info in comparison.info.items():
        fast = row in samplers and samplers[row].dtype == torch.bfloat16
        dtype = torch.bfloat16 if fast else torch.float32
        info["dtype"] = str(dtype).removeprefix("torch.")
        info |= peaks.rates(counter.get_total_flops() / 1e9, comparison.median(row), dtype)
    return comparison


@pytest.fixture(scope="module")
def translation(
    unet: UNet, codec: Codec, samplers: dict[str, BridgeSampler], picture: torch.Tensor
) -> Comparison:
    comparison = Comparison(
        f"Translation in latent space, {picture.shape[2]} x {picture.shape[3]}", PUBLIC, {}
    )
    rows: dict[str, Callable[[], torch.Tensor]] = {
        f"{name}, {networks.STEPS} steps": (lambda s=s: s(picture, seed=0))
        for name, s in samplers.items()
    }
    expected = rows[TRANSLATIONS[1]]()
    for row, call in rows.items():
        error = networks.relative_error(call(), expected)
        comparison.info[row] = {"evaluations": networks.STEPS, "relative_error": error}
    try:
        vqgan = import_module("benchmarks.peers.diffusers_vqgan").network(codec.module)
        peer = import_module("benchmarks.peers.sde_bbdm")
    except ImportError as error:
        comparison.missing[PUBLIC] = f"needs the extra peers: {error}"
    else:
        times = solvers.build(networks.BRIDGE, "fast").timesteps.tolist()
        comparison.info[PUBLIC] = {"evaluations": len(times)}

        def public() -> torch.Tensor:
            latents = vqgan.encode(picture).latents
            return vqgan.decode(peer.translation(unet, latents, times)()).sample

        rows[PUBLIC] = public
    with torch.inference_mode():
        comparison.seconds = interleaved(rows, rounds=3, settle=False, once=(PUBLIC,))
    return comparison


@pytest.mark.parametrize("row", PARTS)
def test_part(part: Comparison, row: str, record: Record) -> None:
    record(part, row)


@pytest.mark.parametrize("row", TRANSLATIONS)
def test_translation(translation: Comparison, row: str, record: Record) -> None:
    record(translation, row)
