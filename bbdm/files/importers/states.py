"""State dicts in other people's files: found, cut, compared by name, and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bbdm.files import torchfile
from bbdm.files.importers import shapes
from bbdm.files.records import Record, StoredTensor, check_sharing, describe
from bbdm.networks.restore import fitting, restore
from bbdm.networks.vqgan import VQGAN

State = Mapping[Any, Any]

CODES = ("quantize.embedding.weight", "quantizer.embedding.weight")  # the keys by which a VQGAN is found
NOT_VQGAN = ("loss.", "discriminator.", "model_ema.")  # of its training


def find(content: Any) -> State:
    """The state dict that a file is, has under the usual names, or whose network it has; empty where there is none."""
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict | Record):
            content = content[name]
    if isinstance(content, Record):
        return torchfile.state_dict(content) if "_modules" in content.attributes else {}
    return content if isinstance(content, dict) else {}


def nature(content: Any) -> str:
    """What a file is, for an error."""
    if not isinstance(content, dict):
        return describe(content)
    names = ", ".join(repr(key[:50]) for key in list(content)[:8] if isinstance(key, str))
    return f"a dict of {len(content)} entries ({names}{', ...' if len(content) > 8 else ''})"


def below(state: State, prefix: str) -> dict[str, Any]:
    """The entries whose keys begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): v for key, v in state.items() if isinstance(key, str) and key.startswith(prefix)}


def prefixes(state: State, *ends: str) -> list[str]:
    """What stands before each key that ends so."""
    found = ((key, end) for key in state if isinstance(key, str) for end in ends)
    return sorted({key.removesuffix(end) for key, end in found if f".{key}".endswith(f".{end}")})


def tensors(state: State) -> dict[str, StoredTensor]:
    """The same.

    Raises:
        ValueError: something is no tensor.
    """
    for key, value in state.items():
        if not isinstance(value, StoredTensor):
            raise ValueError(f"{str(key)[:100]} is {describe(value)}, not a tensor")
    return dict(state)


def load(build: Callable[[Any], nn.Module], config: Any, state: State) -> dict[str, torch.Tensor]:
    """The weights of a network, by name.

    Raises:
        ValueError: they are not those that are wanted, or the file is damaged.
    """
    found = tensors(state)
    fitting(build, config, found)
    check_sharing(found.values())
    return {key: value.load() for key, value in found.items()}


def numbers(state: State, key: str) -> torch.Tensor:
    """(N,) a tensor of the file in float64.

    Raises:
        ValueError: it is missing, or no tensor.
    """
    return tensors({key: state.get(key)})[key].load().double().flatten()


def vqgan(state: State, **said: Any) -> VQGAN:
    """A VQGAN under latent diffusion's names or the A-Bridge scripts', in evaluation mode; ``said`` as for
    its shapes.

    Raises:
        ValueError: the keys do not fit.
    """
    state = {key: value for key, value in state.items() if not key.startswith(NOT_VQGAN)}
    if any(key.startswith("encoder.down_sampling.") for key in state):
        # Their blocks compute in two places something else than the weights were trained for; bridges know
        # the result.
        said = {"eps": 1e-5, "projects_attention": False, "num_groups": 32}
        names = shapes.abridge_vqgan_names(state)
        if len(set(names.values())) < len(names):
            raise ValueError("several of its keys are of one place in the network")
        state = {names[key]: value for key, value in state.items()}
    config = shapes.vqgan_config(tensors(state), **said)
    return restore(VQGAN.from_config, config, load(VQGAN.from_config, config, state))
