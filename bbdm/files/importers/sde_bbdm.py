"""Files of sde-bbdm: torchmanager's checkpoints, managers, modules and networks, or state dicts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bbdm.bridges import ABridge, Bridge, BrownianBridge
from bbdm.codec import Codec, VQGANCodec
from bbdm.files import torchfile
from bbdm.files.content import Checkpoint, CodecState, UNetState
from bbdm.files.importers import adm_settings, shapes, states
from bbdm.files.records import Record, StoredTensor, describe
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.unet import UNet

FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
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
PLACES = {
    "encoder": {"0.": "encoder.", "1.": "quant_conv."},
    "decoder": {"0.": "quantize.", "1.": "post_quant_conv.", "2.": "decoder."},
}


@dataclass
class _Trained:
    """A network in a file, and its settings where the file states them."""

    network: Any  # the record of the UNet, or a state dict that has it
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
    if isinstance(state, Record):
        known = _module_settings(state)
        state = torchfile.state_dict(state)
    prefixes = states.prefixes(state, FIRST)
    if len(prefixes) != 1:
        raise ValueError(
            f"it is {states.summary(content)} with {len(prefixes) or 'no'} UNets in it; wanted: a checkpoint, module "
            f"or network of sde-bbdm, a .pth of the original BBDM, or a state dict with one key that ends in {FIRST}"
        )
    weights = states.below(state, prefixes[0])
    config = shapes.unet_config(states.tensors(weights), **known)
    loaded = UNetState(config, states.load(UNet.from_config, config, weights), None)

    settings = {"num_steps": _number(trained, "num_steps", num_steps)}
    if trained.bridge is not BrownianBridge:
        settings["c_lambda"] = _number(trained, "c_lambda", c_lambda)
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        given = " and ".join(f"{name}=" for name in missing)
        bare = isinstance(trained.network, dict) and len(missing) == 2
        other = f". If it is of DDBM, DBIM, ECSI or I2SB, give config=, {adm_settings.named()}" if bare else ""
        raise IncompleteFileError(f"it does not state its {' or '.join(missing)}: give {given}{other}")
    bridge = (trained.bridge or ABridge)(**settings)

    autoencoder = {**_part(trained, "encoder", state, prefixes[0]), **_part(trained, "decoder", state, prefixes[0])}
    coded = None
    if autoencoder:
        coded = CodecState.of(VQGANCodec(states.build_vqgan(autoencoder)))
    elif codec is not None and trained.bridge is None:
        coded = CodecState.of(codec)
    channels = coded.config["config"]["latent_channels"] if coded else config.in_channels
    if channels != config.in_channels:
        raise ValueError(f"its UNet works on {config.in_channels} channels, and the codec's latents have {channels}")
    return Checkpoint(loaded, bridge, coded)


def _unwrap(content: Any) -> _Trained:
    """The network in a checkpoint, in its manager, in its module, with the settings that each of them has."""
    trained = _Trained(content)
    for _ in range(8):  # no honest file nests a network deeper
        node = trained.network
        if isinstance(node, Record):
            trained.bridge = KINDS.get(node.kind.name, trained.bridge)
            # A private attribute is saved with the name of the class that defines it.
            trained.num_steps = node.get("time_steps", node.get("_DiffusionModule__time_steps", trained.num_steps))
            trained.c_lambda = node.get("c_lambda", trained.c_lambda)
            trained.encoder = node.get("encoder", trained.encoder)
            trained.decoder = node.get("decoder", trained.decoder)
            inner = None if node.get("input_blocks") is not None else node.get("model", node.get("module"))
        else:
            inner = node.get("model", node.get("state_dict")) if isinstance(node, dict) else None
        if not isinstance(inner, dict | Record):
            break
        trained.network = inner
    if not isinstance(trained.network, dict) and not (
        isinstance(trained.network, Record) and "_modules" in trained.network.attributes
    ):
        trained.network = {}
    return trained


def _number(trained: _Trained, name: str, given: float | None) -> Any:
    """A setting of the bridge: the file's or, where it has none, the given one."""
    stated = getattr(trained, name)
    if stated is None:
        return given
    if not isinstance(stated, int | float):
        raise ValueError(f"its {name} is {describe(stated)}, not a number")
    return float(stated) if name == "c_lambda" else stated


def _part(trained: _Trained, name: str, state: states.State, prefix: str) -> dict[str, Any]:
    """The encoder's or the decoder's part of a VQGAN, with the VQGAN's keys; empty where there is none."""
    whole = getattr(trained, name)
    if isinstance(whole, Record):
        found = torchfile.state_dict(whole)
    elif prefix.endswith("model."):
        found = states.below(state, f"{prefix.removesuffix('model.')}{name}.")
    else:
        return {}
    found = states.below(found, "module.") or found  # of DataParallel
    return {PLACES[name].get(key[:2], f"{name}.{key[:2]}") + key[2:]: value for key, value in found.items()}


def _module_settings(network: Record) -> dict[str, Any]:
    """The settings of a pickled UNet that only its modules have."""
    found: dict[str, set[Any]] = {"head_channels": set(), "num_groups": set(), "dropout": set()}
    for _, module in torchfile.modules(network):
        qkv = module.get("qkv")
        weight = qkv.get("weight") if isinstance(qkv, Record) else None
        if isinstance(weight, StoredTensor) and len(weight.shape) > 1:
            heads = module.get("num_heads", module.get("heads"))
            if not isinstance(heads, int) or heads < 1:
                raise ValueError(f"its attention has {describe(heads)} for the number of heads")
            found["head_channels"].add(weight.shape[1] // heads)
            order = module.get("attention")
            if isinstance(order, Record) and order.kind.name == "QKVAttention":
                raise ValueError("its attention has the new order of q, k and v; only the legacy order is read")
        if isinstance(module.get("num_groups"), int):
            found["num_groups"].add(module.get("num_groups"))
        if module.kind.name == "Dropout" and isinstance(module.get("p"), int | float):
            found["dropout"].add(float(module.get("p")))
    for name, values in found.items():
        if len(values) > 1:
            raise ValueError(f"its blocks have different {name}, {sorted(values)[:8]}; wanted one for all")
    known = {name: values.pop() for name, values in found.items() if values}
    resolutions = network.get("attention_resolutions")
    if isinstance(resolutions, list | tuple) and all(isinstance(value, int) for value in resolutions):
        known["attention_resolutions"] = tuple(resolutions)
    return known
