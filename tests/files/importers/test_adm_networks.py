"""Guided diffusion's networks as the start of a bridge, beside the network of its code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from bbdm import BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.files.importers import states
from bbdm.files.importers.adm import SCHEDULES, is_adm, read_adm
from bbdm.files.pretrained import find_pretrained, pretrained
from bbdm.networks.base import fitting
from bbdm.networks.unet import UNet
from tests.files.importers.common import fill, save
from tests.files.test_pretrained import FULL, Levels, estimate
from tests.peers.packages import sde_bbdm

PUBLISHED: dict[str, Any] = {  # 256x256_diffusion_uncond.pt
    "width": 256,
    "channel_mult": [1, 1, 2, 2, 4, 4],
    "num_res_blocks": 2,
    "attention_resolutions": [8, 16, 32],
}


@dataclass(frozen=True)
class ADMLevels(Levels):
    """A bridge with the noise levels of guided diffusion's linear schedule."""

    def betas(self) -> Any:
        return np.linspace(1e-4, 0.02, 1000)


def adm(outputs: int = 6, width: int = 64, **settings: Any) -> Any:
    """Guided diffusion's network of its code, which predicts the noise and, with 6 channels, the variance."""
    usual = {
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "num_head_channels": 64,
    }
    fixed = {"use_scale_shift_norm": True, "resblock_updown": True}
    return sde_bbdm.networks.OpenAIUNet(3, width, outputs, **{**usual, **fixed, **settings})


def predicted(network: Any, x: Tensor, index: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The noise that its code predicts, in float64 but for the angles of the time, which are in float32."""
    time = torch.full((len(x),), float(index))
    embedding = sde_bbdm.networks.utils.timestep_embedding(time, network.model_channels)
    hook = network.time_embed.register_forward_pre_hook(lambda _, __: (embedding.double(),))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(Tensor, "float", Tensor.double)  # of its norms and attention
        output = type(network).forward(network.double(), x, time, None)
    hook.remove()
    return output[:, :3]


def test_the_first_estimate_is_of_the_noise_that_it_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two sources, x0hat = (x - sqrt(1 - abar) eps) / sqrt(abar) at integer times, to 1e-10."""
    own = fill(adm())
    path = save(own.state_dict(), tmp_path / "ADM.pt")
    network, bridge = pretrained(path, ADMLevels(), source_channels=3)
    assert bridge.noise_range == pytest.approx((0.01, 2.0), rel=1e-3)
    bridge = replace(bridge, noise_range=FULL)
    network = network.double()
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    generator = torch.Generator().manual_seed(1)
    for index in (0, 1, 500, 998):
        noisy = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
        noise = predicted(own, noisy, index, monkeypatch)
        expected = (noisy - float(1 - kept[index]) ** 0.5 * noise) / float(kept[index]) ** 0.5
        for seed in (2, 3):
            y = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
            with torch.no_grad():
                outputs = estimate(network, bridge, index + 1, noisy / float(kept[index]) ** 0.5, y)
            assert (outputs - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "schedule"), [("adm", "linear"), ("adm-cosine", "squaredcos_cap_v2")]
)
def test_its_schedules_are_those_of_diffusers(name: str, schedule: Any) -> None:
    expected = DDPMScheduler(beta_schedule=schedule).betas.numpy()
    np.testing.assert_allclose(SCHEDULES[name](), expected, rtol=1e-5)


def test_a_published_network_is_recognised_by_its_shapes() -> None:
    with torch.device("meta"):
        state = adm(**PUBLISHED).state_dict()
    for key in ("out.2.weight", "out.2.bias"):
        state[key] = state[key][:3]
    config = states.unet_config(state, 64)
    assert isinstance(fitting(UNet.from_config, config, state), UNet)  # or keys and shapes differ
    assert (config.model_channels, config.channel_mult, config.stride) == (
        256,
        (1, 1, 2, 2, 4, 4),
        32,
    )
    assert (config.num_res_blocks, config.attention_resolutions) == (2, (8, 16, 32))


def test_a_new_source_begins_without_weight_and_learns(tmp_path: Path) -> None:
    own = fill(adm())
    network, _ = pretrained(
        save(own.state_dict(), tmp_path / "ADM.pt"), BrownianBridge(), source_channels=2
    )
    layer: Any = network.module.input_blocks[0][0]
    assert layer.weight.shape[1] == 5
    assert torch.equal(layer.weight[:, :3], own.state_dict()["input_blocks.0.0.weight"])
    assert torch.equal(layer.bias, own.state_dict()["input_blocks.0.0.bias"])
    assert not layer.weight[:, 3:].any()
    network.gradient_checkpointing = True
    assert network.module.gradient_checkpointing
    source = torch.rand(2, 2, 16, 16)
    network.train()(
        torch.rand(2, 3, 16, 16), torch.zeros(1), {"source": source}
    ).square().mean().backward()
    assert layer.weight.grad[:, 3:].abs().min() > 0


def test_grey_targets_and_others(tmp_path: Path, caplog: Any) -> None:
    path = save(fill(adm()).state_dict(), tmp_path / "ADM.pt")
    colour, _ = pretrained(path, BrownianBridge(), source_channels=1)
    grey, _ = pretrained(path, BrownianBridge(), source_channels=1, channels=1)
    x = torch.rand(2, 1, 16, 16)
    conditions = {"source": torch.rand(2, 1, 16, 16)}
    with torch.no_grad():
        expected = colour(x.expand(-1, 3, -1, -1), torch.zeros(1), conditions).mean(
            dim=1, keepdim=True
        )
        torch.testing.assert_close(
            grey(x, torch.zeros(1), conditions), expected, rtol=1e-4, atol=1e-5
        )
    assert not caplog.records
    pretrained(path, BrownianBridge(), source_channels=1, channels=13)
    assert caplog.records[0].message.endswith(
        "its first and last layers, input_blocks.0.0 and out.2, are new"
    )


def test_a_file_of_it_is_like_any_other(tmp_path: Path) -> None:
    path = save(fill(adm()).state_dict(), tmp_path / "ADM.pt")
    network, bridge = pretrained(path, BrownianBridge())
    source = torch.rand(2, 3, 16, 16) * 2 - 1
    before = BridgeSampler(network, bridge, "sde-dpm2m", 5)(source, seed=0)
    save_checkpoint(tmp_path / "a.pt", network, bridge, image_size=16)
    path.unlink()
    assert load_checkpoint(tmp_path / "a.pt").bridge == bridge
    again = BridgeSampler.from_checkpoint(tmp_path / "a.pt", solver="sde-dpm2m", steps=5)
    assert torch.equal(again(source, seed=0), before)


def test_a_file_without_the_head_of_the_variance_needs_its_name(tmp_path: Path) -> None:
    """As I2SB's code saves ADM; without the name it may be a network of sde-bbdm."""
    state = fill(adm()).state_dict()
    cut = {key: value[:3] if key.startswith("out.2.") else value for key, value in state.items()}
    both = [
        save(content, tmp_path / name)
        for content, name in ((state, "ADM.pt"), (cut, "fixedsigma.pt"))
    ]
    assert [is_adm(path) for path in both] == [True, False]
    assert find_pretrained(both[1]) is None
    first, _ = pretrained(both[0], BrownianBridge())
    second, _ = pretrained(both[1], BrownianBridge(), config="adm")
    assert first.config == second.config
    assert all(
        torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items()
    )
    cosine, bridge = pretrained(both[0], BrownianBridge(), config="adm-cosine")
    assert cosine.config.log_levels != first.config.log_levels
    assert bridge.noise_range != pretrained(both[0], BrownianBridge())[1].noise_range


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (
            {"label_emb.weight": torch.zeros(1000, 256)},
            None,
            "it is class-conditional, of 1000 classes",
        ),
        (
            {
                "input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3),
                "out.2.weight": torch.zeros(3, 64, 3, 3),
            },
            "adm",
            "it must be shown 3 channels, as it predicts, got 6",
        ),
        ({"extra.weight": torch.zeros(1)}, None, r"extra: extra\.weight"),
        (
            {"out.2.bias": torch.zeros(7)},
            None,
            r"of another shape: out\.2\.bias \(7,\) \(wanted \(3,\)\)",
        ),
        ({}, "i2sb-256", "config must be one of adm, adm-cosine, got 'i2sb-256'"),
    ],
)
def test_files_that_are_refused(
    change: Any, config: str | None, reason: str, tmp_path: Path
) -> None:
    path = save({**fill(adm()).state_dict(), **change}, tmp_path / "ADM.pt")
    with pytest.raises(
        ValueError, match=f"cannot read .*ADM.pt as a network of diffusion models: .*{reason}"
    ):
        pretrained(path, BrownianBridge(), config=config)


@pytest.mark.parametrize(
    "settings",
    [
        {"resblock_updown": False},
        {"use_scale_shift_norm": False},
        {"use_scale_shift_norm": False, "channel_mult": [1]},
    ],
)
def test_networks_of_improved_diffusion_are_refused_by_name(settings: Any, tmp_path: Path) -> None:
    path = save(fill(adm(**settings)).state_dict(), tmp_path / "ADM.pt")
    reason = "must be a network of guided diffusion with resblock_updown .*, and has other blocks, as those of improved"
    with pytest.raises(ValueError, match=reason):
        pretrained(path, BrownianBridge())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"in_channels": 0}', "in_channels must be at least 1"),
        ('{"depth": 3}', "no UNet can be built"),
    ],
)
def test_files_with_wrong_arguments_are_refused(text: str, reason: str) -> None:
    settings, _ = read_adm(fill(adm()).state_dict(), None)
    with pytest.raises(ValueError, match=reason):
        replace(settings, arguments_json=text)
