"""Networks and bridges of sde-bbdm, the original BBDM, DDBM, DBIM, ECSI and I2SB, read without their code.

Each of three programs has a reader, and a file is recognised by its entries. A network is recognised by names
and shapes. :mod:`bbdm.files.importers.arguments` and :data:`OBJECTIVES` have the names of settings that files
leave out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

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
SDE_BRIDGES: dict[str, type[Bridge]] = {
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
    is_i2sb = any(prefix.startswith("net.") for prefix in file.prefixes(FIRST))
    if config is not None or is_i2sb or has_square_attention(file):
        return guided(file, config)
    return sde_bbdm(file, num_steps, c_lambda, codec)


def has_square_attention(file: File) -> bool:
    """Whether attention is of 2D convolutions, as in files of DDBM and ECSI alone."""
    return any(
        key.endswith(".qkv.weight") and value.ndim == 4 for key, value in file.tensors.items()
    )


def bbdm(file: File, config: str | None) -> Checkpoint:
    """A ``.pth`` of the original BBDM's runner (Li et al. 2023), with the schedule in its buffers."""
    root = file.prefix("a file of the original BBDM", "schedules", "m_t")
    if file.below(f"{root}cond_stage_model.channel_mapper."):
        raise ValueError(
            "it is conditioned by a SpatialRescaler (cond_stage_model.*), which is not supported"
        )
    bridge = _bbdm_bridge(file.below(root), _named(OBJECTIVES, config, "objective"))
    weights = file.below(f"{root}denoise_fn.")
    ema = file.below("ema.denoise_fn.") or None
    codec = _bbdm_codec(file, root)
    if codec is not None:
        shown = dim(weights, FIRST, 1)
        if shown != codec.channels:
            raise ValueError(
                f"its UNet is shown {shown} channels; a latent model's is shown the {codec.channels}"
            )
    return _checkpoint(weights, bridge, ema, codec, head_channels=HEADS)


def _bbdm_codec(file: File, root: str) -> Codec | None:
    """The autoencoder of a latent model, with the statistics of its latents where the file has them."""
    autoencoder = file.below(f"{root}vqgan.")
    if not autoencoder:
        return None
    codec = VQGANCodec(vqgan_state(autoencoder).build())
    if not file.tensors.keys() & STATISTICS.values():
        return codec
    statistics: dict[str, tuple[float, ...]] = {}
    for name, key in STATISTICS.items():
        statistics[name] = tuple(file.tensors[key].double().flatten().tolist())
    return codec.with_statistics(LatentStatistics(**statistics))


def _bbdm_bridge(state: State, objective: Objective) -> BrownianBridge:
    """The bridge whose complete schedule is in the buffers."""
    m = state["m_t"].double().flatten().numpy()
    variance = state["variance_t"].double().flatten().numpy()
    steps = len(m)
    if steps < 2 or len(variance) != steps:
        raise ValueError(f"its buffers m_t and variance_t are of {steps} and {len(variance)} steps")
    middle = steps // 2
    scale = variance[middle] / (2 * m[middle] * (1 - m[middle]))
    scale = float(f"{scale:.6g}")  # the buffers are of float32
    for schedule in ("linear", "sin"):
        bridge = BrownianBridge(steps, scale, objective, schedule)
        _, beta, sigma = bridge.marginal(np.arange(steps))
        same_mean = np.allclose(m, beta, rtol=1e-5, atol=0)
        same_variance = np.allclose(variance, sigma**2, rtol=1e-4, atol=0)
        if same_mean and same_variance:
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
    weights: State = {}
    for key, value in file.below(prefix).items():
        if key.endswith((".qkv.weight", ".proj_out.weight")) and value.ndim == 4:
            value = value.squeeze(3)  # attention of 2D convolutions, as that of 1D ones
        weights[key] = value
    average = file.content.get("ema") if prefix.startswith("net.") else None
    ema = None if average is None else _named_average(average, list(weights))
    return _checkpoint(
        weights,
        published.bridge,
        ema,
        None,
        published.image_size,
        published.heads_last,
        published.head_channels,
    )


def _named_average(average: object, names: list[str]) -> State:
    """The state of torch_ema, whose tensors have no names and are in the order of the parameters."""
    values = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(values, list) or len(values) != len(names):
        got = f"{len(values)} tensors" if isinstance(values, list) else describe(average)
        raise ValueError(
            f"its ema is {got}; wanted the state of torch_ema, with {len(names)} shadow_params"
        )
    return dict(zip(names, values, strict=True))


def sde_bbdm(
    file: File, num_steps: int | None, c_lambda: float | None, codec: Codec | None
) -> Checkpoint:
    """A checkpoint, a manager, a module or a network of sde-bbdm and torchmanager, or a state dict of one."""
    expected = (
        "a checkpoint, module or network of sde-bbdm, a .pth of the original BBDM, or a state dict"
    )
    prefix = file.prefix(expected, "UNets", FIRST)
    objects, values = file.around(prefix)
    bridge_class = None
    for stub in objects:
        bridge_class = SDE_BRIDGES.get(stub.name, bridge_class)  # that of the innermost one
    # A private attribute is saved with the name of the class that defines it.
    stored_steps = values.get("time_steps", values.get("_DiffusionModule__time_steps"))
    if stored_steps is not None:
        num_steps = stored_steps
    c_lambda = values.get("c_lambda", c_lambda)
    is_abridge = bridge_class is not BrownianBridge
    missing: list[str] = []
    if num_steps is None:
        missing.append("num_steps")
    if is_abridge and c_lambda is None:
        missing.append("c_lambda")
    if num_steps is None or missing:
        needed = " and ".join(f"{name}=" for name in missing)
        if not objects:
            needed += "; if it is of DDBM, DBIM, ECSI or I2SB, give config=, "
            needed += f"one of {sorted(PUBLISHED)}"
        raise IncompleteFileError(f"it does not state its {' or '.join(missing)}: give {needed}")
    if c_lambda is not None and is_abridge:
        bridge: Bridge = ABridge(num_steps, float(c_lambda))
    else:
        bridge = BrownianBridge(num_steps)
    latent = _has_autoencoder(file, prefix)
    if latent and codec is None:
        raise IncompleteFileError(
            "its autoencoder is not read: give the codec, load_checkpoint(path, codec=...)"
        )
    if bridge_class is not None and not latent:
        codec = None  # the file says that it is of image space
    is_pickled = file.values.get(prefix[:-1]) in objects
    head_channels = _heads(file, prefix) if is_pickled else None
    return _checkpoint(file.below(prefix), bridge, None, codec, head_channels=head_channels)


def _has_autoencoder(file: File, prefix: str) -> bool:
    """Whether an encoder or a decoder lies in the module of the network, or around it."""
    for key in file.tensors:
        part = re.fullmatch(r"((?:.*?\.)?)(?:encoder|decoder)\..*", key)
        if part is not None and prefix.startswith(part[1]):
            return True
    return False


def _heads(file: File, prefix: str) -> int | None:
    """The channels of a pickled UNet's attention heads, which only its modules have, or None."""

    def of_modules(attribute: str) -> dict[str, Any]:  # by the names of the modules
        values: dict[str, Any] = {}
        for name, value in file.values.items():
            if name.startswith(prefix) and name.endswith(attribute):
                values[name.removesuffix(attribute)] = value
        return values

    for attention in of_modules(".attention").values():
        if isinstance(attention, Stub) and attention.name == "QKVAttention":
            raise ValueError(
                "its attention has the new order of q, k and v; only the legacy order is read"
            )
    other_groups = set(of_modules(".num_groups").values()) - {GROUPS}
    if other_groups:
        raise ValueError(
            f"its norms have {sorted(other_groups)} groups; only networks of {GROUPS} are read"
        )
    heads = of_modules(".heads") | of_modules(".num_heads")
    widths: set[int] = set()
    for name, weight in of_modules(".qkv.weight").items():
        channels = len(weight) // 3
        widths.add(channels // heads[name])
    if len(widths) > 1:
        raise ValueError(
            f"its attention heads have {sorted(widths)} channels; wanted one number for all"
        )
    return widths.pop() if widths else None


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

    def converted(state: State) -> dict[str, Tensor]:
        copies = load(UNet.from_config, unet, state)
        return heads_first(copies, unet.head_channels) if heads_last else copies

    network = NetworkState(unet, converted(weights), None if ema is None else converted(ema))
    codec_state = None if codec is None else CodecState.of(codec)
    return Checkpoint(network, bridge, codec_state, image_size)


def heads_first(state: State, head_channels: int) -> dict[str, Tensor]:
    """Weights of attention in the order (heads, q k v, channels), of the order (q k v, heads, channels)."""
    ordered = dict(state)
    for key, value in state.items():
        if ".qkv." in key:
            by_head = value.unflatten(0, (3, -1, head_channels)).transpose(0, 1)
            ordered[key] = by_head.flatten(0, 2)
    return ordered


def _named(rows: Mapping[str, Row], config: str | None, missing: str) -> Row:
    """The row of a name that a user gives; ``missing`` is what the file does not state."""
    if config is None:
        choices = f"one of {sorted(rows)}"
        if missing == "bridge":
            choices += ", or a .json of the arguments that it was trained with"
        raise IncompleteFileError(f"it does not state its {missing}: give config=, {choices}")
    if config not in rows:
        raise ValueError(f"config must be one of {sorted(rows)}, got {config!r}")
    return rows[config]


def read_vqgan(content: object) -> NetworkState:
    """The one VQGAN of a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    file = File(content)
    in_others = [prefix for prefix in file.prefixes(CODES) if prefix.endswith(IN_OTHERS)]
    if len(in_others) == 1:
        prefix = in_others[0]
    else:
        prefix = file.prefix("a VQGAN of latent diffusion,", "codebooks", CODES)
    return vqgan_state(file.below(prefix))


def vqgan_state(state: State) -> NetworkState:
    """A VQGAN with latent diffusion's keys."""
    state = {key: value for key, value in state.items() if not key.startswith(TRAINING)}
    config = vqgan_config(state)
    return NetworkState(config, load(VQGAN.from_config, config, state), kind=VQGAN.kind)
