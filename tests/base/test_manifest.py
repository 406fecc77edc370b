"""Manifests: written and read back, damaged ones named, and differences listed."""

from pathlib import Path
from typing import Any

import pytest

from bbdm.base import manifest


def test_it_is_read_as_it_was_written(tmp_path: Path):
    content = manifest.as_json({"size": (2, 3), "codec": {"kind": "vqgan"}})
    assert content == {"size": [2, 3], "codec": {"kind": "vqgan"}}
    manifest.write(tmp_path / "deep" / "m.json", content)
    with manifest.reading(tmp_path / "deep" / "m.json", "delete it") as found:
        assert found == content


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"other": 1}', "null"])
def test_a_damaged_one_is_named(text: str, tmp_path: Path):
    (tmp_path / "m.json").write_text(text)
    with (
        pytest.raises(ValueError, match=r"cannot read .*m\.json: delete all$"),
        manifest.reading(tmp_path / "m.json", "delete all") as content,
    ):
        content["seed"]


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ({"a": 1, "b": None}, {"a": 1, "c": None}, ""),
        ({"seed": 0, "nfe": 3}, {"seed": 1, "nfe": 2}, "seed 0, now 1, nfe 3, now 2"),
        ({"a": 1}, {"b": 2}, "a 1, now None, b None, now 2"),
        ({"codec": {"kind": "x", "weights": 64 * "a"}}, {"codec": {"kind": "x", "weights": 64 * "b"}},
         "codec.weights aaaaaaaa, now bbbbbbbb"),
        ({"codec": None}, {"codec": {"kind": "x"}}, "codec None, now {'kind': 'x'}"),
        ({"codec": {}}, {"codec": {"x": None}}, "codec {}, now {'x': None}"),
        ({"a": 100 * "x"}, {"a": 1}, f"a {18 * 'x'}...{18 * 'x'}, now 1"),
    ],
)  # fmt: skip
def test_differences(before: dict[str, Any], now: dict[str, Any], wanted: str):
    assert manifest.differences(before, now) == wanted
