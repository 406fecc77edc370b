"""A table of things by name that grows from outside: formats, layouts, kinds of conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing]):
    """Things by their names.

    A cell of a notebook that runs twice registers the same thing twice: what has the same module and the same
    qualified name replaces what it was.

    Args:
        noun: what one of the things is called in messages, such as ``format``.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._things: dict[str, Thing] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, thing: Thing, source: Any = None) -> None:
        """Add a thing under a name.

        Args:
            name: what users write for it.
            thing: what the name stands for.
            source: the class, function or module that defines the thing; None if the thing is that itself.

        Raises:
            ValueError: something of another origin has the name.
        """
        origin = _origin(thing if source is None else source)
        if self._origins.get(name, origin) != origin:
            raise ValueError(f"the {self.noun} {name!r} is taken by {self._origins[name]}")
        self._things[name] = thing
        self._origins[name] = origin

    def __getitem__(self, name: str) -> Thing:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


def _origin(source: Any) -> str:
    """The module and the qualified name of a class or a function; the name of a module.

    Of a :func:`functools.partial` they are those of its function.
    """
    while isinstance(source, partial):
        source = source.func
    name = getattr(source, "__qualname__", None)
    if name is None:
        return str(getattr(source, "__name__", repr(source)))
    return f"{source.__module__}.{name}"
