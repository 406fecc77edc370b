"""Files of DDBM, DBIM, ECSI and I2SB: weights of guided diffusion's network, without any settings.

The first three save bare state dicts, ``ema_*.pt`` and ``model_*.pt``. I2SB's ``latest.pt`` has the network
and a moving average without names, in the order of the network's parameters. What they do not say, a name in
:data:`NAMED` does; the sizes of the network are read from the shapes of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bbdm.bridges import DDBM, ECSI, I2SB, Bridge
from bbdm.files.content import Checkpoint, NetworkState
from bbdm.files.importers import shapes, states
from bbdm.files.inert import Stub, describe
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.config import UNetConfig
from bbdm.networks.unet import UNet

ATTENTION = (".qkv.weight", ".proj_out.weight")
KNOWN = {"head_channels": 64, "num_groups": 32}  # of every published network


@dataclass(frozen=True)
class Published:
    """What the files of a published network leave out."""

    bridge: Bridge
    image_size: int
    dropout: float = 0.1
    heads_last: bool = True  # attention has q, k and v first and the heads within them, not the other way round


NAMED: dict[str, Published] = {
    "ddbm-edges2handbags-64": Published(DDBM("vp"), 64),
    "ddbm-edges2handbags-64-ve": Published(DDBM("ve", 0.002, 80.0), 64),
    "ddbm-diode-256": Published(DDBM("vp"), 256),
    "ddbm-diode-256-ve": Published(DDBM("ve", 0.0005, 20.0), 256),
    "ecsi-edges2handbags-64": Published(ECSI(0.125, 1e-4, cov=0.125), 64),
    "ecsi-diode-256": Published(ECSI(0.25, 1e-4, cov=0.125), 256),
    # restoration of JPEG, superresolution; then deblurring, inpainting
    "i2sb-256": Published(I2SB(1000, 0.3), 256, dropout=0.0, heads_last=False),
    "i2sb-256-ode": Published(I2SB(1000, 1.0, True), 256, dropout=0.0, heads_last=False),
}


def recognised(content: Any) -> bool:
    """Whether a file is of these programs for certain; a bare state dict can also be of others."""
    weights = states.find(content).items()
    square = (isinstance(v, torch.Tensor) and v.ndim == 4 for k, v in weights if str(k).endswith(".qkv.weight"))
    return _is_i2sb(content) or any(square)  # attention of 2D convolutions is DDBM's and ECSI's alone


def read(content: Any, config: str | None) -> Checkpoint:
    """The network, its moving average where the file has both, and the bridge of a name in :data:`NAMED`."""
    if config is None:
        raise IncompleteFileError(f"it does not state its bridge: give config=, one of {sorted(NAMED)}")
    entries = (content.get("state_dict"), content.get("model")) if isinstance(content, dict) else ()
    if any(isinstance(part, Stub) for part in (content, *entries)):
        raise ValueError(f"config={config} was given, but the file describes its network itself")
    if config not in NAMED:
        raise ValueError(f"config must be one of {sorted(NAMED)}, got {config!r}")
    published = NAMED[config]
    state = content["net"] if _is_i2sb(content) else states.find(content)
    prefix = states.only_prefix(content, state, "I2SB's latest.pt, or a state dict", "UNets", states.FIRST)
    named = {key: _as_1d(key, value) for key, value in states.tensors(states.below(state, prefix)).items()}
    if any(key.startswith("label_emb.") for key in named):
        raise ValueError("its network takes a class (label_emb), which is not supported")
    unet = shapes.unet_config(named, **KNOWN, dropout=published.dropout)
    average = _average(content, [*named]) if _is_i2sb(content) else None
    weights, ema = (None if each is None else _load(unet, each, published.heads_last) for each in (named, average))
    return Checkpoint(NetworkState(unet, weights, ema), published.bridge, None, published.image_size)


def _is_i2sb(content: Any) -> bool:
    net = content.get("net") if isinstance(content, dict) else None
    return isinstance(net, dict) and bool(states.prefixes(net, states.FIRST))


def _as_1d(key: str, value: torch.Tensor) -> torch.Tensor:
    """Weights of attention's 2D convolutions as of 1D ones."""
    return value.squeeze(3) if key.endswith(ATTENTION) and value.shape[3:] == (1,) else value


def _average(content: dict[str, Any], keys: list[str]) -> dict[str, torch.Tensor] | None:
    """The moving average of torch_ema, with the keys of the network; None where the file has none."""
    ema = content.get("ema")
    if ema is None:
        return None
    values = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(values, list):
        raise ValueError(f"its ema is {describe(ema)} without shadow_params; wanted the state of torch_ema")
    if len(values) != len(keys):
        raise ValueError(f"its moving average has {len(values)} tensors, and its network {len(keys)}")
    return states.tensors(dict(zip(keys, values, strict=True)))


def _load(config: UNetConfig, state: dict[str, torch.Tensor], heads_last: bool) -> dict[str, torch.Tensor]:
    """The weights, with q, k and v of attention within the heads, as ours."""
    found = states.load(UNet.from_config, config, state)
    for key, value in found.items() if heads_last else ():
        if ".qkv." in key:
            heads = config.heads(len(value) // 3)
            found[key] = value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    return found
