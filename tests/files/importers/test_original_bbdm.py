"""Files of the original BBDM, in the layout of its runner."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bbdm import BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.conftest import ROOT
from tests.files.importers.common import LATENT, fill, images, load, refused, save, small_vqgan

STEPS = 200
CONFIG = {"config": "bbdm"}
# its heads are 64 channels wide
SMALL: dict[str, Any] = {"model_channels": 64, "channel_mult": (1, 2)}


def buffers(
    schedule: str = "linear", max_var: float = 1.0, steps: int = STEPS
) -> dict[str, Tensor]:
    """The buffers of its model, in float32."""
    if schedule == "linear":
        m = np.linspace(0.001, 0.999, steps)
    elif schedule == "sin":
        m = 1.0075 ** np.linspace(0, steps, steps)
        m = m / m[-1]
        m[-1] = 0.999
    else:  # of its first version
        m = np.arange(steps) / steps
        m[0] = 0.0005
        m = 0.5 * np.sin(np.pi * (m - 0.5)) + 0.5
    variance = 2 * (m - m**2) * max_var
    return {
        key: torch.tensor(value, dtype=torch.float32)
        for key, value in {"m_t": m, "variance_t": variance}.items()
    }


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def bbdm_unet(seed: int = 0, **settings: Any) -> UNet:
    return fill(
        UNet(**{**SMALL, "attention_resolutions": (8,), "num_res_blocks": 1, **settings}), seed
    )


def bbdm_file(
    path: Path, vqgan: VQGAN | None = None, schedule: dict[str, Tensor] | None = None, **unet: Any
) -> Any:
    """(file, network, moving average) in the layout of its runner."""
    network, average = bbdm_unet(0, **unet), bbdm_unet(1, **unet)
    model = {**(schedule or buffers()), **under("denoise_fn.", network.state_dict())}
    if vqgan is not None:
        model |= under("vqgan.", vqgan.state_dict())
    shadow = under("denoise_fn.", dict(average.named_parameters()))
    shadow = {key: value.data for key, value in shadow.items()}
    return save({"step": 20, "model": model, "epoch": 2, "ema": shadow}, path), network, average


def edited(path: Path, edit: Any) -> Path:
    content = torch.load(path, weights_only=True)
    return save(edit(content) or content, path)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("bbdm", "residual"), ("bbdm-noise", "noise"), ("bbdm-ysubx", "displacement")],
)
def test_pixel_model(name: str, objective: Any, tmp_path: Path):
    path, network, average = bbdm_file(tmp_path / "last_model.pth", condition_channels=3)
    loaded = load(path, config=name)
    bridge = replace(BrownianBridge(STEPS, schedule="linear"), objective=objective)
    assert (loaded.bridge, loaded.codec, loaded.image_size) == (bridge, None, None)
    x, y, t = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=2), torch.tensor([0, 150])
    with torch.no_grad():
        assert torch.equal(
            loaded.build_unet(ema=False)(x, t, {"source": y}), network(x, t, {"source": y})
        )
        assert torch.equal(loaded.build_unet()(x, t, {"source": y}), average(x, t, {"source": y}))
    assert f"`{name}`" in (ROOT / "docs" / "weights.md").read_text()
    # without a runner and an average
    alone = load(edited(path, lambda content: content["model"]), config=name)
    assert alone.unet.ema is None
    assert torch.equal(
        alone.build_unet()(x, t, {"source": y}), loaded.build_unet(ema=False)(x, t, {"source": y})
    )


def test_latent_model(tmp_path: Path):
    vqgan = small_vqgan(**LATENT["f8"])
    path, network, _ = bbdm_file(tmp_path / "a.pth", vqgan, in_channels=4, out_channels=4)
    loaded = load(path, config="bbdm", codec=VQGANCodec(vqgan))
    x, t, codec = images(1, 4, 16, 16), torch.tensor([150]), loaded.build_codec()
    with torch.no_grad():
        assert torch.equal(loaded.build_unet(ema=False)(x, t), network(x, t))
    assert codec is not None
    assert codec.description() == VQGANCodec(vqgan).description()
    refused(path, "another codec", config="bbdm", codec=VQGANCodec(small_vqgan(num_codes=7)))


def test_statistics_of_latents(tmp_path: Path):
    path, _, _ = bbdm_file(tmp_path / "a.pth", small_vqgan())
    names = ("ori_latent_mean", "ori_latent_std", "cond_latent_mean", "cond_latent_std")
    values = {
        name: torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) + i for i, name in enumerate(names)
    }
    codec = load(edited(path, lambda content: content.update(values)), config="bbdm").build_codec()
    assert codec is not None
    assert codec.statistics is not None
    assert vars(codec.statistics) == {
        f"{role}_{kind}": (first, first + 1, first + 2)
        for first, (role, kind) in enumerate(product(("target", "source"), ("mean", "std")), 1)
    }
    edited(path, lambda content: [content.pop("ori_latent_std"), content][1])
    refused(path, "missing entry 'ori_latent_std'", config="bbdm")


@pytest.mark.parametrize(("schedule", "max_var"), [("linear", 0.25), ("sin", 1.0), ("sin", 3.7)])
def test_the_schedule_is_in_the_buffers(schedule: Any, max_var: float, tmp_path: Path):
    path, _, _ = bbdm_file(
        tmp_path / "a.pth", None, buffers(schedule, max_var, 300), condition_channels=3
    )
    assert load(path, config="bbdm").bridge == BrownianBridge(300, max_var, schedule=schedule)


RESCALER = {"cond_stage_model.channel_mapper.weight": torch.ones(3, 3, 1, 1)}


def vqgan_state() -> dict[str, Tensor]:
    return under("vqgan.", small_vqgan().state_dict())


@pytest.mark.parametrize(
    ("edit", "arguments", "message"),
    [
        (
            None,
            {},
            r"does not state its objective: give config=, one of \['bbdm', 'bbdm-noise', 'bbdm-ysubx'\]",
        ),
        (
            None,
            {"config": "ddbm-diode-256"},
            r"config must be one of \['bbdm', .*got 'ddbm-diode-256'",
        ),
        (None, {"config": "bbdm", "num_steps": 7}, "num_steps=7 was given"),
        (lambda c: c["model"].update(variance_t=torch.ones(3)), CONFIG, "are of 200 and 3 steps"),
        (
            lambda c: c["model"].update(buffers("first")),
            CONFIG,
            "neither of the schedules linear and sin",
        ),
        (lambda c: c["ema"].update({"denoise_fn.a": torch.ones(1)}), CONFIG, "extra: a$"),
        (
            lambda c: c["model"].update(RESCALER),
            CONFIG,
            r"conditioned by a SpatialRescaler \(cond_stage_model\.\*\)",
        ),
        (
            lambda c: c["model"].update(vqgan_state()),
            CONFIG,
            "is shown 6 channels; a latent model's is shown the 3",
        ),
    ],
)
def test_refused(edit: Any, arguments: dict[str, Any], message: str, tmp_path: Path):
    path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
    refused(path if edit is None else edited(path, edit), message, **arguments)
