"""Starting modules in processes of their own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT

ALONE = [sys.executable, "-m"]
TORCHRUN = [*ALONE, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The result of a command, with one thread in each process."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
