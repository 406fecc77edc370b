"""What reading a file may cost and do: its memory, its time, and the calls that it makes."""

import ctypes
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
}
CANARY = "bbdm_canary"  # a module that the code in mutated files imports
ROOM = 200 * 2**20  # bytes of memory, besides twice the file's size
SECONDS = 20.0  # the longest that a small file may take, on a busy machine


def memory(kind: str) -> int:
    """Bytes of memory of this process: VmRSS, now; VmHWM, the most since :func:`forget_peak`."""
    return int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def forget_peak() -> None:
    """Measure the most memory from here on.

    What malloc keeps, as samplers have told it, goes back first: it would be used again.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Watch:
    """How files were read. Hooks of Python cannot be removed, so there is one for all files of a kind."""

    read: int = 0  # with the right content
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._on, self._called = False, list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._on and (event in CALLS or (event == "import" and args[0] == CANARY)):
            self._called.append(f"it called {event} {args}"[:200])

    def judge(
        self, name: str, read: Callable[[], bool], size: int, place: str, room: int = ROOM
    ) -> None:
        """Read one file of ``size`` bytes: the right content (True), or an error with its ``place``."""
        forget_peak()
        faults: list[str] = []
        before, started = memory("VmRSS"), time.perf_counter()
        self._called, self._on = faults, True
        try:
            if read():
                self.read += 1
            else:
                faults.append("it was read, with another content")
        except (ValueError, FileNotFoundError) as error:
            self.refused += 1
            if place not in str(error):
                faults.append(f"an error does not name it: {error}"[:300])
        except BaseException as error:
            faults.append(f"{type(error).__name__}: {error}"[:300])
        finally:
            self._on = False
        seconds, grown = time.perf_counter() - started, memory("VmHWM") - before
        if grown > 2 * size + room:
            faults.append(f"it took {grown / 2**20:.0f} MiB for a file of {size} bytes")
        if seconds > SECONDS:
            faults.append(f"it took {seconds:.0f} seconds")
        self.faults += [f"{name}: {each}" for each in faults]
