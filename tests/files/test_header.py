"""What a command says of a network's file before it reads it: of a damaged one nothing, and then one line."""

import json
import struct
from pathlib import Path

import pytest

from bbdm import cli

DEEP = "[" * 200_000  # more than Python's reader of JSON goes into
DAMAGED = {
    "a header of lists in lists": DEEP,
    "settings of lists in lists": json.dumps({"__metadata__": {"bbdm": DEEP}}),
    "settings that are a list": json.dumps({"__metadata__": {"bbdm": "[1]"}}),
    "settings that are a number": json.dumps({"__metadata__": {"bbdm": "5"}}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_of_error(case: str, tmp_path: Path) -> None:
    """Which exits, and raises nothing else; so a user sees no traceback."""
    header = DAMAGED[case].encode()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(SystemExit, match=r"^error: .*damaged\.safetensors"):
        cli.run("translate", ["folder", str(tmp_path), str(path), str(tmp_path / "results")])
