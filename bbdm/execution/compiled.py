"""Functions compiled by torch.compile, once for each shape.

The private interfaces of torch that this needs are imported here alone; torch 2.9 to 2.15 have them. The
compiler takes two seconds to import, and is imported where it is used.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import reset_code

from bbdm.base.recent import Recent

SHAPES_KEPT = 8  # of compiled networks and captured graphs


class Compiled:
    """A function compiled by torch.compile, once for each shape of its first argument and of mappings.

    Its other arguments are tensors, whose shapes follow from the first one's, or mappings of names to
    tensors. Its weights are constants to the compiler, which packs and folds them. A failure to compile is
    raised.
    """

    def __init__(self, function: Callable[..., torch.Tensor], device: torch.device) -> None:
        self.function = function
        self.device = device
        self._compiled: Recent[Callable[..., torch.Tensor]] = Recent(self._compile, SHAPES_KEPT)

    def __call__(self, x: torch.Tensor, /, *others: Any) -> torch.Tensor:
        """The function's result."""
        return self._compiled.get(_key(x.shape, others), x, *others)(x, *others)

    def functions(self) -> list[Callable[..., torch.Tensor]]:
        """What was compiled and is kept."""
        return self._compiled.values()

    def _compile(self, *arguments: Any) -> Callable[..., torch.Tensor]:
        import torch._inductor.config as inductor_config
        from torch._inductor.codecache import PyCodeCache

        function = self.function

        def forward(*arguments: Any) -> torch.Tensor:
            return function(*arguments)

        # The compiler stores its results with the code object and the globals. With a copy of both for each
        # shape there are no guards to check and no limit of recompilations, and the results can be deleted.
        own = FunctionType(forward.__code__.replace(), dict(globals()), closure=forward.__closure__)
        options = {"guard_filter_fn": lambda guards: [False for _ in guards], **compile_options(self.device)}
        compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        modules = PyCodeCache.modules  # each holds the constants of one compiled graph
        known = len(modules)
        with inductor_config.patch(freezing=freezes(arguments[0])):  # as an option it comes too late
            compiled(*arguments)
        for module in modules[known:]:
            sys.modules.pop(module.__name__, None)
        del modules[known:]
        weakref.finalize(compiled, reset_code, own.__code__)
        return compiled


def _key(shape: torch.Size, others: Iterable[Any]) -> tuple[torch.Size, ...]:
    """The shapes of a first argument, and of the tensors in mappings."""
    return shape, *(value.shape for each in others if isinstance(each, Mapping) for value in each.values())


def freezes(x: torch.Tensor | None) -> bool:
    """Whether weights are made constants for an input: not in float64, for which oneDNN has no layouts."""
    return x is not None and x.dtype != torch.float64


def compile_options(device: torch.device) -> dict[str, Any]:
    """Inductor's settings for a device, besides freezing."""
    return {} if device.type == "cpu" else {"max_autotune": True, "triton.cudagraphs": False}


def check_compilation(device: torch.device, compile: bool, compiled: str | os.PathLike[str] | None) -> None:
    """Raise ValueError where both are asked for, or the device has no compiler."""
    if compile and compiled is not None:
        raise ValueError("compile and compiled exclude each other: a package is compiled already")
    if (compile or compiled is not None) and device.type not in ("cpu", "cuda"):
        raise ValueError(f"compiled networks run on cpu and cuda, got device {device}")
