"""Files of DDBM, DBIM, ECSI and I2SB in the layouts of their programs, against the formulas of the papers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bbdm import DDBM, ECSI, I2SB, load_checkpoint, save_checkpoint
from bbdm.bridges import Bridge
from bbdm.files.importers import arguments as arguments_of
from bbdm.files.importers import states
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.base import fitting
from bbdm.networks.unet import UNet
from tests.conftest import ROOT
from tests.files.importers.common import fill, images, load, refused, save
from tests.peers.packages import sde_bbdm

X, Y = images(1, 3, 16, 16, seed=3), images(1, 3, 16, 16, seed=4)
PUBLISHED: dict[str, Bridge] = {  # of the programs' scripts
    "ddbm-edges2handbags-64": DDBM("vp", 1e-4, 1.0, 2.0, 0.1),
    "ddbm-edges2handbags-64-ve": DDBM("ve", 0.002, 80.0),
    "ddbm-diode-256": DDBM("vp", 1e-4, 1.0, 2.0, 0.1),
    "ddbm-diode-256-ve": DDBM("ve", 0.0005, 20.0),
    "ecsi-edges2handbags-64": ECSI(0.125, 1e-4, cov=0.125),
    "ecsi-diode-256": ECSI(0.25, 1e-4, cov=0.125),
    "i2sb-256": I2SB(1000, 0.3),
    "i2sb-256-ode": I2SB(1000, 1.0, True),
}
SIZES: dict[int, dict[str, Any]] = {
    64: {
        "width": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 3,
        "attention_resolutions": (2, 4, 8),
    },
    256: {
        "width": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4),
        "num_res_blocks": 2,
        "attention_resolutions": (8, 16, 32),
    },
}


def build(seen: int = 6, width: int = 64, **settings: Any) -> Any:
    """Guided diffusion's network in sde-bbdm, which has 1D attention; I2SB's has the legacy order."""
    usual = {
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "num_head_channels": 64,
    }
    fixed = {"use_scale_shift_norm": True, "resblock_updown": True}
    return sde_bbdm.networks.OpenAIUNet(seen, width, 3, **{**usual, **fixed, **settings})


def ddbm(**settings: Any) -> Any:
    return fill(build(use_new_attention_order=True, **settings))


def call(network: Any, x: Tensor, t: float) -> Tensor:
    with torch.no_grad():
        return type(network).forward(network, x, torch.tensor([t]).float(), None)


def square(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DDBM saves attention, of 2D convolutions."""
    ends = (".qkv.weight", ".proj_out.weight")
    return {key: value[..., None] if key.endswith(ends) else value for key, value in state.items()}


def i2sb_file(path: Path, network: Any, **ema: Any) -> Path:
    """A latest.pt as its runner writes it, with the state of torch_ema, if any."""
    net = {f"diffusion_model.{key}": value for key, value in network.state_dict().items()}
    return save(
        {"net": net, "optimizer": {"state": {}, "param_groups": []}, "sched": None, **ema}, path
    )


def estimate(unet: Any, bridge: Bridge, x: Tensor, y: Tensor, t: float) -> Tensor:
    """The x0hat that the library makes of a state."""
    i_x, i_y = bridge.input(t)
    p_x, p_y, p_f = bridge.prediction(t)
    shown = torch.tensor([float(bridge.network_time(t))])
    conditions = {"source": y} if unet.condition_channels else None
    with torch.no_grad():
        return p_x * x + p_y * y + p_f * unet((i_x * x + i_y * y).float(), shown, conditions)


def denoised(network: Any, bridge: Bridge, x: Tensor, y: Tensor, t: float) -> Tensor:
    """By c_skip, c_out and c_in of DDBM (Zhou et al. 2024, eq. 13), for sigma_0 = sigma_T = 0.5."""
    alpha, beta, sigma = map(float, bridge.marginal(t))
    total = (alpha**2 + beta**2) / 4 + sigma**2
    c_skip = alpha / 4 / total
    c_out = ((beta**2 / 4 + sigma**2) / 4 / total) ** 0.5
    c_in = total**-0.5
    return c_skip * x + c_out * call(network, torch.cat([c_in * x, y], 1), 250 * np.log(t))


def close(outputs: Tensor, expected: Tensor) -> bool:
    return bool((outputs - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("name", "layout", "times"),
    [
        ("ddbm-edges2handbags-64", square, (1.0, 0.6, 0.003)),
        ("ddbm-diode-256-ve", dict, (20.0, 7.0, 0.01)),
    ],
    ids=["ddbm", "dbim"],
)
def test_ddbm(name: str, layout: Any, times: Any, tmp_path: Path):
    """Attention in DBIM's files is of 1D convolutions, in the same order."""
    network = ddbm()
    loaded = load(
        save(layout(network.state_dict()), tmp_path / "ema_0.9999_420000.pt"), config=name
    )
    assert (loaded.bridge, loaded.codec, loaded.image_size) == (
        PUBLISHED[name],
        None,
        64 if "64" in name else 256,
    )
    save_checkpoint(tmp_path / "own.safetensors", loaded.build_unet(), loaded.bridge)
    for checkpoint in (loaded, load_checkpoint(tmp_path / "own.safetensors")):
        for t in times:
            expected = denoised(network, PUBLISHED[name], X, Y, t)
            assert close(estimate(checkpoint.build_unet(), checkpoint.bridge, X, Y, t), expected)


@pytest.mark.parametrize("conditioned", [True, False], ids=["cond_x1", "alone"])
def test_i2sb(conditioned: bool, tmp_path: Path):
    network, average = (fill(build(6 if conditioned else 3), seed) for seed in (0, 1))
    shadow = [parameter.detach().clone() for parameter in average.parameters()]
    ema = {"decay": 0.99, "num_updates": 7, "shadow_params": shadow, "collected_params": None}
    loaded = load(i2sb_file(tmp_path / "latest.pt", network, ema=ema), config="i2sb-256")
    assert loaded.unet.config.condition_channels == (3 if conditioned else 0)
    for ema, theirs in ((True, average), (False, network)):
        expected = call(theirs, torch.cat([X, Y], 1) if conditioned else X, 400.5)
        with torch.no_grad():
            outputs = loaded.build_unet(ema)(
                X, torch.tensor([400.5]), {"source": Y} if conditioned else None
            )
        assert close(outputs, expected)
    assert load(i2sb_file(tmp_path / "b.pt", network), config="i2sb-256").unet.ema is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name: str):
    """Names, bridges and sizes are those of the programs' scripts, and the documentation has each name."""
    assert [*arguments_of.PUBLISHED] == [*PUBLISHED]
    published, size = arguments_of.PUBLISHED[name], 64 if "-64" in name else 256
    assert (published.bridge, published.image_size) == (PUBLISHED[name], size)
    # I2SB's attention has the legacy order
    assert published.heads_last == (not name.startswith("i2sb"))
    with torch.device("meta"):
        state = build(**SIZES[size]).state_dict()
    config = states.unet_config(state, arguments_of.HEADS)
    assert isinstance(fitting(UNet.from_config, config, state), UNet)  # or keys and shapes differ
    assert (config.head_channels, config.num_groups, config.condition_channels) == (64, 32, 3)
    assert f"`{name}`" in (ROOT / "docs" / "weights.md").read_text()


def test_a_name_is_needed(tmp_path: Path):
    for content in (square(ddbm().state_dict()), fill(build()).state_dict()):
        path = save(content, tmp_path / "ema.pt")
        with pytest.raises(
            IncompleteFileError,
            match=r"give config=, one of \['ddbm-diode-256', .*'i2sb-256-ode'\]",
        ):
            load_checkpoint(path)
        refused(path, r"config must be one of \['ddbm-diode-256'.*got 'ddbm'", config="ddbm")


def test_weights_and_averages_that_do_not_fit(tmp_path: Path):
    state, network = square(ddbm().state_dict()), fill(build(3))
    shadow = [parameter.detach() for parameter in network.parameters()]
    states: list[tuple[Any, str]] = [
        ({k: v for k, v in state.items() if k != "out.2.bias"}, r"missing: out\.2\.bias"),
        ({**state, "label_emb.weight": torch.ones(10, 128)}, r"extra: label_emb\.weight"),
        (ddbm(use_scale_shift_norm=False).state_dict(), r"of another shape: .*emb_layers\.1\.bias"),
    ]
    for content, message in states:
        refused(save(content, tmp_path / "a.pt"), message, config="ddbm-diode-256")
    short = rf"its ema is {len(shadow) - 1} tensors; wanted .* {len(shadow)} shadow_params"
    averages: list[tuple[Any, str]] = [
        ({"shadow_params": shadow[1:]}, short),
        ({"shadow_params": shadow[::-1]}, r"do not fit the network: of another shape: "),
        ({"shadow_params": [*shadow[1:], 3]}, "is a int, not a tensor"),
        ([1], "its ema is a list; wanted the state of torch_ema"),
    ]
    for ema, message in averages:
        refused(i2sb_file(tmp_path / "a.pt", network, ema=ema), message, config="i2sb-256")


def arguments(path: Path, **values: Any) -> str:
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize(
    ("values", "bridge"),
    [
        (
            {
                "pred_mode": "vp",
                "sigma_min": 0.001,
                "sigma_max": 1,
                "beta_d": 1.5,
                "beta_min": 0.2,
                "cov_xy": 0.1,
            },
            DDBM("vp", 0.001, 1.0, 1.5, 0.2, cov=0.1),
        ),
        (
            {"pred_mode": "ve", "sigma_max": 10, "sigma_data": 0.4},
            DDBM("ve", 0.002, 10.0, sigma_data=0.4, sigma_source=0.4),
        ),
    ],
    ids=["vp", "ve"],
)
def test_networks_of_own_training_by_its_arguments(
    values: dict[str, Any], bridge: Any, tmp_path: Path
):
    """DDBM's, of another schedule and heads of 16 channels; x0hat by the formulas of its paper."""
    about = arguments(tmp_path / "args.json", image_size=32, num_head_channels=16, lr=0.1, **values)
    network = ddbm(num_head_channels=16)
    loaded = load(save(square(network.state_dict()), tmp_path / "ema.pt"), config=about)
    assert (loaded.bridge, loaded.image_size, loaded.unet.config.head_channels) == (bridge, 32, 16)
    data, cov = bridge.sigma_data, bridge.cov
    for t in (bridge.end, bridge.end / 2, 0.01):
        alpha, beta, sigma = map(float, bridge.marginal(t))
        total = (alpha**2 + beta**2) * data**2 + 2 * alpha * beta * cov + sigma**2
        c_skip, c_in = (alpha * data**2 + beta * cov) / total, total**-0.5
        c_out = (beta**2 * (data**4 - cov**2) + data**2 * sigma**2) ** 0.5 * c_in
        expected = c_skip * X + c_out * call(network, torch.cat([c_in * X, Y], 1), 250 * np.log(t))
        assert close(estimate(loaded.build_unet(), loaded.bridge, X, Y, t), expected)


def test_arguments_of_ecsi_in_sections_and_of_i2sb(tmp_path: Path):
    """ECSI's gamma is 0.25 sqrt(t (1 - t)) in its mode vpv5."""
    model = {
        "image_size": 128,
        "num_head_channels": 64,
        "attention_type": "flash",
        "unet_type": "adm",
    }
    diffusion = {
        "sigma_min": 1e-3,
        "sigma_max": 1,
        "cov_xy": 0.125,
        "pred_mode": "vpv5",
        "weight_schedule": "sibm",
    }
    ecsi = arguments(tmp_path / "ecsi.json", model=model, diffusion=diffusion)
    loaded = load(save(square(ddbm().state_dict()), tmp_path / "ema.pt"), config=ecsi)
    assert (loaded.bridge, loaded.image_size) == (ECSI(0.125, 1e-3, cov=0.125), 128)
    assert float(loaded.bridge.marginal(0.3).sigma) == pytest.approx(0.25 * (0.3 * 0.7) ** 0.5)
    i2sb = arguments(
        tmp_path / "i2sb.json",
        **{"beta-max": 0.5, "interval": 500, "ot-ode": True, "image-size": 64},
    )
    loaded = load(i2sb_file(tmp_path / "latest.pt", fill(build())), config=i2sb)
    assert (loaded.bridge, loaded.image_size) == (I2SB(500, 0.5, True), 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lr": 1e-4},
            "args.json has neither pred_mode, of the code of DDBM and ECSI, nor beta_max",
        ),
        (
            {"pred_mode": "vp_simple"},
            "pred_mode in .*args.json must be one of ve, vp, linear1, .*got 'vp_simple'",
        ),
        (
            {"pred_mode": "vp", "sigma_max": 80},
            "sigma_max in .* must be 1, which alone is read; got 80",
        ),
        ({"pred_mode": "ve"}, "num_head_channels in .*args.json must be at least 1"),
        (
            {"pred_mode": "ve", "sigma_min": "small"},
            "sigma_min in .*args.json must be a number, got 'small'",
        ),
        ({"beta_max": 0.3, "T": 2}, "T in .*args.json must be 1.0, which alone is read; got 2"),
    ],
)
def test_arguments_that_are_refused(values: dict[str, Any], message: str, tmp_path: Path):
    about = arguments(tmp_path / "args.json", **values)
    refused(save(square(ddbm().state_dict()), tmp_path / "ema.pt"), message, config=about)
