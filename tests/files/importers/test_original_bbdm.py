"""Files of the original BBDM, in the layout of its runner."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from bbdm import BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import LATENT, SMALL, fill, images, load, refused, save, small_vqgan

STEPS = 200


def buffers(schedule: str = "linear", max_var: float = 1.0, steps: int = STEPS) -> dict[str, Tensor]:
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
    before = np.append(0, m[:-1])
    variance = 2 * (m - m**2) * max_var
    variance_before = np.append(0.0, variance[:-1])
    step = variance - variance_before * ((1 - m) / (1 - before)) ** 2
    found = {
        "m_t": m,
        "m_tminus": before,
        "variance_t": variance,
        "variance_tminus": variance_before,
        "variance_t_tminus": step,
        "posterior_variance_t": step * variance_before / variance,
    }
    return {key: torch.tensor(value, dtype=torch.float32) for key, value in found.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def bbdm_unet(seed: int = 0, **settings: Any) -> UNet:
    return fill(UNet(**{**SMALL, "attention_resolutions": (32, 16, 8), "num_res_blocks": 1, **settings}), seed)


def bbdm_file(path: Path, vqgan: VQGAN | None = None, schedule: dict[str, Tensor] | None = None, **unet: Any) -> Any:
    """(file, network, moving average) in the layout of its runner."""
    network, average = bbdm_unet(0, **unet), bbdm_unet(1, **unet)
    model = {**(schedule or buffers()), **under("denoise_fn.", network.state_dict())}
    if vqgan is not None:
        model |= under("vqgan.", vqgan.state_dict())
    shadow = under("denoise_fn.", dict(average.named_parameters()))
    shadow = {key: value.data for key, value in shadow.items()}
    return save({"step": 20, "model": model, "epoch": 2, "ema": shadow}, path), network, average


def bbdm_yaml(path: Path, latent: bool = False, **changes: Any) -> Path:
    """Its template, with settings at dotted names changed."""
    unet = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": (32, 16, 8),
        "channel_mult": (1, 2),
        "num_heads": 8,
        "num_head_channels": 32,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_spatial_transformer": False,
        "context_dim": None,
        "condition_key": "nocond" if latent else "SpatialRescaler",
    }
    params: dict[str, Any] = {
        "mt_type": "linear",
        "objective": "grad",
        "loss_type": "l1",
        "num_timesteps": STEPS,
        "eta": 1.0,
        "max_var": 1.0,
    }
    params["UNetParams"] = unet
    model = {"model_name": "a", "model_type": "LBBDM" if latent else "BBDM", "BB": {"params": params}}
    content: dict[str, Any] = {"runner": "BBDMRunner", "data": {"dataset_config": {"image_size": 256}}, "model": model}
    for name, value in changes.items():
        *places, last = name.split("__")
        target = {"unet": unet, "params": params, "model": model}[places[0]]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path.write_text(yaml.dump(content))
    return path


class TestOriginalBbdm:
    @pytest.mark.parametrize(("theirs", "ours"), [("grad", "residual"), ("noise", "noise"), ("ysubx", "displacement")])
    def test_pixel_model(self, theirs: str, ours: Any, tmp_path: Path):
        path, network, average = bbdm_file(tmp_path / "last_model.pth", condition_channels=3)
        loaded = load(path, config=bbdm_yaml(tmp_path / "a.yaml", params__objective=theirs))
        bridge = replace(BrownianBridge.bbdm(STEPS), objective=ours)
        assert (loaded.bridge, loaded.codec, loaded.image_size) == (bridge, None, 16)
        assert loaded.unet.config == network.config
        x, y, t = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=2), torch.tensor([0, 150])
        with torch.no_grad():
            assert torch.equal(loaded.build_unet(ema=False)(x, t, {"source": y}), network(x, t, {"source": y}))
            assert torch.equal(loaded.build_unet()(x, t, {"source": y}), average(x, t, {"source": y}))

    @pytest.mark.parametrize("name", LATENT)
    @pytest.mark.parametrize("before", [True, False], ids=["before-quant-conv", "after"])
    def test_latent_model(self, name: str, before: bool, tmp_path: Path):
        vqgan = small_vqgan(**LATENT[name])
        channels = vqgan.config.latent_channels
        attention: dict[str, Any] = {"attention_resolutions": (16, 8, 4)} if name == "f16" else {}
        path, network, _ = bbdm_file(
            tmp_path / "a.pth", vqgan, in_channels=channels, out_channels=channels, **attention
        )
        changes = {f"unet__{key}": value for key, value in attention.items()}
        config = bbdm_yaml(tmp_path / "a.yaml", True, model__latent_before_quant_conv=before, **changes)
        loaded = load(path, config=config)
        assert (loaded.unet.config, loaded.image_size) == (network.config, 16 * vqgan.config.stride)
        codec = loaded.build_codec()
        assert isinstance(codec, VQGANCodec)
        assert (codec.vqgan.config, codec.before_quant_conv, codec.statistics) == (vqgan.config, before, None)
        assert all(torch.equal(value, vqgan.state_dict()[key]) for key, value in codec.state_dict().items())
        load(path, config=config, codec=VQGANCodec(vqgan))
        refused(path, "another codec", config=config, codec=VQGANCodec(small_vqgan(num_codes=7)))

    def test_statistics(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", small_vqgan())
        content = torch.load(path, weights_only=True)
        names = ("ori_latent_mean", "ori_latent_std", "cond_latent_mean", "cond_latent_std")
        for i, name in enumerate(names):
            content[name] = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) + i
        save(content, path)
        config = bbdm_yaml(tmp_path / "a.yaml", True, model__normalize_latent=True)
        codec = load(path, config=config).build_codec()
        assert codec is not None
        assert codec.statistics is not None
        assert vars(codec.statistics) == {
            "target_mean": (1.0, 2.0, 3.0),
            "target_std": (2.0, 3.0, 4.0),
            "source_mean": (3.0, 4.0, 5.0),
            "source_std": (4.0, 5.0, 6.0),
        }
        plain = bbdm_yaml(tmp_path / "b.yaml", True)
        refused(path, r"has statistics of latents, but .*b\.yaml does not set normalize_latent", config=plain)
        del content["ori_latent_std"]
        refused(save(content, path), "ori_latent_std is a NoneType, not a tensor", config=config)

    @pytest.mark.parametrize("schedule", ["linear", "sin"])
    @pytest.mark.parametrize("max_var", [1.0, 0.25, 3.7])
    def test_schedule_is_told_from_the_buffers(self, schedule: Any, max_var: float, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", None, buffers(schedule, max_var, 300), condition_channels=3)
        changes: dict[str, Any] = {"params__mt_type": None, "params__max_var": None, "params__num_timesteps": None}
        loaded = load(path, config=bbdm_yaml(tmp_path / "a.yaml", **changes))
        assert loaded.bridge == BrownianBridge.bbdm(300, max_var, schedule)

    def test_settings_as_its_runner_saves_them(self, tmp_path: Path):
        path, network, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)

        def namespaces(value: Any) -> Any:
            if isinstance(value, dict):
                return argparse.Namespace(**{key: namespaces(part) for key, part in value.items()})
            return value

        content = namespaces(yaml.load(bbdm_yaml(tmp_path / "a.yaml").read_text(), yaml.FullLoader))
        content.training = argparse.Namespace(device=[torch.device("cuda:0"), torch.device("cpu")], use_DDP=False)
        content.args = argparse.Namespace(train=True, max_epoch=None)
        (tmp_path / "config.yaml").write_text(yaml.dump(content))
        assert "!!python/object/apply:torch.device" in (tmp_path / "config.yaml").read_text()
        assert load(path, config=tmp_path / "config.yaml").unet.config == network.config

    def test_weights_without_average_and_without_a_runner(self, tmp_path: Path):
        path, network, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        content = torch.load(path, weights_only=True)
        config = bbdm_yaml(tmp_path / "a.yaml")
        del content["ema"]
        for value in (content, content["model"]):
            loaded = load(save(value, path), config=config)
            assert loaded.unet.ema is None
            assert loaded.unet.weights is not None
            assert all(torch.equal(loaded.unet.weights[k], v) for k, v in network.state_dict().items())

    def test_config_is_needed(self, tmp_path: Path):
        """Which may have the number of heads in place of their width."""
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        refused(path, r"does not state its objective and condition: give config=, the YAML file")
        with pytest.raises(FileNotFoundError):
            load(path, config=tmp_path / "gone.yaml")
        config = bbdm_yaml(tmp_path / "a.yaml", unet__num_head_channels=-1, unet__num_heads=4)
        assert load(path, config=config).unet.config.head_channels == 16

    def test_spatial_rescaler_is_refused_by_name(self, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", small_vqgan(), condition_channels=3)
        config = bbdm_yaml(tmp_path / "a.yaml", True, unet__condition_key="SpatialRescaler")
        refused(path, "a latent model with the condition SpatialRescaler; of these only nocond", config=config)
        content = torch.load(path, weights_only=True)
        content["model"]["cond_stage_model.channel_mapper.weight"] = torch.ones(3, 3, 1, 1)
        refused(save(content, path), r"conditioned by a SpatialRescaler \(cond_stage_model\.\*\)")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"params__num_timesteps": 1000}, r"has model\.BB\.params\.num_timesteps 1000, but .* with 200$"),
            ({"params__mt_type": "sin"}, r"has model\.BB\.params\.mt_type 'sin', but .* with 'linear'$"),
            ({"params__max_var": 2.0}, r"has model\.BB\.params\.max_var 2\.0, but .* with 1\.0$"),
            ({"model__model_type": "LBBDM"}, r"has model\.model_type 'LBBDM', but .* with 'BBDM'$"),
            ({"params__objective": "x0"}, r"objective must be one of \['grad', 'noise', 'ysubx'\], got 'x0' from "),
            ({"params__objective": None}, r"a\.yaml does not have model\.BB\.params\.objective"),
            ({"unet__condition_key": "nocond"}, r"3 channels of condition, but .*a\.yaml has condition_key nocond"),
            ({"unet__condition_key": None}, r"does not have model\.BB\.params\.UNetParams\.condition_key"),
            ({"unet__use_new_attention_order": True}, "the new order of q, k and v"),
            ({"unet__attention_resolutions": (1,)}, r"missing: input_blocks\.1\.1\.norm\.bias"),
        ],
    )
    def test_yaml_of_another_model(self, changes: Any, message: str, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        refused(path, message, config=bbdm_yaml(tmp_path / "a.yaml", **changes))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a: !!python/object/apply:os.system ['touch PLACE/marker']\n", r": .*os\.system"),
            ("a: !!python/tuple foo", ""),
            ("[" * 3000 + "]" * 3000, ""),
        ],
        ids=["code", "tuple", "deep"],
    )
    def test_yaml_that_is_none(self, content: str, message: str, tmp_path: Path):
        path, _, _ = bbdm_file(tmp_path / "a.pth", condition_channels=3)
        (tmp_path / "a.yaml").write_text(content.replace("PLACE", str(tmp_path)))
        refused(path, rf"a\.yaml is no YAML of the original BBDM{message}", config=tmp_path / "a.yaml")
        assert not (tmp_path / "marker").exists()

    @pytest.mark.parametrize(("steps", "variances"), [(0, 0), (200, 3), (1, 1)])
    def test_buffers_of_other_lengths(self, steps: int, variances: int, tmp_path: Path):
        state = {"m_t": buffers()["m_t"][:steps].clone(), "variance_t": buffers()["variance_t"][:variances].clone()}
        path, _, _ = bbdm_file(tmp_path / "a.pth", None, state, condition_channels=3)
        refused(path, f"are of {steps} and {variances} steps", config=bbdm_yaml(tmp_path / "a.yaml"))

    def test_other_files_of_its_kind(self, tmp_path: Path):
        config = bbdm_yaml(tmp_path / "a.yaml")
        path, _, _ = bbdm_file(tmp_path / "a.pth", None, buffers("first"), condition_channels=3)
        refused(path, "neither of the schedules linear and sin", config=config)
        wrong = buffers()
        wrong["m_t"][150] += 1e-3
        path, _, _ = bbdm_file(tmp_path / "b.pth", None, wrong, condition_channels=3)
        refused(path, "neither of the schedules linear and sin", config=config)
        path, _, _ = bbdm_file(tmp_path / "c.pth", condition_channels=3)
        content = torch.load(path, weights_only=True)
        del content["ema"]["denoise_fn.out.2.bias"]
        refused(save(content, path), r"missing: out\.2\.bias$", config=config)
        path, _, _ = bbdm_file(tmp_path / "d.pth", condition_channels=3)
        refused(path, "num_steps=7 was given", config=config, num_steps=7)
        refused(path, r"c_lambda=2\.0 was given", config=config, c_lambda=2.0)
