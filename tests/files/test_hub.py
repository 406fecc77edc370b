"""Models as folders and on a Hub: what is written and fetched, the card, and what goes wrong."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import bbdm
from bbdm import ABridge, BridgeSampler, Values, load_checkpoint
from bbdm.data.spec import Spec
from bbdm.files.repository import HubError
from bbdm.pictures import read
from tests.conftest import noise, tiny_unet
from tests.onnx.exports import tiny_codec

BRIDGE = ABridge(num_steps=50)
SOURCE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
NAME = "me/faces"
SNAPSHOT = huggingface_hub.snapshot_download


class Hub:
    """Stands for huggingface_hub, with one repository; calls must fit the signatures of its functions."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.downloads: list[str] = []
        self.error: Exception | None = None

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        self.refs[ref] = f"{len(self.commits):040x}"
        self.commits[self.refs[ref]] = dict(files)
        return self.refs[ref]

    def called(self, function: Any, *args: Any, **settings: Any) -> None:
        inspect.signature(function).bind(*args, **settings)
        assert NAME in (*args, settings.get("repo_id"))
        if self.error is not None:
            raise self.error

    def snapshot_download(self, name: str, allow_patterns: list[str], **where: Any) -> str:
        self.called(SNAPSHOT, name, allow_patterns=allow_patterns, **where)
        commit = self.refs.get(ref := where["revision"] or "main", ref)
        self.downloads = sorted(
            filter_repo_objects(self.commits[commit], allow_patterns=allow_patterns)
        )
        write(self.cache / commit, {name: self.commits[commit][name] for name in self.downloads})
        return str(self.cache / commit)

    def create_repo(self, name: str, **settings: Any) -> None:
        self.called(huggingface_hub.HfApi.create_repo, self, name, **settings)
        if not self.refs:
            self.commit({})

    def file_exists(self, name: str, file: str, revision: str | None) -> bool:
        return file in self.commits[self.refs[revision or "main"]]

    def upload_folder(self, **settings: Any) -> Any:
        self.called(huggingface_hub.HfApi.upload_folder, self, **settings)
        ref = settings["revision"] or "main"
        old, new = self.commits[self.refs[ref]], files_of(Path(settings["folder_path"]))
        gone = {*filter_repo_objects(old, allow_patterns=settings["delete_patterns"])}
        sent = filter_repo_objects(new, ignore_patterns=settings["ignore_patterns"])
        files = {k: v for k, v in old.items() if k not in gone} | {name: new[name] for name in sent}
        return SimpleNamespace(oid=self.commit(files, ref))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub without a repository, and an empty cache."""
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    for name in ("create_repo", "file_exists", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda _, *a, n=name, **k: getattr(hub, n)(*a, **k)
        )
    return hub


def build(seed: int = 0) -> BridgeSampler:
    sampler = BridgeSampler(tiny_unet(seed, condition_channels=3), BRIDGE, "dpm2m", 3)
    sampler.image_size = 16
    return sampler


@pytest.fixture
def sampler() -> BridgeSampler:
    return build()


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def saved(sampler: BridgeSampler, folder: Path, **about: Any) -> dict[str, bytes]:
    sampler.save_pretrained(folder, **about)
    return files_of(folder)


@pytest.fixture
def model(hub: Hub, sampler: BridgeSampler, tmp_path: Path) -> Hub:
    """A hub with a model, and with files that nobody should fetch."""
    hub.commit(
        {**saved(sampler, tmp_path / "faces"), "pytorch_model.bin": b"pickle", "code.py": b"1 / 0"}
    )
    return hub


def same(a: BridgeSampler, b: BridgeSampler) -> bool:
    return torch.equal(a(SOURCE, seed=0, steps=2), b(SOURCE, seed=0, steps=2))


def test_a_folder(sampler: BridgeSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its card is read by the Hub's own library, without which there is none; a card that is there stays."""
    files = saved(sampler, tmp_path / "a", license="cc-by-sa-4.0", base_model="me/teacher")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    data: Any = huggingface_hub.ModelCard(files["README.md"].decode()).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "bbdm",
        "image-to-image",
        ["diffusion-bridge"],
    )
    assert (data.license, data.base_model) == ("cc-by-sa-4.0", "me/teacher")
    assert b"\n# a\n" in files["README.md"]
    (tmp_path / "a" / "README.md").write_text("mine")
    assert saved(sampler, tmp_path / "a")["README.md"] == b"mine"
    (tmp_path / "both" / "onnx").mkdir(parents=True)
    with pytest.raises(ValueError, match="onnx exists, and may be of other weights"):
        sampler.save_pretrained(tmp_path / "both")
    config = json.loads(files["config.json"])
    assert (config["format"], config["bridge"]["num_steps"]) == ("bbdm", 50)
    assert config["unet"]["config"]["model_channels"] == 8
    again = BridgeSampler.from_pretrained(tmp_path / "a", solver="ddim", steps=4)
    assert same(again, BridgeSampler(sampler.unet, BRIDGE, "ddim"))
    assert (again.bridge, again.image_size, again.solver, len(again.table)) == (
        BRIDGE,
        16,
        "ddim",
        4,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert sorted(saved(sampler, tmp_path / "b")) == ["config.json", "model.safetensors"]
    with pytest.raises(ModuleNotFoundError, match="a model card needs huggingface_hub"):
        sampler.save_pretrained(tmp_path / "c", license="mit")


@pytest.mark.parametrize("own", [False, True], ids=["latents", "a module"])
def test_what_is_not_a_network_of_pictures(own: bool, tmp_path: Path):
    """The card says what its user has to give."""
    network = (
        bbdm.wrap(torch.nn.Conv2d(3, 3, 1), call=lambda module, x, t, c: module(x)) if own else None
    )
    sampler = BridgeSampler(
        network or tiny_unet(), BRIDGE, codec=None if own else tiny_codec(), calls=2
    )
    card = saved(sampler, tmp_path / "a")["README.md"].decode()
    restored = BridgeSampler.from_pretrained(tmp_path / "a", network=network)
    assert same(restored, sampler)
    assert (restored.calls, "network=bbdm.wrap(...)" in card) == (2, own)


@pytest.mark.parametrize("values", [False, True], ids=["8 bits", "values"])
def test_the_lines_of_a_card_run(
    values: bool, sampler: BridgeSampler, tmp_path: Path, monkeypatch: Any
):
    """Those of Python, beside the folder, and give the sampler's own result."""
    suffix = "npy" if values else "png"
    if values:
        sampler.pictures = Spec(
            source=Values(0, 3000, dtype="uint16"), target=Values(-1000, 1000, dtype="int16")
        )
        np.save(
            tmp_path / "source.npy",
            np.random.default_rng(0).integers(0, 3000, (3, 16, 16), dtype=np.uint16),
        )
    else:
        noise(3).save(tmp_path / "source.png")
    monkeypatch.chdir(tmp_path)
    card = saved(sampler, Path("faces"))["README.md"].decode()
    (lines,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(compile(lines, "card", "exec"), {})
    sampler(f"source.{suffix}", seed=0)[0].save(f"expected.{suffix}")
    assert (np.asarray(read(f"result.{suffix}")) == np.asarray(read(f"expected.{suffix}"))).all()


def test_only_what_is_needed_is_fetched_of_a_branch_or_a_commit(
    model: Hub, sampler: BridgeSampler, tmp_path: Path
):
    """No pickle and no code, even where the repository has them."""
    assert same(BridgeSampler.from_pretrained(NAME), sampler)
    assert model.downloads == ["config.json", "model.safetensors"]
    first = model.refs["v1"] = model.refs["main"]
    model.commit(saved(build(seed=1), tmp_path / "other"))
    assert not same(BridgeSampler.from_pretrained(NAME), sampler)
    assert same(BridgeSampler.from_pretrained(NAME, revision=first), sampler)
    assert same(BridgeSampler.from_pretrained(f"{NAME}@v1"), sampler)


def test_what_cannot_be_fetched(model: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message is the Hub's; a damaged download is found by the hash in the file itself."""
    files = model.commits[model.refs["main"]]
    damaged = {
        **files,
        "model.safetensors": files["model.safetensors"][:-4] + np.float32(0.25).tobytes(),
    }
    refusals: list[tuple[dict[str, bytes], str]] = [
        (damaged, r"cannot read .*model\.safetensors as a checkpoint: .*SHA-256 differs"),
        (
            {"config.json": b"{}", "unet.bin": b""},
            f"{NAME} on the .* Hub is no model of bbdm: it has no model.saf",
        ),
    ]
    for content, message in refusals:
        model.commit(content)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(NAME)
    model.error = RuntimeError("401 Client Error\n\nRepository Not Found: are you authenticated?")
    with pytest.raises(
        HubError, match=r"no path me/faces, and a name .*: 401 Client Error Repository Not Found"
    ):
        load_checkpoint(NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"there is no path me/faces, and .* huggingface_hub, .*: pip install 'bbdm\[hub\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        load_checkpoint(NAME)
    monkeypatch.chdir(tmp_path)  # what exists is a path
    write(tmp_path / NAME, files)
    load_checkpoint(NAME)


def test_what_is_no_name(tmp_path: Path):
    for name in ("out/gone.pt", "some/where/else"):
        with pytest.raises(FileNotFoundError, match=f"there is no checkpoint {name}"):
            BridgeSampler.from_pretrained(name)
    with pytest.raises(
        ValueError, match=r"revision='v1' is of a repository OWNER/NAME, and .* is a path"
    ):
        BridgeSampler.from_pretrained(tmp_path, revision="v1")
    with pytest.raises(
        ValueError, match="revision='v1' was given, and me/faces@v2 names another one"
    ):
        BridgeSampler.from_pretrained(f"{NAME}@v2", revision="v1")
    with pytest.raises(ValueError, match="name must be OWNER/NAME, got 'faces'"):
        build().push_to_hub("faces")


def test_a_model_is_pushed_and_again(hub: Hub, sampler: BridgeSampler, tmp_path: Path):
    """The card stays, and an export of other weights goes."""
    hub.error = RuntimeError("403 Forbidden")
    with pytest.raises(HubError, match=f"{NAME} cannot be pushed: 403 Forbidden"):
        sampler.push_to_hub(NAME, token="wrong")
    hub.error = None
    commit = sampler.push_to_hub(NAME, license="mit", token="secret")
    assert sorted(hub.commits[commit]) == ["README.md", "config.json", "model.safetensors"]
    assert f'from_pretrained("{NAME}")' in hub.commits[commit]["README.md"].decode()
    assert same(BridgeSampler.from_pretrained(NAME, revision=commit), sampler)
    others = {"README.md": b"mine", "onnx/unet.onnx": b"old", "other.txt": b"kept"}
    hub.commit({**saved(build(seed=1), tmp_path / "other"), **others})
    files = hub.commits[sampler.push_to_hub(NAME)]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "other.txt"]
    assert files["README.md"] == b"mine"
    assert same(BridgeSampler.from_pretrained(NAME), sampler)
