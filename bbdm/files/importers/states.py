"""State dicts in foreign files: how they are found, cut, compared by key and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bbdm.files import inert
from bbdm.files.importers import shapes
from bbdm.files.inert import Stub, describe
from bbdm.networks.restore import fitting, restore
from bbdm.networks.vqgan import VQGAN

State = Mapping[Any, Any]

FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
CODES = ("quantize.embedding.weight", "quantizer.embedding.weight")  # keys that every VQGAN has one of
TRAINING = ("loss.", "discriminator.", "model_ema.")  # prefixes of what only its training needs


def find(content: Any) -> State:
    """The state dict in a file: the content, an entry under a usual name or a pickled module's; or empty."""
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict | Stub):
            content = content[name]
    if isinstance(content, Stub):
        return inert.state_dict(content) if "_modules" in content.attributes else {}
    return content if isinstance(content, dict) else {}


def summary(content: Any) -> str:
    """A few words on a file's content, for an error."""
    if not isinstance(content, dict):
        return describe(content)
    names = ", ".join(repr(key[:50]) for key in list(content)[:8] if isinstance(key, str))
    return f"a dict of {len(content)} entries ({names}{', ...' if len(content) > 8 else ''})"


def below(state: State, prefix: str) -> dict[str, Any]:
    """The entries whose keys begin with ``prefix``, which is removed."""
    return {key.removeprefix(prefix): v for key, v in state.items() if isinstance(key, str) and key.startswith(prefix)}


def prefixes(state: State, *ends: str) -> list[str]:
    """The prefixes of the keys that end in one of ``ends``, sorted."""
    found = ((key, end) for key in state if isinstance(key, str) for end in ends)
    return sorted({key.removesuffix(end) for key, end in found if f".{key}".endswith(f".{end}")})


def only_prefix(content: Any, state: State, expected: str, things: str, *ends: str) -> str:
    """The prefix of the one key that ends in one of ``ends``; ValueError where there are none or several."""
    found = prefixes(state, *ends)
    if len(found) != 1:
        got = f"it is {summary(content)} with {len(found) or 'no'} {things} in it"
        raise ValueError(f"{got}; wanted: {expected} with one key that ends in {' or '.join(ends)}")
    return found[0]


def tensors(state: State) -> dict[str, torch.Tensor]:
    """The state dict; ValueError where a value is not a tensor."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{str(key)[:100]} is {describe(value)}, not a tensor")
    return dict(state)


def load(build: Callable[[Any], nn.Module], config: Any, state: State) -> dict[str, torch.Tensor]:
    """Copies of the weights of a network, which may be mapped; ValueError where they do not fit."""
    found = tensors(state)
    fitting(build, config, found)
    inert.check_sharing(found.values())
    return {key: value.detach().clone() for key, value in found.items()}


def numbers(state: State, key: str) -> torch.Tensor:
    """(N,) the values of a tensor in the file, float64; ValueError where there is no such tensor."""
    return tensors({key: state.get(key)})[key].double().flatten()


def build_vqgan(state: State, **known: Any) -> VQGAN:
    """A VQGAN with latent diffusion's keys or the A-Bridge scripts', in evaluation mode."""
    state = {key: value for key, value in state.items() if not key.startswith(TRAINING)}
    if any(key.startswith("encoder.down_sampling.") for key in state):
        # These scripts' blocks differ in two places from the network that the weights were trained in, and
        # bridges were trained on the latents of these blocks.
        known = {"eps": 1e-5, "projects_attention": False, "num_groups": 32}
        names = shapes.abridge_vqgan_names(state)
        if len(set(names.values())) < len(names):
            raise ValueError("several of its keys name the same weight of the network")
        state = {names[key]: value for key, value in state.items()}
    config = shapes.vqgan_config(tensors(state), **known)
    return restore(VQGAN.from_config, config, load(VQGAN.from_config, config, state))
