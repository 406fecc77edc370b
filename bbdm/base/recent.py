"""A cache of the values used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values used last, at most ``kept``, each made once, under a lock."""

    def __init__(self, make: Callable[..., Value], kept: int) -> None:
        self._make, self._kept = make, kept
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self.lock = threading.RLock()

    def values(self) -> list[Value]:
        """The values that are kept."""
        with self.lock:
            return list(self._values.values())

    def get(self, key: Any, *args: Any) -> Value:
        """The value of a key, made from ``args`` where the cache lacks it."""
        with self.lock:
            if key not in self._values:
                self._values[key] = self._make(*args)
            self._values.move_to_end(key)
            while len(self._values) > self._kept:
                self._values.popitem(last=False)
            return self._values[key]
