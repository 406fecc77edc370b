"""Files of DDBM, DBIM, ECSI and I2SB in the layouts of their programs, against the formulas of the papers."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from bbdm import DDBM, ECSI, I2SB, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.bridges import Bridge
from bbdm.files.importers import adm_settings
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.restore import skeleton
from bbdm.networks.unet import UNet
from tests.conftest import ROOT
from tests.files.importers.common import fill, images, load, refused, save
from tests.files.importers.reference_adm import ReferenceADM

NETWORK: dict[str, Any] = {  # the network of ReferenceADM's defaults, by the programs' names
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,2",
    "num_res_blocks": 1,
    "attention_resolutions": "8",
    "num_head_channels": 16,
    "resblock_updown": True,
}
FLASH = {**NETWORK, "condition_mode": "concat", "attention_type": "flash"}
VP = {"pred_mode": "vp", "sigma_max": 1, "sigma_min": 1e-4, "beta_d": 2, "beta_min": 0.1}
VE = {"pred_mode": "ve", "sigma_max": 20, "sigma_min": 0.0005}
OPTIONS = {**NETWORK, "interval": 100, "beta_max": 0.3, "ot_ode": False}
LINEAR = {"pred_mode": "vpv8", "sigma_max": 1, "sigma_min": 1e-4, "cov_xy": 0.125}


def settings(path: Path, *parts: dict[str, Any]) -> Path:
    content = {key: value for part in parts for key, value in part.items()}
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.dump(content))
    return path


def reference(seen: int = 6, seed: int = 0, **kind: Any) -> ReferenceADM:
    return fill(ReferenceADM(seen, **kind), seed)


def ddbm(**changes: Any) -> ReferenceADM:
    """A network as of DDBM: flash attention, of 2D convolutions."""
    return reference(**{"first": "qkv", "dims": 2, **changes})


def i2sb_file(path: Path, network: ReferenceADM, average: ReferenceADM | None, **changes: Any) -> Path:
    """A latest.pt as its runner writes it, with the state of torch_ema."""
    content: dict[str, Any] = {
        "net": {f"diffusion_model.{key}": value for key, value in network.state_dict().items()},
        "optimizer": {"state": {}, "param_groups": []},
        "sched": None,
    }
    if average is not None:
        shadow = [parameter.detach().clone() for parameter in average.parameters()]
        content["ema"] = {"decay": 0.99, "num_updates": 7, "shadow_params": shadow, "collected_params": None}
    return save({**content, **changes}, path)


def estimate(unet: Any, bridge: Bridge, x: Tensor, y: Tensor, t: float) -> Tensor:
    """The x0hat that the library makes of a state."""
    i_x, i_y = bridge.input(t)
    p_x, p_y, p_f = bridge.prediction(t)
    seen = torch.tensor([float(bridge.network_time(t))])
    conditions = {"source": y} if unet.condition_channels else None
    with torch.no_grad():
        return p_x * x + p_y * y + p_f * unet((i_x * x + i_y * y).float(), seen, conditions)


def scalings(alpha: float, beta: float, variance: float, cov: float = 0.0) -> tuple[float, float, float]:
    """c_skip, c_out and c_in of DDBM (Zhou et al. 2024, eq. 13 and appendix), for sigma_0 = sigma_T = 0.5."""
    total = alpha**2 / 4 + beta**2 / 4 + 2 * alpha * beta * cov + variance
    c_in = 1 / np.sqrt(total)
    return (alpha / 4 + beta * cov) / total, np.sqrt(beta**2 * (1 / 16 - cov**2) + variance / 4) * c_in, c_in


def denoised(network: ReferenceADM, scale: tuple[float, float, float], x: Tensor, y: Tensor, t: float) -> Tensor:
    c_skip, c_out, c_in = scale
    with torch.no_grad():
        output = network(torch.cat([(c_in * x).float(), y], 1), torch.tensor([1000 * 0.25 * np.log(t)]).float())
    return c_skip * x + c_out * output


def vp(t: float) -> tuple[float, float, float]:
    """alpha, beta and the variance of DDBM's VP bridge, by its signal-to-noise ratios."""

    def log_a(s: float) -> float:
        return -0.25 * s**2 * 2 - 0.5 * s * 0.1

    def snr(s: float) -> float:
        return 1 / (np.exp(0.5 * 2 * s**2 + 0.1 * s) - 1)

    ratio = snr(1) / snr(t)
    a = np.exp(log_a(t))
    return a * (1 - ratio), ratio * a / np.exp(log_a(1)), a**2 / snr(t) * (1 - ratio)


def ve(t: float) -> tuple[float, float, float]:
    return 1 - t**2 / 400, t**2 / 400, t**2 * (1 - t**2 / 400)


def close(made: Tensor, wanted: Tensor) -> bool:
    return bool((made - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())))


X, Y = images(1, 3, 16, 16, seed=3), images(1, 3, 16, 16, seed=4)


class TestDDBM:
    @pytest.mark.parametrize(
        ("kind", "marginal", "bridge", "times"),
        [(VP, vp, DDBM("vp"), (1.0, 0.6, 0.003)), (VE, ve, DDBM("ve", 0.0005, 20.0), (20.0, 7.0, 0.01))],
        ids=["vp", "ve"],
    )
    def test_prediction(self, kind: Any, marginal: Callable[..., Any], bridge: DDBM, times: Any, tmp_path: Path):
        network = ddbm()
        path = save(network.state_dict(), tmp_path / "ema_0.9999_420000.pt")
        loaded = load(path, config=settings(tmp_path / "a.json", FLASH, kind))
        assert (loaded.bridge, loaded.codec, loaded.image_size) == (bridge, None, 16)
        unet = loaded.build_unet()
        for t in times:
            wanted = denoised(network, scalings(*marginal(t)), X, Y, t)
            assert close(estimate(unet, loaded.bridge, X, Y, t), wanted)

    def test_file_that_dbim_converts(self, tmp_path: Path):
        """Its attention is of 1D convolutions, in the same order."""
        network = reference(first="qkv")
        dbim = {**NETWORK, "condition_mode": "concat", "use_new_attention_order": True, "noise_schedule": "vp"}
        config = settings(tmp_path / "a.yaml", dbim, {"sigma_max": 1, "sigma_min": 1e-4})
        loaded = load(save(network.state_dict(), tmp_path / "ema.pt"), config=config)
        assert loaded.bridge == DDBM("vp")
        wanted = denoised(network, scalings(*vp(0.4)), X, Y, 0.4)
        assert close(estimate(loaded.build_unet(), loaded.bridge, X, Y, 0.4), wanted)

    @pytest.mark.parametrize("kind", ["convolutions", "no scale and shift", "heads", "legacy attention"])
    def test_other_networks(self, kind: str, tmp_path: Path):
        theirs: dict[str, Any]
        theirs, changes = {
            "convolutions": ({"updown": False}, {"resblock_updown": False}),
            "no scale and shift": ({"shift": False}, {"use_scale_shift_norm": False}),
            "heads": ({"head_width": None, "heads": 4}, {"num_head_channels": -1, "num_heads": 4}),
            "legacy attention": ({"first": "heads"}, {"attention_type": "other"}),
        }[kind]
        network = ddbm(**theirs)
        path = save(network.state_dict(), tmp_path / "model.pt")
        loaded = load(path, config=settings(tmp_path / "a.json", FLASH, VP, changes))
        wanted = denoised(network, scalings(*vp(0.3)), X, Y, 0.3)
        unet = loaded.build_unet()
        assert close(estimate(unet, loaded.bridge, X, Y, 0.3), wanted)
        t = torch.tensor([3.0, 700.0])
        x, y = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=9)
        with torch.no_grad():  # each image at its own time
            assert close(unet(x, t, {"source": y}), network(torch.cat([x, y], 1), t))

        half = BridgeSampler(unet, loaded.bridge, steps=1, dtype="bf16")(Y)
        assert (half - BridgeSampler(unet, loaded.bridge, steps=1)(Y)).abs().max() < 0.2

        save_checkpoint(tmp_path / "own.safetensors", unet, loaded.bridge)  # and as a file of ours
        again = load_checkpoint(tmp_path / "own.safetensors")
        assert again.bridge == loaded.bridge
        assert close(estimate(again.build_unet(), again.bridge, X, Y, 0.3), wanted)

    def test_named(self, tmp_path: Path):
        """Against the settings in the programs' scripts. The documentation leaves training's dropout out."""
        wanted: dict[str, Bridge] = {
            "ddbm-edges2handbags-64": DDBM("vp", 1e-4, 1.0, 2.0, 0.1),
            "ddbm-edges2handbags-64-ve": DDBM("ve", 0.002, 80.0),
            "ddbm-diode-256": DDBM("vp", 1e-4, 1.0, 2.0, 0.1),
            "ddbm-diode-256-ve": DDBM("ve", 0.0005, 20.0),
            "ecsi-edges2handbags-64": ECSI(0.125, 1e-4, cov=0.125),
            "ecsi-diode-256": ECSI(0.25, 1e-4, cov=0.125),
            "i2sb-256": I2SB(1000, 0.3),
            "i2sb-256-ode": I2SB(1000, 1.0, True),
        }
        found = {name: adm_settings.read(name) for name in adm_settings.NAMED}
        assert {name: adm_settings.bridge(values) for name, values in found.items()} == wanted
        last = {name for name, values in found.items() if adm_settings.heads_last(values, True)}
        assert last == {name for name in wanted if not name.startswith("i2sb")}
        sizes: dict[int, dict[str, Any]] = {
            64: {"width": 192, "mults": (1, 2, 3, 4), "blocks": 3, "attention": (2, 4, 8)},
            256: {"width": 256, "mults": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (8, 16, 32)},
        }
        for name, values in found.items():
            config = adm_settings.network(values, 6)
            with torch.device("meta"):
                published = ReferenceADM(6, **sizes[64 if "-64" in name else 256], head_width=64).state_dict()
            made = skeleton(UNet.from_config, config).state_dict()
            assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in published.items()}, name
            assert (config.heads(512), config.num_groups) == (8, 32)
        assert adm_settings.network(found["i2sb-256"], 3).condition_channels == 0
        page = (ROOT / "docs" / "weights.md").read_text()
        (tmp_path / "a.yaml").write_text(page.split("```yaml")[1].split("```")[0])
        shown, named = adm_settings.read(tmp_path / "a.yaml"), found["ddbm-edges2handbags-64"]
        assert adm_settings.bridge(shown) == adm_settings.bridge(named)
        assert replace(adm_settings.network(shown, 6), dropout=0.1) == adm_settings.network(named, 6)
        assert adm_settings.heads_last(shown, False)


def test_ecsi(tmp_path: Path):
    """Its code has the square of the covariance in c_skip."""
    network = ddbm()
    sections = {"model": FLASH, "diffusion": LINEAR, "sample": {"sigma_min": 0.5, "steps": 40}}
    config = settings(tmp_path / "config_diode.json", sections)
    loaded = load(save(network.state_dict(), tmp_path / "ema.pt"), config=config)
    assert loaded.bridge == ECSI(0.25, 1e-4, cov=0.125)
    unet = loaded.build_unet()
    for t in (1.0, 0.5, 0.02):
        alpha, beta, variance = 1 - t, t, (2 * 0.25) ** 2 * t * (1 - t)
        _, c_out, c_in = scalings(alpha, beta, variance, 0.125)
        c_skip = (alpha / 4 + beta * 0.125**2) * c_in**2
        wanted = denoised(network, (c_skip, c_out, c_in), X, Y, t)
        assert close(estimate(unet, loaded.bridge, X, Y, t), wanted)


class TestI2SB:
    @pytest.mark.parametrize("conditioned", [True, False], ids=["cond_x1", "alone"])
    def test_prediction(self, conditioned: bool, tmp_path: Path):
        network, average = reference(6 if conditioned else 3), reference(6 if conditioned else 3, seed=1)
        path = i2sb_file(tmp_path / "latest.pt", network, average)
        loaded = load(path, config=settings(tmp_path / "a.yaml", OPTIONS))
        assert loaded.bridge == I2SB(100, 0.3)
        assert loaded.unet.config.condition_channels == (3 if conditioned else 0)
        half = np.linspace(1e-4**0.5, (0.3 / 100) ** 0.5, 100)[:50] ** 2
        variance = np.cumsum([*half, *half[::-1]])
        for ema, theirs in ((True, average), (False, network)):
            unet = loaded.build_unet(ema)
            for index in (99, 40, 1):
                level = 100 * (1e-4 + (1 - 1e-4) * index / 99)
                shown = torch.cat([X, Y], 1) if conditioned else X
                with torch.no_grad():
                    wanted = X - variance[index] ** 0.5 * theirs(shown, torch.tensor([level]).float())
                assert close(estimate(unet, loaded.bridge, X, Y, index), wanted)

    def test_sampler(self, tmp_path: Path):
        """The published sampler's first step, of two."""
        average = reference(3, seed=1)
        path = i2sb_file(tmp_path / "latest.pt", reference(3), average)
        config = settings(tmp_path / "a.yaml", OPTIONS, {"ot_ode": True})
        sampler = BridgeSampler.from_checkpoint(path, config=config, solver="ancestral", steps=2)
        assert sampler.bridge == I2SB(100, 0.3, deterministic=True)
        first, _ = sampler.stream(Y)
        half = np.linspace(1e-4**0.5, (0.3 / 100) ** 0.5, 100)[:50] ** 2
        with torch.no_grad():
            wanted = Y - (2 * half.sum()) ** 0.5 * average(Y, torch.tensor([100.0]))
        assert close(first.x0hat, wanted)

    def test_its_options(self, tmp_path: Path):
        """options.pkl is a pickled argparse.Namespace with paths, beside latest.pt; no code of it runs."""

        class Trap:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {tmp_path / 'marker'}",)

        path, file = i2sb_file(tmp_path / "latest.pt", reference(3), None), tmp_path / "options.pkl"
        options = argparse.Namespace(**OPTIONS, ckpt_path=Path("results"), cond_x1=False, t0=1e-4, T=1.0)
        file.write_bytes(pickle.dumps(options))
        loaded = load(path, config=file)
        assert loaded.bridge == I2SB(100, 0.3)
        assert loaded.unet.ema is None
        file.write_bytes(pickle.dumps(argparse.Namespace(beta_max=0.3, a=Trap())))
        refused(path, r"options\.pkl holds no settings: .*forbidden global", config=file)
        assert not (tmp_path / "marker").exists()

    def test_averages_that_do_not_fit(self, tmp_path: Path):
        config = settings(tmp_path / "a.yaml", OPTIONS)
        shadow = [p.detach() for p in reference(3).parameters()]
        cases = [
            ({"shadow_params": shadow[1:]}, rf"its moving average has {len(shadow) - 1} tensors, and its network"),
            ({"shadow_params": shadow[::-1]}, r"do not fit the network: of another shape: "),
            ({"shadow_params": [*shadow[1:], 3]}, "is a int, not a tensor"),
            ({"decay": 0.9}, "its ema is a dict without shadow_params"),
            ([1], "its ema is a list without shadow_params"),
        ]
        for ema, message in cases:
            refused(i2sb_file(tmp_path / "b.pt", reference(3), None, ema=ema), message, config=config)


class TestRefused:
    @pytest.mark.filterwarnings("ignore:weights do not determine")
    def test_without_settings(self, tmp_path: Path):
        files = [
            save(ddbm().state_dict(), tmp_path / "ema.pt"),
            i2sb_file(tmp_path / "latest.pt", reference(3), None),
            save(reference().state_dict(), tmp_path / "dbim.pt"),
        ]
        for path in files:
            refused(path, r"give config=, one of \['ddbm-diode-256', .*'i2sb-256-ode'\], or a JSON or YAML file")
            with pytest.raises(IncompleteFileError):
                load_checkpoint(path)

    def test_unknown_names_and_files(self, tmp_path: Path):
        path = save(ddbm().state_dict(), tmp_path / "ema.pt")
        refused(path, r"config must be one of \['ddbm-diode-256'.*got 'ddbm', and there is no such", config="ddbm")
        for text in ("[1, 2]", "", "{", "a: [", "text"):
            for suffix in ("json", "yaml", "pkl"):
                (tmp_path / f"a.{suffix}").write_text(text)
                refused(path, rf"a\.{suffix} holds no settings", config=tmp_path / f"a.{suffix}")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_channels": 64}, r"weights do not fit the network: of another shape: .*input_blocks\.0\.0\.bias"),
            ({"num_res_blocks": 2}, r"weights do not fit the network: missing: .*input_blocks\.4"),
            ({"num_res_blocks": 10**9}, "weights do not fit the network: .* tensors, for 2000000000 blocks"),
            ({"resblock_updown": False}, r"missing: input_blocks\.2\.0\.op\.bias"),
            ({"use_scale_shift_norm": False}, r"of another shape: .*emb_layers\.1\.bias"),
            ({"condition_mode": None}, r"of another shape: input_blocks\.0\.0\.weight"),
            ({"channel_mult": "1,a"}, "has channel_mult '1,a'; wanted integers"),
            ({"channel_mult": ""}, "does not have channel_mult, and image_size is 16"),
            ({"attention_resolutions": [0]}, r"has attention_resolutions \[0\]; wanted integers"),
            ({"num_channels": "wide"}, "has num_channels 'wide', which is no number"),
            ({"num_channels": 32.5}, r"has num_channels 32\.5; wanted an integer"),
            ({"resblock_updown": "yes"}, "has resblock_updown 'yes'; wanted true or false"),
            ({"num_head_channels": 24}, "does not split into heads of 24"),
            ({"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, "another num_heads_upsample"),
            ({"num_head_channels": -1}, "does not have num_heads"),
            ({"class_cond": True}, "has class_cond True; of these networks only class_cond False is read"),
            ({"unet_type": "edm"}, "has unet_type 'edm'"),
            ({"pred_mode": "vp_simple"}, r"has pred_mode 'vp_simple'; wanted one of \['ve', 'vp', 'vpv2'"),
            ({"sigma_min": 2.0}, "t_min and t_max must be 0 < t_min < t_max, got 2.0 and 1.0"),
        ],
        ids=str,
    )
    def test_settings_that_do_not_fit(self, changes: dict[str, Any], message: str, tmp_path: Path):
        path = save(ddbm().state_dict(), tmp_path / "ema.pt")
        refused(path, message, config=settings(tmp_path / "a.json", FLASH, VP, changes))

    @pytest.mark.parametrize("name", ["num_channels", "num_res_blocks", "image_size", "resblock_updown", "pred_mode"])
    def test_settings_left_out(self, name: str, tmp_path: Path):
        path = save(ddbm().state_dict(), tmp_path / "ema.pt")
        known = {key: value for key, value in {**FLASH, **VP}.items() if key != name}
        missing = "noise_schedule" if name == "pred_mode" else name
        refused(path, rf"a\.json does not have {missing}", config=settings(tmp_path / "a.json", known))

    def test_weights(self, tmp_path: Path):
        config = settings(tmp_path / "a.json", FLASH, VP)
        state = ddbm().state_dict()
        cases = [
            ({k: v for k, v in state.items() if k != "out.2.bias"}, r"missing: out\.2\.bias"),
            ({**state, "more": torch.ones(1)}, "extra: more"),
            ({**state, "out.2.bias": torch.ones(4)}, r"out\.2\.bias \(4,\) \(wanted \(3,\)\)"),
            ({**state, "out.2.bias": "text"}, r"out\.2\.bias is a str, not a tensor"),
            ({**state, "label_emb.weight": torch.ones(10, 128)}, "takes a class"),
            ({"a": torch.ones(1)}, r"it is a dict of 1 entries \('a'\) with no UNets"),
            ({"opt": {"state": 1}}, "with no UNets"),
            ([1], "it is a list with no UNets"),
        ]
        for content, message in cases:
            refused(save(content, tmp_path / "b.pt"), message, config=config)
        path = save(state, tmp_path / "c.pt")
        path.write_bytes(path.read_bytes()[:-2000])
        refused(path, "damaged|no file", config=config)
