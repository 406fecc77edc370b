"""Networks and bridges of sde-bbdm, the original BBDM, DDBM, DBIM, ECSI and I2SB, read without their code.

Each of three programs has a reader, and a file is recognised by its entries. A network is recognised by names
and shapes. :mod:`bbdm.files.importers.arguments` and :data:`OBJECTIVES` have the names of settings that files
leave out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bbdm.bridges import ABridge, Bridge, BrownianBridge, Objective
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.importers.arguments import HEADS, PUBLISHED, read_arguments
from bbdm.files.importers.states import (
    CODES,
    FIRST,
    File,
    State,
    dim,
    load,
    unet_config,
    vqgan_config,
)
from bbdm.files.inert import Stub, describe
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN

Row = TypeVar("Row")

# of a diffusion model; it may hold a second one, for its condition
IN_OTHERS = ("first_stage_model.", "vqgan.")
TRAINING = ("loss.", "discriminator.", "model_ema.")  # of what only a VQGAN's training needs
GROUPS = 32  # of a norm, of every published network
# of the original BBDM: that of its templates, "grad", and its two others
OBJECTIVES: dict[str, Objective] = {
    "bbdm": "residual",
    "bbdm-noise": "noise",
    "bbdm-ysubx": "displacement",
}
STATISTICS = {  # of latents, by their names in files of the original BBDM
    "source_mean": "cond_latent_mean",
    "source_std": "cond_latent_std",
    "target_mean": "ori_latent_mean",
    "target_std": "ori_latent_std",
}
ABRIDGES = ("ABridgeModule", "SDEBBDMManager", "BBDMSDELinerRefinedWithLambdaV2With1000")
BROWNIAN = ("BBDMModule", "SDEBBDMModule", "BBDMManager", "BBDMSpecialCaseManager")
# of sde-bbdm, by the class of the module or, in older files, the manager
Bridges = dict[str, Callable[..., Bridge]]
SDE_BRIDGES: Bridges = {
    **dict.fromkeys(ABRIDGES, ABridge),
    **dict.fromkeys(BROWNIAN, BrownianBridge),
}


def read_checkpoint(
    content: Any,
    num_steps: int | None,
    c_lambda: float | None,
    codec: Codec | None,
    config: str | None,
) -> Checkpoint:
    """A network and its bridge from a foreign file; see :func:`bbdm.files.checkpoint.load_checkpoint`."""
    file = File(content)
    if file.prefixes("m_t"):
        return bbdm(file, config)
    i2sb = any(prefix.startswith("net.") for prefix in file.prefixes(FIRST))
    square = (value.ndim == 4 for key, value in file.tensors.items() if key.endswith(".qkv.weight"))
    # attention of 2D convolutions is DDBM's and ECSI's alone
    if config is not None or i2sb or any(square):
        return guided(file, config)
    return sde_bbdm(file, num_steps, c_lambda, codec)


def bbdm(file: File, config: str | None) -> Checkpoint:
    """A ``.pth`` of the original BBDM's runner (Li et al. 2023), with the schedule in its buffers."""
    root = file.prefix("a file of the original BBDM", "schedules", "m_t")
    state = file.below(root)
    weights, ema = file.below(f"{root}denoise_fn."), file.below("ema.denoise_fn.") or None
    if file.below(f"{root}cond_stage_model.channel_mapper."):
        raise ValueError(
            "it is conditioned by a SpatialRescaler (cond_stage_model.*), which is not supported"
        )
    bridge = _bbdm_bridge(state, _named(OBJECTIVES, config, "objective"))
    codec = None
    if autoencoder := file.below(f"{root}vqgan."):
        codec = VQGANCodec(vqgan_state(autoencoder).build())
        if file.tensors.keys() & STATISTICS.values():
            found = {
                name: tuple(file.tensors[key].double().flatten().tolist())
                for name, key in STATISTICS.items()
            }
            codec = codec.with_statistics(LatentStatistics(**found))
        if (seen := dim(weights, FIRST, 1)) != codec.channels:
            raise ValueError(
                f"its UNet is shown {seen} channels; a latent model's is shown the {codec.channels}"
            )
    return _checkpoint(weights, bridge, ema, codec, head_channels=HEADS)


def _bbdm_bridge(state: State, objective: Objective) -> BrownianBridge:
    """The bridge whose complete schedule is in the buffers."""
    m, variance = (state[name].double().flatten().numpy() for name in ("m_t", "variance_t"))
    steps, middle = len(m), len(m) // 2
    if steps < 2 or len(variance) != steps:
        raise ValueError(f"its buffers m_t and variance_t are of {steps} and {len(variance)} steps")
    # the buffers are of float32
    scale = float(f"{variance[middle] / (2 * m[middle] * (1 - m[middle])):.6g}")
    for schedule in ("linear", "sin"):
        bridge = BrownianBridge(steps, scale, objective, schedule)
        _, beta, sigma = bridge.marginal(np.arange(steps))
        if np.allclose(m, beta, rtol=1e-5, atol=0) and np.allclose(
            variance, sigma**2, rtol=1e-4, atol=0
        ):
            return bridge
    raise ValueError(
        "its buffers m_t and variance_t are of neither of the schedules linear and sin"
    )


def guided(file: File, config: str | None) -> Checkpoint:
    """Guided diffusion's network in DDBM, DBIM and ECSI, a bare state dict, or in I2SB's ``latest.pt``.

    The latter has the moving average without names, in the order of the network's parameters.
    """
    prefix = file.prefix("I2SB's latest.pt, or a state dict", "UNets", FIRST)
    if file.around(prefix)[0] and config is not None:
        raise ValueError(f"config={config} was given, but the file describes its network itself")
    if config is not None and config.endswith(".json"):
        published = read_arguments(Path(config))
    else:
        published = _named(PUBLISHED, config, "bridge")
    attention = (".qkv.weight", ".proj_out.weight")  # of 2D convolutions, as those of 1D ones
    found = file.below(prefix).items()
    weights = {
        key: value.squeeze(3) if key.endswith(attention) and value.ndim == 4 else value
        for key, value in found
    }
    average, ema = file.content.get("ema") if prefix.startswith("net.") else None, None
    if average is not None:
        values = average.get("shadow_params") if isinstance(average, dict) else None
        if not isinstance(values, list) or len(values) != len(weights):
            got = f"{len(values)} tensors" if isinstance(values, list) else describe(average)
            raise ValueError(
                f"its ema is {got}; wanted the state of torch_ema, with {len(weights)} shadow_params"
            )
        ema = dict(zip(weights, values, strict=True))
    return _checkpoint(
        weights,
        published.bridge,
        ema,
        None,
        published.image_size,
        published.heads_last,
        published.head_channels,
    )


def sde_bbdm(
    file: File, num_steps: int | None, c_lambda: float | None, codec: Codec | None
) -> Checkpoint:
    """A checkpoint, a manager, a module or a network of sde-bbdm and torchmanager, or a state dict of one."""
    expected = (
        "a checkpoint, module or network of sde-bbdm, a .pth of the original BBDM, or a state dict"
    )
    prefix = file.prefix(expected, "UNets", FIRST)
    objects, around = file.around(prefix)
    kinds = [SDE_BRIDGES[each.name] for each in reversed(objects) if each.name in SDE_BRIDGES]
    build = [*kinds, SDE_BRIDGES["ABridgeModule"]][0]
    # A private attribute is saved with the name of the class that defines it.
    steps = around.get("time_steps", around.get("_DiffusionModule__time_steps"))
    settings: dict[str, Any] = {"num_steps": num_steps if steps is None else steps}
    if build is not BrownianBridge:
        settings["c_lambda"] = around.get("c_lambda", c_lambda)
    if missing := [name for name, value in settings.items() if value is None]:
        needed = " and ".join(f"{name}=" for name in missing)
        other = (
            ""
            if objects
            else f"; if it is of DDBM, DBIM, ECSI or I2SB, give config=, one of {sorted(PUBLISHED)}"
        )
        raise IncompleteFileError(
            f"it does not state its {' or '.join(missing)}: give {needed}{other}"
        )
    bridge = build(settings.pop("num_steps"), *map(float, settings.values()))
    parts = (re.fullmatch(r"((?:.*?\.)?)(?:encoder|decoder)\..*", key) for key in file.tensors)
    latent = any(found and prefix.startswith(found[1]) for found in parts)
    if latent and codec is None:
        raise IncompleteFileError(
            "its autoencoder is not read: give the codec, load_checkpoint(path, codec=...)"
        )
    codec = codec if latent or not kinds else None
    pickled = file.values.get(prefix[:-1]) in objects
    return _checkpoint(
        file.below(prefix),
        bridge,
        None,
        codec,
        head_channels=_heads(file, prefix) if pickled else None,
    )


def _heads(file: File, prefix: str) -> int | None:
    """The channels of a pickled UNet's attention heads, which only its modules have, or None."""

    def named(end: str) -> dict[str, Any]:  # values of the modules, by the names of these
        return {
            k.removesuffix(end): v
            for k, v in file.values.items()
            if k.startswith(prefix) and k.endswith(end)
        }

    if any(
        isinstance(each, Stub) and each.name == "QKVAttention"
        for each in named(".attention").values()
    ):
        raise ValueError(
            "its attention has the new order of q, k and v; only the legacy order is read"
        )
    if other := {*named(".num_groups").values()} - {GROUPS}:
        raise ValueError(
            f"its norms have {sorted(other)} groups; only networks of {GROUPS} are read"
        )
    heads = named(".heads") | named(".num_heads")
    found = {len(weight) // 3 // heads[name] for name, weight in named(".qkv.weight").items()}
    if len(found) > 1:
        raise ValueError(
            f"its attention heads have {sorted(found)} channels; wanted one number for all"
        )
    return found.pop() if found else None


def _checkpoint(
    weights: State,
    bridge: Bridge,
    ema: State | None,
    codec: Codec | None,
    image_size: int | None = None,
    heads_last: bool = False,
    head_channels: int | None = None,
) -> Checkpoint:
    """What a file says, whose UNet has our keys; the last arguments are what its shapes do not show."""
    unet = unet_config(weights, head_channels)
    if codec is not None and codec.channels != unet.in_channels:
        latents = f"the codec's latents have {codec.channels}"
        raise ValueError(f"its UNet works on {unet.in_channels} channels, and {latents}")
    states = [load(UNet.from_config, unet, each) for each in (weights, ema) if each is not None]
    for state in states if heads_last else ():
        for key in [key for key in state if ".qkv." in key]:  # q, k and v within the heads, as ours
            state[key] = (
                state[key].unflatten(0, (3, -1, unet.head_channels)).transpose(0, 1).flatten(0, 2)
            )
    network = NetworkState(unet, states[0], None if ema is None else states[1])
    return Checkpoint(network, bridge, None if codec is None else CodecState.of(codec), image_size)


def _named(rows: Mapping[str, Row], config: str | None, missing: str) -> Row:
    """The row of a name that a user gives; ``missing`` is what the file does not state."""
    if config is None:
        own = (
            ", or a .json of the arguments that it was trained with" if missing == "bridge" else ""
        )
        raise IncompleteFileError(
            f"it does not state its {missing}: give config=, one of {sorted(rows)}{own}"
        )
    if config not in rows:
        raise ValueError(f"config must be one of {sorted(rows)}, got {config!r}")
    return rows[config]


def read_vqgan(content: Any) -> NetworkState:
    """The one VQGAN of a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    file = File(content)
    known = [each for each in file.prefixes(CODES) if each.endswith(IN_OTHERS)]
    prefix = (
        known[0]
        if len(known) == 1
        else file.prefix("a VQGAN of latent diffusion,", "codebooks", CODES)
    )
    return vqgan_state(file.below(prefix))


def vqgan_state(state: State) -> NetworkState:
    """A VQGAN with latent diffusion's keys."""
    state = {key: value for key, value in state.items() if not key.startswith(TRAINING)}
    config = vqgan_config(state)
    return NetworkState(config, load(VQGAN.from_config, config, state), kind=VQGAN.kind)
