"""Docstrings: an entry of Args, Raises, Returns, Yields or Attributes stands alone, as an editor shows it.

That public modules, classes and functions have a docstring is checked by ruff (D100 to D104).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "bbdm").rglob("*.py"))
SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Attributes):\n((?:(?: .*)?\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(?=\S)", re.MULTILINE)
NAME = re.compile(r"[*\w, ]+: ")
LEANING = re.compile(r"(and|or|nor|but|as|also|likewise|ditto)\b", re.IGNORECASE)
LEAST_WORDS = 4


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each entry of a docstring. Returns and Yields have one entry, of the section's name."""
    for section, block in SECTION.findall(docstring + "\n"):
        for entry in ENTRY.split(block)[1:] if section not in ("Returns", "Yields") else [block]:
            text = " ".join(entry.split())
            name = NAME.match(text) if section not in ("Returns", "Yields") else None
            yield (name[0].removesuffix(": "), text[name.end() :]) if name else (section, text)


def fault(text: str) -> str | None:
    """What is wrong with the text of an entry."""
    if len(text.split()) < LEAST_WORDS:
        return f"has under {LEAST_WORDS} words"
    if leaning := LEANING.match(text):
        return f"begins with {leaning[0]!r}, and so leans on the entry before it"
    return None if text.endswith((".", ".)")) else "ends without a full stop, as what the next entry continues"


def faults(source: str) -> list[str]:
    """Each fault of a module's docstrings, with its place."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        for name, text in entries((isinstance(node, nodes) and ast.get_docstring(node)) or ""):
            if wrong := fault(text):
                place = f"{getattr(node, 'lineno', 1)}, {getattr(node, 'name', 'module')}"
                found.append(f"line {place}: {name}: {text!r} {wrong}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_entries_stand_alone(module: Path):
    found = faults(module.read_text())
    assert not found, "\n".join(found)


def test_an_entry_that_leans_on_its_neighbour_is_found():
    source = '"""Do it.\n\nArgs:\n    {}\n    b: what is said of it alone.\n"""'
    cases = {"a: as for steps, as are.": "'as'", "a: and": "under 4 words", "*a: the number of calls, and": "stop"}
    for entry, wrong in cases.items():
        (found,) = faults(source.format(entry))
        assert wrong in found
