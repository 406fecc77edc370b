"""What a release would break in silence: its version, the files in it, and the package index's page."""

import re
import subprocess
import sys
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
    assert {bbdm.__version__, wheel.metadata.version, CITATION["version"], newest} == {
        bbdm.__version__
    }


def test_the_wheel_has_each_file_of_the_package(wheel: WheelBuilder):
    """Data too. A line of .gitignore would leave out what it matches."""
    package = [
        path for path in (ROOT / "bbdm").rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    assert files_of(wheel) == {path.relative_to(ROOT).as_posix() for path in package}
    assert wheel.metadata.core.scripts == {"bbdm": "bbdm.cli:main"}
    assert {"bbdm/py.typed", "bbdm/demo/openmoji64.safetensors", "bbdm/demo/LICENSE"} <= files_of(
        wheel
    )


def test_the_source_distribution_has_what_its_tests_need_and_nothing_built():
    names = files_of(SdistBuilder(str(ROOT)))
    assert {"README.md", "CITATION.cff", "LICENSE", "tests/conftest.py"} <= names
    assert {"examples/web/package-lock.json", "examples/demo/metrics.jsonl", "mkdocs.yml"} <= names
    assert not [name for name in names if BUILT.search(name)]
    assert "examples/demo/openmoji64-two.safetensors" not in names
    # the package index takes 100 MB
    assert sum((ROOT / name).stat().st_size for name in names) < 60e6


def test_links_of_the_package_indexs_page_are_absolute(wheel: WheelBuilder):
    urls = wheel.metadata.core.urls
    repository, tag = urls["Homepage"], re.escape(f"v{bbdm.__version__}")
    assert [
        url
        for url in (*urls.values(), CITATION["repository-code"])
        if not url.startswith(repository)
    ] == []
    readme, page = (ROOT / "README.md").read_text("utf-8"), wheel.metadata.core.readme
    assert CODE.findall(page) == CODE.findall(readme)
    links = LINK.findall(CODE.sub("", page))
    assert len(links) == len(LINK.findall(CODE.sub("", readme)))
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.removeprefix(repository) for link in links if link.startswith(repository)]
    files = [re.fullmatch(rf"/(?:blob|raw)/{tag}/([^#]+)(#.*)?", link) for link in own]
    assert len(files) > 10
    assert [
        link
        for link, file in zip(own, files, strict=True)
        if not file or not (ROOT / file[1]).exists()
    ] == []
    assert [
        picture for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page) if "/blob/" in picture
    ] == []


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text("utf-8"))


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_nightly_workflow_compares_with_the_papers_network():
    """Its Python imports sde-bbdm; the test of the paper's network is among those that it runs."""
    job = workflow("nightly")["jobs"]["nightly"]
    assert job["container"] in ("python:3.11", "python:3.12")
    assert commands(job) == ["python -m pip install -e '.[dev,peers]'", ".ci/nightly -rs"]
    nightly = (ROOT / ".ci/nightly").read_text("utf-8").splitlines()
    assert 'python -m pytest -m nightly "$@"' in nightly
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "--collect-only",
        "-m",
        "nightly",
        "tests/peers",
    ]
    collected = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        assert "test_network_has_the_public_outputs_and_gradients[paper]" in collected


def test_the_workflow_of_a_gpu_waits_for_a_runner_and_fails_without_a_gpu():
    text = workflow("gpu")
    assert text[True].keys() == {"schedule", "workflow_dispatch"}  # YAML's word for the key "on"
    job = text["jobs"]["gpu"]
    assert job["if"] == "vars.GPU_RUNNER == 'true' || github.event_name == 'workflow_dispatch'"
    assert job["runs-on"] == ["self-hosted", "linux", "gpu"]
    *_, checked, tested = commands(job)
    assert "device='cuda'" in checked
    assert tested == "python -m pytest -m gpu -n 0 -rs"
    labels = yaml.safe_load((ROOT / ".github/actionlint.yaml").read_text("utf-8"))[
        "self-hosted-runner"
    ]["labels"]
    assert labels == ["gpu"]  # others are GitHub's own


def test_tests_skip_for_no_package_but_those_that_a_python_cannot_import():
    """sde-bbdm's, on Python 3.10 and 3.13. What else lacks is a failure: the extras bring it."""
    text = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert set(re.findall(r'importorskip\("(\w+)', text)) == {
        "sde_bbdm",
        "diffusion",
        "torchmanager",
    }
