"""The machine: its free memory; and its names and the versions of packages, for reports of results."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

UNKNOWN = 2**32  # bytes that are taken to be free where the system does not say
CGROUP = Path("/sys/fs/cgroup")  # of a container
# the files of its limit and use, and the name in memory.stat of pages that can be dropped
CONTAINERS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def describe(device: torch.device, packages: Iterable[str]) -> dict[str, Any]:
    """cpu, cores, threads, gpu (or None), python, and the versions of the packages that are installed."""
    import torch

    return {
        "cpu": processor(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": processor(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": versions(packages),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed."""
    installed: dict[str, str] = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def processor(device: torch.device) -> str:
    """The name of the card, or of the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field: str) -> str:
    """The first value of a field in Linux' description of the processor; empty on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def free_memory() -> int:
    """Bytes of memory that are free, of those that this process may use."""
    free = UNKNOWN
    memory = Path("/proc/meminfo")
    if memory.exists():
        available = read_table(memory, ":")["MemAvailable"]
        free = int(available.split()[0]) * 1024
    # a container's is its limit, less what is used but for files' pages
    for limit_file, used_file, cached in CONTAINERS:
        # no such file, or no limit, which is the word max
        with suppress(OSError, ValueError, KeyError):
            limit = int((CGROUP / limit_file).read_text())
            used = int((CGROUP / used_file).read_text())
            pages = read_table((CGROUP / limit_file).with_name("memory.stat"))
            free = min(free, max(limit - used + int(pages[cached]), 0))
    return free


def read_table(path: Path, separator: str | None = None) -> dict[str, str]:
    """The lines of a file as names and values, which a separator divides, or blanks."""
    table: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, value = line.split(separator, 1)
        table[name] = value
    return table
