"""Amounts of memory."""

from pathlib import Path

import pytest

from bbdm.base import machine
from bbdm.base.sizes import amount, read_memory


@pytest.mark.parametrize(
    ("text", "count"),
    [("4G", 4 * 2**30), ("500M", 500 * 2**20), ("1.5g", 3 * 2**29), ("2GiB", 2**31), ("64 KB", 2**16), ("123", 123)],
)
def test_amounts_as_people_write_them(text: str, count: int):
    assert read_memory(text.replace(" ", "")) == count
    assert read_memory(amount(count).replace(" ", "")) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize("text", ["", "G", "0G", "-1G", "4X", "4,5G", "inf", "nan"])
def test_other_text_is_refused(text: str):
    with pytest.raises(ValueError, match="an amount of memory is written as 4G or 500M, got"):
        read_memory(text)


@pytest.mark.parametrize(
    ("limit", "used", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_free_in_a_container_is_its_limit_less_what_is_used(
    limit: str, used: str, cached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pages of files that can be dropped are free."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert 2**24 < machine.free_memory() < 2**50
    for name, text in ((limit, "9000\n"), (used, "5000\n"), ("memory.stat", f"anon 3\n{cached} 1500\n")):
        path = (tmp_path / limit).with_name(name) if name == "memory.stat" else tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert machine.free_memory() == 9000 - 5000 + 1500
    (tmp_path / used).write_text("99000")
    assert machine.free_memory() == 0
    (tmp_path / limit).write_text("max\n")
    assert machine.free_memory() > 2**24
