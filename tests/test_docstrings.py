"""Docstrings: an entry of Args, Raises, Returns, Yields or Attributes stands alone, as an editor shows it.

That public modules, classes and functions have a docstring is checked by ruff (D100 to D104).
"""

import ast
import re
from collections.abc import Iterator

import griffe
import pytest

from tests.conftest import ROOT

MODULES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted((ROOT / "bbdm").rglob("*.py"))
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Attributes):\n((?:(?: .*)?\n)*)", re.MULTILINE)
NAMED = re.compile(r"^ {4}([*\w, ]+): (\S(?:.*\n)(?: {5,}.*\n|\n)*)", re.MULTILINE)
LEANING = r"(and|or|nor|but|as|also|likewise|ditto)\b"


def entries(source: str) -> Iterator[str]:
    """The text of each entry in a module's docstrings; Returns and Yields are one each."""
    for node in ast.walk(ast.parse(source)):
        docstring = (isinstance(node, DOCUMENTED) and ast.get_docstring(node)) or ""
        for section, block in SECTION.findall(docstring + "\n"):
            texts = (
                [block]
                if section in ("Returns", "Yields")
                else [text for _, text in NAMED.findall(block)]
            )
            yield from (" ".join(text.split()) for text in texts)


@pytest.mark.parametrize("module", MODULES)
def test_entries_stand_alone(module: str):
    """Four words or more, which do not lean on the entry before, and end with a full stop."""
    for text in entries(MODULES[module]):
        assert len(text.split()) >= 4
        assert not re.match(LEANING, text, re.IGNORECASE)
        assert text.endswith((".", ".)"))


def test_pages_explain_each_field_of_settings(caplog: pytest.LogCaptureFixture):
    """By its help, or a comment after or above it: else the site is not built."""
    extension = griffe.load_extensions(f"{ROOT / 'docs/plugins.py'}:Fields")
    package = griffe.load("bbdm.networks", search_paths=[ROOT], extensions=extension)
    assert [record.getMessage() for record in caplog.records] == []
    shown = package["config.NetworkConfig"].docstring.value
    assert "\n    axes: spatial: 2 for pictures" in shown
    assert "\n    endpoint: source channels that the bridge ends in" in shown
