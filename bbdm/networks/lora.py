"""LoRA (Hu et al. 2022): a pretrained network of which few weights are trained, by PEFT.

Beside the weight W of a layer, which stays as it is, stands a product B A of small matrices, and B begins as
zeros. The first layer, which sees the source, is trained in full, and so are layers that are new. What is
merged, W + B A, is the weight of a plain network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bbdm.base.optional import package
from bbdm.networks.base import differences_of, find_dtype, state_hash
from bbdm.networks.config import LoRA
from bbdm.networks.pretrained_config import ENDS
from bbdm.networks.unet import UNet

State = dict[str, torch.Tensor]
# what a text encoder made, which differs in rounding from machine to machine
PROMPTS = ("prompt", "pooled")
LINEAR = re.compile(r"(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.\d+(\.proj)?)$")
ADAPTER = "default"  # the name that PEFT gives to what it adds


def add_lora(network: Any, rank: int, base: str, dtype: str | torch.dtype = torch.float32) -> None:
    """Add LoRA to a network in place: to projections of attention, feed-forward layers and convolutions.

    What the network computes stays the same. The rest is frozen, but for the first layer and for new ones.

    Args:
        network: a :class:`~bbdm.networks.pretrained.Pretrained` as it was read, on the CPU.
        rank: of the added products.
        base: the folder or the file that the network was read from.
        dtype: to which the frozen weights beside them are rounded, such as ``torch.bfloat16`` for a training
            that computes in it.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
        ValueError: the rank is below 1, the dtype is none of floating-point numbers, or the network is one of
            ADM.
    """
    if isinstance(network.module, UNet):
        raise ValueError("lora is of networks that diffusers saved, got one of ADM")
    dtype = find_dtype(dtype)
    name_of_dtype = f"{dtype}".removeprefix("torch.")
    whole = trained_in_full(network)
    frozen: State = {}
    for key, value in network.module.state_dict().items():
        if not key.startswith(whole):
            frozen[key] = value
    lora = LoRA(rank, os.path.abspath(base), state_hash(frozen, torch.float32), name_of_dtype)
    peft = package("peft", "LoRA")
    layers = dict(network.module.named_modules())
    targets: list[str] = []
    for name, layer in layers.items():
        is_convolution = isinstance(layer, nn.Conv2d)
        is_projection = isinstance(layer, nn.Linear) and LINEAR.search(name) is not None
        if (is_convolution or is_projection) and f"{name}." not in whole:
            targets.append(name)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    peft.inject_adapter_in_model(config, network.module, ADAPTER)
    for name in targets:
        layers[name].to(dtype=dtype)
    for key, weight in network.module.named_parameters():
        if key.startswith(whole):
            weight.requires_grad_(True)
    network.lora = lora


def trained_in_full(network: Any) -> tuple[str, ...]:
    """How the names of weights in ``network.module`` begin that are trained themselves, without products."""
    first, _ = ENDS[network.config.architecture]
    return tuple(f"{name}." for name in (first, *network.new))


def trained(network: nn.Module) -> State:
    """The weights of a network with LoRA, or of its average, that are trained, and its prompt; not copied."""
    whole = tuple(f"module.{name}" for name in trained_in_full(network))
    state: State = {}
    for key, value in network.state_dict().items():
        if ".lora_" in key or key.startswith(whole) or key in PROMPTS:
            state[key] = value
    return state


def completed(network: nn.Module, state: Mapping[str, torch.Tensor]) -> State:
    """All weights of a network with LoRA: of those in :func:`trained` the given ones.

    Raises:
        ValueError: they are not those that the network trains.
    """
    wrong = differences_of(state, trained(network))
    if wrong:
        raise ValueError(f"weights of LoRA do not fit the network: {'; '.join(wrong)}")
    return {**network.state_dict(), **state}


@torch.no_grad()
def merged(network: nn.Module) -> State:
    """The weights of the plain network that computes what one with LoRA does, in float32 on the CPU."""
    state: State = {}
    for key, value in network.state_dict().items():
        if ".lora_" not in key:
            state[key.replace(".base_layer.", ".")] = value.to("cpu", torch.float32)
    layer: Any
    for name, layer in network.named_modules():
        if hasattr(layer, "get_delta_weight"):
            product = layer.get_delta_weight(ADAPTER).to("cpu", torch.float32)
            state[f"{name}.weight"] = state[f"{name}.weight"] + product
    return state
