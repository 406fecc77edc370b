"""What a release would break in silence: its version, the files in it, and the package index's page."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import bbdm
from tests.conftest import ROOT

LINK = re.compile(r'(?:\]\(|(?:src|srcset|href)=")([^)"\s]+)')
BUILT = re.compile(r"(^|/)(node_modules|dist|exports|site|out|__pycache__|[^/]*\.run)/")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def files_of(builder: Any) -> set[str]:
    return {Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()}


@pytest.fixture(scope="module")
def wheel() -> WheelBuilder:
    return WheelBuilder(str(ROOT))


def test_one_version(wheel: WheelBuilder):
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0]
    assert {bbdm.__version__, wheel.metadata.version, CITATION["version"], newest} == {bbdm.__version__}


def test_the_wheel_has_each_file_of_the_package(wheel: WheelBuilder):
    """Data too. A line of .gitignore would leave out what it matches."""
    package = [path for path in (ROOT / "bbdm").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert files_of(wheel) == {path.relative_to(ROOT).as_posix() for path in package}
    assert wheel.metadata.core.scripts == {"bbdm": "bbdm.cli:main"}
    assert {"bbdm/py.typed", "bbdm/demo/openmoji64.safetensors", "bbdm/demo/LICENSE"} <= files_of(wheel)


def test_the_source_distribution_has_what_its_tests_need_and_nothing_built():
    names = files_of(SdistBuilder(str(ROOT)))
    assert {"README.md", "CITATION.cff", "LICENSE", "tests/conftest.py"} <= names
    assert {"examples/web/package-lock.json", "examples/demo/metrics.jsonl", "mkdocs.yml"} <= names
    assert not [name for name in names if BUILT.search(name)]
    assert sum((ROOT / name).stat().st_size for name in names) < 80e6  # the package index takes 100 MB


def test_links_of_the_package_indexs_page_are_absolute(wheel: WheelBuilder):
    urls = wheel.metadata.core.urls
    repository, tag = urls["Homepage"], re.escape(f"v{bbdm.__version__}")
    assert [url for url in (*urls.values(), CITATION["repository-code"]) if not url.startswith(repository)] == []
    readme, page = (ROOT / "README.md").read_text("utf-8"), wheel.metadata.core.readme
    assert CODE.findall(page) == CODE.findall(readme)
    links = LINK.findall(CODE.sub("", page))
    assert len(links) == len(LINK.findall(CODE.sub("", readme)))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.removeprefix(repository) for link in links if link.startswith(repository)]
    files = [re.fullmatch(rf"/(?:blob|raw)/{tag}/([^#]+)(#.*)?", link) for link in own]
    assert len(files) > 10
    assert [link for link, file in zip(own, files, strict=True) if not file or not (ROOT / file[1]).exists()] == []
    assert [picture for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page) if "/blob/" in picture] == []


def test_tests_skip_for_no_package_but_those_that_a_python_cannot_import():
    """sde-bbdm's, on Python 3.10 and 3.13. What else lacks is a failure: the extras bring it."""
    text = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert set(re.findall(r'importorskip\("(\w+)', text)) == {"sde_bbdm", "diffusion", "torchmanager"}
