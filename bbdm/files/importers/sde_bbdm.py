"""Files of sde-bbdm: torchmanager's checkpoints, managers, modules and networks, or state dicts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.codec import Codec, VQGANCodec
from bbdm.files import inert
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.importers import adm, shapes, states
from bbdm.files.inert import Stub, describe
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet

KINDS: dict[str, type[Bridge]] = {  # by the class of the module or, in older files, of the manager
    "ABridgeModule": ABridge,
    "SDEBBDMManager": ABridge,
    "BBDMSDELinerRefinedWithLambdaV2With1000": ABridge,
    "BBDMModule": BrownianBridge,
    "SDEBBDMModule": BrownianBridge,
    "BBDMManager": BrownianBridge,
    "BBDMSpecialCaseManager": BrownianBridge,
}
# Both are a torch.nn.Sequential in the module or manager.
PARTS = {
    "encoder": {"0.": "encoder.", "1.": "quant_conv."},
    "decoder": {"0.": "quantize.", "1.": "post_quant_conv.", "2.": "decoder."},
}


@dataclass
class _Trained:
    """A network in a file, and its settings where the file states them."""

    network: Any  # the pickled UNet, or a state dict that has it
    bridge: type[Bridge] | None = None  # None where it is a network alone
    num_steps: Any = None
    c_lambda: Any = None
    encoder: Any = None
    decoder: Any = None


def read(content: Any, num_steps: int | None, c_lambda: float | None, codec: Codec | None) -> Checkpoint:
    """The network and its bridge; arguments fill in what the file leaves out."""
    trained = _unwrap(content)
    known: dict[str, Any] = {}
    state = trained.network
    if isinstance(state, Stub):
        known, state = _module_settings(state), inert.state_dict(state)
    expected = "a checkpoint, module or network of sde-bbdm, a .pth of the original BBDM, or a state dict"
    prefix = states.only_prefix(content, state, expected, "UNets", states.FIRST)
    weights = states.below(state, prefix)
    config = shapes.unet_config(states.tensors(weights), **known)
    network = NetworkState(config, states.load(UNet.from_config, config, weights), None)
    bridge = _bridge(trained, num_steps, c_lambda)
    autoencoder = {**_part(trained, "encoder", state, prefix), **_part(trained, "decoder", state, prefix)}
    coded = None
    if autoencoder:
        coded = CodecState.of(VQGANCodec(states.build_vqgan(autoencoder)))
    elif codec is not None and trained.bridge is None:
        coded = CodecState.of(codec)
    channels = coded.codec.channels if coded and coded.codec else config.in_channels
    if channels != config.in_channels:
        raise ValueError(f"its UNet works on {config.in_channels} channels, and the codec's latents have {channels}")
    return Checkpoint(network, bridge, coded)


def _unwrap(content: Any) -> _Trained:
    """The network in a checkpoint, in its manager, in its module, with the settings that each of them has."""
    trained = _Trained(content)
    for _ in range(8):  # no honest file nests a network deeper
        node = trained.network
        if isinstance(node, Stub):
            trained.bridge = KINDS.get(node.kind.rpartition(".")[2], trained.bridge)
            # A private attribute is saved with the name of the class that defines it.
            trained.num_steps = node.get("time_steps", node.get("_DiffusionModule__time_steps", trained.num_steps))
            trained.c_lambda = node.get("c_lambda", trained.c_lambda)
            trained.encoder = node.get("encoder", trained.encoder)
            trained.decoder = node.get("decoder", trained.decoder)
            inner = None if node.get("input_blocks") is not None else node.get("model", node.get("module"))
        else:
            inner = node.get("model", node.get("state_dict")) if isinstance(node, dict) else None
        if not isinstance(inner, dict | Stub):
            break
        trained.network = inner
    node = trained.network
    if not isinstance(node, dict) and not (isinstance(node, Stub) and "_modules" in node.attributes):
        trained.network = {}
    return trained


def _bridge(trained: _Trained, num_steps: int | None, c_lambda: float | None) -> Bridge:
    """The bridge of the file's settings or, where it has none, of the arguments."""
    arguments = {"num_steps": num_steps, "c_lambda": c_lambda}
    if trained.bridge is BrownianBridge:
        del arguments["c_lambda"]
    stated = {name: getattr(trained, name) for name in arguments}
    settings = {name: arguments[name] if value is None else value for name, value in stated.items()}
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        needed = " and ".join(f"{name}=" for name in missing)
        bare = isinstance(trained.network, dict) and len(missing) == 2
        other = f". If it is of DDBM, DBIM, ECSI or I2SB, give config=, one of {sorted(adm.NAMED)}" if bare else ""
        raise IncompleteFileError(f"it does not state its {' or '.join(missing)}: give {needed}{other}")
    for name, value in settings.items():
        if not isinstance(value, int | float):
            raise ValueError(f"its {name} is {describe(value)}, not a number")
    if trained.bridge is BrownianBridge:
        return BrownianBridge(settings["num_steps"])
    return ABridge(settings["num_steps"], float(settings["c_lambda"]))


def _part(trained: _Trained, name: str, state: states.State, prefix: str) -> dict[str, Any]:
    """The encoder's or the decoder's part of a VQGAN, with the VQGAN's keys; empty where there is none."""
    pickled = getattr(trained, name)
    if isinstance(pickled, Stub):
        found = inert.state_dict(pickled)
    elif prefix.endswith("model."):
        found = states.below(state, f"{prefix.removesuffix('model.')}{name}.")
    else:
        return {}
    found = states.below(found, "module.") or found  # of DataParallel
    return {PARTS[name].get(key[:2], f"{name}.{key[:2]}") + key[2:]: value for key, value in found.items()}


def _module_settings(network: Stub) -> dict[str, Any]:
    """The settings of a pickled UNet that only its modules have."""
    found: dict[str, set[Any]] = {"head_channels": set(), "num_groups": set(), "dropout": set()}
    for _, module in inert.modules(network):
        qkv = module.get("qkv")
        weight = qkv.get("weight") if isinstance(qkv, Stub) else None
        if isinstance(weight, torch.Tensor) and weight.ndim > 1:
            heads = module.get("num_heads", module.get("heads"))
            if not isinstance(heads, int) or heads < 1:
                raise ValueError(f"its attention has {describe(heads)} for the number of heads")
            found["head_channels"].add(weight.shape[1] // heads)
            order = module.get("attention")
            if isinstance(order, Stub) and order.kind.rpartition(".")[2] == "QKVAttention":
                raise ValueError("its attention has the new order of q, k and v; only the legacy order is read")
        if isinstance(module.get("num_groups"), int):
            found["num_groups"].add(module.get("num_groups"))
        if module.kind.endswith(".Dropout") and isinstance(module.get("p"), int | float):
            found["dropout"].add(float(module.get("p")))
    for name, values in found.items():
        if len(values) > 1:
            raise ValueError(f"its blocks have different {name}, {sorted(values)[:8]}; wanted one for all")
    known = {name: values.pop() for name, values in found.items() if values}
    resolutions = network.get("attention_resolutions")
    if isinstance(resolutions, list | tuple) and all(isinstance(value, int) for value in resolutions):
        known["attention_resolutions"] = tuple(resolutions)
    return known
