"""Files that are written whole or not at all, and what a write that fails says."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from bbdm.base.atomic import write_atomically


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_named_with_the_file(tmp_path: Path):
    """What the system says of a write names no file, and of a file that cannot be opened names that one."""
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def write_to_full_disk(_: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"new")

    def write_elsewhere(temporary: Path) -> None:
        (temporary.parent / "none/b.png").write_bytes(b"new")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'$") as error:
        write_atomically(path, write_to_full_disk)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, os.fspath(path))
    with pytest.raises(FileNotFoundError, match=r"none/b\.png'$"):
        write_atomically(path, write_elsewhere)
    with pytest.raises(OSError, match=r"^cannot write .*a\.png: .* requested and 0 written$"):
        # which has no number of an error
        write_atomically(path, lambda _: np.zeros(2**20).tofile("/dev/full"))
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
