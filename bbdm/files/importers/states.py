"""The content of another program's file by dotted names, and state dicts that are found in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def levels(self, prefix: str) -> list[str]:
        """A prefix and those of what is around it, from the inside to the outside; eight at most."""
        ends = [end for end in range(len(prefix), -1, -1) if end == 0 or prefix[end - 1] == "."]
        return [prefix[:end] for end in ends[:8]]

    def objects(self, prefix: str) -> list[Stub]:
        """The objects at the :meth:`levels` of a prefix."""
        found = (self.values.get(level[:-1]) for level in self.levels(prefix))
        return [each for each in found if isinstance(each, Stub)]

    def nearest(self, levels: Sequence[str], *names: str) -> Any:
        """The value of one of the names at the first level that has any; None where none has."""
        found = (self.values.get(f"{level}{name}") for level in levels for name in names)
        return next((value for value in found if value is not None), None)

    def nearest_below(self, levels: Sequence[str], *names: str) -> dict[str, torch.Tensor]:
        """The tensors below each of the names at the first level that has it."""
        found = (next(filter(None, (self.below(f"{level}{name}.") for level in levels)), {}) for name in names)
        return {
            f"{name}.{key}": value for name, state in zip(names, found, strict=True) for key, value in state.items()
        }


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
