"""A registry takes the same thing again, as a notebook's cell that runs twice, and no other of its name."""

import pytest

from bbdm.base.registry import Registry


def define(text: str, name: str = "thing") -> type:
    return type(name, (), {"text": text, "__module__": "notebook", "__qualname__": name})


def test_the_same_definition_again_replaces_the_first() -> None:
    registry: Registry[type] = Registry("format")
    registry.register("mine", define("first"))
    registry.register("mine", define("second"))
    assert vars(registry["mine"])["text"] == "second"
    assert [*registry] == ["mine"]


def test_another_thing_of_a_name_is_refused() -> None:
    registry: Registry[type] = Registry("format")
    registry.register("mine", define("first"))
    with pytest.raises(ValueError, match="the format 'mine' is taken by notebook"):
        registry.register("mine", define("second", "other"))


def test_a_value_has_the_origin_of_what_defines_it() -> None:
    registry: Registry[int] = Registry("layout")
    registry.register("one", 1, source=define)
    with pytest.raises(ValueError, match=r"is taken by .*define"):
        registry.register("one", 2, source=pytest)
