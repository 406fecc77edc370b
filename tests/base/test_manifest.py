"""Manifests are JSON, whatever numbers are in them."""

import json
import math
from pathlib import Path
from typing import Any

from bbdm.base import manifest


def test_what_is_not_finite_is_written_as_text_that_float_reads(tmp_path: Path):
    """At any depth; and what is written equals :func:`manifest.as_json` of what was meant, also of NaN."""
    content: dict[str, Any] = {
        "a": [math.inf, 1.5, {"b": -math.inf}],
        "nodata": math.nan,
        "c": (1, True, None),
    }
    path = tmp_path / "a.json"
    manifest.write(path, content)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {
        "a": ["Infinity", 1.5, {"b": "-Infinity"}],
        "nodata": "NaN",
        "c": [1, True, None],
    }
    assert float(found["a"][0]) == math.inf
    assert manifest.differences(found, manifest.as_json(content)) == ""
