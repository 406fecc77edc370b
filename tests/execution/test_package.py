"""Packages: a new process gives the saved sampler's picture; a package that does not fit is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from bbdm import BridgeSampler, save_checkpoint
from bbdm.cli.files import Export
from bbdm.execution import device as device_module
from bbdm.execution.compiled import PackagedNetwork
from bbdm.networks.base import Wrapped
from bbdm.networks.config import OWN
from tests.conftest import BRIDGE, ROOT, tiny_unet

STEPS = 3
CPU = torch.device("cpu")
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
NETWORK = """
import torch
from bbdm import networks

def call(module, x, t, seen):
    return module(torch.cat([x, seen["source"]], 1)) + t.to(x.dtype)[:, None, None, None] / 50

@networks.register("package-test", call=call)
def build(config):
    return torch.nn.Conv2d(6, 3, 3, padding=1)
"""
exec(NETWORK)  # as the process of a user does


def network(seed: int = 0) -> Any:
    """One convolution, which compiles in seconds, and sees the time."""
    torch.manual_seed(seed)
    return Wrapped.from_config(OWN["package-test"]).eval()


@pytest.fixture(scope="module")
def package(inductor: None) -> Path:
    """A folder with network.safetensors and unet.pt2 for one picture of 8 x 8, as the command writes it."""
    folder = Path(os.environ["BBDM_TESTS"]) / "package"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "unet.pt2").exists():
            save_checkpoint(folder / "network.safetensors", network(), BRIDGE, image_size=8)
            Export.main(
                [
                    str(folder / "network.safetensors"),
                    str(folder),
                    "--compiled",
                    "8",
                    "--dtype",
                    "bf16",
                ]
            )
    return folder


def loaded(folder: Path, **settings: Any) -> BridgeSampler:
    return BridgeSampler(
        network(), BRIDGE, "sde-dpm2m", STEPS, compiled=folder / "unet.pt2", **settings
    )


USER = f"""{NETWORK}
import sys
from bbdm import BridgeSampler
file, package, source, made = sys.argv[1:]
sampler = BridgeSampler.from_checkpoint(file, solver="sde-dpm2m", steps=3, compiled=package)
torch.save(sampler(torch.load(source), seed=3), made)
"""


def test_a_new_process_without_a_compiler_gives_the_picture(package: Path, tmp_path: Path):
    torch.save(SOURCE, tmp_path / "source.pt")
    files = [
        package / "network.safetensors",
        package / "unet.pt2",
        tmp_path / "source.pt",
        tmp_path / "made.pt",
    ]
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "CXX": "none",
        "CC": "none",
        "PYTHONPATH": str(ROOT),
    }
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", USER, *map(str, files)], env=environment, check=True)
    made, sampler = torch.load(tmp_path / "made.pt"), loaded(package)
    assert torch.equal(made, sampler(SOURCE, seed=3))
    assert (sampler.dtype, sampler.package and sampler.package.shape) == (
        torch.bfloat16,
        (1, 3, 8, 8),
    )
    exact = BridgeSampler(network(), BRIDGE, "sde-dpm2m", STEPS)(SOURCE, seed=3)
    rival = BridgeSampler(network(), BRIDGE, "sde-dpm2m", STEPS, dtype="bf16")(SOURCE, seed=3)
    assert exact.abs().lt(1).float().mean() > 0.25  # [-1, 1] does not cut everything off
    assert (made - exact).abs().max() <= 2 * (rival - exact).abs().max() + 1e-3
    # solver and steps are free
    other = loaded(package).stream(SOURCE[:1], seed=3, solver="ddim", steps=2)
    assert len(list(other)) == 2


ELSEWHERE: dict[str, tuple[Any, str, Any]] = {
    "torch": (torch, "__version__", "1.0"),
    "processor": (device_module, "processor", lambda device: "Z80"),
    "instruction sets": (device_module, "cpuinfo", lambda field: "avx1024"),
    "ONEDNN_MAX_CPU_ISA": (os, "environ", {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX"}),
    "threads": (torch, "get_num_threads", lambda: 7),
}


def test_refused_elsewhere_and_for_another(package: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(part: str, other: Any = None, device: str = "cpu") -> None:
        with pytest.raises(ValueError, match=rf"unet.pt2 was saved for {part} .*, here it is "):
            PackagedNetwork(package / "unet.pt2", other or network(), torch.device(device))

    for part, where in ELSEWHERE.items():
        with monkeypatch.context() as patch:
            patch.setattr(*where)
            refused(part)
    refused("device", device="meta")
    refused("network", tiny_unet(condition_channels=3))
    refused("weights", network(seed=1))


def test_damage_is_refused(package: Path, tmp_path: Path):
    path, about = tmp_path / "unet.pt2", tmp_path / "unet.pt2.json"
    with pytest.raises(FileNotFoundError, match=r"unet\.pt2\.json"):
        PackagedNetwork(path, network(), CPU)
    content = (package / "unet.pt2.json").read_text()
    for text in ("", "[]", "{}", json.dumps({**json.loads(content), "fits": {"dtype": "int8"}})):
        about.write_text(text)
        with pytest.raises(ValueError, match=r"cannot read .*unet\.pt2\.json"):
            PackagedNetwork(path, network(), CPU)
    about.write_text(content)
    with pytest.raises(FileNotFoundError, match=r"unet\.pt2"):
        PackagedNetwork(path, network(), CPU)
    whole = bytearray((package / "unet.pt2").read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"unet\.pt2 has changed since it was saved"):
        PackagedNetwork(path, network(), CPU)


def test_arguments(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sampler, path = loaded(package), package / "unet.pt2"
    with pytest.raises(ValueError, match="compile and compiled exclude each other"):
        loaded(package, compile=True)
    with pytest.raises(
        ValueError, match=r"dtype must be that of .*, torch.bfloat16, got torch.float32"
    ):
        loaded(package, dtype="fp32")
    with pytest.raises(
        ValueError, match=r"saved for states of 1 x 3 x 8 x 8, got 1 x 3 x 10 x 8: give another"
    ):
        sampler(SOURCE[:1].repeat(1, 1, 2, 1)[:, :, :10], seed=0)
    writer = BridgeSampler(network(), BRIDGE, compile=True)
    for other, message, to, settings in (
        (sampler, "compile=True", path, {}),
        (writer, "is a folder", tmp_path, {}),
        (writer, r"ends in \.pt2, got", tmp_path / "unet", {}),
        (
            BridgeSampler(tiny_unet(tokens={"text": 4}), BRIDGE, compile=True),
            "text are tokens",
            tmp_path / "a.pt2",
            {},
        ),
    ):
        with pytest.raises(ValueError, match=message):
            other.save_compiled(to, **{"size": (8, 8), **settings})
    with pytest.raises(ValueError, match=r"unet\.pt2 exists: --overwrite replaces it"):
        Export.main([str(package / "network.safetensors"), str(package), "--compiled", "8"])
    with pytest.raises(ValueError, match="takes no --steps, --pipeline"):
        Export.main(
            [str(package / "network.safetensors"), "--compiled", "8", "--pipeline", "--steps", "3"]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_compile_leaves_what_was_there(tmp_path: Path, monkeypatch: Any):
    def fail(*_: object, package_path: str, **settings: object) -> None:
        Path(package_path).write_bytes(b"half")
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    (tmp_path / "a.pt2").write_bytes(b"before")
    for name in ("a.pt2", "b.pt2"):
        with pytest.raises(RuntimeError, match="no compiler"):
            BridgeSampler(network(), BRIDGE, compile=True, dtype="fp32").save_compiled(
                tmp_path / name, size=(8, 8)
            )
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]
