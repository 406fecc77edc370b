"""Amounts of memory: written by people, and what is free."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
UNKNOWN = 2**32  # bytes that are taken to be free where the system does not say
CGROUP = Path("/sys/fs/cgroup")  # of a container
CONTAINERS = (  # the files of its limit and use, and the name in memory.stat of pages that can be dropped
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def read_memory(text: str) -> int:
    """Bytes of text such as ``4G`` or ``500M``: powers of 1024.

    Raises:
        ValueError: the text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"an amount of memory is written as 4G or 500M, got {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def shown(count: int) -> str:
    """Bytes for people, such as ``1.5 GB``: powers of 1024, as in :func:`read_memory`."""
    unit = next(name for name in "TGMK" if count >= UNITS[name] or name == "K")
    return f"{count / UNITS[unit]:.3g} {unit}B"


def free_memory() -> int:
    """Bytes of memory that are free, of those that this process may use."""
    found: list[int] = []
    about = Path("/proc/meminfo")
    if about.exists():
        lines = dict(line.split(":", 1) for line in about.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    elif hasattr(os, "sysconf"):
        name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        found.append(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"))
    for limit, used, cached in CONTAINERS:  # a container's is its limit, less what is used but for files' pages
        with suppress(OSError, ValueError, KeyError):  # no such file, or no limit, which is the word max
            pages = dict(line.split() for line in (CGROUP / limit).with_name("memory.stat").read_text().splitlines())
            free = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text()) + int(pages[cached])
            found.append(max(free, 0))
    return min(found, default=UNKNOWN)
