"""Files of DDBM, DBIM, ECSI and I2SB: weights of guided diffusion's network, without any settings.

The first three save bare state dicts, ``ema_*.pt`` and ``model_*.pt``. I2SB's ``latest.pt`` has the network
and a moving average without names, in the order of the network's parameters.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from bbdm.files.content import Checkpoint, UNetState
from bbdm.files.importers import adm_settings, states
from bbdm.files.records import Record, StoredTensor, describe
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet
from bbdm.networks.unet_config import UNetConfig

FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
ATTENTION = (".qkv.weight", ".proj_out.weight")


def recognised(content: Any) -> bool:
    """Whether a file is of these programs for certain; a bare state dict can also be of others."""
    return _is_i2sb(content) or not _flat(states.find(content))


def read(content: Any, config: str | os.PathLike[str] | None) -> Checkpoint:
    """The network, its moving average where the file has both, and the bridge of the settings.

    Args:
        content: the content of the file.
        config: the settings, for :func:`bbdm.files.importers.adm_settings.read`.

    Raises:
        IncompleteFileError: there is no ``config``.
        ValueError: the file has no such network, or settings and file do not fit.
    """
    if config is None:
        raise IncompleteFileError(f"it does not state its bridge: give config=, {adm_settings.named()}")
    if any(isinstance(part, Record) for part in (content, *_entries(content))):
        raise ValueError(f"config={config} was given, but the file describes its network itself")
    settings = adm_settings.read(config)
    state = content["net"] if _is_i2sb(content) else states.find(content)
    prefixes = states.prefixes(state, FIRST)
    if len(prefixes) != 1:
        raise ValueError(
            f"it is {states.summary(content)} with {len(prefixes) or 'no'} UNets in it; wanted: a state dict "
            f"with one key that ends in {FIRST}, or I2SB's latest.pt"
        )
    named = states.tensors(states.below(state, prefixes[0]))
    if any(key.startswith("label_emb.") for key in named):
        raise ValueError("its network takes a class (label_emb), which is not supported")
    shape = named[FIRST].shape
    unet = adm_settings.network(settings, shape[1] if len(shape) > 1 else 0)
    swap = adm_settings.heads_last(settings, _flat(named))
    bridge = adm_settings.bridge(settings)
    average = _average(content, list(named)) if _is_i2sb(content) else None
    loaded = UNetState(unet, _load(unet, named, swap), None if average is None else _load(unet, average, swap))
    return Checkpoint(loaded, bridge, None, settings.integer("image_size"))


def _entries(content: Any) -> tuple[Any, ...]:
    return tuple(content.get(name) for name in ("state_dict", "model")) if isinstance(content, dict) else ()


def _is_i2sb(content: Any) -> bool:
    net = content.get("net") if isinstance(content, dict) else None
    return isinstance(net, dict) and bool(states.prefixes(net, FIRST))


def _flat(state: states.State) -> bool:
    """Whether attention is of 1D convolutions, as everywhere but in DDBM and ECSI."""
    weights = (value for key, value in state.items() if isinstance(key, str) and key.endswith(".qkv.weight"))
    return not any(isinstance(value, StoredTensor) and len(value.shape) == 4 for value in weights)


def _average(content: dict[str, Any], keys: list[str]) -> dict[str, StoredTensor] | None:
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


def _load(config: UNetConfig, state: dict[str, StoredTensor], swap: bool) -> dict[str, torch.Tensor]:
    """The weights, with attention's as ours: of 1D convolutions, and in the legacy order of q, k and v."""

    def as_ours(key: str, value: StoredTensor) -> StoredTensor:
        square = key.endswith(ATTENTION) and value.shape[3:] == (1,)
        return replace(value, shape=value.shape[:3], stride=value.stride[:3]) if square else value

    found = states.load(UNet.from_config, config, {key: as_ours(key, value) for key, value in state.items()})
    for key, value in found.items() if swap else ():
        if ".qkv." in key:
            heads = config.heads(len(value) // 3)
            found[key] = value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    return found
