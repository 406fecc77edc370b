"""Networks that diffusers saved, as networks of a bridge: exact beside diffusers' own schedulers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from bbdm import BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.bridges.path import Marginal
from bbdm.files.pretrained import pretrained

LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
PLAIN: dict[str, Any] = {
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    **LEVELS,
}
CROSS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    **LEVELS,
}
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
FULL = (1e-3, 1e3)  # beyond the levels of all schedules
Make = Callable[[], torch.nn.Module]
NETWORKS: dict[str, Make] = {
    "pixels": lambda: UNet2DModel(in_channels=3, out_channels=3, add_attention=False, **PLAIN),
    "text": lambda: UNet2DConditionModel(in_channels=4, out_channels=4, **CROSS),
    "DiT": lambda: DiTTransformer2DModel(
        2, 8, 4, 8, num_layers=2, sample_size=8, num_embeds_ada_norm=5
    ),
    "SDXL": lambda: UNet2DConditionModel(in_channels=4, out_channels=4, **CROSS, **SDXL),
}
OTHERS: dict[str, Make] = {
    "grey": lambda: UNet2DModel(in_channels=1, out_channels=1, add_attention=False, **PLAIN),
    "four levels": lambda: UNet2DModel(
        in_channels=3,
        out_channels=3,
        add_attention=False,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        **{**LEVELS, "block_out_channels": (8,) * 4},
    ),
}


def save(folder: Path, scheduler: Any, name: str = "pixels") -> Any:
    """A pipeline's folder with a random network, whose biases are not zero; returns the network."""
    torch.manual_seed(0)
    network = (NETWORKS | OTHERS)[name]()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    part = "transformer" if name == "DiT" else "unet"
    network.save_pretrained(folder / part)  # pyright: ignore[reportCallIssue]
    scheduler.save_pretrained(folder / "scheduler")
    return network.eval()


def further(network: Any, count: int) -> dict[str, Any]:
    """What diffusers gives a network with text for no text, and one with classes for no class."""
    if isinstance(network, DiTTransformer2DModel):
        return {"class_labels": torch.full((count,), 5)}
    if not isinstance(network, UNet2DConditionModel):
        return {}
    given: dict[str, Any] = {"encoder_hidden_states": torch.zeros(count, 77, 12).double()}
    if network.config["addition_embed_type"]:
        sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).double().expand(count, -1)
        given["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(count, 10).double(),
            "time_ids": sizes,
        }
    return given


def estimate(network: Any, bridge: Any, t: int, u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x0hat of the state alpha u + beta y, by the bridge's weights."""
    alpha, beta, _ = (float(weight) for weight in bridge.at(t))
    x_t = alpha * u + beta * y
    i_x, i_y = bridge.input(t).tolist()
    p_x, p_y, p_f = bridge.prediction(t).tolist()
    time = torch.tensor([float(bridge.network_times(t))], dtype=torch.float64)
    v = network(i_x * x_t + i_y * y, time, {"source": y[:, :3]})
    return p_x * x_t + p_y * y + p_f * v


@dataclass(frozen=True)
class Levels(Bridge):
    """A bridge whose noise level at time t is that of a scheduler's index t - 1, and infinite at its end."""

    num_steps: int = 1001
    objective: Any = "residual"

    def betas(self) -> Any:
        """Of the scheduler, which has them in float32."""
        return DDPMScheduler().betas.double().numpy()

    def marginal(self, t: Any) -> Marginal:
        """Weights at times in [0, 1001]."""
        time = self._time(t)
        kept = np.cumprod(1 - self.betas())
        levels = np.concatenate([[0.0], np.sqrt(1 / kept - 1), [0.0]])
        alpha = 1 - time / 1001
        return Marginal(alpha, 1 - alpha, np.interp(time, np.arange(1002), levels) * alpha)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_first_estimate_is_the_schedulers(name: str, prediction: Any, tmp_path: Path) -> None:
    """In float64, for any source: diffusers' pred_original_sample of u at unit variance, to 1e-10."""
    scheduler: Any = DDPMScheduler(prediction_type=prediction, clip_sample=False)
    own = save(tmp_path, scheduler, name).double()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    network, bridge = pretrained(tmp_path, Levels(), source_channels=3)
    bridge = replace(bridge, noise_range=FULL)
    network = network.double()
    channels = network.channels
    generator = torch.Generator().manual_seed(1)
    for index in (0, 1, 500, 998):
        kept = scheduler.alphas_cumprod[index]
        noisy = torch.randn(2, channels, 8, 8, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            time = torch.full((2,), float(index)).double()
            # without its variance
            output = own(noisy, time, **further(own, 2)).sample[:, :channels]
            expected = scheduler.step(output, index, noisy, return_dict=True).pred_original_sample
            for seed in (2, 3):
                y = torch.randn(
                    2, channels, 8, 8, generator=torch.Generator().manual_seed(seed)
                ).double()
                found = estimate(network, bridge, index + 1, noisy / kept.sqrt(), y)
                assert (found - expected).abs().max() < 1e-10 * expected.abs().max()


def test_integer_times_are_those_of_the_schedule(tmp_path: Path) -> None:
    """Between them the index grows with ln sigma; beyond the ends it stays. In float32, 76 of 1,000 miss."""
    save(tmp_path, DDPMScheduler())
    network, bridge = pretrained(tmp_path, Levels())
    bridge = replace(bridge, noise_range=FULL)
    network = network.double()
    times = torch.from_numpy(bridge.network_times(np.arange(1, 1001)))
    indices = network.embed(times)[:, 0]
    torch.testing.assert_close(indices, torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-9)
    fine = network.embed(torch.linspace(-9, 9, 5001, dtype=torch.float64))[:, 0]
    assert (fine.diff() >= 0).all()
    assert (fine[0], fine[-1]) == (0, 999)


@pytest.mark.parametrize(
    ("prediction", "top"), [("epsilon", 2.0), ("v_prediction", 157.4), ("sample", 157.4)]
)
def test_a_network_of_epsilon_is_used_up_to_a_level_of_2(
    prediction: Any, top: float, tmp_path: Path
) -> None:
    """Above it errors would be large in the estimate: others have the range of their schedule."""
    save(tmp_path, DDPMScheduler(prediction_type=prediction))
    network, bridge = pretrained(tmp_path, BrownianBridge())
    kept = DDPMScheduler().alphas_cumprod.double().numpy()
    least = (1 / kept[0] - 1) ** 0.5
    assert bridge.noise_range == pytest.approx((least, top), rel=1e-3)
    assert np.exp(network.config.log_levels[-1]) == pytest.approx(157.4, rel=1e-3)


def test_zero_snr_ends_at_the_last_finite_level(tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    network, bridge = pretrained(tmp_path, BrownianBridge())
    assert len(network.config.log_levels) < 1000
    assert bridge.noise_range is not None
    assert 10 < bridge.noise_range[1] < np.inf
    assert np.isfinite(bridge.network_times(np.arange(1, 1001))).all()


@pytest.mark.parametrize("nu", [0.01, 0.7, 30.0])
def test_flows_and_edm_by_their_own_formulas(nu: float, tmp_path: Path) -> None:
    """Of flows x0 = x_s - s F at x_s = (1 - s) x0 + s eps; of EDM by the scheduler's own preconditioning."""
    own = save(tmp_path / "flow", FlowMatchEulerDiscreteScheduler()).double()
    # x0 + nu eps
    u = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    a = (1 + nu**2) ** -0.5
    s = nu * a

    def found(network: Any) -> torch.Tensor:
        v = network.double()(a * u, torch.tensor([nu], dtype=torch.float64).log(), {"source": y})
        return a * a * u - s * v

    with torch.no_grad():
        share = nu / (1 + nu)
        state = (1 - share) * u
        expected = state - share * own(state, torch.tensor(min(1000 * share, 999)).double()).sample
        network, bridge = pretrained(tmp_path / "flow", BrownianBridge())
        torch.testing.assert_close(found(network), expected, rtol=1e-9, atol=1e-9)
        assert bridge.noise_range == pytest.approx((1 / 999, 999))
        for prediction in ("epsilon", "v_prediction"):
            scheduler: Any = EDMEulerScheduler(prediction_type=prediction)
            folder = tmp_path / prediction
            own = save(folder, scheduler).double()
            output = own(
                scheduler.precondition_inputs(u, nu), scheduler.precondition_noise(nu).double()
            ).sample
            expected = scheduler.precondition_outputs(u, output, nu)
            network, bridge = pretrained(folder, BrownianBridge())
            # its time is float32
            torch.testing.assert_close(found(network), expected, rtol=1e-6, atol=1e-6)
            assert bridge.noise_range == (0.002, 80.0)


def test_a_new_source_begins_without_weight_and_learns(tmp_path: Path) -> None:
    own = save(tmp_path, DDPMScheduler())
    network, _ = pretrained(tmp_path, BrownianBridge(), source_channels=2)
    layer: Any = network.module.conv_in
    assert layer.weight.shape[1] == 5
    assert torch.equal(layer.weight[:, :3], own.conv_in.weight)
    assert torch.equal(layer.bias, own.conv_in.bias)
    assert not layer.weight[:, 3:].any()
    source = torch.rand(2, 2, 8, 8)
    network.train()(
        torch.rand(2, 3, 8, 8), torch.zeros(1), {"source": source}
    ).square().mean().backward()
    assert layer.weight.grad[:, 3:].abs().min() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_it_is_like_any_other(name: str, tmp_path: Path) -> None:
    """It needs no folder, and samples as before, in five calls."""
    save(tmp_path, DDPMScheduler(), name)
    network, bridge = pretrained(tmp_path, BrownianBridge())
    source = torch.rand(2, 3, 8, 8) * 2 - 1
    before = BridgeSampler(network, bridge, "sde-dpm2m", 5)(source, seed=0)
    assert before.shape == (2, network.channels, 8, 8)
    save_checkpoint(tmp_path / "a.pt", network, bridge, image_size=8)
    for folder in ("unet", "transformer", "scheduler"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    assert load_checkpoint(tmp_path / "a.pt").bridge == bridge
    again = BridgeSampler.from_checkpoint(tmp_path / "a.pt", solver="sde-dpm2m", steps=5)
    assert torch.equal(again(source, seed=0), before)


BAD: dict[str, tuple[Any, str]] = {
    "fourier": (
        {"time_embedding_type": "fourier"},
        "time_embedding_type must be 'positional', got 'fourier'",
    ),
    "centred": ({"center_input_sample": True}, "center_input_sample is for pictures in"),
    "classes": ({"num_class_embeds": 3}, "the network must have no classes, got 3"),
    "skips": (
        {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
        "no skip blocks, got SkipDownBlock2D",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_bridge_can_use_is_refused(case: str, tmp_path: Path) -> None:
    settings, reason = BAD[case]
    save(tmp_path, DDPMScheduler())
    network, _ = pretrained(tmp_path, BrownianBridge())
    arguments = {**network.config.arguments, **settings}
    with pytest.raises(ValueError, match=reason):
        replace(network.config, arguments_json=json.dumps(arguments))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers_per_block": 10**9}, "tensors, for 1000000000 blocks"),
        (
            {"down_block_types": ["DownBlock2D", "Other"]},
            "does not exist",
        ),
        ({"block_out_channels": "wide"}, "Must provide"),
        ({"act_fn": 3}, "no UNet2DModel can be built"),
        ({"norm_num_groups": 0}, "no UNet2DModel can be built"),
    ],
)
def test_files_with_wrong_arguments_are_refused_at_once(
    changes: Any, reason: str, tmp_path: Path
) -> None:
    """As damaged, or as others made them: nothing runs for long, and the message is one of ours."""
    save(tmp_path, DDPMScheduler())
    network, bridge = pretrained(tmp_path, BrownianBridge())
    arguments = {**network.config.arguments, **changes}
    config = replace(network.config, arguments_json=json.dumps(arguments))
    object.__setattr__(network, "network_config", config)
    save_checkpoint(tmp_path / "a.pt", network, bridge, image_size=8)
    with pytest.raises(ValueError, match=reason):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prediction": "score"}, "prediction must be one of"),
        ({"arguments_json": "[1]"}, "arguments_json must hold the arguments"),
        ({"log_levels": (1.0, 0.5)}, "log_levels must be increasing"),
        ({"log_levels": ()}, "log_levels must be increasing, two or more of a schedule, got 0"),
        ({"log_levels": (0.5, float("nan"))}, "log_levels must be finite numbers"),
        ({"sigma_data": 0.0}, "sigma_data must be a positive number, got 0.0"),
    ],
)
def test_settings_that_are_refused(settings: Any, reason: str, tmp_path: Path) -> None:
    save(tmp_path, DDPMScheduler())
    network, _ = pretrained(tmp_path, BrownianBridge())
    with pytest.raises(ValueError, match=reason):
        replace(network.config, **settings)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="has no network: a folder with unet or transformer, or with config"
    ):
        pretrained(tmp_path, BrownianBridge())
    save(tmp_path, DDPMScheduler())
    with pytest.raises(ValueError, match="objective 'denoiser' needs noise"):
        pretrained(tmp_path, BrownianBridge(max_variance=0.0))
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"must hold weights as \.safetensors"):
        pretrained(tmp_path, BrownianBridge())
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    weights.with_suffix(".bin").rename(weights)
    with pytest.raises(FileNotFoundError, match=r"there is no .*scheduler_config\.json"):
        pretrained(tmp_path, BrownianBridge())


def test_a_network_of_four_levels_takes_sides_in_multiples_of_eight(tmp_path: Path):
    save(tmp_path, DDPMScheduler(), "four levels")
    network, _ = pretrained(str(tmp_path), BrownianBridge())
    assert network.config.stride == 8
