"""Amounts of memory: written by people, and what is free."""

from __future__ import annotations

import os
import re
from pathlib import Path

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
UNKNOWN = 2**32  # bytes that are taken to be free where the system does not say
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


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
    if LIMIT.exists() and (most := LIMIT.read_text().strip()).isdecimal():
        found.append(int(most))
    return min(found, default=UNKNOWN)
