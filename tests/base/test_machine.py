"""What a report says of the machine, by other programs' words for it."""

import platform
import subprocess
import sys

import pytest
import torch

from bbdm.base import machine
from bbdm.execution.device import cpu_flags

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux' own files")
X86 = platform.machine() == "x86_64"


@pytest.mark.skipif(not X86, reason="other processors have no model name")
def test_the_processor_is_called_by_its_name() -> None:
    named = subprocess.run(["grep", "-m1", "model name", "/proc/cpuinfo"], capture_output=True)
    name = named.stdout.decode().split(":", 1)[1].strip()
    assert machine.processor(torch.device("cpu")) == name


@pytest.mark.skipif(not X86, reason="the instructions are x86's")
def test_instructions_of_the_processor_are_those_that_torch_finds() -> None:
    """By which the fastest dtype is chosen."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = cpu_flags()
    assert "sse2" in flags
    if capability == "AVX512":
        assert "avx512f" in flags
    if capability in ("AVX2", "AVX512"):
        assert "avx2" in flags
