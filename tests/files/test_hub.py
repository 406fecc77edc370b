"""Models as folders and on a Hub: what is written and fetched, the card, and what goes wrong."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bbdm
from bbdm import ABridge, BridgeSampler, Values, demo, load_checkpoint, save_checkpoint
from bbdm.cli import translate
from bbdm.data.spec import Spec
from bbdm.files.hub import HubError, find_checkpoint
from bbdm.pictures import read
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import ROOT, noise, tiny_unet
from tests.hub import Hub, Model, serving
from tests.onnx.exports import checkpoint, export, tiny_codec

BRIDGE = ABridge(num_steps=50)
SOURCE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
NAME = "me/faces"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to, and an empty cache; nothing waits before it tries again."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # where it is depends on the version
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for module in (file_download, _http):
            monkeypatch.setattr(module.time, "sleep", lambda _: None)
        yield server


@pytest.fixture
def sampler() -> BridgeSampler:
    made = BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "dpm2m", 3)
    made.image_size = 16
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_hand(folder: Path) -> Path:
    """A folder in the documented format, made without the code that writes it."""
    unet = tiny_unet(condition_channels=3)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(unet.config).items()}
    settings = {
        "format": "bbdm",
        "version": 1,
        "unet": {"config": config},
        "bridge": {"kind": "abridge", "num_steps": 50, "c_lambda": 2.0, "objective": "residual"},
        "codec": None,
        "image_size": 16,
    }
    folder.mkdir(parents=True)
    tensors = {f"weights.{key}": value.contiguous() for key, value in unet.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"bbdm": json.dumps(settings)})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def model(hub: Hub, tmp_path: Path) -> Model:
    """A repository with a model, and with files that nobody should fetch."""
    files = files_of(by_hand(tmp_path / "faces"))
    hub.models[NAME] = Model()
    hub.models[NAME].commit({**files, "pytorch_model.bin": b"pickle", "model.pt": b"pickle", "code.py": b"1 / 0"})
    return hub.models[NAME]


def changed(model: Model) -> dict[str, bytes]:
    """The files of a repository with other weights."""
    files = dict(model.commits[model.refs["main"]])
    content = files["model.safetensors"]
    return {**files, "model.safetensors": content[:-4] + np.float32(0.25).tobytes()}


def same(a: BridgeSampler, b: BridgeSampler) -> bool:
    return torch.equal(a(SOURCE, seed=0, steps=2), b(SOURCE, seed=0, steps=2))


class TestFolder:
    def test_made_by_hand(self, tmp_path: Path):
        """The format holds still: old folders stay readable."""
        sampler = BridgeSampler.from_pretrained(by_hand(tmp_path / "faces"), solver="ddim", steps=4)
        assert same(sampler, BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "ddim"))
        assert (sampler.image_size, sampler.solver, len(sampler.table)) == (16, "ddim", 4)

    def test_of_a_sampler(self, sampler: BridgeSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Without huggingface_hub there is no card, and what it would say is refused."""
        sampler.save_pretrained(tmp_path / "card")
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        sampler.save_pretrained(tmp_path / "faces")
        assert sorted(files_of(tmp_path / "faces")) == ["config.json", "model.safetensors"]
        assert sorted(files_of(tmp_path / "card")) == ["README.md", "config.json", "model.safetensors"]
        with pytest.raises(ModuleNotFoundError, match="a model card needs huggingface_hub"):
            sampler.save_pretrained(tmp_path / "a", license="mit")
        assert same(BridgeSampler.from_pretrained(tmp_path / "faces"), sampler)
        assert load_checkpoint(tmp_path / "faces").bridge == BRIDGE
        config = json.loads((tmp_path / "faces" / "config.json").read_text())
        assert (config["format"], config["bridge"]["num_steps"]) == ("bbdm", 50)
        assert config["unet"]["config"]["model_channels"] == 8

    def test_of_latents(self, tmp_path: Path):
        sampler = BridgeSampler(tiny_unet(), BRIDGE, codec=tiny_codec(), calls=2)
        sampler.save_pretrained(tmp_path / "latent")
        restored = BridgeSampler.from_pretrained(tmp_path / "latent")
        assert same(restored, sampler)
        assert restored.calls == 2
        card = (tmp_path / "latent" / "README.md").read_text()
        assert [part for part in ("latents of a VQGAN", "| `consistency`, 2 network calls |") if part not in card] == []

    def test_of_a_network_of_the_user(self, tmp_path: Path):
        network = bbdm.wrap(torch.nn.Conv2d(3, 3, 1), call=lambda module, x, t, c: module(x))
        BridgeSampler(network, BRIDGE).save_pretrained(tmp_path / "own")
        other = bbdm.wrap(torch.nn.Conv2d(3, 3, 1), call=lambda module, x, t, c: module(x))
        restored = BridgeSampler.from_pretrained(tmp_path / "own", network=other)
        assert same(restored, BridgeSampler(network, BRIDGE))
        with pytest.raises(ValueError, match="give the network"):
            BridgeSampler.from_pretrained(tmp_path / "own")
        assert "network=bbdm.wrap(...)" in (tmp_path / "own" / "README.md").read_text()


class TestCard:
    def test_what_the_hub_reads(self, sampler: BridgeSampler, tmp_path: Path):
        """By its own library."""
        sampler.save_pretrained(tmp_path / "a", license="cc-by-sa-4.0", base_model="me/teacher")
        text = (tmp_path / "a" / "README.md").read_text()
        data: Any = huggingface_hub.ModelCard(text).data
        assert (data.library_name, data.pipeline_tag, data.tags) == ("bbdm", "image-to-image", ["diffusion-bridge"])
        assert (data.license, data.base_model) == ("cc-by-sa-4.0", "me/teacher")
        rows = [f"| bridge | `{BRIDGE}` |", "| image size | 16 x 16 |", "| solver | `dpm2m`, 3 network calls |"]
        assert [row for row in rows if row not in text.splitlines()] == []
        assert not re.search(r"\|\n\n\||\|\n[^|\n]|\n\n\n", text)  # tables are in one piece
        (tmp_path / "a" / "README.md").write_text("mine")
        sampler.save_pretrained(tmp_path / "a")
        assert (tmp_path / "a" / "README.md").read_text() == "mine"  # a card that is there stays

    @pytest.mark.parametrize("values", [False, True], ids=["8 bits", "values"])
    def test_its_lines_run(self, values: bool, sampler: BridgeSampler, tmp_path: Path, monkeypatch: Any):
        """Those of Python, beside the folder, and give the sampler's own result."""
        suffix = "npy" if values else "png"
        if values:
            sampler.pictures = Spec(source=Values(0, 3000, dtype="uint16"), target=Values(-1000, 1000, dtype="int16"))
            np.save(tmp_path / "source.npy", np.random.default_rng(0).integers(0, 3000, (3, 16, 16), dtype=np.uint16))
        else:
            noise(3).save(tmp_path / "source.png")
        sampler.save_pretrained(tmp_path / "faces")
        monkeypatch.chdir(tmp_path)
        (lines,) = re.findall(r"```python\n(.*?)```", Path("faces/README.md").read_text(), flags=re.DOTALL)
        exec(compile(lines, "card", "exec"), {})
        made, wanted = read(f"result.{suffix}"), sampler(f"source.{suffix}", seed=0)[0]
        wanted.save(f"wanted.{suffix}")
        assert (np.asarray(made) == np.asarray(read(f"wanted.{suffix}"))).all()

    @pytest.mark.nightly
    def test_its_lines_for_onnx_run(self, bundled_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Those of the bundled network and its export, each after the other on one drawing."""
        source = demo.DRAWINGS / "1F383.png"
        shutil.copyfile(source, tmp_path / "source.png")
        sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=5)
        sampler.save_pretrained(tmp_path / "colours", onnx=bundled_export)
        monkeypatch.chdir(tmp_path)
        found: list[Any] = []
        for each in re.findall(r"```python\n(.*?)```", Path("colours/README.md").read_text(), flags=re.DOTALL):
            names: dict[str, Any] = {}
            exec(compile(each, "card", "exec"), names)
            found.append(np.asarray(names["result"], dtype=float))
        assert (found[0] == np.asarray(sampler(source, seed=0)[0])).all()
        assert np.abs(found[0] - found[1]).max() <= 5  # float16


class TestFetching:
    def test_only_what_is_needed(self, hub: Hub, model: Model):
        """No pickle and no code, even where the repository has them."""
        sampler = BridgeSampler.from_pretrained(NAME, solver="ddim")
        assert same(sampler, BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, "ddim"))
        assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]
        BridgeSampler.from_pretrained(NAME)
        assert len(hub.downloads()) == 2  # the cache has them

    def test_a_branch_that_moves_and_a_commit_that_does_not(self, hub: Hub, model: Model):
        first = model.refs["main"]
        before = BridgeSampler.from_pretrained(NAME)
        model.refs["v1"] = first
        model.commit(changed(model))
        after = BridgeSampler.from_pretrained(NAME)
        assert not same(before, after)
        assert same(BridgeSampler.from_pretrained(NAME, revision=first), before)
        assert same(BridgeSampler.from_pretrained(NAME, revision="v1"), before)
        assert same(BridgeSampler.from_pretrained(f"{NAME}@v1"), before)
        with pytest.raises(ValueError, match="revision='v1' was given, and me/faces@v2 names another one"):
            BridgeSampler.from_pretrained(f"{NAME}@v2", revision="v1")

    def test_offline(self, hub: Hub, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """The Hub is down, nothing may be asked, there is no connection: the cache serves."""
        first = BridgeSampler.from_pretrained(NAME)
        hub.status = 503
        assert same(BridgeSampler.from_pretrained(NAME), first)
        with pytest.raises(HubError, match=f"no path {NAME}, and a name on the Hugging Face Hub: ."):
            BridgeSampler.from_pretrained(NAME, cache_dir=tmp_path / "empty")
        with monkeypatch.context() as patch:
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            hub.requests.clear()
            assert same(BridgeSampler.from_pretrained(NAME), first)
            with pytest.raises(HubError, match="disabled"):
                BridgeSampler.from_pretrained("me/other")
            assert not hub.requests

    def test_a_private_repository(self, hub: Hub, model: Model, monkeypatch: pytest.MonkeyPatch):
        for refusal, message in {
            (401, "RepoNotFound"): "private or gated repo, make sure you are authenticated",
            (403, "GatedRepo"): "gated repo",
        }.items():
            model.refusal = refusal
            with pytest.raises(HubError, match=message):
                BridgeSampler.from_pretrained(NAME)
        BridgeSampler.from_pretrained(NAME, token=hub.token)
        model.commit(changed(model))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        load_checkpoint(NAME)

    def test_what_is_missing(self, hub: Hub, model: Model):
        with pytest.raises(
            HubError, match=r"no path me/nobody, and a name on the Hugging Face Hub: .*Repository Not Found"
        ):
            load_checkpoint("me/nobody")
        with pytest.raises(HubError, match=f"{NAME}@v9, and .*Revision Not Found"):
            load_checkpoint(f"{NAME}@v9")
        files = model.commits[model.refs["main"]]
        model.commit({"config.json": files["config.json"], "unet.bin": b""})
        with pytest.raises(ValueError, match=f"{NAME} on the .* Hub is no model of bbdm: it has no model.saf"):
            load_checkpoint(NAME)
        assert "unet.bin" not in hub.downloads()

    @pytest.mark.parametrize("fault", ["cut", "short", "full"])
    def test_a_broken_download(self, fault: Any, hub: Hub, model: Model, monkeypatch: Any):
        """The next one is complete."""

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            if fault == "full":
                patch.setattr(huggingface_hub.file_download, "http_get", full)
            else:
                hub.faults["model.safetensors"] = fault
            with pytest.raises(HubError, match=r"received|should be of size|No space left"):
                load_checkpoint(NAME)
        hub.faults.clear()
        load_checkpoint(NAME)

    def test_a_damaged_download(self, hub: Hub, model: Model, sampler: BridgeSampler, tmp_path: Path):
        """It is found by the hash in the file itself."""
        sampler.save_pretrained(tmp_path / "written")
        model.commit(files_of(tmp_path / "written"))
        hub.faults["model.safetensors"] = "changed"
        with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors as a checkpoint: .*SHA-256 differs"):
            load_checkpoint(NAME)

    def test_a_path_wins(self, hub: Hub, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        shutil.move(tmp_path / "faces", tmp_path / "me" / "faces")
        load_checkpoint(NAME)
        assert not hub.requests
        save_checkpoint(tmp_path / "a.pt", tiny_unet(), BRIDGE)
        assert find_checkpoint(tmp_path / "a.pt") == tmp_path / "a.pt"
        assert find_checkpoint("some/where/else") == Path("some/where/else")

    def test_what_is_no_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(ValueError, match=f"{tmp_path} is a folder, and a checkpoint is a file"):
            BridgeSampler.from_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"there is no checkpoint out/gone\.pt"):
            BridgeSampler.from_pretrained("out/gone.pt")
        with pytest.raises(ValueError, match=r"revision='v1' is of a repository OWNER/NAME, and .* is a path"):
            BridgeSampler.from_pretrained(tmp_path, revision="v1")
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        message = r"there is no path me/faces, and .* huggingface_hub, .*: pip install 'bbdm\[hub\]'"
        with pytest.raises(ModuleNotFoundError, match=message):
            load_checkpoint(NAME)

    def test_a_script(self, hub: Hub, model: Model, tmp_path: Path, make_pairs: Any):
        make_pairs(tmp_path / "pairs", 2)
        translate.main(["folder", f"{tmp_path}/pairs/A", NAME, str(tmp_path / "out"), "--steps", "1", "--quiet"])
        assert (tmp_path / "out" / "0.png").is_file()


class TestPushing:
    def test_a_model_and_again(self, hub: Hub, sampler: BridgeSampler):
        """The card stays, and an export of other weights goes."""
        commit = sampler.push_to_hub(NAME, license="mit", token=hub.token)
        model = hub.models[NAME]
        assert sorted(model.commits[commit]) == ["README.md", "config.json", "model.safetensors"]
        assert f'from_pretrained("{NAME}")' in model.commits[commit]["README.md"].decode()
        assert same(BridgeSampler.from_pretrained(NAME, revision=commit), sampler)
        model.commit({**changed(model), "README.md": b"mine", "onnx/unet.onnx": b"old", "other.txt": b"kept"})
        files = model.commits[sampler.push_to_hub(NAME, token=hub.token)]
        assert sorted(files) == ["README.md", "config.json", "model.safetensors", "other.txt"]
        assert files["README.md"] == b"mine"
        assert same(BridgeSampler.from_pretrained(NAME), sampler)

    def test_refused(self, hub: Hub, sampler: BridgeSampler):
        with pytest.raises(HubError, match=f"{NAME} cannot be pushed: .*403"):
            sampler.push_to_hub(NAME, token="wrong")
        with pytest.raises(ValueError, match="name must be OWNER/NAME, got 'faces'"):
            sampler.push_to_hub("faces")
        assert not hub.models


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its weights in a second file; its checkpoint is ``bridge.pt`` beside it."""
    folder = tmp_path_factory.mktemp("export")
    return export(checkpoint(folder / "bridge.pt"), folder / "onnx", "--external-data", "--steps", "3")


class TestExport:
    def test_pushed_and_fetched(self, exported: Path, hub: Hub, tmp_path: Path):
        sampler = BridgeSampler.from_checkpoint(exported.parent / "bridge.pt", solver="dpm2m", steps=2)
        sampler.push_to_hub(NAME, onnx=exported, token=hub.token)
        hub.requests.clear()
        runtime = OnnxBridgeSampler.from_pretrained(NAME, solver="dpm2m", steps=2, threads=1)
        wanted = ["onnx/bridge.json", "onnx/step.onnx", "onnx/unet.onnx", "onnx/unet.onnx.data"]
        assert sorted(hub.downloads()) == wanted
        made = runtime(SOURCE.numpy(), seed=0)
        np.testing.assert_allclose(made, sampler(SOURCE, seed=0).numpy(), atol=1e-4)
        sampler.save_pretrained(tmp_path / "both", onnx=exported)
        assert (OnnxBridgeSampler.from_pretrained(tmp_path / "both")(SOURCE.numpy(), 0, steps=1) != made).any()

    def test_the_command_without_torch(self, exported: Path, hub: Hub, tmp_path: Path):
        """In a process of its own, whose settings are those of the environment; then offline."""
        hub.models[NAME] = Model()
        hub.models[NAME].commit({f"onnx/{name}": content for name, content in files_of(exported).items()})
        code = "import sys; sys.modules['torch'] = None; from bbdm.runtime.__main__ import main; main()"
        picture = demo.DRAWINGS / "1F383.png"
        command = [sys.executable, "-c", code, NAME, str(picture), "-o", str(tmp_path / "out"), "--steps", "1"]
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        for offline in "01":
            environment = {**os.environ, **settings, "HF_HUB_OFFLINE": offline}
            subprocess.run(command, env=environment, check=True, cwd=tmp_path)
            (tmp_path / "out" / "1F383.png").unlink()
            hub.status = 500

    def test_what_leads_out_of_the_folder(self, exported: Path, hub: Hub):
        settings = json.loads((exported / "bridge.json").read_text())
        settings["files"]["../config.json"] = ""
        hub.models[NAME] = Model()
        hub.models[NAME].commit({"onnx/bridge.json": json.dumps(settings).encode(), "config.json": b"{}"})
        with pytest.raises(ValueError, match=r"it lists \.\./config\.json, which is no graph in its folder"):
            OnnxBridgeSampler.from_pretrained(NAME)

    def test_of_another_model(self, exported: Path, sampler: BridgeSampler, tmp_path: Path):
        with pytest.raises(ValueError, match="is of another bridge than the model's ABridge"):
            sampler.save_pretrained(tmp_path / "faces", onnx=exported)
        (tmp_path / "faces" / "onnx").mkdir(parents=True)
        with pytest.raises(ValueError, match="onnx exists, and may be of other weights"):
            sampler.save_pretrained(tmp_path / "faces")
