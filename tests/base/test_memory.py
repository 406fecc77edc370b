"""Amounts of memory."""

from pathlib import Path

import pytest

from bbdm.base import memory
from bbdm.base.memory import free_memory, read_memory, shown


@pytest.mark.parametrize(
    ("text", "count"),
    [("4G", 4 * 2**30), ("500M", 500 * 2**20), ("1.5g", 3 * 2**29), ("2GiB", 2**31), ("64 KB", 2**16), ("123", 123)],
)
def test_amounts_as_people_write_them(text: str, count: int):
    assert read_memory(text.replace(" ", "")) == count
    assert read_memory(shown(count).replace(" ", "")) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize("text", ["", "G", "0G", "-1G", "4X", "4,5G", "inf", "nan"])
def test_other_text_is_refused(text: str):
    with pytest.raises(ValueError, match="an amount of memory is written as 4G or 500M, got"):
        read_memory(text)


def test_what_is_free_is_at_most_what_a_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "memory.max")
    free = free_memory()
    assert 2**24 < free < 2**50
    for text, least in (("max\n", 2**24), ("1000\n", 1000)):
        (tmp_path / "memory.max").write_text(text)
        assert free_memory() >= least
    assert free_memory() == 1000
