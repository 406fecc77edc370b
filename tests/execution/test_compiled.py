"""Compiled runs against eager ones, what is kept from call to call, and on CUDA the captured graph."""

import gc
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import Unsupported
from torch._inductor.codecache import PyCodeCache

from bbdm import ABridge, BridgeSampler, UNet
from bbdm.execution import compiled
from bbdm.execution import device as device_module
from bbdm.networks.base import Conditions
from tests.conftest import ROOT, TINY, tiny_dit, tiny_unet
from tests.onnx.exports import checkpoint

STEPS = 5
# rounding of values up to 1, times the weights of up to 33 that dpm2m gives x near T
FLOAT32 = 1e-4

SOURCE = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5
ODD = SOURCE[:3, :, :7, :5]  # off the stride


class Short(UNet):
    """A network that compiles in a second: one residual block between two convolutions."""

    def body(self, x: Tensor, embedding: Tensor, conditions: Conditions) -> Tensor:
        h = torch.cat([x, conditions["source"]], dim=1) if conditions else x
        h = self.middle_block[0](self.input_blocks[0](h, embedding), embedding)
        return self.out[2](h)


def short_unet(kind: type[UNet] = Short) -> UNet:
    settings: dict[str, Any] = {"channel_mult": (1, 1), "condition_channels": 3}
    torch.manual_seed(0)  # for what the tiny network lacks
    unet = kind(**{**TINY, **settings})
    unet.load_state_dict(tiny_unet(**settings).state_dict(), strict=False)
    return unet.eval()


@cache
def build(dtype: torch.dtype = torch.float32, compile: bool = True) -> BridgeSampler:
    """A sampler of the short network, one for each set of arguments."""
    return new_sampler(dtype=dtype, compile=compile)


def new_sampler(
    solver: str = "sde-dpm2m", kind: type[UNet] = Short, **settings: Any
) -> BridgeSampler:
    """A new sampler, in float32 by default."""
    return BridgeSampler(
        short_unet(kind), ABridge(), solver, STEPS, **{"dtype": torch.float32, **settings}
    )


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[object]]:
    """A reference to each network that would be compiled; the function itself takes its place."""
    made: list[weakref.ref[object]] = []

    def compile_nothing(self: compiled.Compiled, *_: object) -> Callable[..., Tensor]:
        def network(*arguments: Tensor | None) -> Tensor:
            return self.function(*arguments)

        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(compiled.Compiled, "_compile", compile_nothing)
    return made


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def test_windows_of_any_picture_are_one_shape(compilations: list[weakref.ref[object]]):
    sampler = new_sampler(compile=True)
    for height, width in ((20, 31), (9, 16), (40, 8)):
        source = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) - 0.5
        made = sampler(source, seed=3, window=8, batch_size=4)
        wanted = build(compile=False)(source, seed=3, window=8, batch_size=4)
        torch.testing.assert_close(made, wanted, rtol=0, atol=FLOAT32)
    assert len(compilations) == 1


@pytest.mark.usefixtures("inductor")
def test_compiled_is_eager():
    settings: dict[str, Any] = {"solver": "dpm2m", "steps": 3}
    for call in ({}, settings):
        made, exact = (build(compile=compile)(ODD, seed=3, **call) for compile in (True, False))
        assert exact.abs().lt(1).float().mean() > 0.25  # [-1, 1] doesn't cut everything off
        torch.testing.assert_close(made, exact, rtol=0, atol=FLOAT32)


@pytest.mark.nightly
@pytest.mark.usefixtures("inductor")
def test_compiled_is_as_near_in_bfloat16():
    """As a package of it is by day."""
    exact = build(compile=False)(ODD, seed=3)
    rival = largest(build(dtype=torch.bfloat16, compile=False)(ODD, seed=3) - exact)
    made = build(dtype=torch.bfloat16)
    assert made.dtype == next(made.unet.parameters()).dtype == torch.bfloat16
    assert largest(made(ODD, seed=3) - exact) <= 2 * rival


@pytest.mark.parametrize(
    ("make", "settings"),
    [(tiny_unet, {"channel_mult": (1,), "attention_resolutions": (1,)}), (tiny_dit, {"depth": 1})],
    ids=["unet", "dit"],
)
def test_a_whole_network_is_one_graph(make: Callable[..., Any], settings: dict[str, Any]):
    """For torch's tracer; the compiler's code for it is a nightly test."""
    network = make(condition_channels=3, **settings).eval()
    arguments = SOURCE, network.embed(torch.tensor([3.0])), {"source": SOURCE}
    with torch.no_grad():
        traced = torch.compile(network.body, fullgraph=True, dynamic=False, backend="aot_eager")(
            *arguments
        )
        torch.testing.assert_close(traced, network.body(*arguments), rtol=0, atol=FLOAT32)


@pytest.mark.usefixtures("compilations")
def test_modulation_is_computed_once(monkeypatch: pytest.MonkeyPatch):
    calls: list[Tensor] = []
    embedder = UNet.embedder

    def counting(self: UNet) -> Any:
        embed = embedder(self)
        return lambda t: calls.append(t) or embed(t)

    monkeypatch.setattr(UNet, "embedder", counting)
    sampler = new_sampler(compile=True)
    assert [t.tolist() for t in calls] == [sampler.table.timesteps.tolist()]
    sampler(ODD, seed=0)
    list(sampler.stream(ODD, seed=0))
    assert len(calls) == 1
    half = build(dtype=torch.bfloat16, compile=False)  # of the weights before they are rounded
    expected = short_unet().embed(torch.tensor(half.table.timesteps))
    assert torch.equal(half.plan().loaded.embedding, expected.detach())


class Broken(Short):
    def body(self, x: Tensor, embedding: Tensor, conditions: Conditions) -> Tensor:
        torch._dynamo.graph_break()
        return super().body(x, embedding, conditions)


def test_a_failure_to_compile_is_raised_at_every_call():
    sampler = new_sampler(kind=Broken, compile=True)
    for _ in range(2):
        with pytest.raises(Unsupported, match="graph_break"):
            sampler(SOURCE, seed=0)
        with pytest.raises(Unsupported, match="graph_break"):
            list(sampler.stream(SOURCE, seed=0))
    new_sampler(kind=Broken)(SOURCE, seed=0)


def test_shapes_used_least_recently_are_dropped(
    compilations: list[weakref.ref[object]], monkeypatch: Any
):
    monkeypatch.setattr(compiled, "SHAPES_KEPT", 2)
    sampler = new_sampler(compile=True)
    counts: list[int] = []
    for size in (8, 6, 8, 4, 8, 6, 4):  # 4 takes the place of 6, and so on
        made = sampler(SOURCE[..., :size], seed=0)
        assert torch.equal(made, build(compile=False)(SOURCE[..., :size], seed=0))
        counts.append(len(compilations))
        assert sum(network() is not None for network in compilations) <= 2
    assert counts == [1, 2, 2, 3, 3, 4, 5]


def test_a_short_last_part_is_filled_up(compilations: list[weakref.ref[object]]):
    sampler = new_sampler(compile=True)
    noise = torch.randn(STEPS, *SOURCE.shape)
    seeded = sampler(SOURCE, seed=7, batch_size=2)
    given = sampler(SOURCE, noise=noise, batch_size=2)
    eager = build(compile=False)
    for i in range(5):
        alone = eager(SOURCE[i : i + 1], seed=7 + i)
        torch.testing.assert_close(seeded[i : i + 1], alone, rtol=0, atol=FLOAT32)
        alone = eager(SOURCE[i : i + 1], noise=noise[:, i : i + 1])
        torch.testing.assert_close(given[i : i + 1], alone, rtol=0, atol=FLOAT32)
    assert seeded.shape == given.shape == SOURCE.shape
    for rest in (
        sampler(SOURCE[4:], seed=11, batch_size=2),
        sampler(SOURCE[:1], noise=noise[:, :1], batch_size=2),
    ):
        assert len(rest) == 1  # of calls of their own too
    torch.testing.assert_close(
        sampler(SOURCE[4:], seed=11, batch_size=2), seeded[4:], rtol=0, atol=FLOAT32
    )
    assert len(compilations) == 1
    # of 3 and 2
    torch.testing.assert_close(
        sampler(SOURCE, noise=noise, batch_size=3), given, rtol=0, atol=FLOAT32
    )


@pytest.mark.nightly
@pytest.mark.usefixtures("inductor")
def test_threads_share_a_compiled_sampler():
    """From the first call on: the two shapes, of one image each, are compiled while all eight wait for them.

    The compiler holds no constants of the two networks afterwards.
    """
    sampler, modules = new_sampler(compile=True), list(PyCodeCache.modules)

    def call(i: int) -> Tensor:
        return sampler(SOURCE[i % 5 : i % 5 + 1, :, :, : 8 - 2 * (i % 2)], seed=i)

    with ThreadPoolExecutor(8) as pool:
        threads = [
            pool.submit(lambda first: [call(first + k) for k in range(5)], 5 * t) for t in range(8)
        ]
        made = [result for thread in threads for result in thread.result()]
    for i, image in enumerate(made):
        again = call(i)
        eager = build(compile=False)(SOURCE[i % 5 : i % 5 + 1, :, :, : 8 - 2 * (i % 2)], seed=i)
        assert torch.equal(image, again)
        torch.testing.assert_close(image, eager, rtol=0, atol=FLOAT32)
    assert PyCodeCache.modules == modules


@pytest.mark.usefixtures("inductor")
def test_calls_leave_no_tensors():
    counts: list[int] = []
    for seed in range(3):
        for compile in (False, True):
            build(compile=compile)(ODD, seed=seed)
            list(build(compile=compile).stream(ODD, seed=seed))
        gc.collect()
        counts.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
    assert counts[1] == counts[2]  # the first calls may compile


@pytest.mark.parametrize(
    ("flags", "best"),
    [("avx512f avx512_bf16", "bfloat16"), ("avx512f", "float32"), ("", "float32")],
)
def test_compiled_float32_networks_run_in_the_best_dtype(flags: str, best: str, monkeypatch: Any):
    """In bfloat16 where the processor multiplies in it."""
    monkeypatch.setattr(device_module, "cpuinfo", lambda field: flags)
    unet = short_unet()
    assert BridgeSampler(unet, ABridge(), compile=True).dtype == getattr(torch, best)
    assert BridgeSampler(unet, ABridge()).dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert BridgeSampler(unet, ABridge(), dtype=dtype, compile=True).dtype == dtype
    assert BridgeSampler(short_unet().double(), ABridge(), compile=True).dtype == torch.float64


@pytest.mark.parametrize(("major", "best"), [(7, torch.float32), (8, torch.bfloat16)])
def test_the_best_dtype_of_a_card_is_of_that_card_and_without_emulation(
    major: int, best: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Cards before Ampere emulate bfloat16. The second card is asked for; the first is the current one."""
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    def is_supported(including_emulation: bool = True) -> bool:
        assert entered == [torch.device("cuda", 1)]
        return including_emulation or major >= 8

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert device_module.best_dtype(torch.device("cuda", 1)) == best


@pytest.mark.usefixtures("inductor")
def test_each_dtype_and_each_order_in_memory_is_compiled():
    """The compiler's guards are left out, so that code for another tensor of the shape would not notice."""
    double = compiled.Compiled(lambda x: x * 2 + x.flip(1), torch.device("cpu"))
    x = torch.rand(2, 3, 4, 5)
    for same in (x, x.to(memory_format=torch.channels_last), x.double(), x[:1], x):
        assert torch.equal(double(same), same * 2 + same.flip(1))
    assert len(double.functions()) == 4


def test_strides_of_sides_of_1_are_not_compiled_again(compilations: list[weakref.ref[object]]):
    """Nothing is read with them, and a compilation takes seconds. Tensors by name are like others."""
    same = compiled.Compiled(lambda x, named: x + named["y"], torch.device("cpu"))
    x = torch.rand(1, 1, 4, 5)
    gap = torch.rand(3, 2, 4, 9)[1:2, 1:, :, 2:7]
    for y in (x, x.as_strided(x.shape, (1, 7, 5, 1)), x.to(memory_format=torch.channels_last)):
        same(x, {"y": y})
    assert len(compilations) == 1
    same(x, {"y": gap})
    same(x, {"y": gap.as_strided(x.shape, (3, 4, 9, 1))})
    same(x, {"y": x.double()})
    assert len(compilations) == 3


def test_what_others_compile_stays():
    """The compiler's list of modules is the process's, from which those of a sampler are taken."""
    own, other = ModuleType("own"), ModuleType("other")
    modules = PyCodeCache.modules
    known = list(modules)

    def compile_other() -> None:
        with compile_lock:  # as torch.compile does
            modules.append(other)

    with ThreadPoolExecutor(1) as pool:
        with compiled.forgetting_modules():
            done = pool.submit(compile_other)
            modules.append(own)
            wait([done], 0.05)
        done.result()
    assert modules == [*known, other]
    modules.remove(other)


def test_what_is_known_does_not_wait_for_what_is_made():
    started, go_on = threading.Event(), threading.Event()

    def make(number: int) -> str:
        if number > 0:
            started.set()
            assert go_on.wait(10)
        return f"code {number}"

    recent = compiled.Recent(make)
    assert recent.get(0, 0) == "code 0"
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(recent.get, 1, 1)
        assert started.wait(10)
        assert pool.submit(recent.get, 0, 0).result(10) == "code 0"
        assert not new.done()
        go_on.set()
        assert new.result(10) == "code 1"


def test_two_samplers_never_compile_or_capture_at_once():
    """PyTorch captures one graph at a time in a process."""
    running, most = 0, 0

    def make(_: int) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return "graph"

    samplers = [compiled.Recent(make), compiled.Recent(make)]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(samplers[i % 2].get, i, i) for i in range(8)]
        assert [call.result() for call in calls] == ["graph"] * 8
    assert most == 1


FOLDERS = ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR"]


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_space_in_the_compilers_path_is_named(variable: str, monkeypatch: pytest.MonkeyPatch):
    """Where the compiler fails, whose own error does not say it."""
    folders = dict.fromkeys(FOLDERS, "/folder") | {variable: "/a folder"}

    def compile() -> None:
        monkeypatch.setattr(tempfile, "tempdir", folders["TMPDIR"])
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folders["TORCHINDUCTOR_CACHE_DIR"])
        with compiled.naming_a_space():
            raise RuntimeError("C++ compile error")

    with pytest.raises(
        ValueError, match=f"a path with a space, /a folder: set {variable} to another$"
    ):
        compile()
    folders[variable] = "/folder"
    with pytest.raises(RuntimeError, match=r"^C\+\+ compile error$"):
        compile()


@pytest.mark.nightly
@pytest.mark.usefixtures("inductor")
@pytest.mark.skipif(sys.platform == "win32", reason="the compiler there takes such paths")
@pytest.mark.parametrize("variable", FOLDERS)
def test_the_command_names_a_space(variable: str, tmp_path: Path):
    """Where the compiler fails in truth, which a newer one may not."""
    (tmp_path / "a folder").mkdir()
    words = [
        sys.executable,
        "-m",
        "bbdm",
        "export",
        checkpoint(tmp_path / "a.pt"),
        tmp_path / "out",
    ]
    words += ["--compiled", "16", "--device", "cpu"]
    variables = {**os.environ, variable: str(tmp_path / "a folder"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    expected = f"error: .* path with a space, {re.escape(str(tmp_path))}/a folder.*: set {variable} to another"
    assert re.fullmatch(expected, done.stderr.splitlines()[-1])
    assert done.returncode == 1
