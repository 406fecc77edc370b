"""The content of a foreign pickle: names of classes, records of objects, and tensors not yet loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

MAX_SHARING = 4  # largest ratio of the tensors' sizes to those of their storages; usual files have 1

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """An object that is not rebuilt, or a call that is not made."""

    kind: Global
    args: tuple[Any, ...]
    state: Any = None  # the argument of the class's __setstate__
    items: list[Any] = field(default_factory=list)  # of a list, a set, or (key, value) of a mapping

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's __dict__, where its state has one; else empty."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return next((part for part in parts if isinstance(part, dict)), {})

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; of a torch.nn.Module also a parameter, a buffer or a child."""
        attributes = self.attributes
        for group in (attributes, *(attributes.get(key) for key in ("_parameters", "_buffers", "_modules"))):
            if isinstance(group, dict) and name in group:
                return group[name]
        return default


class Storage:
    """The numbers of one or more tensors, read from the file at first use."""

    def __init__(self, kind: Global, numel: int, read: Callable[[], bytearray]) -> None:
        self.kind = kind
        self.numel = numel
        self.dtype = DTYPES.get(kind.name)
        self.read = read

    @property
    def nbytes(self) -> int | None:
        """Bytes in the file, or None where the type is unknown."""
        return None if self.dtype is None else self.numel * self.dtype.itemsize

    @cached_property
    def values(self) -> torch.Tensor:
        """(numel,) on the CPU; ValueError where the file is damaged there, or the type is unknown."""
        if self.dtype is None:
            raise ValueError(f"it holds numbers of an unknown type, {self.kind}")
        if not self.numel:
            return torch.empty(0, dtype=self.dtype)
        return torch.frombuffer(self.read(), dtype=self.dtype)


@dataclass(eq=False, frozen=True, slots=True)
class StoredTensor:
    """A tensor in the file; ``load`` returns the tensor itself."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        """None where the type is unknown."""
        return self.storage.dtype

    def load(self) -> torch.Tensor:
        """A view of the storage; ValueError where the file is damaged there."""
        return self.storage.values.as_strided(self.shape, self.stride, self.offset)


def check_sharing(tensors: Iterable[StoredTensor]) -> None:
    """Raise ValueError where tensors are many times larger than their storages: a network copies views."""
    tensors = list(tensors)
    held = sum(storage.numel for storage in {tensor.storage for tensor in tensors})
    asked = sum(math.prod(tensor.shape) for tensor in tensors)
    if asked > MAX_SHARING * held:
        raise ValueError(f"its tensors are of {asked} numbers, and only {held} are stored")


def describe(value: Any) -> str:
    """The kind of a value, for an error; never its content, which can be of any size."""
    if isinstance(value, Record | Global):
        return f"a {value.kind if isinstance(value, Record) else value}"[:200]
    return "a tensor" if isinstance(value, StoredTensor) else f"a {type(value).__name__}"
