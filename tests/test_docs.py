"""The README and the documentation: snippets run, commands exist, links lead somewhere, pages stay narrow.

A comment above a snippet, `<!-- nightly: why -->` or `<!-- compile only: why -->`, says how it is tested.
"""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from bbdm import solvers
from bbdm.cli import COMMANDS
from bbdm.evaluation.metrics import METRICS
from bbdm.pictures.formats.libraries import LIBRARIES, SUFFIXES
from tests.conftest import ROOT

OTHERS = [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "bbdm/demo/README.md",
    "benchmarks/RESULTS.md",
]
PAGES = [
    ROOT / "README.md",
    *(ROOT / name for name in OTHERS),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"(?:<!-- (nightly|compile only): [^>]+ -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
# Flags of all commands, and of scripts, Docker, TensorBoard and uv
OF_OTHERS = {
    "--pairs",
    "--logdir",
    "--help",
    "--import",
    "--compare",
    "--shm-size",
    "--resolution",
    "-e",
}
# options that are not of benchmarks/conftest.py
PYTEST = {"--benchmark-only", "--benchmark-json", "-m", "-k", "-n"}


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def fences(language: str) -> list[tuple[str, str, str]]:
    """(page, mark, text) of each code block in a language."""
    return [
        (name(page), m[1], m[3])
        for page in PAGES
        for m in FENCE.finditer(page.read_text())
        if m[2] == language
    ]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def snippets() -> list[Any]:
    """Each Python snippet as a test case."""
    # some are on two pages
    once = {snippet: (page, mark, snippet) for page, mark, snippet in fences("python")}
    return [
        pytest.param(
            *case, id=f"{case[0]}-{i}", marks=[pytest.mark.nightly] * (case[1] == "nightly")
        )
        for i, case in enumerate(once.values())
    ]


@cache
def flags(program: str) -> set[str]:
    """The flags in a program's help: of a script, of a module, or of ``bbdm COMMAND``."""
    text = io.StringIO()
    name, *command = program.split()
    run = (
        partial(runpy.run_path, str(ROOT / name))
        if name.endswith(".py")
        else partial(runpy.run_module, name)
    )
    argv = [name, *command, "--help", "all"]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(text),
        pytest.raises(SystemExit) as ended,
    ):
        run(run_name="__main__")
    assert not ended.value.code, program
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text.getvalue()))


def commands() -> Iterator[tuple[str, str, set[str]]]:
    """(line, program, flags) of each command that runs something of this repository, as ``bbdm train``."""
    text = "\n".join(block for _, _, block in fences("bash")).replace("\\\n", " ")
    for line in re.split(r"\n|&&", re.sub(r"(?m)(^|\s)#.*", "", text)):
        words = shlex.split(line)
        for i, word in enumerate(words):
            if Path(word).name == "bbdm" and (i == 0 or words[i - 1] == "-m"):
                i += 2 if words[i + 1] == "--import" else 0  # a module of the reader's
                word, i = f"bbdm {words[i + 1]}", i + 1
            elif not (
                word == "bbdm.runtime" or word.endswith(".py") or word.startswith("benchmarks/")
            ):
                continue
            yield (
                line,
                word,
                {word.split("=")[0] for word in words[i + 1 :] if re.match(r"--?[A-Za-z]", word)},
            )
            break


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(("page", "mark", "snippet"), snippets())
def test_snippet_runs(
    page: str,
    mark: str,
    snippet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    code = compile(snippet, page, "exec")
    if mark == "compile only":
        return
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if "out/onnx" in snippet:  # what a command before it exports
        (tmp_path / "out").mkdir()
        (tmp_path / "out/onnx").symlink_to(request.getfixturevalue("bundled_export"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(code, {"__name__": "__main__"})


def test_programs_and_flags_of_commands_exist():
    for line, program, used in commands():
        assert program.startswith("bbdm") or (ROOT / program).exists(), line
        if "pytest " in line:
            known = PYTEST | set(
                re.findall(r'"(--\w+)"', (ROOT / "benchmarks/conftest.py").read_text())
            )
        else:
            known = flags(program)
        assert used <= known, f"{used - known} in: {line}"


def test_each_command_is_shown():
    """In the README or the documentation: what the changelog shows is no help to a reader."""
    shown = "\n".join(
        block
        for page, _, block in fences("bash")
        if page == "README.md" or page.startswith("docs/")
    )
    for command in COMMANDS:
        assert re.search(rf"\bbbdm (--import \S+ )?{command}\b(?!-)", shown), command


def test_each_code_block_is_tested():
    """A line that opens one is counted without the pattern that finds it."""
    for language in ("python", "bash"):
        lines = [
            line
            for page in PAGES
            for line in page.read_text().splitlines()
            if line == f"```{language}"
        ]
        assert len(fences(language)) == len(lines) > 0


def test_no_page_cites_a_commit():
    """A clone of depth 1 has none but the newest."""
    for page in PAGES:
        words = re.findall(r"\b[0-9a-f]{7,40}\b", page.read_text())
        assert [
            word for word in words if re.search("[0-9]", word) and re.search("[a-f]", word)
        ] == [], name(page)
        assert re.findall(r"commit `?\d{7,40}\b", page.read_text()) == [], name(page)


def test_flags_in_the_text_exist():
    known = OF_OTHERS.union(PYTEST, *(flags(f"bbdm {name}") for name in COMMANDS))
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            used = {word for word in code.split() if re.fullmatch(r"--?[a-z][a-z_-]*", word)}
            assert used <= known, f"{name(page)}: {used - known}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_and_links_lead_to_files_and_headings_in_lines_of_110_columns(page: Path):
    """Rows of tables have 120, and the commands that do everything are one line."""
    wide: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        most = 120 if line.startswith("|") else 110
        if len(line) > most and not line.startswith("python3 -m venv"):
            wide.append(f"line {number} has {len(line)} columns of {most}: {line}")
    assert not wide
    for file in re.findall(r"`(?:python )?(\w[\w/]*/\w+\.py)\b", prose(page)):
        assert (ROOT / file).is_file() or (ROOT / "bbdm" / file).is_file(), file
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("evaluation.md", METRICS),
        ("mathematics.md", solvers.SOLVERS),
        ("data.md", [suffix[1:] for suffix in SUFFIXES]),
        ("api/pictures.md", [library.module for library in LIBRARIES.values()]),
    ],
    ids=["metrics", "solvers", "formats", "modules of formats"],
)
def test_what_is_registered_is_documented(page: str, names: Iterable[str]):
    text = (ROOT / "docs" / page).read_text()
    tables = [line for line in text.splitlines() if line.startswith(("|", ":::"))]
    words = set(re.findall(r"[\w.-]+", "\n".join(tables)))
    missing = [name for name in names if name not in words]
    assert not missing, f"not in docs/{page}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_a_first_screen_has_the_picture_what_it_is_and_two_commands(page: str):
    """In this order, before anything else."""
    title, picture, sentence, commands, *_ = (ROOT / page).read_text().split("\n\n")
    assert title == "# bbdm"
    assert re.fullmatch(r"!\[[^\]]+\]\([\w/]*figures/results\.png\)", picture)
    assert len(sentence.splitlines()) <= 2
    mark, first, second, end = commands.splitlines()
    assert (mark, end) == ("```bash", "```")
    assert first.startswith("git clone ")
    assert second.endswith("bbdm demo")


@pytest.mark.usefixtures("own_names")
def test_the_picture_of_the_first_example_is_what_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Four seeds that nobody chose, to a level or so: processors round differently."""
    snippet = next(text for page, _, text in fences("python") if page == "README.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    made, shown = (
        np.asarray(Image.open(path), float)
        for path in ("pumpkins.png", ROOT / "docs/figures/pumpkins.png")
    )
    assert made.shape == shown.shape
    assert np.abs(made - shown).mean() < 2


def test_the_readme_is_one_page_with_the_test_command():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert re.search(r"^python3? -m venv .*pytest", readme, flags=re.MULTILINE)


@pytest.mark.nightly
def test_the_tutorial_runs_and_its_file_has_outputs_where_a_run_has_some(tmp_path: Path):
    """The site shows the outputs of the file, which are of an earlier run."""
    notebook = nbformat.read(ROOT / "examples/own_pictures.ipynb", 4)
    stored = [kinds_of_outputs(cell) for cell in notebook.cells]
    nbclient.NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert [kinds_of_outputs(cell) for cell in notebook.cells] == stored
    # of four pairs, and their grid
    assert len([*(tmp_path / "out/own/results").glob("*.png")]) == 5


def kinds_of_outputs(cell: Any) -> set[str]:
    """The media types of a cell's outputs; of text that it prints, ``stream``."""
    kinds: set[str] = set()
    for output in cell.get("outputs", ()):
        kinds.update(output.get("data", ["stream"]))
    return kinds


@pytest.mark.parametrize("name", ["own_pictures", "volumes"])
def test_notebooks_keep_their_outputs(name: str):
    """An ordinary build of the site runs none of them. Their outputs name no folder of the machine."""
    path = ROOT / f"examples/{name}.ipynb"
    outputs = [
        output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())
    ]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert all(output.output_type != "error" for output in outputs)
    text = path.read_text()
    for folder in ("/root/", "/home/", "/tmp/"):
        assert folder not in text
    assert path.stat().st_size < 200_000


@pytest.mark.nightly
def test_the_notebook_on_volumes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As short as it goes: what it prints is not looked at."""
    for name, value in {"TRAIN_SECONDS": "30", "TEST_PATIENTS": "2", "SAMPLES": "2"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "examples/volumes.ipynb", 4)
    nbclient.NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert len([*(tmp_path / "out/volumes/results").glob("*.nii.gz")]) >= 2
