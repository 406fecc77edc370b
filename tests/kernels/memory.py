"""Each access to memory of a kernel in Triton's interpreter, checked.

A GPU does not tell of a mask that lets too much through, of a grid that writes twice, or of a program that
reads what another one writes. Here each is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch


class MemoryAccessError(AssertionError):
    """An access outside of all arguments, or one that depends on the order of programs."""


class Launch:
    """The memory that a launch was given, and which program stored or loaded each address of it."""

    def __init__(self, arguments: list[torch.Tensor]) -> None:
        sizes = [sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1 for t in arguments]
        self.ranges = [(t.data_ptr(), t.data_ptr() + n * t.itemsize) for t, n in zip(arguments, sizes, strict=True)]
        self.stored: dict[int, Any] = {}
        self.loaded: dict[int, set[Any]] = {}

    def check(self, addresses: Any, mask: Any, program: Any, store: bool) -> None:
        chosen = np.unique(np.asarray(addresses)[np.broadcast_to(np.asarray(mask, bool), np.shape(addresses))])
        inside = np.zeros(chosen.shape, bool)
        for low, high in self.ranges:
            inside |= (chosen >= low) & (chosen < high)
        what = "stores" if store else "loads"
        if not inside.all():
            raise MemoryAccessError(f"program {program} {what} outside of all arguments: {np.count_nonzero(~inside)}")
        for address in chosen.tolist():
            writer = self.stored.get(address)
            if store and writer is not None:
                raise MemoryAccessError(f"program {program} stores what program {writer} stored")
            if store:
                self.stored[address] = program
            else:
                self.loaded.setdefault(address, set()).add(program)
            if any(reader != self.stored.get(address, reader) for reader in self.loaded.get(address, ())):
                raise MemoryAccessError(f"a program loads what program {self.stored[address]} stores")


@contextmanager
def watched() -> Iterator[list[Launch]]:
    """Check each launch in the block; gives the launches."""
    from triton.runtime import interpreter

    launches: list[Launch] = []
    builder: Any = interpreter.InterpreterBuilder
    begin = interpreter.GridExecutor._init_args_hst

    def begins(executor: Any, arguments: Any, named: Any) -> Any:
        made = begin(executor, arguments, named)
        launches.append(Launch([a for a in (*made[0], *made[1].values()) if isinstance(a, torch.Tensor)]))
        return made

    def checked(name: str, store: bool) -> Any:
        original = getattr(builder, name)

        def access(self: Any, pointers: Any, *rest: Any) -> Any:
            masks = rest[1 if store else 0]
            launches[-1].check(pointers.data, masks.data, self.grid_idx, store)
            return original(self, pointers, *rest)

        return access

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", begins)
        for name, store in (("create_masked_load", False), ("create_masked_store", True)):
            patch.setattr(builder, name, checked(name, store))
        yield launches
