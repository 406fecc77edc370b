"""Files that sde-bbdm and torchmanager write here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import ABridge, BrownianBridge
from bbdm.bridges import Bridge
from bbdm.codec import VQGANCodec
from bbdm.files.content import Checkpoint
from tests.codec.autoencoders import own_codec
from tests.conftest import relative_gap, tiny_unet
from tests.files.importers.common import fill, images, load, refused, save, small_vqgan
from tests.peers.packages import diffusion, sde_bbdm, torchmanager

STATED: dict[str, Any] = {"num_steps": 1000, "c_lambda": 1.0}


def public_unet(channels: int = 3, *, timed: bool = False, **settings: Any) -> Any:
    kind = sde_bbdm.networks.UNet if timed else sde_bbdm.networks.OpenAIUNet
    shape = {
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "num_head_channels": 32,
    }
    fixed = {"use_scale_shift_norm": True, "resblock_updown": True, "num_heads": 8}
    return fill(kind(channels, 32, 3, **{**shape, **fixed, **settings}))


def torchmanager_file(manager: Any, path: Path) -> Path:
    """As its callback writes it after an epoch."""
    torchmanager.callbacks.LastCheckpoint(manager, str(path)).on_epoch_end(7)
    return path


def trained_manager(kind: str = "SDEBBDMManager", **settings: Any) -> Any:
    """With the state of an optimizer, a loss and metrics."""
    unet, losses = public_unet(timed=True), torchmanager.losses
    optimizer = torch.optim.Adam(unet.parameters())
    unet.time_embed(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    more = {"optimizer": optimizer, "loss_fn": losses.MAE(), "metrics": {"mse": losses.MSE()}}
    return getattr(sde_bbdm.managers, kind)(unet, 800, **more, **settings)


def assert_same_network(loaded: Checkpoint, unet: Any, condition: bool = False) -> None:
    ours = loaded.build_unet()
    x, y, t = images(2, 3, 16, 24), images(2, 3, 16, 24, seed=2), torch.tensor([1, 700])
    with torch.no_grad():
        public = type(unet).forward(unet, x, t, y if condition else None)
        assert relative_gap(ours(x, t, {"source": y} if condition else None), public) < 1e-5


@pytest.mark.parametrize(
    ("kind", "settings", "bridge"),
    [
        ("SDEBBDMManager", {"c_lambda": 1.5}, ABridge(800, 1.5)),
        ("BBDMManager", {}, BrownianBridge(800)),
        ("BBDMSpecialCaseManager", {}, BrownianBridge(800)),
        ("ABridgeModule", {"c_lambda": 2}, ABridge(600, 2.0)),
        ("BBDMModule", {}, BrownianBridge(600)),
        ("SDEBBDMModule", {}, BrownianBridge(600)),
    ],
)
def test_managers_and_modules(kind: str, settings: Any, bridge: Bridge, tmp_path: Path):
    """And, as sde-bbdm 1.1 trains, a manager around the bridge's module."""
    if hasattr(sde_bbdm.managers, kind):
        saved = trained_manager(kind, **settings)
        paths = [torchmanager_file(saved, tmp_path / "exp" / "last.model")]
    else:
        saved = getattr(sde_bbdm.nn, kind)(public_unet(), 600, **settings)
        around = diffusion.managers.Manager(saved, loss_fn=torchmanager.losses.MAE())
        paths = [save(saved, tmp_path / f"{zipped}.pt", zipped) for zipped in (True, False)]
        paths += [torchmanager_file(around, tmp_path / "exp" / "last.model")]
    for path in paths:
        loaded = load(path)
        assert (loaded.bridge, loaded.codec, loaded.unet.ema) == (bridge, None, None)
        assert isinstance(getattr(loaded.bridge, "c_lambda", 1.0), float)
        assert_same_network(loaded, saved.model)


def test_network_with_the_source_as_condition(tmp_path: Path):
    module = sde_bbdm.nn.BBDMModule(public_unet(6, attention_resolutions=[1, 2]), 600)
    loaded = load(save(module, tmp_path / "a.pt"))
    assert (loaded.unet.config.condition_channels, loaded.unet.config.attention_resolutions) == (
        3,
        (1, 2),
    )
    assert_same_network(loaded, module.model, condition=True)


@pytest.mark.parametrize(
    "settings", [{"num_head_channels": 16}, {"num_head_channels": -1, "num_heads": 4}]
)
def test_heads_that_only_the_pickle_knows(settings: Any, tmp_path: Path):
    unet = public_unet(attention_resolutions=[32, 16], **settings)
    loaded = load(save(unet, tmp_path / "a.pt"), **STATED)
    assert loaded.unet.config.head_channels == 16
    assert_same_network(loaded, unet)


def test_latents_need_the_codec(tmp_path: Path):
    parts = {"encoder": nn.DataParallel(nn.Conv2d(3, 3, 2)), "decoder": nn.Conv2d(3, 3, 1)}
    manager = torchmanager_file(trained_manager(**parts), tmp_path / "exp" / "last.model")
    module = save(sde_bbdm.nn.ABridgeModule(public_unet(), 600, **parts), tmp_path / "a.pt")
    codec = VQGANCodec(small_vqgan())
    for path in (manager, module):
        refused(path, r"its autoencoder is not read: give the codec")
        found = load(path, codec=codec).build_codec()
        assert found is not None
        assert found.description() == codec.description()


def test_network_alone(tmp_path: Path):
    unet = public_unet()
    path = save(unet, tmp_path / "a.pt")
    refused(path, r"does not state its num_steps or c_lambda: give num_steps= and c_lambda=$")
    refused(path, r"does not state its c_lambda: give c_lambda=$", num_steps=1000)
    for each in (path, save(nn.DataParallel(unet), tmp_path / "b.pt")):
        loaded = load(each, **STATED)
        assert (loaded.bridge, loaded.codec) == (ABridge(1000, 1.0), None)
        assert_same_network(loaded, unet)
    assert load(path, codec=VQGANCodec(small_vqgan()), **STATED).codec is not None
    refused(
        path, "works on 3 channels, and the codec's latents have 5", codec=own_codec(), **STATED
    )


@pytest.mark.filterwarnings("ignore:weights do not say how wide")
def test_state_dicts(tmp_path: Path):
    unet = public_unet(num_head_channels=64)  # the paper's, as nothing in the file states it
    content = {
        "last_epoch": 1,
        "optimizer": None,
        "loss_fn": None,
        "metrics": {},
        "save_weights_only": True,
    }
    for name, value in {
        "bare": unet.state_dict(),
        "module": sde_bbdm.nn.ABridgeModule(unet, 1000).state_dict(),
        "lightning": {
            "state_dict": {f"net.{k}": v for k, v in unet.state_dict().items()},
            "epoch": 1,
        },
        "weights only": {
            **content,
            "model": sde_bbdm.managers.SDEBBDMManager(unet, 1000).state_dict(),
        },
        "beside its average": {"ema": public_unet().state_dict(), "model": unet.state_dict()},
    }.items():
        loaded = load(save(value, tmp_path / f"{name}.pt"), **STATED)
        assert loaded.bridge == ABridge(1000, 1.0)
        assert_same_network(loaded, unet)
    narrow = save(public_unet(channel_mult=[1, 1]).state_dict(), tmp_path / "narrow.pt")
    refused(narrow, "attention on 32 channels does not split into heads of 64", **STATED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 4}, r"extra: label_emb\.weight$"),
        ({"use_new_attention_order": True}, "the new order of q, k and v"),
        (
            {"num_heads": 4, "num_head_channels": -1, "attention_resolutions": [1, 2]},
            "wanted one number",
        ),
        ({"channels": 4}, "takes 4 channels for 3 that it gives; wanted 3, or 6"),
        (None, r"its norms have \[4\] groups; only networks of 32"),  # our own, pickled
    ],
)
def test_other_networks_of_the_kind(settings: Any, message: str, tmp_path: Path):
    network = tiny_unet() if settings is None else public_unet(**settings)
    refused(save(network, tmp_path / "a.pt"), message, **STATED)
