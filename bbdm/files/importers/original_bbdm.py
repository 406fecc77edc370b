"""Files of the original BBDM (Li et al., CVPR 2023): the ``.pth`` of its runner.

The schedule is in the buffers, the network's sizes in the shapes of its weights, and whether latents are
normalised in their statistics. The objective is in none of these: it is a name in :data:`NAMED`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bbdm.bridges import BrownianBridge, Objective
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.importers import shapes, states
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet

SCHEDULE = "m_t"  # a buffer that every file has
NETWORK, AUTOENCODER, CONDITION = "denoise_fn.", "vqgan.", "cond_stage_model."
NAMED: dict[str, Objective] = {  # the objective of its templates, "grad", and its two others
    "bbdm": "residual",
    "bbdm-noise": "noise",
    "bbdm-ysubx": "displacement",
}
STATISTICS = {
    "source_mean": "cond_latent_mean",
    "source_std": "cond_latent_std",
    "target_mean": "ori_latent_mean",
    "target_std": "ori_latent_std",
}


def read(content: Any, state: states.State, codec: Codec | None, config: str | None) -> Checkpoint:
    """The network, its moving average, its bridge and its autoencoder, with the objective of a name.

    The ``before_quant_conv`` of a ``codec`` says where the latents of a latent model are taken.
    """
    if states.below(state, f"{CONDITION}channel_mapper."):
        raise ValueError(f"it is conditioned by a SpatialRescaler ({CONDITION}*), which is not supported")
    if config is None:
        raise IncompleteFileError(f"it does not state its objective: give config=, one of {sorted(NAMED)}")
    if config not in NAMED:
        raise ValueError(f"config must be one of {sorted(NAMED)}, got {config!r}")
    weights = states.tensors(states.below(state, NETWORK))
    unet = shapes.unet_config(weights, num_groups=32)
    average = content.get("ema") if isinstance(content, dict) else None
    ema = None
    if isinstance(average, dict) and average:
        ema = states.load(UNet.from_config, unet, states.below(average, NETWORK))
    coded = None
    if autoencoder := states.below(state, AUTOENCODER):
        coded = _codec(states.build_vqgan(autoencoder, num_groups=32), content, codec)
        if coded.channels != unet.in_channels or unet.condition_channels:
            shown = unet.in_channels + unet.condition_channels
            raise ValueError(f"its UNet is shown {shown} channels; a latent model's is shown the {coded.channels}")
        coded = CodecState.of(coded)
    network = NetworkState(unet, states.load(UNet.from_config, unet, weights), ema)
    return Checkpoint(network, _bridge(state, NAMED[config]), coded)


def _bridge(state: states.State, objective: Objective) -> BrownianBridge:
    """The bridge whose complete schedule is in the buffers."""
    m, variance = (states.numbers(state, name).numpy() for name in (SCHEDULE, "variance_t"))
    steps = len(m)
    if steps < 2 or len(variance) != steps:
        raise ValueError(f"its buffers {SCHEDULE} and variance_t are of {steps} and {len(variance)} steps")
    middle = steps // 2
    scale = float(f"{variance[middle] / (2 * m[middle] * (1 - m[middle])):.6g}")  # the buffers are of float32
    for schedule in ("linear", "sin"):
        bridge = BrownianBridge.bbdm(steps, scale, schedule, objective)
        _, beta, sigma = bridge.marginal(np.arange(steps))
        if np.allclose(m, beta, rtol=1e-5, atol=0) and np.allclose(variance, sigma**2, rtol=1e-4, atol=0):
            return bridge
    raise ValueError(f"its buffers {SCHEDULE} and variance_t are of neither of the schedules linear and sin")


def _codec(vqgan: Any, content: Any, codec: Codec | None) -> Codec:
    """The autoencoder, with the statistics of latents where the file has them."""
    own = VQGANCodec(vqgan, codec is not None and codec.settings.get("before_quant_conv", False))
    if not isinstance(content, dict) or not any(key in content for key in STATISTICS.values()):
        return own
    found = {name: tuple(states.numbers(content, key).tolist()) for name, key in STATISTICS.items()}
    return own.with_statistics(LatentStatistics(**found))
