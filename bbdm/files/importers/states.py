"""The content of another program's file by dotted names, and state dicts that are found in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bbdm.files import inert
from bbdm.files.inert import Stub, describe
from bbdm.networks.restore import fitting

State = Mapping[str, torch.Tensor]
FIRST = "input_blocks.0.0.weight"  # a key that every UNet has
NETWORKS = ("state_dict.", "model.")  # entries of files that hold the network, where others are like it


class File:
    """What a file holds: ``values`` by names, of :func:`~bbdm.files.inert.flat`, and its ``tensors``."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.values = inert.flat(content)
        self.tensors = {key: value for key, value in self.values.items() if isinstance(value, torch.Tensor)}

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with ``prefix``, which is removed."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def prefixes(self, *ends: str) -> list[str]:
        """The prefixes of the tensors whose names end in one of ``ends``, sorted."""
        found = ((key, end) for key in self.tensors for end in ends)
        return sorted({key.removesuffix(end) for key, end in found if f".{key}".endswith(f".{end}")})

    def prefix(self, expected: str, things: str, *ends: str) -> str:
        """The prefix of the one tensor whose name ends in one of ``ends``; ValueError of none or several."""
        found = self.prefixes(*ends)
        found = [each for each in found if each.startswith(NETWORKS)] or found
        if len(found) != 1:
            got = f"it is {summary(self.content)} with {len(found) or 'no'} {things} in it"
            raise ValueError(f"{got}; wanted: {expected} with one tensor whose name ends in {' or '.join(ends)}")
        return found[0]

    def around(self, prefix: str) -> tuple[list[Stub], dict[str, Any]]:
        """What holds the tensors of a prefix: its objects, the outermost first, and all their values.

        Values are by the last part of the name, the innermost one where there are several.
        """
        objects = [value for key, value in self.values.items() if isinstance(value, Stub) and _holds(key, prefix)]
        inside = sorted(
            (key for key in self.values if _holds(key.rpartition(".")[0], prefix)), key=lambda k: k.count(".")
        )
        return objects, {key.rpartition(".")[2]: self.values[key] for key in inside}


def _holds(name: str, prefix: str) -> bool:
    return prefix.startswith(f"{name}." if name else "")


def summary(content: Any) -> str:
    """A few words on a file's content, for an error."""
    if not isinstance(content, dict):
        return describe(content)
    names = ", ".join(repr(key[:50]) for key in list(content)[:8] if isinstance(key, str))
    return f"a dict of {len(content)} entries ({names}{', ...' if len(content) > 8 else ''})"


def renamed(state: State, rows: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> dict[str, torch.Tensor]:
    """A state dict with other keys, by rows of a regular expression and its replacement, in turn.

    Raises:
        ValueError: two keys become the same.
    """
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in rows:
            key = re.sub(pattern, replacement, key)
        if key in found:
            raise ValueError(f"several of its keys name the same weight of the network, {key}")
        found[key] = value
    return found


def tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The state dict; ValueError where a value is not a tensor."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{str(key)[:100]} is {describe(value)}, not a tensor")
    return dict(state)


def load(build: Callable[[Any], nn.Module], config: Any, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Copies of the weights of a network, which may be mapped; ValueError where they do not fit."""
    found = tensors(state)
    fitting(build, config, found)
    inert.check_sharing(found.values())
    return {key: value.detach().clone() for key, value in found.items()}
