"""Packages: the images are those of the saved sampler; a package that does not fit is refused."""

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from bbdm import ABridge, BridgeSampler, UNet, save_checkpoint
from bbdm.execution import package as package_module
from tests.conftest import ROOT, TINY, tiny_unet
from tests.execution.test_compiled import ODD, SOURCE, STEPS, Short, new_sampler

pytestmark = pytest.mark.skipif(
    ".".join(torch.__version__.split(".")[:2]) not in package_module.TESTED,
    reason="packages are tested with other versions of torch",
)
BATCH = 2
CONDITION_CHANNELS = {torch.float32: 0, torch.bfloat16: 3, torch.float64: 3}
DTYPES = [  # to compile another network and save it takes half a minute
    torch.bfloat16,
    pytest.param(torch.float32, marks=pytest.mark.nightly),
    pytest.param(torch.float64, marks=pytest.mark.nightly),
]

Package = Callable[[torch.dtype], Path]


def short(dtype: torch.dtype = torch.bfloat16, seed: int = 0, **settings: Any) -> UNet:
    """The float32 weights behind the package of a dtype."""
    settings = {**TINY, "channel_mult": (1, 1), "condition_channels": CONDITION_CHANNELS[dtype], **settings}
    unet = Short(**settings)
    unet.load_state_dict(tiny_unet(seed, **settings).state_dict())
    return unet.eval()


def build(saved: torch.dtype, solver: str = "sde-dpm2m", steps: int = STEPS, **settings: Any) -> BridgeSampler:
    return BridgeSampler(short(saved), ABridge(), solver, steps, **settings)


def package_of(sampler: BridgeSampler) -> package_module.PackagedNetwork:
    assert sampler.package is not None
    return sampler.package


@cache
def saving(dtype: torch.dtype) -> BridgeSampler:
    """The sampler that the package of a dtype is saved from."""
    return build(dtype, dtype=dtype, compile=True)


@cache
def expected(dtype: torch.dtype) -> Tensor:
    """The compiled results for the three odd images with seed 3."""
    return saving(dtype)(ODD.to(saving(dtype)._own.loop.state_dtype), seed=3, batch_size=BATCH)


@pytest.fixture(scope="module")
def package() -> Package:
    """package(dtype): a file for two images at a time, of a size off the stride, written once a session."""
    folder = Path(os.environ["BBDM_TESTS"]) / "packages"
    folder.mkdir(exist_ok=True)

    @cache
    def save(dtype: torch.dtype) -> Path:
        path = folder / str(dtype)
        with FileLock(folder / f"{dtype}.lock"):
            if not path.exists():
                saving(dtype).save_compiled(path, BATCH, (7, 5))
        return path

    return save


@pytest.fixture(scope="module")
def loaded(package: Package) -> BridgeSampler:
    """A sampler of the bfloat16 package, from float32 weights."""
    return build(torch.bfloat16, compiled=package(torch.bfloat16))


def test_threads_take_turns(loaded: BridgeSampler, monkeypatch: pytest.MonkeyPatch):
    """Steps one by one do not go through the captured loop, which has a lock of its own."""
    inside, most = 0, 0

    class Loader:
        def boxed_run(self, inputs: list[Tensor]) -> list[Tensor]:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1
            return [inputs[0].clone()]

    monkeypatch.setattr(loaded.package, "_loader", Loader())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: list(loaded.stream(ODD[:BATCH], seed=seed)), range(4)))
    assert most == 1


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_loaded_sampler_gives_the_image_of_the_saved_one(dtype: torch.dtype, count: int, package: Package):
    sampler = build(dtype, compiled=package(dtype))
    assert sampler.dtype == dtype
    assert sampler.image_size is None
    wanted = expected(dtype)
    made = sampler(ODD[:count].to(wanted.dtype), seed=3)
    assert made.abs().lt(1).float().mean() > 0.25  # [-1, 1] doesn't cut everything off
    assert torch.equal(made, wanted[:count])
    assert torch.equal(sampler(ODD[:count].to(wanted.dtype), seed=3, batch_size=BATCH + 1), made)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 3), ("posterior", 7)])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_solver_and_steps_are_free(dtype: torch.dtype, solver: str, steps: int, package: Package):
    wanted = build(dtype, solver, steps, dtype=dtype, compile=True, clamp=(-0.5, 0.5))
    wanted._own.loop.network = saving(dtype)._own.loop.network  # compiled already
    sampler = build(dtype, solver, steps, compiled=package(dtype), clamp=(-0.5, 0.5))
    assert torch.equal(sampler(ODD, seed=1), wanted(ODD, seed=1, batch_size=BATCH))


def test_stream(loaded: BridgeSampler):
    steps = list(loaded.stream(ODD[:BATCH], seed=3))
    wanted = list(saving(torch.bfloat16).stream(ODD[:BATCH], seed=3))
    assert [step.t for step in steps] == [step.t for step in wanted]
    assert all(torch.equal(a.x, b.x) and torch.equal(a.x0hat, b.x0hat) for a, b in zip(steps, wanted, strict=True))
    assert torch.equal(steps[-1].x.clamp(-1, 1), expected(torch.bfloat16)[:BATCH])
    noise = torch.randn(STEPS, 3, 3, 8, 6)  # in place of the seed
    assert torch.equal(loaded(ODD, noise=noise), saving(torch.bfloat16)(ODD, noise=noise, batch_size=BATCH))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_are_aligned(dtype: torch.dtype, package: Package):
    network = package_of(build(dtype, compiled=package(dtype)))
    constants = list(network._constants.values())
    packed = [constant for constant in constants if constant.is_mkldnn]
    addresses = [(torch.ops.mkldnn.data_ptr(c) if c.is_mkldnn else c.data_ptr()) for c in constants]
    assert addresses
    assert all(address and address % 64 == 0 for address in addresses)
    if dtype == torch.float32:
        assert bool(packed) == torch.backends.mkldnn.is_available()


USER = """
import torch
from bbdm import BridgeSampler

torch.set_num_threads(1)
sampler = BridgeSampler.from_checkpoint("unet.pt", solver="sde-dpm2m", steps=5, compiled="unet.package")
torch.save((sampler.image_size, sampler(torch.load("source.pt"), seed=3)), "made.pt")
"""


def in_a_fresh_process(folder: Path, source: Tensor) -> tuple[int, Tensor]:
    """The result of ``USER`` in a folder with unet.pt and unet.package, where there is no compiler."""
    torch.save(source, folder / "source.pt")
    own = {"PATH": folder, "CXX": "none", "CC": "none", "PYTHONPATH": ROOT}
    own |= {"TMPDIR": folder / "temporary", "TORCHINDUCTOR_CACHE_DIR": folder / "cache"}
    (folder / "temporary").mkdir()
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    done = subprocess.run([sys.executable, "-c", USER], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(folder / "temporary") == files(folder / "cache") == []
    return torch.load(folder / "made.pt")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_a_fresh_process_needs_no_compiler(package: Package, tmp_path: Path):
    """A Short's checkpoint is read as a whole UNet, but what runs is the package."""
    save_checkpoint(tmp_path / "unet.pt", short(), ABridge(), image_size=7)
    (tmp_path / "unet.package").symlink_to(package(torch.bfloat16))
    image_size, made = in_a_fresh_process(tmp_path, ODD)
    assert image_size == 7
    assert torch.equal(made, expected(torch.bfloat16))


CAPABILITIES = getattr(torch.cpu, "get_capabilities", dict)()  # packages are not tested where it is missing
ELSEWHERE: dict[str, tuple[str, object]] = {
    "package version": ("bbdm.execution.package.VERSION", package_module.VERSION - 1),  # the file is newer
    "torch": ("torch.__version__", f"{package_module.TESTED[0]}.99"),
    "processor": ("torch.cpu.get_capabilities", lambda: {**CAPABILITIES, "cpu_name": "Z80"}),
    "instruction sets": ("torch.cpu.get_capabilities", lambda: {**CAPABILITIES, "vme": True}),
    "ONEDNN_MAX_CPU_ISA": ("os.environ", {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX"}),
    "threads": ("torch.get_num_threads", lambda: 7),
}


def refused(path: Path, unet: UNet, part: str, device: str = "cpu") -> None:
    with pytest.raises(ValueError, match=f"was saved for {part} .*, here it is .*: save it anew"):
        package_module.PackagedNetwork(path, unet, torch.device(device))


@pytest.mark.parametrize("part", ELSEWHERE)
def test_refused_elsewhere(part: str, package: Package, monkeypatch: pytest.MonkeyPatch):
    path = package(torch.bfloat16)
    monkeypatch.setattr(*ELSEWHERE[part])
    refused(path, short(), part)
    if part == "threads":
        message = r"save it anew, or set OMP_NUM_THREADS=1 or call torch.set_num_threads\(1"
        with pytest.raises(ValueError, match=message):
            package_module.PackagedNetwork(path, short(), torch.device("cpu"))


def test_refused_with_a_torch_that_packages_were_not_tested_with(package: Package, monkeypatch: pytest.MonkeyPatch):
    path = package(torch.bfloat16)
    monkeypatch.setattr("torch.__version__", "2.9.1+cpu")
    tested = re.escape(", ".join(package_module.TESTED))
    this = r"and this is 2\.9\.1\+cpu; the rest of bbdm works with it"
    for call in (
        lambda: build(torch.bfloat16, compiled=path),
        lambda: saving(torch.bfloat16).save_compiled(path, size=(8, 8)),
    ):
        with pytest.raises(ValueError, match=rf"packages .* were tested with torch {tested} only, {this}"):
            call()


def test_the_sampler_does_not_import_what_only_packages_need():
    code = "import sys, bbdm.sampling.sampler; print('bbdm.execution.aoti' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_refused_for_another_device_network_or_weights(package: Package):
    path = package(torch.bfloat16)
    refused(path, short(), "device", "meta")
    refused(path, short(num_groups=2), "network")  # of the same weights
    refused(path, short(seed=1), "weights")
    unet = short()
    list(unet.parameters())[-1].data[-1] *= 1.01
    refused(path, unet, "weights")


def test_weights_that_round_to_the_same_are_accepted(package: Package):
    """In bfloat16 or float32: only the modulation differs, which is computed from the given weights."""
    for unet in (short().bfloat16(), short().bfloat16().float()):
        sampler = BridgeSampler(unet, ABridge(), "sde-dpm2m", STEPS, compiled=package(torch.bfloat16))
        assert (sampler(ODD, seed=3) - expected(torch.bfloat16)).abs().max() < 0.1


@pytest.mark.nightly
def test_a_float32_package_needs_float32_weights_or_wider(package: Package):
    refused(package(torch.float32), short(torch.float32).bfloat16(), "weights")
    unet = short(torch.float32).double()
    next(unet.parameters()).data.add_(1e-12)
    BridgeSampler(unet, ABridge(), compiled=package(torch.float32))


@pytest.mark.parametrize("kind", ["random", "empty", "truncated", "header", "safetensors", "pt"])
def test_other_files_are_refused(kind: str, package: Package, tmp_path: Path):
    path = tmp_path / f"file.{kind}"
    whole = package(torch.bfloat16).read_bytes()
    contents = {"random": os.urandom(5000), "empty": b"", "truncated": whole[:-1], "header": whole[:100]}
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        save_checkpoint(path, short(), ABridge())
    with pytest.raises(ValueError, match="is not a package that save_compiled wrote"):
        build(torch.bfloat16, compiled=path)
    with pytest.raises(FileNotFoundError, match="there is no package"):
        build(torch.bfloat16, compiled=tmp_path)


@pytest.mark.parametrize("part", ["constant", "code", "settings"])
def test_a_damaged_package_is_refused(part: str, package: Package, tmp_path: Path):
    whole = bytearray(package(torch.bfloat16).read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    spans = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
    code = spans.pop(package_module.CODE)
    span = code if part == "code" else max(spans.values(), key=lambda span: span[1] - span[0])
    place = whole.index(b"offset") + 10 if part == "settings" else start + sum(span) // 2
    whole[place] ^= 0x04
    (tmp_path / "a").write_bytes(whole)
    with pytest.raises(ValueError, match="has changed since save_compiled wrote it: save it anew"):
        build(torch.bfloat16, compiled=tmp_path / "a")


def test_arguments_of_the_constructor_and_of_a_call(loaded: BridgeSampler, package: Package):
    path = package(torch.bfloat16)
    with pytest.raises(ValueError, match="compile and compiled exclude each other"):
        build(torch.bfloat16, compile=True, compiled=path)
    for dtype in (torch.float32, torch.float64, torch.float16):
        with pytest.raises(ValueError, match=f"dtype must be that of .*, torch.bfloat16, got {dtype}"):
            build(torch.bfloat16, compiled=path, dtype=dtype)
    with pytest.raises(ValueError, match=r"was saved for shape \(2, 3, 8, 6\), got \(2, 3, 8, 8\)"):
        loaded(SOURCE, seed=0)
    with pytest.raises(ValueError, match="source must hold 2 images for this network, got 3"):
        loaded.stream(ODD, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 2, which the network takes alone, got 1"):
        loaded(ODD, seed=0, batch_size=1)


def test_arguments_of_save_compiled(loaded: BridgeSampler, tmp_path: Path):
    path = tmp_path / "package"
    for sampler in (loaded, new_sampler()):
        with pytest.raises(ValueError, match="compile=True"):
            sampler.save_compiled(path, size=(8, 8))
    sampler = new_sampler(compile=True)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
            sampler.save_compiled(path, batch_size, (8, 8))
    with pytest.raises(ValueError, match="size must be given"):
        sampler.save_compiled(path)
    with pytest.raises(ValueError, match="is a folder, and a file is to be written there"):
        sampler.save_compiled(tmp_path, size=(8, 8))
    assert files(tmp_path) == []


def test_the_size_of_the_checkpoint_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr("bbdm.sampling.sampler.save_package", lambda path, unet, shape, _: shapes.append(shape))
    save_checkpoint(tmp_path / "unet.safetensors", short(), ABridge(), image_size=7)
    sampler = BridgeSampler.from_checkpoint(tmp_path / "unet.safetensors", compile=True, dtype=torch.float32)
    sampler.save_compiled(tmp_path / "package")
    sampler.save_compiled(tmp_path / "package", 2, (5, 4))
    assert shapes == [(1, 3, 8, 8), (2, 3, 6, 4)]


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_failure_to_compile_leaves_what_was_there(before: bytes | None, tmp_path: Path, monkeypatch: Any):
    def fail(*_: object, package_path: str, **settings: object) -> None:
        Path(package_path).write_bytes(b"half")
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "package"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(RuntimeError, match="no compiler"):
        saving(torch.bfloat16).save_compiled(path, size=(8, 8))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_dropped_package_leaves_nothing(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = package(torch.bfloat16)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    sampler = build(torch.bfloat16, compiled=path)
    sampler(ODD, seed=0)
    assert files(tmp_path)  # the library that runs
    memory = [weakref.ref(constant) for constant in package_of(sampler)._memory.values()]
    del sampler
    gc.collect()
    assert [constant() for constant in memory] == [None] * len(memory)
    assert files(tmp_path) == []
